"""The quantized activation of Defensive Quantization (Lin, Gan & Han 2019, section 2.1)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.quantizers.functional import quant_relu, straight_through
from art_qplugins.quantizers.surrogates import Surrogate, as_surrogate

__all__ = ["QuantReLU", "check_num_bits"]


def check_num_bits(num_bits: int, *, name: str = "num_bits") -> int:
    """``num_bits`` itself.

    :raises InputError: where it is not a whole number from 1 to 16.
    """
    if not isinstance(num_bits, int) or isinstance(num_bits, bool) or not 1 <= num_bits <= 16:
        raise InputError(f"{name} is {num_bits!r}; give a whole number from 1 to 16")
    return num_bits


class QuantReLU(nn.Module):
    """ReLU clipped at ``clip`` and rounded to ``2 ** num_bits`` levels, with the straight-through gradient.

    See :func:`~art_qplugins.quantizers.functional.quant_relu`. It has no parameters and no state.

    :param num_bits: bits per activation, 1 to 16.
    :param clip: the upper level. 6 makes it a quantized ReLU6.
    :param surrogate: another backward pass, by its name in :data:`~art_qplugins.quantizers.surrogates.SURROGATES`, or with
        options as a :class:`~art_qplugins.quantizers.surrogates.Surrogate`. Values do not depend on it. To change it for
        an attack only, use the context :func:`~art_qplugins.surrogate`.
    """

    def __init__(self, num_bits: int, clip: float = 6.0, *, surrogate: str | Surrogate | None = None) -> None:
        super().__init__()
        if not (math.isfinite(clip) and clip > 0):
            raise InputError(f"clip is {clip!r}; give a finite number above 0")
        self.num_bits = check_num_bits(num_bits)
        self.clip = float(clip)
        self.surrogate = as_surrogate(surrogate)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return 0.0, self.clip

    def full_precision(self, x: Tensor) -> Tensor:
        """The clip, which it rounds."""
        return x.clamp(0.0, self.clip)

    def forward(self, x: Tensor) -> Tensor:
        value = quant_relu(x, self.num_bits, self.clip)
        if self.surrogate is None:
            return value
        return straight_through(value, x * self.surrogate(x.detach(), self.num_bits, self.clip))

    def extra_repr(self) -> str:
        settings = f"num_bits={self.num_bits}, clip={self.clip:g}"
        return settings if self.surrogate is None else f"{settings}, surrogate={self.surrogate}"
