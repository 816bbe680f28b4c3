r"""Draws of a stochastic quantizer as dithering: noise is added, and the sum is rounded down.

On a grid of spacing 1 without ends, the probability of bin k given u is a function of u - k alone. So is

.. math:: G(u - k) = P(\mathrm{code} \ge k \mid u),

which rises from 0 to 1. A draw is :math:`\lfloor u + n \rfloor` with noise n that has the distribution
:math:`P(n \ge -t) = G(t)`. It is the same noise for every u, so that a draw needs no probabilities: 8 bits cost what 2 bits
cost. At :math:`\alpha = 2` the noise is uniform on [0, 1]. A quantizer has ends: bins beyond them count as the ends.

The functions of other alphas are in tables, which are made once from exact probabilities in double precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_qplugins.quantizers.entmax import entmax

__all__ = ["WORDS", "blocks", "noise", "of_each", "reach", "slopes", "window"]

#: The noise of a draw is one of this many values of equal probability: a word of sixteen bits.
WORDS = 2**16
#: Elements that the CPU works on at a time where a step needs memory of its own.
_BLOCK = 2**17
#: Cells of a spacing, at least. With more bins than leave room for so many, a table leaves out some that are alike.
_PARTS = 2000
#: Probabilities below this count as none.
_NONE = 1e-9
#: At alpha = 1, where every bin has mass, those farther away have less than 1e-16.
_FARTHEST = 6


def window(u: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    r"""The bins with mass, and their probabilities: :math:`\alpha`-entmax of :math:`-(u - k)^2`.

    :param u: position in spacings, (...).
    :return: p and k, (..., bins). p has a gradient in u. Some of the bins may have no mass.
    """
    if alpha < 2:
        return _around(u, alpha, reach(alpha))
    low = u.detach().floor()
    above = _Above.apply(u - low, alpha)
    return torch.stack([1 - above, above], -1), torch.stack([low, low + 1], -1)


def _around(u: Tensor, alpha: float, far: int) -> tuple[Tensor, Tensor]:
    """p and k of the bins up to ``far`` from the nearest one."""
    nearest = u.detach().round()
    steps = torch.arange(-far, far + 1, dtype=u.dtype, device=u.device)
    # The scores minus the greatest, -(u - k)^2 + (u - nearest)^2, so that nothing cancels far from 0.
    scores = steps * (2 * (u - nearest).unsqueeze(-1) - steps)
    return entmax(scores, alpha), nearest.unsqueeze(-1) + steps


class _Above(torch.autograd.Function):
    r"""The probability p of the upper of two bins, alpha >= 2, given the fraction f of u between them.

    It solves :math:`p^{\alpha-1} - (1-p)^{\alpha-1} = (\alpha-1)(2f - 1)`. Where the right side is beyond 1, p is 0 or 1. The
    general entmax loses digits as alpha grows: its p is a root of order alpha - 1.
    """

    @staticmethod
    def forward(f: Tensor, alpha: float) -> Tensor:
        target = (alpha - 1) * (2 * f - 1)
        low, high = torch.zeros_like(f), torch.ones_like(f)
        for _ in range(54):
            p = (low + high) / 2
            less = p ** (alpha - 1) - (1 - p) ** (alpha - 1) < target
            low, high = torch.where(less, p, low), torch.where(less, high, p)
        return torch.where(target <= -1, 0, torch.where(target >= 1, 1, high)).to(f.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.alpha = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        power = ctx.alpha - 2
        return 2 * grad / (p**power + (1 - p) ** power) * ((p > 0) & (p < 1)), None


@lru_cache
def reach(alpha: float) -> int:
    """The whole number of spacings from u beyond which no bin has mass."""
    if alpha >= 2:  # the two bins around u
        return 1
    p, k = _around(torch.linspace(-0.5, 0.5, 129, dtype=torch.float64), alpha, _FARTHEST)
    return int(k[p > _NONE].abs().max()) + 1


def _rise(alpha: float, parts: int) -> tuple[Tensor, Tensor]:
    """G at every 1 / ``parts`` from -reach to reach: t and G(t), in double precision."""
    far = reach(alpha)
    u = torch.arange(parts, dtype=torch.float64) / parts
    p, k = window(u, alpha)
    bins = torch.arange(far, -far, -1)
    above = ((k.unsqueeze(1) >= bins[:, None] - 0.5) * p.unsqueeze(1)).sum(-1)  # (parts, bins)
    t = (u[:, None] - bins).T.flatten()
    return torch.cat([t, t.new_tensor([far])]), torch.cat([above.T.flatten(), t.new_ones(1)]).clamp(0, 1)


@lru_cache
def _quantiles(alpha: float, device: torch.device) -> Tensor:
    t, rise = _rise(alpha, 2**12)
    rise = rise.cummax(0).values
    v = (torch.arange(WORDS, dtype=torch.float64) + 0.5) / WORDS
    after = torch.searchsorted(rise, v).clamp(1, len(rise) - 1)
    low, high = rise[after - 1], rise[after]
    share = ((v - low) / (high - low)).clamp(0, 1)
    return -(t[after - 1] + share * (t[after] - t[after - 1])).float().to(device)


def blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Views of the same elements of each, block after block on the CPU: to ask for much memory at each step takes long."""
    if all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors):
        return zip(*(tensor.view(-1).split(_BLOCK) for tensor in tensors), strict=True)
    return [tensors]


