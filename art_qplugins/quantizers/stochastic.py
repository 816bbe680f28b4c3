r"""The stochastic quantizer: a distribution over evenly spaced bins, and draws from it.

Bins are :math:`b_k = o + k\Delta,\ k = 0 .. K-1`. The offset o and the spacing :math:`\Delta > 0` are learned. On a grid
without ends, the probability of bin k is :math:`\alpha`-entmax of :math:`z_k = -((x - b_k) / \Delta)^2`. Bins beyond the
ends count as the ends. That is softmax at :math:`\alpha = 1`, sparser as :math:`\alpha` grows, and the nearest bin alone in
the limit. At :math:`\alpha = 2` it has a closed form: unbiased stochastic rounding between the two bins around x, which for
K = 2 is BinaryConnect's hard sigmoid.

Only the abstract of the method (arXiv 2312.00105) is public. This quantizer is a RECONSTRUCTION, not the authors'
code. It has every property that the abstract names ("continuous, sparse, low-variance").
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.domains import BITS, FINITE, Number, check
from art_qplugins.quantizers import dither
from art_qplugins.quantizers.noise import Words
from art_qplugins.quantizers.precision import in_float32

__all__ = ["StochasticQuantizer", "stochastic_quantizers"]

#: Elements that the CPU works on at a time, where there are many steps: they stay in its cache.
_BLOCK = 2**17


def _parts(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Views of the same elements of each, one after the other: on the CPU they stay in its cache through many steps."""
    if all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors):
        return zip(*(tensor.view(-1).split(_BLOCK) for tensor in tensors), strict=True)
    return [tensors]


