"""Runs one shard: craft images on the source, check that they are legal, score them on the target."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins import metrics
from art_qplugins.attacks import ATTACKS
from art_qplugins.attacks.craft import Crafted, craft
from art_qplugins.attacks.views import median_gap
from art_qplugins.deployment.parity import answering, same_labels
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.alone import correct_alone
from art_qplugins.evaluation.binarization import binarization_test
from art_qplugins.evaluation.cell import CellSpec, Shard
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.outcome import Columns, Outcome, means
from art_qplugins.evaluation.outputs import LogProbabilities
from art_qplugins.evaluation.records import Cell
from art_qplugins.evaluation.score import check_legal, finite_columns, lower_margin, over_images, score
from art_qplugins.evaluation.steadiness import Steadiness, no_answer
from art_qplugins.gradients.counting import counting
from art_qplugins.gradients.facts import output_facts
from art_qplugins.gradients.measure import measure
from art_qplugins.gradients.probe import answer
from art_qplugins.guard import isolated
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["Attempt", "attempt", "cell_without_number", "failed"]

_ASKED = 8  # clean images that the model is asked for before and after each attack

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Attempt:
    """The result of a shard.

    :param x_adv: the adversarial images, (len(shard.rows), C, H, W); ``None`` where the shard failed.
    """

    shard: Shard
    outcome: Outcome
    x_adv: NDArray[np.float32] | None


def attempt(evaluator: Evaluator, shard: Shard) -> Attempt:
    """Craft and score the images of a shard. A failure is returned as an attempt with its traceback."""
    target = evaluator.estimators[shard.spec.model]
    steadiness = Steadiness(target.model, evaluator.x[:_ASKED].to(target.device))
    try:
        made = _within_memory(evaluator, shard)
    except (Exception, SystemExit) as error:  # a network may exit
        logger.debug("%s failed", shard.id, exc_info=True)
        made = failed(shard, traceback.format_exc(), raised=no_answer(error, target.model))
    return replace(made, outcome=made.outcome.with_cell(drift=steadiness.drift()))


def failed(shard: Shard, error: str, *, raised: bool = False) -> Attempt:
    """The attempt of a shard that failed.

    :param raised: whether it failed because the model has no answer for a legal image.
    """
    spec = shard.spec
    params = {**spec.options, **({"check": spec.check} if spec.check else {})}
    cell = cell_without_number(shard.cell, spec, status="error", params=params, error=error, raised=raised)
    return Attempt(shard, Outcome(cell), None)


def cell_without_number(name: str, spec: CellSpec, **more: Any) -> Cell:
    """The record of a cell that failed or was not run."""
    nothing = {"n": 0, "accuracy": None, "interval": None, "forward_samples": 0, "backward_samples": 0, "seconds": 0.0}
    return _cell(name, spec, **nothing, **more)


def _cell(name: str, spec: CellSpec, **result: Any) -> Cell:
    return Cell(
        id=name,
        **spec.named,
        attack=spec.attack,
        knowledge=ATTACKS[spec.attack].knowledge,
        norm=spec.norm,
        eps=spec.eps,
        seed=spec.seed,
        **result,
    )


def _within_memory(evaluator: Evaluator, shard: Shard) -> Attempt:
    """Halve the batch size until the memory suffices."""
    batch_size = min(evaluator.batch_size, len(shard.rows))
    notes: list[str] = []
    while True:
        try:
            made = _attempt(evaluator, shard, batch_size)
        except (RuntimeError, MemoryError) as error:
            if batch_size == 1 or not _out_of_memory(error):
                raise
        else:
            cell = made.outcome.cell
            return Attempt(shard, made.outcome.with_cell(notes=[*notes, *cell.notes]), made.x_adv)
        notes.append(f"out of memory with batches of {batch_size} images; continued with {batch_size // 2}")
        batch_size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # not inside the except clause: the exception keeps the attack's memory alive


def _out_of_memory(error: Exception) -> bool:
    """Whether the memory did not suffice. torch has a class for accelerators, but raises a ``RuntimeError`` on the CPU."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _attempt(evaluator: Evaluator, shard: Shard, batch_size: int) -> Attempt:
    spec, rows = shard.spec, list(shard.rows)
    source, target = evaluator.estimators[spec.source], evaluator.estimators[spec.model]
    x, y = evaluator.x[rows].to(target.device), evaluator.y[rows].to(target.device)
    started = time.perf_counter()
    crafted = _binarized(spec, source, x, y) if spec.check else _crafted(evaluator, shard, source, x, y, batch_size)
    how = {"batch_size": batch_size, "draws": evaluator.score_draws}
    x_adv, distance, scored = _judged(crafted, shard, target, x, y, how)
    tried = [scored]
    for draw in range(1, ATTACKS[spec.attack].images(spec.options)):
        again = _crafted(evaluator, shard, source, x, y, batch_size, draw)
        other, other_distance, another = _judged(again, shard, target, x, y, how)
        nearer = torch.from_numpy(lower_margin(another, tried)).to(x.device)
        x_adv[nearer], distance[nearer] = other[nearer], other_distance[nearer]
        tried.append(another)
    scored = over_images(tried)
    found = crafted
    if spec.role == "clean":
        measured = crafted.options["radius"] > 0
        found = (
            _measured(shard, crafted, target, x, y, batch_size) if measured else _asked(crafted, target, x, batch_size)
        )
    columns = {
        "label": y.double().cpu().numpy(),
        "distance": distance.double().cpu().numpy(),
        **scored,
        **found.path,
    }
    predicted = torch.from_numpy(scored["prediction"])
    if (agrees := same_labels(target.model, x_adv, predicted, batch_size)) is not None:
        columns["agrees"] = agrees
    if (alone := correct_alone(target.model, x_adv, y, seed=shard.spec.seed)) is not None:
        columns["alone"] = alone
    cell = _finished(evaluator, shard, found, scored, time.perf_counter() - started)
    outcome = Outcome(cell, [evaluator.ids[row] for row in rows], finite_columns(columns))
    return Attempt(shard, outcome, x_adv.cpu().numpy())


