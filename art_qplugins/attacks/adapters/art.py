"""Runs ART's evasion attacks. The adapter translates settings. The attack loops stay in ART."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from art_qplugins.attacks.adapters.options import translated, within
from art_qplugins.attacks.catalogue import Attack
from art_qplugins.attacks.views import MarginLoss
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.threat import Threat

__all__ = ["run"]

_NORMS = {"Linf": np.inf, "L2": 2, "L1": 1, "L0": 0}
#: Attacks that always show a progress bar.
_LOUD = ("BrendelBethgeAttack",)
#: Attacks that draw their starting points from an unseeded generator of their own.
_UNSEEDED = ("BoundaryAttack", "BrendelBethgeAttack", "HopSkipJump")
_NAMES = {"rel_eps_step": "eps_step"}
#: eps under each name that ART's attacks have for it. ``th`` is in units of 0 to 255, in L0 a number of pixels.
#: ``gamma`` of a saliency map is a share of all values.
_EPS: Mapping[str, Callable[[Threat, Tensor], float]] = {
    "eps": lambda threat, x: threat.eps,
    "th": lambda threat, x: int(threat.eps) if threat.norm == "L0" else 255 * threat.eps,
    "gamma": lambda threat, x: threat.eps / x[0].numel(),
}


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within, ``np.random.RandomState()`` without a seed is seeded with ``seed``."""
    before = np.random.RandomState
    names = vars(np.random)
    try:
        names["RandomState"] = lambda *args: before(*(args or (seed % 2**32,)))
        yield
    finally:
        names["RandomState"] = before


class _Whole(nn.Module):
    """The network as one module. ART calls the children of a Sequential one by one, past the hooks that count passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


class _Probabilities(_Whole):
    """The network with a softmax, for attacks that take the logarithm of its outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1).clamp_min(1e-7)


def _view(estimator: QuantizedClassifier, attack: Attack) -> QuantizedClassifier:
    """The estimator that ART is given."""
    if attack.probabilities:
        return estimator.with_model(_Probabilities(estimator.model).eval(), MarginLoss())  # whose loss these do not use
    if isinstance(estimator.model, nn.Sequential) and not estimator.preprocessing_operations:
        return estimator.with_model(_Whole(estimator.model).eval())
    return estimator


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
    import art.attacks.evasion as evasion

    cls = getattr(evasion, attack.upstream_for(threat.norm))
    # attack_params are inherited, but not every attack takes all of its parent's (BasicIterativeMethod has no norm).
    accepted = inspect.signature(cls).parameters
    given = {"norm": _NORMS[threat.norm], "batch_size": batch_size, "verbose": False}
    given |= {name: convert(threat, x) for name, convert in _EPS.items()}
    settings = {name: value for name, value in given.items() if name in accepted}
    settings |= translated(attack, options, threat, _NAMES)
    labels = None if attack.labels == "none" else y.cpu().numpy()
    if attack.labels == "one-hot":
        labels = np.eye(estimator.nb_classes, dtype=np.float32)[labels]
    crafted = cls(_view(estimator, attack), **settings)
    bar = contextlib.nullcontext() if attack.upstream not in _LOUD else contextlib.redirect_stderr(io.StringIO())
    starts = _seeded(seed) if attack.upstream in _UNSEEDED else contextlib.nullcontext()
    # ART divides by directions and windows that may be zero. An image that becomes NaN fails its cell later.
    with bar, starts, np.errstate(divide="ignore", invalid="ignore"):
        x_adv = torch.from_numpy(crafted.generate(x=x.cpu().numpy(), y=labels)).to(x)
    return within(x, x_adv, threat) if attack.minimum_norm else x_adv
