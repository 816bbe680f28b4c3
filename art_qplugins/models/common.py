"""Helpers that the networks share: checks of options and image shapes, and the initialisation of weights."""

from __future__ import annotations

from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.quantizers.convert import weight_layers

__all__ = ["check_count", "check_images", "he_init"]


def check_count(name: str, value: int) -> int:
    """``value``.

    :raises InputError: where it is not a whole number of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}; give a whole number of at least 1")
    return value


def check_images(network: str, input_shape: tuple[int, int, int], side: int) -> tuple[int, int, int]:
    """``input_shape``, (C, H, W).

    :raises InputError: where H or W is below ``side``.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < side:
        raise InputError(f"input_shape is {tuple(input_shape)!r}; {network} takes (C, H, W) from {side}x{side} on")
    return input_shape


def he_init(model: nn.Module) -> None:
    """Weights from N(0, 2 / fan_in) (He et al. 2015, equation 10) and biases 0, in place."""
    for _, layer in weight_layers(model):
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)  # an attribute of a module may be a module, as far as mypy knows
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)
