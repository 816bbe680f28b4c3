"""Runs one cell: craft on the source, check that the images are legal, ask the target."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins import metrics
from art_qplugins.attacks.craft import Crafted, craft
from art_qplugins.attacks.registry import ATTACKS
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.binarization import binarization_test
from art_qplugins.evaluation.cells import CellSpec, cell_id
from art_qplugins.evaluation.measure import measure
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Sample
from art_qplugins.evaluation.store import CellStore
from art_qplugins.evaluation.verify import check_legal, judge, stream
from art_qplugins.threat import Threat

__all__ = ["Bench", "fingerprint"]

logger = logging.getLogger(__name__)

#: Attributes of modules that use changes (modes, positions in streams of draws), and those that every module has.
_STATE = {*vars(nn.Module()), "draw", "fold", "call", "next_draw", "_split"}
#: Code of these is named by their versions.
_VERSIONED = ("torch", "torchvision", "art_qplugins", "builtins", "typing")


def fingerprint(module: nn.Module) -> str:
    """Hash of a module's structure, the plain settings of every part (also those that no repr shows), weights and code."""
    digest = hashlib.sha256(repr(module).encode())
    classes: dict[type, None] = {}
    for name, part in module.named_modules():
        settings = {k: _plain(v) for k, v in vars(part).items() if k not in _STATE}
        known = sorted((k, v) for k, v in settings.items() if v is not None)
        digest.update(f"{name}{type(part).__qualname__}{known}".encode())
        classes |= dict.fromkeys(type(part).__mro__)
    for cls in classes:
        if cls.__module__.split(".")[0] not in _VERSIONED:
            digest.update(_code(cls))
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> str | None:
    """What a setting says, as text; ``None`` for what is no plain data."""
    if isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Tensor):  # held as it is, and not as a buffer
        value = value.detach().cpu().numpy() if value.dtype != torch.bfloat16 else value.detach().float().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype}{value.shape}{content}"
    if isinstance(value, (tuple, list)):
        return str([_plain(v) for v in value])
    if isinstance(value, dict):
        return str([(str(k), _plain(v)) for k, v in value.items()])
    return None


def _code(cls: type) -> bytes:
    """The file that a class comes from, so that an edited ``forward`` is another module; else what was compiled of it."""
    try:
        return Path(inspect.getfile(cls)).read_bytes()
    except (OSError, TypeError):  # typed into a notebook
        functions = [(name, f) for name, f in sorted(vars(cls).items()) if inspect.isfunction(f)]
        return b"".join(name.encode() + f.__code__.co_code + str(f.__code__.co_names).encode() for name, f in functions)


def _check_inside(name: str, estimator: QuantizedClassifier) -> None:
    """Images are judged by the module, so whatever belongs to the model must be inside it."""
    standard = estimator.preprocessing
    identity = standard is None or (np.all(standard.mean == 0) and np.all(standard.std == 1))
    if estimator.preprocessing_defences or estimator.postprocessing_defences or not identity:
        raise InputError(
            f"{name}: move its pre- and postprocessing into the module, so that every attack and the judge see it"
        )


