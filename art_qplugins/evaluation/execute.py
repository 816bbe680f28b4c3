"""Runs one cell: craft on the source, check that the images are legal, ask the target."""

from __future__ import annotations

import hashlib
import logging
import math
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins import metrics
from art_qplugins.attacks.craft import craft
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.cells import CellSpec, cell_id
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Sample
from art_qplugins.evaluation.store import CellStore
from art_qplugins.evaluation.verify import check_legal, judge, probe, stream
from art_qplugins.threat import Threat

__all__ = ["Bench", "fingerprint"]

logger = logging.getLogger(__name__)

#: Attributes of modules that use changes: modes and positions in streams of draws.
_STATE = ("training", "draw", "fold", "call", "next_draw", "_split")


def fingerprint(module: nn.Module) -> str:
    """Hash of a module's structure, of the plain settings of every part (also those that no repr shows), of all weights."""
    digest = hashlib.sha256(repr(module).encode())
    for name, part in module.named_modules():
        settings = {k: v for k, v in vars(part).items() if k not in _STATE and isinstance(v, (bool, int, float, str))}
        digest.update(f"{name}{type(part).__qualname__}{sorted(settings.items())}".encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
        prints = {name: fingerprint(e.model) for name, e in self.estimators.items()}
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for part in (self.x, self.y):
            digest.update(part.cpu().contiguous().numpy().tobytes())
        object.__setattr__(self, "_prints", prints)
        object.__setattr__(self, "_data", digest.hexdigest())

    def id_of(self, spec: CellSpec) -> str:
        prints: dict[str, str] = self._prints  # type: ignore[attr-defined]
        return cell_id(
            spec,
            target=prints[spec.model],
            source=prints[spec.source],
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
            outcome, x_adv = self._run(name, spec)
        except Exception:
            logger.debug("cell %s failed", name, exc_info=True)
            return Outcome(_failed(name, spec), []), False
        store.save(outcome, x_adv)
        return outcome, False

    def _run(self, name: str, spec: CellSpec) -> tuple[Outcome, NDArray[np.float32]]:
        source, target = self.estimators[spec.source], self.estimators[spec.model]
        threat = Threat(spec.norm, spec.eps)
        x, y = self.x.to(target.device), self.y.to(target.device)
        started = time.perf_counter()
        crafted = craft(
            source,
            spec.attack,
            x.to(source.device),
            y.to(source.device),
            threat=threat,
            options=spec.options,
            gap=spec.gap,
            batch_size=self.batch_size,
            seed=stream(spec.seed, "attack"),
        )
        seconds = time.perf_counter() - started
        x_adv = crafted.x_adv.to(x)
        distance = check_legal(x, x_adv, threat)
        verdict = judge(target.model, x_adv, y, seed=spec.seed, batch_size=self.batch_size)
        measured = {}
        if spec.role == "clean":
            measured = probe(
                target,
                x,
                y,
                step=float(crafted.options["step"]),
                directions=int(crafted.options["directions"]),
                seed=spec.seed,
            )
        samples = [
            Sample(
                cell=name,
                sample=sample,
                label=int(y[i]),
                prediction=int(verdict.prediction[i]),
                correct=float(verdict.correct[i]),
                selection=float(verdict.selection[i]),
                distance=float(distance[i]),
                margin=_finite(verdict.margin[i]),
                loss=_finite(verdict.loss[i]),
                **{key: _finite(values[i]) for key, values in measured.items()},
            )
            for i, sample in enumerate(self.ids)
        ]
        accuracy, interval = metrics.accuracy(verdict.correct)
        cell = _cell(
            name,
            spec,
            params=crafted.options,
            n=len(samples),
            accuracy=accuracy,
            interval=interval,
            forward_samples=crafted.forward_samples,
            backward_samples=crafted.backward_samples,
            seconds=seconds,
            status="success",
            notes=list(crafted.notes),
        )
        return Outcome(cell, samples), x_adv.cpu().numpy()


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
        params=dict(spec.options),
        n=0,
        accuracy=None,
        interval=None,
        forward_samples=0,
        backward_samples=0,
        seconds=0.0,
        status="error",
        error=traceback.format_exc(),
    )
