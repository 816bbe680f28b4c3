"""What the networks of the papers share: the check of their images and the initialisation of their weights."""

from __future__ import annotations

from torch import nn

from art_qplugins.errors import InputError
from art_qplugins.quantizers.convert import weight_layers

__all__ = ["check_images", "he_init"]


def check_images(network: str, input_shape: tuple[int, int, int], side: int) -> tuple[int, int, int]:
    """``input_shape``, (C, H, W), refused where H or W is below ``side``."""
    if len(input_shape) != 3 or min(input_shape[1:]) < side:
        raise InputError(f"input_shape is {tuple(input_shape)!r}; {network} takes (C, H, W) from {side}x{side} on")
    return input_shape


def he_init(model: nn.Module) -> None:
    """Weights from N(0, 2 / fan_in) (He et al. 2015, equation 10) and biases 0, in place."""
    for _, layer in weight_layers(model):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