def of_each(index: Tensor, values: Tensor, out: Tensor) -> Tensor:
    """Writes ``values[index]`` to ``out``, which has the shape of ``index``."""
    if out.is_contiguous() and out.dtype == values.dtype:
        torch.index_select(values, 0, index.flatten(), out=out.view(-1))
        return out
    return out.copy_(values.index_select(0, index.flatten()).view(index.shape))


def noise(words: Tensor, alpha: float, out: Tensor) -> Tensor:
    """The noise n of these words, written to ``out``.

    :param words: int16; every value is as probable as the others.
    :param out: floating point, of their shape.
    """
    if alpha == 2:
        return out.copy_(words).add_(WORDS // 2 + 0.5).mul_(1 / WORDS)
    quantiles = _quantiles(alpha, words.device)
    for of_words, of_out in blocks(words, out):
        of_each(of_words.int().add_(WORDS // 2), quantiles, of_out)
    return out


class Slopes(NamedTuple):
    """The mean code m(u) = E[floor(u + n)] between the ends, and its slope, in cells of equal width.

    :ivar slope: m' averaged over each cell.
    :ivar mean: m in the middle of each cell.
    :ivar parts: cells in a spacing.
    :ivar far: the first cell starts this many spacings below bin 0.
    :ivar ends: the number of the last bin of the table. A quantizer that has more is alike between its ends.
    """

    slope: Tensor
    mean: Tensor
    parts: int
    far: int
    ends: int

    def cells(self, above: Tensor, step: float | Tensor, top: int) -> tuple[Tensor, Tensor | None]:
        """The cell of each element, int32, and how many bins were left out before it, None if none is.

        :param above: x minus the lowest bin, of any shape.
        :param step: the spacing.
        :param top: number of the quantizer's last bin.
        """
        v = above.mul(self.parts / step).add_(self.far * self.parts).clamp_(0, (top + 2 * self.far) * self.parts)
        if top == self.ends:
            return v.int(), None
        skipped = v.mul(1 / self.parts).sub_(2 * self.far).floor_().clamp_(0, top - self.ends)
        return v.sub_(skipped, alpha=self.parts).int(), skipped


def slopes(alpha: float, top: int, device: torch.device) -> Slopes:
    """The table for a quantizer whose last bin is ``top``."""
    whole = WORDS // (top + 2 * reach(alpha)) >= _PARTS
    return _slopes(alpha, top if whole else min(top, 2 * reach(alpha)), device)


@lru_cache
def _slopes(alpha: float, ends: int, device: torch.device) -> Slopes:
    far = reach(alpha)
    units = ends + 2 * far
    parts = WORDS // units
    _, rise = _rise(alpha, parts)
    m = torch.zeros(units * parts + 1, dtype=torch.float64)
    for k in range(1, ends + 1):  # m(u) is the sum of G(u - k)
        start, stop = k * parts, k * parts + len(rise)
        m[start:stop] += rise
        m[stop:] += 1
    slope = torch.cat([m.diff() * parts, m.new_zeros(1)])  # the last cell is beyond the end
    mean = torch.cat([(m[1:] + m[:-1]) / 2, m.new_tensor([ends])])
    return Slopes(slope.float().to(device), mean.float().to(device), parts, far, ends)