def _judged(
    crafted: Crafted, shard: Shard, target: QuantizedClassifier, x: Tensor, y: Tensor, how: Mapping[str, int]
) -> tuple[Tensor, Tensor, Columns]:
    """The images, their distances, and their scores.

    :param how: further arguments of ``score``.
    """
    x_adv = crafted.x_adv.to(x)
    distance = check_legal(x, x_adv, Threat(shard.spec.norm, shard.spec.eps))
    scored = score(target.model, x_adv, y, seed=_seed(shard), abstain=target.abstain, **how)
    return x_adv, distance, scored


def _finished(evaluator: Evaluator, shard: Shard, found: Crafted, scored: Columns, seconds: float) -> Cell:
    spec = shard.spec
    whole = spec.rows is None and shard.of == 1
    return _cell(
        shard.id,
        spec,
        params=found.options | ({"restart": spec.restart} if spec.restart else {}),
        n=len(shard.rows),
        **means(scored),
        forward_samples=found.forward_samples,
        backward_samples=found.backward_samples,
        seconds=seconds,
        status="success",
        notes=list(found.notes),
        rows=None if whole else list(shard.rows),
        of=None if whole else len(evaluator),
        facts=found.facts,
        visited=None if spec.role == "clean" else found.visited,
        undefined=found.undefined,
    )


def _crafted(
    evaluator: Evaluator,
    shard: Shard,
    source: QuantizedClassifier,
    x: Tensor,
    y: Tensor,
    batch_size: int,
    draw: int = 0,
) -> Crafted:
    """:param draw: another number gives the attack other random numbers."""
    spec = shard.spec
    purpose = f"attack/{spec.restart}" if spec.restart else "attack"
    purpose += f"/draw/{draw}" if draw else ""
    first = shard.number == 0
    return craft(
        source,
        spec.attack,
        x.to(source.device),
        y.to(source.device),
        threat=Threat(spec.norm, spec.eps),
        options=spec.options,
        gap=spec.gap if first else None,
        temperature=None if first else _temperature(evaluator, spec, source, derive_seed(spec.seed, purpose)),
        gradient_scale=spec.gradient_scale,
        start=None if shard.start is None else torch.from_numpy(shard.start).to(source.device),
        batch_size=batch_size,
        seed=derive_seed(_seed(shard), purpose),
    )


