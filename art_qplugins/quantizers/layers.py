"""The torch modules that :func:`~art_qplugins.quantize` replaces, and those whose weights it maps."""

from __future__ import annotations

from torch import nn

from art_qplugins.quantizers.activation import QuantHardtanh, QuantReLU

__all__ = ["ACTIVATIONS", "WEIGHTED", "own_range"]

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, QuantReLU, QuantHardtanh)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def own_range(activation: nn.Module) -> tuple[float, float] | None:
    """The range of an activation, which its quantized form keeps; ``None`` if the range is [0, clip].

    ``nn.ReLU6`` is a subclass of Hardtanh in torch. Here it counts as a ReLU and takes the given ``clip``.
    """
    if isinstance(activation, QuantHardtanh):
        return activation.range
    if isinstance(activation, nn.Hardtanh) and not isinstance(activation, nn.ReLU6):
        return float(activation.min_val), float(activation.max_val)
    return None
