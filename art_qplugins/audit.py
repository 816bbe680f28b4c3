"""Robust accuracy for few gradients, and an audit of it: full AutoAttack on a random sample of the images that stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray

from art_qplugins.api import evaluate
from art_qplugins.attacks import ATTACKS
from art_qplugins.domains import COUNT, SEED, Domain, Is, Maybe, Number, check_all
from art_qplugins.errors import InputError, shown
from art_qplugins.evaluation.outcome import legal_at, worst_images
from art_qplugins.evaluation.records import Audit
from art_qplugins.runner.run import Run
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
        fewer. It costs about 1,900 gradients and 5,000 queries for each. A random model is not audited.
    :raises InputError: where an argument cannot be used; the message names it.
    """
    check_all(locals(), _ARGUMENTS)
    if not isinstance(estimator, PyTorchClassifier):
        raise InputError(f"estimator: it is {shown(estimator)}; give one ART PyTorchClassifier")
    found = evaluate(
        estimator,
        (x, y),
        threat,
        [("artq:worst-case", {"effort": effort, "budget": budget})],
        seed=seed,
        batch_size=batch_size,
        recipe={"diagnose": False, "audit": audit},
    )
    failed = [o.cell for o in found.outcomes if not o.ok]
    if failed:
        raise InputError(f"{failed[0].label}: {failed[0].error_line}")
    images = np.asarray(x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x, dtype=np.float32)
    legal = legal_at(found.outcomes, threat.norm, threat.eps)
    model = found.models[0]
    cell = next(c for c in found.cells if c.attack == "artq:worst-case")
    return WorstCase(
        accuracy=model.robust[0].accuracy,
        interval=model.robust[0].interval,
        n=len(images),
        gradients=cell.backward_samples / len(images),
        x_adv=worst_images(legal, found.store, images)[1].copy(),
        audit=model.audits[0] if model.audits else None,
        run=found,
    )
