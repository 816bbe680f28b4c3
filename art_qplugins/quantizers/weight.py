"""Maps on weights, as parametrizations for :mod:`torch.nn.utils.parametrize`.

Neither class defines ``right_inverse``: torch would then apply it when the parametrization is registered and so cancel
the map. The mapped weight is meant to differ from the one it is made of.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.quantizers.activation import check_num_bits
from art_qplugins.quantizers.functional import mu_law, mu_law_inverse, quantize_weight

__all__ = ["MuLawMapping", "UniformWeightQuantizer"]

GRANULARITIES = ("per_channel", "per_tensor")


class UniformWeightQuantizer(nn.Module):
    """Round a weight to a uniform grid; see :func:`~art_qplugins.quantizers.functional.quantize_weight`.

    A "3-bit" figure can only be compared where all four settings are the same, so all four are recorded in every run.

    :param num_bits: bits per weight, 1 to 16.
    :param symmetric: levels symmetric about 0, else from min to max.
    :param granularity: ``"per_channel"`` (dimension 0) or ``"per_tensor"``.
    :param narrow_range: leave out the lowest symmetric level, so that 3 bits are -3 .. 3.
    """

    def __init__(
        self, num_bits: int, *, symmetric: bool = True, granularity: str = "per_channel", narrow_range: bool = True
    ) -> None:
        super().__init__()
        if granularity not in GRANULARITIES:
            raise InputError(f"unknown granularity {granularity!r}{did_you_mean(granularity, GRANULARITIES)}")
        self.num_bits = check_num_bits(num_bits)
        self.symmetric = symmetric
        self.granularity = granularity
        self.narrow_range = narrow_range

    def forward(self, weight: Tensor) -> Tensor:
        return quantize_weight(
            weight,
            self.num_bits,
            symmetric=self.symmetric,
            granularity=self.granularity,
            narrow_range=self.narrow_range,
        )

    def extra_repr(self) -> str:
        return (
            f"num_bits={self.num_bits}, symmetric={self.symmetric}, "
            f"granularity={self.granularity!r}, narrow_range={self.narrow_range}"
        )


class MuLawMapping(nn.Module):
    """The mu-law on a weight (Song et al. 2021): small weights grow, large ones stay.

    :param mu: strength, above 0; the slides show 255 among others.
    :param normalize: map ``M * F(w / M)`` with ``M = max|w|`` in place of ``F(w)``, which needs ``|w| <= 1``. The source
        leaves this open; the two differ in gain, and hence in how much of the logits' range float32 loses.
    """

    def __init__(self, mu: float = 255.0, *, normalize: bool = False) -> None:
        super().__init__()
        if not (math.isfinite(mu) and mu > 0):
            raise InputError(f"mu is {mu!r}; give a finite number above 0, e.g. 255")
        self.mu = float(mu)
        self.normalize = normalize

    def forward(self, weight: Tensor) -> Tensor:
        if not self.normalize:
            return mu_law(weight, self.mu)
        largest = weight.detach().abs().max().clamp_min(1e-30)
        return mu_law(weight / largest, self.mu) * largest

    def inverse(self, weight: Tensor) -> Tensor:
        """The weight that :meth:`forward` maps to ``weight``."""
        if not self.normalize:
            return mu_law_inverse(weight, self.mu)
        largest = weight.detach().abs().max().clamp_min(1e-30)
        return mu_law_inverse(weight / largest, self.mu) * largest

    def extra_repr(self) -> str:
        return f"mu={self.mu:g}, normalize={self.normalize}"
