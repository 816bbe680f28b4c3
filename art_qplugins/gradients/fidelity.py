"""Fidelity: does the gradient predict the real effect of small steps?

A gradient may differ from the slope because it is shattered, or because its surrogate is bad. It then misleads every attack
that follows it, whatever its size (Athalye, Carlini & Wagner 2018). Fidelity is measured on the logit margin, so the logit
scale does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from art_qplugins.domains import POSITIVE, SEED, TEXT, Domain, ListOf, Maybe, Number, OneOf, check, check_all
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.probe import gradient, margins
from art_qplugins.quantizers.surrogates import SURROGATES, surrogate
from art_qplugins.seeds import derive_seed
from art_qplugins.torch_domains import IMAGES, LABELS, MODULE

__all__ = ["agreement", "best_surrogate", "fidelity", "sign_moves"]


#: A correlation needs two directions. More than these change no answer, and take hours.
DIRECTIONS = Number(2, 10_000, whole=True)
_ARGUMENTS: dict[str, Domain] = {
    "module": MODULE,
    "x": IMAGES,
    "y": LABELS,
    "step": POSITIVE,
    "directions": DIRECTIONS,
    "seed": SEED,
    "calls": Number(1, 10_000, whole=True),
}


def fidelity(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    step: float,
    directions: int = 20,
    seed: int = 0,
    calls: int = 1,
    network: nn.Module | None = None,
) -> Tensor:
    """Per image, the fidelity of the gradient g of the logit margin m, in [-1, 1]; (N,) float64.

    It is the correlation of two quantities over random sign directions u: the predicted change h g.u and the real
    change m(x + h u) - m(x). It is near 1 if the gradient is the slope, and near 0 if the gradient is uninformative.

    :param x: (N, C, H, W) in [0, 1].
    :param y: (N,) labels.
    :param step: h, in units of pixels. Use the step size of the attack that follows the gradient.
    :param directions: number of directions, at least 2.
    :param seed: fixes the directions, and the draws of a random module, which are the same at every point.
    :param calls: number of calls of a random module to average, as an attack that averages over draws does.
    :param network: whose real changes count, if not those of ``module``: what the gradient of a twin says about it.
    :raises InputError: where ``step`` or ``directions`` is out of range.
    """
    check_all(locals(), {**_ARGUMENTS, "network": Maybe(MODULE)})
    moves = sign_moves(x, step, directions, seed)
    m = margins(network or module, x, y, moves, seed=seed, calls=calls)
    return _agreement(module, x, y, moves, m, seed, calls)


def sign_moves(x: Tensor, step: float, directions: int, seed: int) -> Tensor:
    """Random corners of the cube of half-side ``step``, (directions, C, H, W).

    :raises InputError: where ``step`` or ``directions`` is out of range.
    """
    step = float(check("step", step, POSITIVE))
    check("directions", directions, DIRECTIONS)
    generator = torch.Generator().manual_seed(derive_seed(seed, "directions"))
    return step * ((torch.rand((directions, *x.shape[1:]), generator=generator) < 0.5).to(x) * 2 - 1)


def agreement(slope: Tensor, moves: Tensor, m: Tensor) -> Tensor:
    """Per image, the correlation between predicted and real changes of the margin, (N,) float64.

    :param slope: (N, C, H, W), the gradient that predicts.
    :param moves: (D, C, H, W).
    :param m: (1 + D, N), the margins at the images and after each move, as :func:`margins` gives them.
    """
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
    """The surrogate gradient with the highest median fidelity on these images, and the median of every kind.

    A surrogate changes no value, so the margins are computed once for all kinds. The first of several equal kinds wins.

    :param kinds: keys of :data:`~art_qplugins.quantizers.surrogates.SURROGATES`.

    The other parameters are those of :func:`fidelity`.
    """
    check_all(locals(), {**_ARGUMENTS, "kinds": ListOf(TEXT, least=1)})
    for kind in kinds:
        check("kinds", kind, OneOf(tuple(SURROGATES)))
    moves = sign_moves(x, step, directions, seed)
    m = margins(module, x, y, moves, seed=seed, calls=calls)
    scores = {}
    for kind in kinds:
        with surrogate(module, kind):
            found = _agreement(module, x, y, moves, m, seed, calls)
        scores[kind] = float(found.quantile(0.5))
    return max(scores, key=lambda kind: -math.inf if math.isnan(scores[kind]) else scores[kind]), scores


def _agreement(module: nn.Module, x: Tensor, y: Tensor, moves: Tensor, m: Tensor, seed: int, calls: int) -> Tensor:
    return agreement(gradient(module, x, lambda z: logit_margin(z, y), seed=seed, calls=calls), moves, m)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Over dimension 0. It is 0 where either is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    lengths: Tensor = a.norm(dim=0) * b.norm(dim=0)
    return (a * b).sum(0) / lengths.clamp_min(1e-30)
