"""Is the gradient the slope? How well what a gradient predicts agrees with what small steps really do.

A gradient that is not the slope (shattered, or of a bad surrogate) misleads every attack that follows it, whatever its
size (Athalye, Carlini & Wagner 2018). Measured on the logit margin, so that no scale of the logits can hide it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.guard import isolated
from art_qplugins.quantizers.stochastic import draws_from
from art_qplugins.quantizers.surrogates import SURROGATES, surrogate
from art_qplugins.seeds import derive_seed

__all__ = ["agreement", "best_surrogate", "fidelity", "gradient", "logit_margin", "margins", "sign_moves"]


def logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j, (N,): negative where the answer is wrong."""
    own = logits.gather(1, y[:, None])
    return (own - logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)


def gradient(
    module: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor], *, seed: int = 0, calls: int = 1
) -> Tensor:
    """Gradient of ``score`` in each image, in ``x``'s shape; zero where the graph does not reach back to the pixels.

    :param x: (N, C, H, W) in [0, 1].
    :param score: logits (N, C) in, one number per image (N,) out.
    :param calls: of a stochastic module, averaged.
    """
    point = x.detach().clone().requires_grad_()
    # Around the backward pass too: what is checkpointed runs again there, and has to find everything as it was.
    with isolated(module, derive_seed(seed, "probe")), torch.enable_grad():
        total = _score_at(module, point, score, seed, calls).sum()
        found = torch.autograd.grad(total, point, allow_unused=True)[0] if total.requires_grad else None
    return torch.zeros_like(x) if found is None else found


def fidelity(
    module: nn.Module, x: Tensor, y: Tensor, *, step: float, directions: int = 20, seed: int = 0, calls: int = 1
) -> Tensor:
    """Per image, how far the gradient of the logit margin m is its slope, in [-1, 1]; (N,) float64.

    The correlation, over random sign directions u, of what the gradient g predicts, h g.u, with what really happens,
    m(x + h u) - m(x): near 1 where the gradient is the slope, near 0 where it is not, whatever the logits' scale.

    :param x: (N, C, H, W) in [0, 1]; ``y`` (N,) labels.
    :param step: h, in units of pixels; a step of the attack that is to follow the gradient.
    :param directions: at least 2.
    :param seed: of the directions, and of the draws of a stochastic module, which are the same at every point.
    :param calls: of a stochastic module, averaged: an attack that averages over draws follows the slope of the mean.
    """
    moves = sign_moves(x, step, directions, seed)
    m = margins(module, x, y, moves, seed=seed, calls=calls)
    return _agreement(module, x, y, moves, m, seed, calls)


def sign_moves(x: Tensor, step: float, directions: int, seed: int) -> Tensor:
    """Random corners of the cube of half-side ``step``, (directions, C, H, W)."""
    if not (math.isfinite(step) and step > 0):
        raise InputError(f"step is {step!r}; give a finite number above 0, e.g. the attack's own step")
    if directions < 2:
        raise InputError(f"directions is {directions!r}; a correlation needs at least 2, e.g. 20")
    generator = torch.Generator().manual_seed(derive_seed(seed, "directions"))
    return step * ((torch.rand((directions, *x.shape[1:]), generator=generator) < 0.5).to(x) * 2 - 1)


@torch.no_grad()
def margins(module: nn.Module, x: Tensor, y: Tensor, moves: Tensor, *, seed: int = 0, calls: int = 1) -> Tensor:
    """Logit margins at the images and after each of the moves, with the same draws: (1 + len(moves), N)."""
    found = []
    for h in (0, *moves):
        with isolated(module, derive_seed(seed, "probe")):
            found.append(_score_at(module, x + h, lambda z: logit_margin(z, y), seed, calls))
    return torch.stack(found)


def agreement(slope: Tensor, moves: Tensor, m: Tensor) -> Tensor:
    """Per image, the correlation of what ``slope`` predicts of the moves with what ``m`` of :func:`margins` says, (N,)."""
    predicted = torch.einsum("nchw,dchw->dn", slope, moves)
    return _correlation(predicted.double(), (m[1:] - m[0]).double())


def best_surrogate(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    step: float,
    kinds: Sequence[str] = tuple(SURROGATES),
    directions: int = 20,
    seed: int = 0,
    calls: int = 1,
) -> tuple[str, dict[str, float]]:
    """The kind of surrogate gradient that is most faithful on these images, and the median fidelity of each.

    A surrogate leaves the values alone, so the steps are taken once for all kinds. Of equals the first wins.

    :param kinds: keys of :data:`~art_qplugins.quantizers.surrogates.SURROGATES`; the others are as in :func:`fidelity`.
    """
    if not kinds:
        raise InputError(f"kinds is empty; give at least one of {', '.join(SURROGATES)}")
    moves = sign_moves(x, step, directions, seed)
    m = margins(module, x, y, moves, seed=seed, calls=calls)
    scores = {}
    for kind in kinds:
        with surrogate(module, kind):
            found = _agreement(module, x, y, moves, m, seed, calls)
        scores[kind] = float(found.quantile(0.5))
    return max(scores, key=lambda kind: -math.inf if math.isnan(scores[kind]) else scores[kind]), scores


def _score_at(module: nn.Module, x: Tensor, score: Callable[[Tensor], Tensor], seed: int, calls: int) -> Tensor:
    """Within ``isolated`` with the same seed, for the same draws at every point, also from the global generators."""
    with draws_from(module, derive_seed(seed, "probe")):
        return torch.stack([score(module(x)) for _ in range(calls)]).mean(0)


def _agreement(module: nn.Module, x: Tensor, y: Tensor, moves: Tensor, m: Tensor, seed: int, calls: int) -> Tensor:
    return agreement(gradient(module, x, lambda z: logit_margin(z, y), seed=seed, calls=calls), moves, m)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Over dimension 0; 0 where either is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-30)  # type: ignore[no-any-return]
