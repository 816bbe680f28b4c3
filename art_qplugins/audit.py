"""Robust accuracy for few gradients, and an audit of it: full AutoAttack on a random sample of the images that stand.

The audit is exact for the size of its sample. Of S standing images AutoAttack would break D. It breaks k of m that are drawn
without replacement, so k is hypergeometric.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.api import evaluate
from art_qplugins.attacks import ATTACKS
from art_qplugins.domains import COUNT, SEED, Domain, Is, Maybe, Number, check_all
from art_qplugins.errors import InputError, shown
from art_qplugins.evaluation.outcome import legal_at, worst_images
from art_qplugins.runner.run import Run
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["Audit", "WorstCase", "worst_case"]

_ARGUMENTS: dict[str, Domain] = {
    "threat": Is(Threat, "a Threat, e.g. Threat('Linf', 8 / 255)"),
    **{name: ATTACKS["artq:worst-case"].options[name].domain for name in ("effort", "budget")},
    "audit": Maybe(Number(1, 10_000_000, whole=True)),
    "seed": SEED,
    "batch_size": COUNT,
}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What full AutoAttack did to a sample of the images that stood.

    :ivar standing: images that stood before it, and ``asked`` of them were drawn; it ``broke`` this many.
    :ivar n: images of the whole set.
    :ivar gradients: backward passes per image of the sample.
    """

    standing: int
    asked: int
    broke: int
    n: int
    gradients: float

    @property
    def estimate(self) -> float:
        """The robust accuracy that AutoAttack would leave, on average over samples."""
        return self.standing * (1 - self.broke / self.asked) / self.n if self.asked else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """(lower, upper) for the robust accuracy that AutoAttack would leave. The lower end holds in 95 % of samples, the
        upper one always.
        """
        most = metrics.most_in_population(self.broke, drawn=self.asked, population=self.standing)
        return (self.standing - most) / self.n, (self.standing - self.broke) / self.n

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"AutoAttack on {self.asked} of {self.standing} standing images broke {self.broke}: it would leave "
            f"{100 * self.estimate:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        )


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """The robust accuracy of one model under one threat, an upper bound under the attacks that ran.

    :ivar accuracy: in [0, 1], with its 95 % interval over images, of ``n`` images. What the audit broke counts.
    :ivar gradients: backward passes per image, without the audit.
    :ivar x_adv: (N, C, H, W) in [0, 1], the strongest legal adversarial image of each.
    :ivar audit: ``None`` where none was asked for, or no image stood.
    """

    accuracy: float
    interval: tuple[float, float]
    n: int
    gradients: float
    x_adv: NDArray[np.float32] = field(repr=False)
    audit: Audit | None
    run: Run = field(repr=False)

    def __str__(self) -> str:
        low, high = self.interval
        told = f"worst-case leaves {100 * self.accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.n} images"
        return told if self.audit is None else f"{told}; {self.audit}"


def worst_case(
    estimator: PyTorchClassifier,
    x: Any,
    y: Any,
    threat: Threat = Threat("Linf", 8 / 255),
    *,
    effort: str = "standard",
    budget: float | None = None,
    audit: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> WorstCase:
    """What AutoAttack would leave, for a few percent of its gradients, and on request how sure that is.

    :param estimator: an ART classifier around a torch module.
    :param x: (N, C, H, W) in [0, 1]; ``y`` integer labels (N,).
    :param threat: in Linf or L2.
    :param effort: ``"quick"``, ``"standard"`` or ``"thorough"``.
    :param budget: gradients per image, at least 1, without the audit.
    :param audit: run AutoAttack ``standard`` on this many of the images that stand, drawn at random, or on all if there are
        fewer. It costs about 1,900 gradients and 5,000 queries for each.
    :raises InputError: where an argument cannot be used; the message names it.
    """
    check_all(locals(), _ARGUMENTS)
    if not isinstance(estimator, PyTorchClassifier):
        raise InputError(f"estimator: it is {shown(estimator)}; give one ART PyTorchClassifier")
    attacks = [("artq:worst-case", {"effort": effort, "budget": budget})]
    settings: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
    found = evaluate(estimator, (x, y), threat, attacks, recipe={"diagnose": False}, **settings)
    images = np.asarray(x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x, dtype=np.float32)
    labels = np.asarray(y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else y)
    correct, x_adv = _worst(found, threat, images)
    cell = next(c for c in found.cells if c.role != "clean")
    audited = None
    if audit is not None and correct.any():
        if not np.isin(correct, (0, 1)).all():
            raise InputError("audit: the model is random, and AutoAttack judges it on one draw; leave audit out")
        standing = np.flatnonzero(correct)
        random = np.random.default_rng(derive_seed(seed, "audit"))
        rows = np.sort(random.choice(standing, min(audit, len(standing)), replace=False))
        again = evaluate(
            estimator,
            (images[rows], labels[rows]),
            threat,
            ["autoattack:standard"],
            recipe={"diagnose": False},
            **settings,
        )
        left, stronger = _worst(again, threat, images[rows])
        correct[rows], x_adv[rows] = left, np.where(left[:, None, None, None] > 0, x_adv[rows], stronger)
        audited = Audit(
            standing=len(standing),
            asked=len(rows),
            broke=int((left == 0).sum()),
            n=len(images),
            gradients=sum(c.backward_samples for c in again.cells) / len(rows),
        )
    accuracy, interval = metrics.accuracy(correct)
    return WorstCase(
        accuracy=accuracy,
        interval=interval,
        n=len(images),
        gradients=cell.backward_samples / len(images),
        x_adv=x_adv,
        audit=audited,
        run=found,
    )


def _worst(run: Run, threat: Threat, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """(images,) correctness at the strongest legal image of each, and these images."""
    failed = [o.cell for o in run.outcomes if not o.ok]
    if failed:
        raise InputError(f"{failed[0].label}: {failed[0].error_line}")
    legal = legal_at(run.outcomes, threat.norm, threat.eps)
    correct = metrics.worst_case([o.column("correct") for o in legal], [o.column("selection") for o in legal])
    return correct.copy(), worst_images(legal, run.store, images)[1].copy()
