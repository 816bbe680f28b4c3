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
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.domains import BITS, FINITE, Number, check
from art_qplugins.quantizers import dither
from art_qplugins.quantizers.dither import blocks, of_each
from art_qplugins.quantizers.noise import Words
from art_qplugins.quantizers.precision import in_float32

__all__ = ["StochasticQuantizer", "stochastic_quantizers"]

#: A scalar: a number on the CPU, where steps with one are faster, and a tensor on a GPU, which nobody then has to wait for.
_Scalar = float | Tensor


def _scalar(value: Tensor) -> _Scalar:
    return value.item() if value.device.type == "cpu" else value


class _Draw(torch.autograd.Function):
    """A draw from the bins around x. The gradient is that of the mean."""

    @staticmethod
    def forward(x: Tensor, words: Tensor, offset: Tensor, spacing: Tensor, alpha: float, top: int) -> Tensor:
        start, step = _scalar(offset), _scalar(spacing)
        code = dither.noise(words, alpha, torch.empty_like(x)).sub_(start / step)
        code = code.addcmul_(x, 1 / step) if isinstance(step, Tensor) else code.add_(x, alpha=1 / step)
        return code.floor_().clamp_(0, top).mul_(step).add_(start)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float, int], output: Tensor) -> None:
        x, _, offset, spacing, ctx.alpha, ctx.top = inputs
        ctx.save_for_backward(x, offset, spacing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, offset, spacing = ctx.saved_tensors
        start, step = _scalar(offset), _scalar(spacing)
        _, _, of_offset, of_spacing, *_ = ctx.needs_input_grad
        if ctx.alpha == 2:
            grad_x, grad_step = _of_the_clamp(grad, x, start, step, ctx.top, of_spacing)
        else:
            grad_x, grad_step = _of_the_table(grad, x, start, step, ctx.alpha, ctx.top, of_spacing)
        grad_start = grad.sum() - grad_x.sum() if of_offset else None
        return grad_x, None, grad_start, grad_step, None, None


def _of_the_clamp(
    grad: Tensor, x: Tensor, start: _Scalar, step: _Scalar, top: int, of_step: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients in x and in the spacing where the mean is clamp(x), alpha = 2; the second is None if nobody asks."""
    if isinstance(step, Tensor):
        x, start, step = (x - start) / step, 0.0, 1.0  # in codes: the bounds are numbers then
    grad_x = torch.empty_like(x)
    above = None  # the sum of the gradient above the lowest bin
    if of_step:
        above = torch.ops.aten.threshold_backward(grad, x, start, grad_input=grad_x).sum()
    torch.ops.aten.hardtanh_backward(grad, x, start, start + top * step, grad_input=grad_x)
    return grad_x, None if above is None else (above - grad_x.sum()) * top


def _of_the_table(
    grad: Tensor, x: Tensor, start: _Scalar, step: _Scalar, alpha: float, top: int, of_step: bool
) -> tuple[Tensor, Tensor | None]:
    """As above, where the mean is in a table."""
    table = dither.slopes(alpha, top, x.device)
    grad_x, grad_step = torch.empty_like(x), x.new_zeros(()) if of_step else None
    for of_grad, of_x, found in blocks(grad, x, grad_x):
        above = of_x - start
        cell, skipped = table.cells(above, step, top)
        of_each(cell, table.slope, found).mul_(of_grad)
        if grad_step is not None:  # d/dD of D m((x - o) / D) is m - u m'
            mean = of_each(cell, table.mean, torch.empty_like(found))
            mean = mean if skipped is None else mean.add_(skipped)
            grad_step += mean.mul_(of_grad).sub_(above.mul_(found).mul_(1 / step)).sum()
    return grad_x, grad_step


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
