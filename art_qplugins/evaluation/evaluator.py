"""Runs shards of cells: craft on the source, check that the images are legal, ask the target."""

from __future__ import annotations

import hashlib
import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from art_qplugins import metrics
from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.attacks.craft import Crafted, craft
from art_qplugins.attacks.views import median_gap
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier, check_inside
from art_qplugins.evaluation.binarization import binarization_test
from art_qplugins.evaluation.cell import CellSpec, cell_id
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Sample
from art_qplugins.evaluation.scheduler import Done, Serial, Shard, run_cells
from art_qplugins.evaluation.score import check_legal, judge
from art_qplugins.evaluation.store import CellStore
from art_qplugins.fingerprint import fingerprint
from art_qplugins.gradients.measure import measure
from art_qplugins.guard import isolated
from art_qplugins.quantizers.stochastic import draws_from
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["Evaluator", "failed", "without_number"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluator:
    """The models and the images of a run: what every cell needs.

    :param x: (N, C, H, W) float32 in [0, 1]; ``y`` (N,) int64; ``ids`` names every image.
    :param batch_size: images that go through a network at a time; fewer where the memory does not suffice.
    :param shard: images that are crafted and judged in one piece, with seeds of their own; ``None`` for ``batch_size``.
    """

    estimators: Mapping[str, QuantizedClassifier]
    x: Tensor
    y: Tensor
    ids: Sequence[str]
    batch_size: int = 250
    shard: int | None = None

    def __post_init__(self) -> None:
        for name, estimator in self.estimators.items():
            check_inside(name, estimator)
        prints = {name: fingerprint(e.model) for name, e in self.estimators.items()}
        # An attack sees more of an estimator than the module that is judged.
        seen = {n: f"{prints[n]} {fingerprint(e._loss)} {e.clip_values}" for n, e in self.estimators.items()}
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for part in (self.x, self.y):
            digest.update(part.cpu().contiguous().numpy().tobytes())
        object.__setattr__(self, "_prints", prints)
        object.__setattr__(self, "_seen", seen)
        object.__setattr__(self, "_data", digest.hexdigest())

    def id_of(self, spec: CellSpec) -> str:
        prints: dict[str, str] = self._prints  # type: ignore[attr-defined]
        return cell_id(
            spec,
            target=prints[spec.model],
            source=self._seen[spec.source],  # type: ignore[attr-defined]
            data=f"{self._data} in shards of {self.shard or self.batch_size}",  # type: ignore[attr-defined]
            batch_size=self.batch_size,
        )

    def shards(self, spec: CellSpec) -> list[Shard]:
        """The pieces that a cell is worked on in. The test by binarization, of a few images, is one."""
        rows = tuple(range(len(self.ids))) if spec.rows is None else spec.rows
        size = len(rows) if spec.check else self.shard or self.batch_size
        pieces = [rows[i : i + size] for i in range(0, len(rows), size)]
        name = self.id_of(spec)
        return [Shard(cell=name, spec=spec, number=i, of=len(pieces), rows=piece) for i, piece in enumerate(pieces)]

    def run(self, spec: CellSpec, store: CellStore) -> tuple[Outcome, bool]:
        """The outcome of one cell, and whether it was there already: :func:`run_cells` in this process."""
        _, outcome, reused = next(run_cells(self, [spec], store, Serial(self)))
        return outcome, reused

    def part(self, shard: Shard) -> Done:
        """Craft and judge the images of a shard. What fails is an outcome too."""
        try:
            return shard, *self._within_memory(shard)
        except Exception:
            logger.debug("%s failed", shard.id, exc_info=True)
            return shard, failed(shard, traceback.format_exc()), None

    def _within_memory(self, shard: Shard) -> tuple[Outcome, NDArray[np.float32]]:
        """With half the batch size, and half of that, as long as the memory does not suffice."""
        batch_size, notes = min(self.batch_size, len(shard.rows)), []
        while True:
            try:
                outcome, x_adv = self._part(shard, batch_size)
            except (RuntimeError, MemoryError) as error:
                if batch_size == 1 or not _out_of_memory(error):
                    raise
            else:
                cell = outcome.cell.model_copy(update={"notes": [*notes, *outcome.cell.notes]})
                return replace(outcome, cell=cell), x_adv
            notes.append(f"out of memory with batches of {batch_size} images; went on with {batch_size // 2}")
            batch_size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # here, since the exception held what the attack had allocated

    def _part(self, shard: Shard, batch_size: int) -> tuple[Outcome, NDArray[np.float32]]:
        spec, rows = shard.spec, shard.rows
        source, target = self.estimators[spec.source], self.estimators[spec.model]
        threat, seed = Threat(spec.norm, spec.eps), _seed(shard)
        x, y = self.x[list(rows)].to(target.device), self.y[list(rows)].to(target.device)
        started = time.perf_counter()
        crafted = self._test(spec, source, x, y) if spec.check else self._craft(shard, source, x, y, batch_size)
        x_adv = crafted.x_adv.to(x)
        distance = check_legal(x, x_adv, threat)
        verdict = judge(target.model, x_adv, y, seed=seed, batch_size=batch_size)
        measured, facts, costs = crafted.path, crafted.facts, (crafted.forward_samples, crafted.backward_samples)
        if spec.role == "clean" and crafted.options["radius"] > 0:
            found = measure(
                target.model,
                x,
                y,
                threat=Threat(spec.norm, crafted.options["radius"]),
                directions=int(crafted.options["directions"]),
                seed=seed,
                batch_size=batch_size,
            )
            measured, facts = found.samples, found.cell | {"pixels": x[0].numel()}
            costs = (round(facts["costs"]["forward"] * len(rows)), round(facts["costs"]["backward"] * len(rows)))
        seconds = time.perf_counter() - started
        samples = [
            Sample(
                cell=shard.cell,
                sample=self.ids[row],
                label=int(y[i]),
                prediction=int(verdict.prediction[i]),
                correct=float(verdict.correct[i]),
                selection=float(verdict.selection[i]),
                distance=float(distance[i]),
                margin=metrics.finite(verdict.margin[i]),
                loss=metrics.finite(verdict.loss[i]),
                measures={key: metrics.finite(values[i]) for key, values in measured.items()},
            )
            for i, row in enumerate(rows)
        ]
        accuracy, interval = metrics.accuracy(verdict.correct)
        whole = spec.rows is None and shard.of == 1
        cell = _cell(
            shard.id,
            spec,
            params=crafted.options | ({"restart": spec.restart} if spec.restart else {}),
            n=len(samples),
            accuracy=accuracy,
            interval=interval,
            forward_samples=costs[0],
            backward_samples=costs[1],
            seconds=seconds,
            status="success",
            notes=list(crafted.notes),
            rows=None if whole else list(rows),
            of=None if whole else len(self.ids),
            facts=facts,
        )
        return Outcome(cell, samples), x_adv.cpu().numpy()

    def _craft(self, shard: Shard, source: QuantizedClassifier, x: Tensor, y: Tensor, batch_size: int) -> Crafted:
        spec = shard.spec
        what = f"attack/{spec.restart}" if spec.restart else "attack"
        return craft(
            source,
            spec.attack,
            x.to(source.device),
            y.to(source.device),
            threat=Threat(spec.norm, spec.eps),
            options=spec.options,
            gap=spec.gap if shard.number == 0 else None,
            temperature=self._temperature(spec, source, derive_seed(spec.seed, what)) if shard.number else None,
            start=None if shard.start is None else torch.from_numpy(shard.start).to(source.device),
            batch_size=batch_size,
            seed=derive_seed(_seed(shard), what),
        )

    def _temperature(self, spec: CellSpec, source: QuantizedClassifier, seed: int) -> float | None:
        """The one that the first shard's images ask for: it is one attack, so all of its shards see the same network."""
        if spec.gap is None:
            return None
        rows = list(self.shards(spec)[0].rows)
        with isolated(source.model, seed), draws_from(source.model, seed):
            found = median_gap(source.model, self.x[rows].to(source.device), seed=seed, batch_size=self.batch_size)
        return found / spec.gap

    def _test(self, spec: CellSpec, source: QuantizedClassifier, x: Tensor, y: Tensor) -> Crafted:
        """The attack against binary networks around the images; the images themselves stay as they are."""
        threat, spent = Threat(spec.norm, spec.eps), [0, 0]

        def attack(binary: QuantizedClassifier, image: Tensor, label: Tensor) -> Tensor:
            made = craft(
                binary,
                spec.attack,
                image,
                label,
                threat=threat,
                options=spec.options,
                seed=derive_seed(spec.seed, "attack"),
            )
            spent[0] += made.forward_samples
            spent[1] += made.backward_samples
            return made.x_adv

        found = binarization_test(source, attack, x, y, threat=threat, seed=spec.seed)
        options = {**ATTACKS[spec.attack].resolve(spec.options), "check": spec.check}
        facts = {"success": metrics.finite(found.success), "random": metrics.finite(found.random), "used": found.used}
        path = {"binarization": found.each}
        return Crafted(x.clone(), spent[0] + 100 * found.used, spent[1], (), options, path, facts)

    def start(self, spec: CellSpec, rows: Sequence[int], store: CellStore) -> NDArray[np.float32]:
        """Per image, what came closest to breaking it among the cells that the spec names, (len(rows), C, H, W)."""
        start, closest = self.x[list(rows)].cpu().numpy(), np.full(len(rows), np.inf)
        for name in spec.start:
            outcome = store.load(name)
            if outcome is None:
                raise InputError(f"cell {name}: its files were damaged or removed; run the same command again")
            images, attacked = store.images(name), outcome.cell.rows
            where = {row: i for i, row in enumerate(range(len(self.ids)) if attacked is None else attacked)}
            for i, row in enumerate(rows):
                margin = outcome.samples[where[row]].margin if row in where else None
                if margin is not None and margin < closest[i]:
                    start[i], closest[i] = images[where[row]], margin
        return start


def _seed(shard: Shard) -> int:
    """The first shard's is the cell's own, so that a cell of one shard is what it would be without any."""
    return derive_seed(shard.spec.seed, f"shard/{shard.number}") if shard.number else shard.spec.seed


def _out_of_memory(error: Exception) -> bool:
    """torch has a class for accelerators alone; on the CPU it is a ``RuntimeError`` of the allocator."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _cell(name: str, spec: CellSpec, **result: object) -> Cell:
    return Cell.model_validate(
        {
            "id": name,
            "model": spec.model,
            "source": spec.source,
            "attack": spec.attack,
            "knowledge": ATTACKS[spec.attack].knowledge,
            "role": spec.role,
            "norm": spec.norm,
            "eps": spec.eps,
            "seed": spec.seed,
            **result,
        }
    )


def without_number(name: str, spec: CellSpec, status: str, **more: object) -> Cell:
    """The record of a cell that failed or was not run."""
    nothing = {"n": 0, "accuracy": None, "interval": None, "forward_samples": 0, "backward_samples": 0, "seconds": 0.0}
    return _cell(name, spec, status=status, **nothing, **more)


def failed(shard: Shard, error: str) -> Outcome:
    """The row of a cell that this shard of it could not be had of."""
    spec = shard.spec
    params = {**spec.options, **({"check": spec.check} if spec.check else {})}
    return Outcome(without_number(shard.cell, spec, "error", params=params, error=error), [])