def _temperature(evaluator: Evaluator, spec: CellSpec, source: QuantizedClassifier, seed: int) -> float | None:
    """The temperature of the first shard, so that all shards of an attack see the same network."""
    if spec.gap is None:
        return None
    rows: Sequence[int] = list(evaluator.shards(spec)[0].rows)
    with isolated(source.model, seed), draws_from(source.model, seed):
        found = median_gap(
            source.model, evaluator.x[rows].to(source.device), seed=seed, batch_size=evaluator.batch_size
        )
    return found / spec.gap


def _binarized(spec: CellSpec, source: QuantizedClassifier, x: Tensor, y: Tensor) -> Crafted:
    """Run the attack against binary networks around the images. The images do not change."""
    threat, spent = Threat(spec.norm, spec.eps), [0, 0]

    def attack(binary: QuantizedClassifier, image: Tensor, label: Tensor) -> Tensor:
        seed = derive_seed(spec.seed, "attack")
        made = craft(binary, spec.attack, image, label, threat=threat, options=spec.options, seed=seed)
        spent[0] += made.forward_samples
        spent[1] += made.backward_samples
        return made.x_adv

    found = binarization_test(source, attack, x, y, threat=threat, seed=spec.seed)
    options = {**ATTACKS[spec.attack].resolve(spec.options), "check": spec.check}
    facts = {"success": metrics.finite(found.success), "random": metrics.finite(found.random), "used": found.used}
    path = {"binarization": found.each}
    return Crafted(x.clone(), spent[0] + 100 * found.used, spent[1], (), options, path, facts)


def _asked(clean: Crafted, target: QuantizedClassifier, x: Tensor, batch_size: int) -> Crafted:
    """The clean images with what the outputs of the model are, where no radius says within what to measure."""
    with counting(target.model) as counter:
        facts = output_facts(answer(target.model, x[:batch_size], 0, 0)) | _viewed(target.model)
    return replace(clean, forward_samples=counter.forward, facts=facts)


def _viewed(module: nn.Module) -> dict[str, Any]:
    """What the model answers with, where the measurements saw its logarithm; and how, where it is a deployed one."""
    deployed = answering(module)
    viewed = isinstance(module, LogProbabilities) or (deployed is not None and deployed.floor is not None)
    found: dict[str, Any] = {"probabilities": True, "logarithm": True} if viewed else {}
    return found if deployed is None else {**found, "deployed": deployed.facts}


def _measured(
    shard: Shard, clean: Crafted, target: QuantizedClassifier, x: Tensor, y: Tensor, batch_size: int
) -> Crafted:
    """The clean images with the measurements of the model around them, and their cost."""
    options: Mapping[str, Any] = clean.options
    found = measure(
        target.model,
        x,
        y,
        threat=Threat(shard.spec.norm, options["radius"]),
        directions=int(options["directions"]),
        seed=_seed(shard),
        batch_size=batch_size,
        abstain=target.abstain,
    )
    forward, backward = (round(found.cell["costs"][way] * len(x)) for way in ("forward", "backward"))
    facts = found.cell | {"pixels": x[0].numel()} | _viewed(target.model)
    return Crafted(clean.x_adv, forward, backward, clean.notes, clean.options, found.samples, facts)


def _seed(shard: Shard) -> int:
    """The seed of a shard. The first shard has the seed of the cell: then one single shard changes no result."""
    return derive_seed(shard.spec.seed, f"shard/{shard.number}") if shard.number else shard.spec.seed
