"""The orthogonality penalty of Defensive Quantization (Lin, Gan & Han 2019, equation 8)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from art_qplugins.defences.base import Defence
from art_qplugins.domains import NOT_NEGATIVE, POSITIVE, check
from art_qplugins.quantizers.maps import weight_layers
from art_qplugins.quantizers.precision import in_float32

__all__ = ["Orthogonality", "as_matrices", "groups_of", "orthogonality_penalty", "stationary_singular_value"]


def groups_of(layer: nn.Module) -> int:
    """Number of groups of a convolution, 1 of any other layer."""
    return int(getattr(layer, "groups", 1))


def as_matrices(weight: Tensor, groups: int = 1) -> Tensor:
    """``weight`` as a matrix (out, rest), or as one for each group, (groups, out / groups, rest).

    Each group of a convolution reads channels of its own. So rows of different groups are orthogonal whatever they hold, and
    the singular values of the layer's matrix are those of its groups together.
    """
    matrix = weight.flatten(1)
    return matrix if groups == 1 else matrix.unflatten(0, (groups, -1))


class _Penalty(torch.autograd.Function):
    """The penalty of matrices, with its gradient in closed form, 4 (W W^T - I) W. Autograd takes half as long again."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        ctx.wide = matrix.shape[-2] <= matrix.shape[-1]
        residual = matrix @ matrix.mT if ctx.wide else matrix.mT @ matrix
        residual.diagonal(dim1=-2, dim2=-1).sub_(1)
        ctx.save_for_backward(matrix, residual)
        return residual.square().sum()

    @staticmethod
    @once_differentiable
    @in_float32
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        matrix, residual = ctx.saved_tensors
        scaled = 4 * grad * residual  # the smaller factor
        slope: Tensor = scaled @ matrix if ctx.wide else matrix @ scaled
        return slope


@in_float32
def orthogonality_penalty(weight: Tensor, groups: int = 1) -> Tensor:
    r""":math:`\|W W^T - I\|_F^2` for W = ``weight`` as a matrix (out, rest), by the smaller of its two Gram matrices.

    With groups it is the sum over the matrices of the groups (:func:`as_matrices`).

    Equation 8 has :math:`W^T W`. The two differ by a constant, the difference of the dimensions, and have the same
    gradient. So the choice affects the cost alone. The minimum is 0, where all singular values are 1. The penalty is
    float32, also under autocast and also of other weights. It has no second derivative.
    """
    penalty: Tensor = _Penalty.apply(as_matrices(weight.float(), groups))
    return penalty


def stationary_singular_value(beta: float, weight_decay: float) -> float:
    r"""The singular value to which the penalty and weight decay pull a weight where nothing else does.

    The two gradients add up to :math:`2\beta(\sigma^2 - 1)\sigma + wd\,\sigma`. It vanishes at
    :math:`\sigma^2 = 1 - wd / (2\beta)`, and for :math:`wd \ge 2\beta` at :math:`\sigma = 0` alone.
    """
    check("beta", beta, POSITIVE)
    check("weight_decay", weight_decay, NOT_NEGATIVE)
    return math.sqrt(max(0.0, 1 - weight_decay / (2 * beta)))


class Orthogonality(Defence):
    r"""Adds :math:`\frac{\beta}{2} \sum_l \|W_l W_l^T - I\|_F^2` over all linear and convolutional layers.

    It pulls singular values towards 1, against weight decay (:func:`stationary_singular_value`). It does not make the
    network non-expansive: a reshaped 3x3 convolution with orthonormal rows can have operator norm 3, and batch norm
    rescales.

    :param beta: weight of the penalty; the paper's best is 2e-3.
    """

    def __init__(self, beta: float = 2e-3) -> None:
        self.beta: float = check("beta", beta, NOT_NEGATIVE)

    def warning(self, weight_decay: float) -> str | None:
        """Where both together pull singular values to less than about a half. Where decay wins, they pull them to 0."""
        if self.beta == 0 or (sigma := stationary_singular_value(self.beta, weight_decay)) > 0.45:
            return None
        does = "weakens" if sigma else "cancels"
        return (
            f"weight decay {weight_decay:g} {does} the orthogonality penalty: with beta = {self.beta:g} both together pull "
            f"singular values to {sigma:.2g}, not to 1; give a weight_decay well below 2 beta = {2 * self.beta:g}"
        )

    def penalty(self, model: nn.Module) -> Tensor | float:
        """What is added to the loss; 0.0 for a network without such layers."""
        weights = [(layer.weight, groups_of(layer)) for _, layer in weight_layers(model)]
        return self.beta / 2 * sum(orthogonality_penalty(w, groups) for w, groups in weights if isinstance(w, Tensor))