class _Draw(torch.autograd.Function):
    """A draw from the bins around x. The gradient is that of the mean."""

    @staticmethod
    def forward(x: Tensor, words: Tensor, offset: Tensor, spacing: Tensor, alpha: float, top: int) -> Tensor:
        drawn, bins = torch.empty_like(x), 1 / spacing
        start = -offset * bins
        for of_x, of_words, code in _parts(x, words, drawn):
            dither.noise(of_words, alpha, code).add_(start).addcmul_(of_x, bins).floor_().clamp_(0, top)
            torch.addcmul(offset, code, spacing, out=code)
        return drawn

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float, int], output: Tensor) -> None:
        x, _, offset, spacing, ctx.alpha, ctx.top = inputs
        ctx.save_for_backward(x, offset, spacing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, offset, spacing = ctx.saved_tensors
        find = _of_the_clamp if ctx.alpha == 2 else _of_the_table
        grad_x, grad_spacing = torch.empty_like(x), torch.zeros_like(spacing)
        for of_grad, of_x, found in _parts(grad, x, grad_x):
            grad_spacing += find(of_grad, of_x, found, offset, spacing, ctx.alpha, ctx.top, ctx.needs_input_grad[3])
        grad_offset = grad.sum() - grad_x.sum() if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_offset, grad_spacing if ctx.needs_input_grad[3] else None, None, None


def _of_the_clamp(
    grad: Tensor, x: Tensor, grad_x: Tensor, offset: Tensor, spacing: Tensor, alpha: float, top: int, of_spacing: bool
) -> Tensor | int:
    """Writes the gradient in x where the mean is clamp(x), alpha = 2. Returns that in the spacing, 0 if nobody asks."""
    high = offset + top * spacing  # a tensor: a number would make the CPU wait for the device
    passes = torch.ops.aten.threshold_backward  # of the gradient where the second argument is above the third
    above_low = passes(grad, inside := x - offset, 0)
    passes(above_low, torch.sub(high, x, out=inside), 0, grad_input=grad_x)
    return (above_low.sum() - grad_x.sum()) * top if of_spacing else 0


def _of_the_table(
    grad: Tensor, x: Tensor, grad_x: Tensor, offset: Tensor, spacing: Tensor, alpha: float, top: int, of_spacing: bool
) -> Tensor | int:
    """As above, where the mean is in a table."""
    table = dither.slopes(alpha, top, x.device)
    u = (x - offset).div_(spacing)
    cell, skipped = table.cells(u, top)
    torch.mul(_of_each(cell, table.slope), grad, out=grad_x)
    if not of_spacing:
        return 0
    mean = skipped.add_(_of_each(cell, table.mean))
    return mean.mul_(grad).sub_(u.mul_(grad_x)).sum()  # d/dD of D m((x - o) / D) is m - u m'


def _of_each(cell: Tensor, values: Tensor) -> Tensor:
    return values.index_select(0, cell.flatten()).view(cell.shape)


class StochasticQuantizer(Words):
    r"""Draw each activation from a distribution over ``2 ** num_bits`` bins; the gradient is that of the mean.

    :math:`y = m(x) + \mathrm{stopgrad}(q - m(x))` with :math:`q \sim p(\cdot|x)` and :math:`m(x) = \sum_k p_k b_k`:
    the gradient of the expectation. It is exact at :math:`\alpha = 2`. At others it is the mean slope over a cell of at most
    1/2,000 of a spacing. A probability of a draw is a multiple of :math:`2^{-16}`. It behaves the same in train and eval
    mode.

    :param num_bits: bits per activation; K = ``2 ** num_bits`` bins.
    :param alpha: sparsity, at least 1. 2 (the default) is unbiased stochastic rounding in closed form.
    :param clip: the bins start out evenly on [low, clip].
    :param low: see ``clip``.
    :param seed: key of the noise.
    :param layer: which layer of its network this is. Layers of one network draw different noise.
    """

    def __init__(
        self,
        num_bits: int,
        *,
        alpha: float = 2.0,
        clip: float = 6.0,
        low: float = 0.0,
        seed: int = 0,
        layer: int = 0,
    ) -> None:
        super().__init__(seed=seed, layer=layer)
        self.num_bits = check("num_bits", num_bits, BITS)
        self.alpha = float(check("alpha", alpha, Number(1)))
        check("low", low, FINITE)
        check("clip", clip, Number(low, above=True))
        self.offset = nn.Parameter(torch.zeros(()))
        self.raw_spacing = nn.Parameter(torch.zeros(()))
        self.spread(low, clip)

    def no_weight_decay(self) -> set[str]:
        """Decay would move the bins to 0 and their spacing to log 2."""
        return {"offset", "raw_spacing"}

    @torch.no_grad()
    def spread(self, low: float, high: float) -> None:
        """Put the bins evenly on [low, high], in place."""
        spacing = (high - low) / (self.num_bins - 1)
        self.offset.fill_(low)
        self.raw_spacing.fill_(spacing + math.log(-math.expm1(-spacing)))  # softplus^-1

    @property
    def spacing(self) -> Tensor:
        r""":math:`\Delta > 0`, a scalar with gradient."""
        return nn.functional.softplus(self.raw_spacing)

    @property
    def num_bins(self) -> int:
        return int(2**self.num_bits)

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest bin, scalars without gradient."""
        low = self.offset.detach()
        return low, low + self.spacing.detach() * (self.num_bins - 1)

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        drawn: Tensor = _Draw.apply(x, self.noise(x), self.offset, self.spacing, self.alpha, self.num_bins - 1)
        return drawn

    @in_float32
    def full_precision(self, x: Tensor) -> Tensor:
        """The mean m(x), which the draws round."""
        if self.alpha == 2:
            return x.clamp(*self.range)
        p, code = self._window(x)
        return self.offset + self.spacing * (p * code).sum(-1)

    @in_float32
    def probabilities(self, x: Tensor) -> Tensor:
        """p(k | x), shape (*x.shape, K), differentiable in x, the offset and the spacing."""
        if self.alpha == 2:
            u = (x - self.offset) / self.spacing
            bins = torch.arange(self.num_bins, dtype=x.dtype, device=x.device)
            return (1 - (u.clamp(0, self.num_bins - 1).unsqueeze(-1) - bins).abs()).clamp_min(0)
        p, code = self._window(x)
        return p.new_zeros(*x.shape, self.num_bins).scatter_add(-1, code.long(), p)

    def _window(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities of the bins around x and the codes of these, (*x.shape, bins). A code may come again."""
        top, far = self.num_bins - 1, dither.reach(self.alpha)
        u = ((x - self.offset) / self.spacing).clamp(-far - 1, top + far + 1)
        p, code = dither.window(u, self.alpha)
        return p, code.clamp(0, top)

    def extra_repr(self) -> str:
        return f"num_bits={self.num_bits}, alpha={self.alpha:g}, seed={self.seed}, layer={self.layer}"


def stochastic_quantizers(module: nn.Module) -> list[StochasticQuantizer]:
    """The stochastic quantizers inside ``module``, in order, also those of frozen ensembles."""
    return [m for m in module.modules() if isinstance(m, StochasticQuantizer)]