@dataclass(frozen=True)
class Bench:
    """The models and the images of a run: what every cell needs.

    :param x: (N, C, H, W) float32 in [0, 1]; ``y`` (N,) int64; ``ids`` names every image; ``data_hash`` their content.
    """

    estimators: Mapping[str, QuantizedClassifier]
    x: Tensor
    y: Tensor
    ids: Sequence[str]
    batch_size: int = 250

    def __post_init__(self) -> None:
        for name, estimator in self.estimators.items():
            _check_inside(name, estimator)
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
            data=self._data,  # type: ignore[attr-defined]
            batch_size=self.batch_size,
        )

    def run(self, spec: CellSpec, store: CellStore) -> tuple[Outcome, bool]:
        """The outcome of one cell, and whether it was there already. A failed cell is an outcome too, and not stored."""
        name = self.id_of(spec)
        if (found := store.load(name)) is not None:
            cell = found.cell.model_copy(update={"role": spec.role, "model": spec.model, "source": spec.source})
            return Outcome(cell, found.samples), True
        try:
            outcome, x_adv = self._run(name, spec, store)
        except Exception:
            logger.debug("cell %s failed", name, exc_info=True)
            return Outcome(_failed(name, spec), []), False
        store.save(outcome, x_adv)
        return outcome, False

    def _run(self, name: str, spec: CellSpec, store: CellStore) -> tuple[Outcome, NDArray[np.float32]]:
        source, target = self.estimators[spec.source], self.estimators[spec.model]
        threat = Threat(spec.norm, spec.eps)
        rows = list(range(len(self.ids))) if spec.rows is None else list(spec.rows)
        x, y = self.x[rows].to(target.device), self.y[rows].to(target.device)
        started = time.perf_counter()
        crafted = (self._test if spec.check else self._craft)(spec, source, x, y, rows, store)
        x_adv = crafted.x_adv.to(x)
        distance = check_legal(x, x_adv, threat)
        verdict = judge(target.model, x_adv, y, seed=spec.seed, batch_size=self.batch_size)
        measured, facts, costs = crafted.path, crafted.facts, (crafted.forward_samples, crafted.backward_samples)
        if spec.role == "clean" and crafted.options["radius"] > 0:
            found = measure(
                target,
                x,
                y,
                threat=Threat(spec.norm, crafted.options["radius"]),
                directions=int(crafted.options["directions"]),
                seed=spec.seed,
                batch_size=self.batch_size,
            )
            measured, facts = found.samples, found.cell | {"pixels": x[0].numel()}
            costs = (round(facts["costs"]["forward"] * len(rows)), round(facts["costs"]["backward"] * len(rows)))
        seconds = time.perf_counter() - started
        samples = [
            Sample(
                cell=name,
                sample=self.ids[row],
                label=int(y[i]),
                prediction=int(verdict.prediction[i]),
                correct=float(verdict.correct[i]),
                selection=float(verdict.selection[i]),
                distance=float(distance[i]),
                margin=_finite(verdict.margin[i]),
                loss=_finite(verdict.loss[i]),
                measures={key: _finite(values[i]) for key, values in measured.items()},
            )
            for i, row in enumerate(rows)
        ]
        accuracy, interval = metrics.accuracy(verdict.correct)
        cell = _cell(
            name,
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
            rows=None if spec.rows is None else rows,
            of=None if spec.rows is None else len(self.ids),
            facts=facts,
        )
        return Outcome(cell, samples), x_adv.cpu().numpy()

    def _craft(
        self, spec: CellSpec, source: QuantizedClassifier, x: Tensor, y: Tensor, rows: Sequence[int], store: CellStore
    ) -> Crafted:
        return craft(
            source,
            spec.attack,
            x.to(source.device),
            y.to(source.device),
            threat=Threat(spec.norm, spec.eps),
            options=spec.options,
            gap=spec.gap,
            start=self._start(spec, rows, store),
            batch_size=self.batch_size,
            seed=stream(spec.seed, f"attack/{spec.restart}" if spec.restart else "attack"),
        )

    def _test(
        self, spec: CellSpec, source: QuantizedClassifier, x: Tensor, y: Tensor, rows: Sequence[int], store: CellStore
    ) -> Crafted:
        """The attack against binary networks around the images; the images themselves stay as they are."""
        threat, spent = Threat(spec.norm, spec.eps), [0, 0]

        def attack(binary: QuantizedClassifier, image: Tensor, label: Tensor) -> Tensor:
            made = craft(
                binary, spec.attack, image, label, threat=threat, options=spec.options, seed=stream(spec.seed, "attack")
            )
            spent[0] += made.forward_samples
            spent[1] += made.backward_samples
            return made.x_adv

        found = binarization_test(source, attack, x, y, threat=threat, seed=spec.seed)
        options = {**ATTACKS[spec.attack].resolve(spec.options), "check": spec.check}
        facts = {"success": found.success, "random": found.random, "used": found.used}
        path = {"binarization": found.each}
        return Crafted(x.clone(), spent[0] + 100 * found.used, spent[1], (), options, path, facts)

    def _start(self, spec: CellSpec, rows: Sequence[int], store: CellStore) -> Tensor | None:
        """Per image, what came closest to breaking it among the cells that the spec names."""
        if not spec.start:
            return None
        start, closest = self.x[rows].clone(), np.full(len(rows), np.inf)
        for name in spec.start:
            outcome = store.load(name)
            if outcome is None:
                raise ValueError(f"the cell {name} to start from is gone; run the same command again")
            images, attacked = store.images(name), outcome.cell.rows
            where = {row: i for i, row in enumerate(range(len(self.ids)) if attacked is None else attacked)}
            for i, row in enumerate(rows):
                margin = outcome.samples[where[row]].margin if row in where else None
                if margin is not None and margin < closest[i]:
                    start[i], closest[i] = torch.from_numpy(images[where[row]]), margin
        return start.to(self.estimators[spec.source].device)


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(value) if math.isfinite(value) else None


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


def _failed(name: str, spec: CellSpec) -> Cell:
    return _cell(
        name,
        spec,
        params={**spec.options, **({"check": spec.check} if spec.check else {})},
        n=0,
        accuracy=None,
        interval=None,
        forward_samples=0,
        backward_samples=0,
        seconds=0.0,
        status="error",
        error=traceback.format_exc(),
    )
