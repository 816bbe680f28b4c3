"""Judges adversarial images: are they legal, and what does the deployed model say to them? Attacks have no say in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.attacks.views import logit_margin
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.estimators.guard import evaluating
from art_qplugins.quantizers.stochastic import draws_from, is_stochastic
from art_qplugins.threat import Threat

__all__ = ["DEPLOYMENTS", "IllegalImage", "Judgement", "check_legal", "judge", "probe", "stream"]

#: How often a stochastic model is deployed afresh to score an image, on each of two independent sets of draws.
DEPLOYMENTS = 20
#: Calls of a stochastic model that a probe averages over.
_PROBE_CALLS = 8
#: eps is compared in float64 after float32 arithmetic in the attack.
_TOLERANCE = 1e-6


class IllegalImage(ValueError):
    """An attack returned an image that the threat does not allow. Nobody clips it: the cell fails."""


@dataclass(frozen=True)
class Judgement:
    """Per image, as in :class:`~art_qplugins.evaluation.records.Sample`."""

    prediction: NDArray[np.int64]
    correct: NDArray[np.float64]
    selection: NDArray[np.float64]
    margin: NDArray[np.float64]
    loss: NDArray[np.float64]


def stream(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that no two purposes share draws."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=6).digest(), "little")


def distances(x: Tensor, x_adv: Tensor, norm: str) -> Tensor:
    """(N,) in float64; for L0 the number of pixels in which any channel differs."""
    delta = (x_adv.double() - x.double()).abs()
    if norm == "L0":
        return (delta.amax(1) > 0).flatten(1).sum(1).double()
    return torch.linalg.vector_norm(delta.flatten(1), ord={"Linf": torch.inf, "L2": 2, "L1": 1}[norm], dim=1)


def check_legal(x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """Distances (N,), or :class:`IllegalImage` that says which image breaks which rule and by how much."""
    if x_adv.shape != x.shape:
        raise IllegalImage(f"the attack returned shape {tuple(x_adv.shape)} for images {tuple(x.shape)}")
    if not torch.isfinite(x_adv).all():
        raise IllegalImage(f"{int((~torch.isfinite(x_adv)).flatten(1).any(1).sum())} images are not finite")
    low, high = float(x_adv.min()), float(x_adv.max())
    if low < 0 or high > 1:
        raise IllegalImage(f"pixels are in [{low:.6g}, {high:.6g}], outside [0, 1]")
    distance = distances(x, x_adv, threat.norm)
    worst = int(distance.argmax())
    if distance[worst] > threat.eps + _TOLERANCE:
        raise IllegalImage(
            f"image {worst} is {float(distance[worst]):.6g} away in {threat.norm}, more than eps = {threat.eps:g}"
        )
    return distance


def judge(module: nn.Module, x: Tensor, y: Tensor, *, seed: int, batch_size: int = 250) -> Judgement:
    """Ask the deployed module. A stochastic one is asked on two sets of draws that no attack saw."""
    stochastic = is_stochastic(module)
    first = _ask(module, x, stream(seed, "judge"), DEPLOYMENTS if stochastic else 1, batch_size)
    answers = first.argmax(-1)
    correct = (answers == y).double().mean(0)
    selection = correct
    if stochastic:
        second = _ask(module, x, stream(seed, "select"), DEPLOYMENTS, batch_size)
        selection = (second.argmax(-1) == y).double().mean(0)
    logits = first.mean(0)
    return Judgement(
        prediction=answers.mode(0).values.cpu().numpy(),
        correct=correct.cpu().numpy(),
        selection=selection.cpu().numpy(),
        margin=logit_margin(logits, y).double().cpu().numpy(),
        loss=nn.functional.cross_entropy(logits, y, reduction="none").double().cpu().numpy(),
    )


def _ask(module: nn.Module, x: Tensor, seed: int, times: int, batch_size: int) -> Tensor:
    """Logits (times, N, C)."""
    with evaluating(module), torch.no_grad(), draws_from(module, seed):
        return torch.stack([torch.cat([module(part) for part in x.split(batch_size)]) for _ in range(times)])


def probe(
    estimator: QuantizedClassifier, x: Tensor, y: Tensor, *, step: float, directions: int, seed: int
) -> dict[str, NDArray[Any]]:
    """What an attack starts from, measured at the clean images.

    ``gradient`` is max |d CE / d x|, in float32 as an attack computes it. ``fidelity`` is the correlation, over random
    sign directions u, of what the gradient of the logit margin predicts, h g.u, with what really happens,
    m(x + h u) - m(x): near 1 where the gradient is the slope, near 0 where it is not, whatever the logits' scale.

    :param step: h, in units of pixels; 0 leaves fidelity out.
    """
    module = estimator.model

    def cross_entropy(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, y, reduction="none")

    # An attack that averages over draws follows the slope of the mean, so that is what is measured.
    calls = _PROBE_CALLS if is_stochastic(module) else 1

    def at(point: Tensor, value: Callable[[Tensor], Tensor], calls: int = calls) -> Tensor:
        with draws_from(module, stream(seed, "probe")):  # the same draws at every point
            return torch.stack([value(module(point)) for _ in range(calls)]).mean(0)

    def gradient(value: Callable[[Tensor], Tensor], calls: int = calls) -> Tensor:
        point = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            total = at(point, value, calls).sum()
            slope = torch.autograd.grad(total, point, allow_unused=True)[0] if total.requires_grad else None
            return torch.zeros_like(x) if slope is None else slope

    def margin(logits: Tensor) -> Tensor:
        return logit_margin(logits, y)

    with evaluating(module), torch.no_grad():
        result = {"gradient": gradient(cross_entropy, calls=1).abs().flatten(1).amax(1).double().cpu().numpy()}
        if step > 0:
            slope, start = gradient(margin), at(x, margin)
            generator = torch.Generator().manual_seed(stream(seed, "directions"))
            signs = (torch.rand((directions, *x.shape[1:]), generator=generator) < 0.5).to(x) * 2 - 1
            predicted = torch.einsum("nchw,dchw->dn", slope, step * signs)
            happened = torch.stack([at(x + step * u, margin) - start for u in signs])
            result["fidelity"] = _correlation(predicted.double(), happened.double()).cpu().numpy()
    return result


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Over dimension 0; 0 where either is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-30)
