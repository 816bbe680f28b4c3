"""Runs Foolbox's attacks. The adapter translates settings. The attack loops stay in Foolbox."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor

from art_qplugins.attacks.adapters.options import translated, within
from art_qplugins.attacks.catalogue import Attack
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.threat import Threat

__all__ = ["run"]

_NAMES = {"max_iter": "steps", "rel_eps_step": "abs_stepsize"}
_DISTANCES = {"Linf": "linf", "L2": "l2", "L1": "l1", "L0": "l0"}
_CONSTRAINTS = {"Linf": "linf", "L2": "l2"}
#: Boundary attacks start from an adversarial image. It is searched on the lines to this many random images, with this
#: many steps on each.
_SEARCH = {"directions": 1000, "steps": 50}


def run(
    estimator: QuantizedClassifier,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    options: dict[str, Any],
    batch_size: int,
    seed: int,
) -> Tensor:
    """Images like ``x``. For a minimum-norm attack, an image beyond eps is replaced by the clean image."""
    import foolbox
    from foolbox.models.pytorch import PyTorchModel

    model = PyTorchModel(estimator.model, bounds=(0, 1), device=x.device)
    cls = getattr(foolbox.attacks, attack.upstream_for(threat.norm))
    accepted = inspect.signature(cls).parameters
    settings = translated(attack, options, threat, _NAMES)
    if "distance" in accepted:
        settings["distance"] = getattr(foolbox.distances, _DISTANCES[threat.norm])
    if "constraint" in accepted:
        settings["constraint"] = _CONSTRAINTS[threat.norm]
    crafted = cls(**settings)
    parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([_part(foolbox, model, crafted, attack, *part, threat) for part in parts])


def _part(foolbox: Any, model: Any, crafted: Any, attack: Attack, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """The adversarial images of one batch."""
    if attack.labels == "targets":
        criterion = foolbox.criteria.TargetedMisclassification(_runner_up(model, x, y))
    else:
        criterion = foolbox.criteria.Misclassification(y)
    if not attack.minimum_norm:
        # Foolbox returns raw images, which may exceed eps, and then clipped images, which do not.
        x_adv: Tensor = crafted(model, x, criterion, epsilons=threat.eps)[1]
        return x_adv
    if "init_attack" not in vars(crafted) or not _must_start(crafted):
        return within(x, crafted(model, x, criterion, epsilons=None)[0], threat)
    # Foolbox gives up on the whole batch if it finds no starting point for one image.
    search = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(**_SEARCH)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*failed to draw sufficient random inputs")  # handled below
        starts, _, found = search(model, x, criterion, epsilons=None)
    x_adv = x.clone()
    if found.any():
        some = foolbox.criteria.Misclassification(y[found])
        x_adv[found] = crafted(model, x[found], some, starting_points=starts[found], epsilons=None)[0]
    return within(x, x_adv, threat)


def _must_start(crafted: Any) -> bool:
    """Whether the attack needs a starting point. FMN accepts one and needs none."""
    return "FMN" not in type(crafted).__name__


@torch.no_grad()
def _runner_up(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The most likely class other than the label, (N,)."""
    logits: Tensor = model(x)
    return logits.scatter(1, y[:, None], -torch.inf).argmax(1)
