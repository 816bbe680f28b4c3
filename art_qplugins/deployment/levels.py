"""Quantizers of activations as operations of a graph."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from art_qplugins.deployment import ops
from art_qplugins.deployment.grids import Grid, grid_of
from art_qplugins.quantizers.activation import LearnedClipReLU, QuantHardtanh, QuantReLU
from art_qplugins.quantizers.protocol import ActivationQuantizer, as_quantizer

__all__ = ["QUANTIZE", "grid_before", "mark_levels"]

aten = torch.ops.aten
QUANTIZE = torch.ops.artq.quantize.default
#: Quantizers that do no more than clip and round, and the levels clip.
_CLIPS = (QuantReLU, QuantHardtanh, LearnedClipReLU)
#: Operations whose outputs are on the grid of their first argument.
_KEEP_GRID = {
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.adaptive_max_pool2d.default),
    *(aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dim, aten.unsqueeze.default),
    *(aten.dropout.default, aten.contiguous.default, aten.clone.default, aten.permute.default, aten.transpose.int),
    aten.slice.Tensor,
}


class _Levels(nn.Module):
    """A quantizer of activations as one operation."""

    def __init__(self, before: nn.Module, grid: Grid, offset: float) -> None:
        super().__init__()
        self.before, self.grid, self.offset = before, grid, offset

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.offset:
            x = x - self.offset
        levels: Tensor = ops.quantize(x, *self.grid)
        return levels + self.offset if self.offset else levels


class _FloatLevels(nn.Module):
    """A quantizer of activations with more levels than uint8 has, in operations on floats."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.low, self.high = map(float, quantizer.range)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.high - self.low) / (2**self.quantizer.num_bits - 1)
        x = self.quantizer.full_precision(x).clamp(self.low, self.high)
        levels: Tensor = ((x - self.low) / scale).round() * scale + self.low
        return levels


class _Function(nn.Module):
    """What a quantizer rounds, where it is more than a clip."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer.full_precision(x)


def mark_levels(network: nn.Module) -> None:
    """Put one operation in the place of each quantizer of activations of up to 8 bits, and several in that of others."""
    for parent in list(network.modules()):
        for name, part in parent.named_children():
            if (quantizer := as_quantizer(part)) is None:
                continue
            grid, offset = grid_of(quantizer)
            if grid is None:
                setattr(parent, name, _FloatLevels(quantizer).eval())
            else:
                before = nn.Identity() if isinstance(part, _CLIPS) else _Function(quantizer)
                setattr(parent, name, _Levels(before, grid, offset).eval())


def grid_before(node: Any) -> Grid | None:
    """The grid that the output of a node is on."""
    while isinstance(node, fx.Node) and node.target in _KEEP_GRID:
        node = node.args[0]
    if isinstance(node, fx.Node) and node.target == QUANTIZE:
        return Grid(*cast(Any, node.args[1:]))
    return None
