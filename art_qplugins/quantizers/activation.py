"""The quantized activations of Defensive Quantization (Lin, Gan & Han 2019, section 2.1), on [0, clip] or any range.

The clip may be learned (PACT; Choi et al. 2018, arXiv 1805.06085). An affine quantizer has any range, and 0 among its levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.domains import BITS, FINITE, POSITIVE, Number, check
from art_qplugins.quantizers.functional import (
    affine_grid,
    quant_affine,
    quant_hardtanh,
    quant_relu,
    straight_through,
)
from art_qplugins.quantizers.precision import in_float32
from art_qplugins.quantizers.surrogates import Surrogate, as_surrogate

__all__ = ["LearnedClipReLU", "QuantAffine", "QuantHardtanh", "QuantReLU", "uniform_activation"]

#: A learned clip stays above this, so that there are levels.
_LEAST = 1e-3


class _UniformActivation(nn.Module):
    """Base class of all: the surrogate gradient, and the clip that is rounded."""

    num_bits: int
    surrogate: Surrogate | None

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        raise NotImplementedError

    @in_float32
    def full_precision(self, x: Tensor) -> Tensor:
        """The clip without the rounding."""
        return x.clamp(*self.range)

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        value = self._rounded(x)
        if self.surrogate is None:
            return value
        # A surrogate is defined on [0, clip]. Here it is moved to the range.
        low, high = self.range
        return straight_through(value, x * self.surrogate(x.detach() - low, self.num_bits, high - low))

    def _rounded(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _repr(self, settings: str) -> str:
        settings = f"num_bits={self.num_bits}, {settings}"
        return settings if self.surrogate is None else f"{settings}, surrogate={self.surrogate}"


class QuantReLU(_UniformActivation):
    """ReLU clipped at ``clip`` and rounded to ``2 ** num_bits`` levels, with the straight-through gradient.

    See :func:`~art_qplugins.quantizers.functional.quant_relu`. It has no parameters and no state. Under autocast it gives
    float32.

    :param num_bits: bits per activation, 1 to 16. A bfloat16 input reaches at most 235 of the 256 levels of 8 bits on
        [0, 6], because it has no more values there.
    :param clip: the upper level. 6 makes it a quantized ReLU6.
    :param surrogate: another backward pass: a name in :data:`~art_qplugins.quantizers.surrogates.SURROGATES`, or a
        :class:`~art_qplugins.quantizers.surrogates.Surrogate` with options. Values do not depend on it. Use the context
        :func:`~art_qplugins.surrogate` to change it only for an attack.
    """

    def __init__(self, num_bits: int, clip: float = 6.0, *, surrogate: str | Surrogate | None = None) -> None:
        super().__init__()
        self.num_bits = check("num_bits", num_bits, BITS)
        self.clip = float(check("clip", clip, POSITIVE))
        self.surrogate = as_surrogate(surrogate)

    @property
    def range(self) -> tuple[float, float]:
        return 0.0, self.clip

    def _rounded(self, x: Tensor) -> Tensor:
        return quant_relu(x, self.num_bits, self.clip)

    def extra_repr(self) -> str:
        return self._repr(f"clip={self.clip:g}")


class QuantHardtanh(_UniformActivation):
    """Hardtanh rounded to ``2 ** num_bits`` levels from ``min_val`` to ``max_val``, with the straight-through gradient.

    See :func:`~art_qplugins.quantizers.functional.quant_hardtanh`. It has no parameters and no state.

    :param num_bits: bits per activation, 1 to 16.
    :param min_val: the lowest level.
    :param max_val: the highest level, above ``min_val``.
    :param surrogate: as in :class:`QuantReLU`.
    """

    def __init__(
        self,
        num_bits: int,
        min_val: float = -1.0,
        max_val: float = 1.0,
        *,
        surrogate: str | Surrogate | None = None,
    ) -> None:
        super().__init__()
        self.num_bits = check("num_bits", num_bits, BITS)
        self.min_val = float(check("min_val", min_val, FINITE))
        self.max_val = float(check("max_val", max_val, Number(self.min_val, above=True)))
        self.surrogate = as_surrogate(surrogate)

    @property
    def range(self) -> tuple[float, float]:
        return self.min_val, self.max_val

    def _rounded(self, x: Tensor) -> Tensor:
        return quant_hardtanh(x, self.num_bits, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return self._repr(f"min_val={self.min_val:g}, max_val={self.max_val:g}")


class QuantAffine(_UniformActivation):
    """Any values clipped and rounded to ``2 ** num_bits`` even levels, of which one is 0: as an integer file stores them.

    See :func:`~art_qplugins.quantizers.functional.quant_affine`. The range is widened to hold 0 and moved by at most half
    a step, so that 0 is a level. It may have been observed, so it is in the state dict, and no gradient reaches it.

    :param num_bits: bits per activation, 1 to 16.
    :param low: the lowest value, in units of the activation.
    :param high: the highest value, above ``low``.
    :param surrogate: as in :class:`QuantReLU`.
    :ivar scale: the step between two levels.
    :ivar zero_point: how many levels are below 0.
    :ivar observe: where it is not ``None``, values are given to it and pass unchanged.
    """

    bounds: Tensor

    def __init__(self, num_bits: int, low: float, high: float, *, surrogate: str | Surrogate | None = None) -> None:
        super().__init__()
        self.num_bits = check("num_bits", num_bits, BITS)
        self.surrogate = as_surrogate(surrogate)
        self.observe: Callable[[Tensor], None] | None = None
        self.register_buffer("bounds", torch.zeros(2))
        self.spread(low, high)

    def spread(self, low: float, high: float) -> None:
        """Take another range."""
        low, high = float(check("low", low, FINITE)), float(check("high", high, Number(low, above=True)))
        # What is stored as float32 must give the same levels when it is loaded.
        self.bounds.copy_(torch.tensor([low, high]))
        self._read_bounds()

    def _read_bounds(self) -> None:
        self.scale, self.zero_point = affine_grid(self.num_bits, *self.bounds.tolist())

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._read_bounds()

    @property
    def range(self) -> tuple[float, float]:
        return -self.zero_point * self.scale, (2**self.num_bits - 1 - self.zero_point) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        if self.observe is None:
            return super().forward(x)
        self.observe(x)
        return x

    def _rounded(self, x: Tensor) -> Tensor:
        return quant_affine(x, self.num_bits, self.scale, self.zero_point)

    def extra_repr(self) -> str:
        return self._repr(f"scale={self.scale:.6g}, zero_point={self.zero_point}")


class LearnedClipReLU(_UniformActivation):
    r"""ReLU clipped at a parameter :math:`\alpha` and rounded to ``2 ** num_bits`` levels (Choi et al. 2018, equations 1 to 3).

    The gradient is straight-through: :math:`1[0 < x < \alpha]` for x, and :math:`1[x \geq \alpha]` for
    :math:`\alpha`. The paper regularizes :math:`\alpha` as it does weights, which weight decay does here.

    :param num_bits: bits per activation, 1 to 16.
    :param clip: :math:`\alpha` before training.
    :param surrogate: as in :class:`QuantReLU`. Attacks use it; :math:`\alpha` then gets no gradient.
    """

    def __init__(self, num_bits: int, clip: float = 6.0, *, surrogate: str | Surrogate | None = None) -> None:
        super().__init__()
        self.num_bits = check("num_bits", num_bits, BITS)
        self.clip = nn.Parameter(torch.tensor(float(check("clip", clip, POSITIVE))))
        self.surrogate = as_surrogate(surrogate)

    @property
    def range(self) -> tuple[float, float]:
        return 0.0, max(_LEAST, float(self.clip.detach()))

    @in_float32
    def full_precision(self, x: Tensor) -> Tensor:
        """The clip without the rounding."""
        clip = self.clip.clamp(min=_LEAST)
        return torch.where(x < clip, x.relu(), clip.to(x.dtype))

    def _rounded(self, x: Tensor) -> Tensor:
        clipped = self.full_precision(x)
        # The clip stays on its device: as a number it would make every pass wait.
        scale = self.clip.detach().clamp(min=_LEAST) / (2**self.num_bits - 1)
        return straight_through((clipped.detach() / scale).round() * scale, clipped)

    def extra_repr(self) -> str:
        return self._repr(f"clip={self.range[1]:g}")


def uniform_activation(
    num_bits: int, clip: float = 6.0, *, low: float = 0.0, zero_point: bool = False
) -> QuantReLU | QuantHardtanh | QuantAffine:
    """The uniform quantizer on [low, clip]: a :class:`QuantReLU` where low is 0, else a :class:`QuantHardtanh`.

    :param zero_point: a :class:`~art_qplugins.quantizers.affine.QuantAffine` in place of both.
    """
    check("low", low, FINITE)
    check("clip", clip, Number(low, above=True))
    if zero_point:
        return QuantAffine(num_bits, low, clip)
    return QuantReLU(num_bits, clip) if low == 0 else QuantHardtanh(num_bits, low, clip)
