"""Maps on weights, as parametrizations for :mod:`torch.nn.utils.parametrize`.

Neither class defines ``right_inverse``. torch would apply it when the parametrization is registered, which would cancel
the map. The mapped weight must differ from the original one.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from art_qplugins.domains import BITS, FLAG, POSITIVE, OneOf, check
from art_qplugins.errors import InputError
from art_qplugins.quantizers.functional import mu_law, mu_law_inverse, quantize_weight
from art_qplugins.quantizers.precision import in_float32

__all__ = ["MuLawMapping", "UniformWeightQuantizer"]

GRANULARITY = OneOf(("per_channel", "per_tensor"))


class UniformWeightQuantizer(nn.Module):
    """Round a weight to a uniform grid; see :func:`~art_qplugins.quantizers.functional.quantize_weight`.

    Two "3-bit" figures can be compared only where all settings are the same. Every run records all and says them.

    :param num_bits: bits per weight, 1 to 16.
    :param symmetric: levels symmetric about 0, else affine, from min to max.
    :param granularity: ``"per_channel"`` (dimension 0) or ``"per_tensor"``.
    :param narrow_range: leave out the lowest symmetric level, so that 3 bits are -3 .. 3.
    :param zero_point: of affine levels: move them so that 0 is one. An integer file needs it.
    :raises InputError: where ``zero_point`` is asked of symmetric levels.
    """

    def __init__(
        self,
        num_bits: int,
        *,
        symmetric: bool = True,
        granularity: str = "per_channel",
        narrow_range: bool = True,
        zero_point: bool = False,
    ) -> None:
        super().__init__()
        self.num_bits = check("num_bits", num_bits, BITS)
        self.symmetric = check("symmetric", symmetric, FLAG)
        self.granularity = check("granularity", granularity, GRANULARITY)
        self.narrow_range = check("narrow_range", narrow_range, FLAG)
        self.zero_point = check("zero_point", zero_point, FLAG)
        if zero_point and symmetric:
            raise InputError("zero_point: symmetric levels have 0 among them; give symmetric = false, or leave it out")

    def forward(self, weight: Tensor) -> Tensor:
        return quantize_weight(
            weight,
            self.num_bits,
            symmetric=self.symmetric,
            granularity=self.granularity,
            narrow_range=self.narrow_range,
            zero_point=self.zero_point,
        )

    def extra_repr(self) -> str:
        return (
            f"num_bits={self.num_bits}, symmetric={self.symmetric}, "
            f"granularity={self.granularity!r}, narrow_range={self.narrow_range}, zero_point={self.zero_point}"
        )


class MuLawMapping(nn.Module):
    """The mu-law on a weight (Song et al. 2021): small weights grow, weights of the largest magnitude stay.

    :param mu: strength, above 0. The slides show 255 among others.
    :param normalize: map ``M * F(w / M)`` with ``M = max|w|``. The alternative ``F(w)`` needs ``|w| <= 1``. The source
        does not say which. The two differ in gain, and so in how much of the logits' range float32 loses.
    :param gain_only: the control experiment: a constant in place of the map, ``w * |F(w)| / |w|`` in L2 norms. It lengthens the
        weight as the map does, and leaves its direction.
    """

    def __init__(self, mu: float = 255.0, *, normalize: bool = False, gain_only: bool = False) -> None:
        super().__init__()
        self.mu = float(check("mu", mu, POSITIVE))
        self.normalize = check("normalize", normalize, FLAG)
        self.gain_only = check("gain_only", gain_only, FLAG)

    @in_float32
    def forward(self, weight: Tensor) -> Tensor:
        largest = weight.detach().abs().max().clamp_min(1e-30) if self.normalize else 1.0
        if not self.gain_only:
            return mu_law(weight / largest, self.mu) * largest
        kept = weight.detach() / largest
        gain: Tensor = mu_law(kept, self.mu).norm() / kept.norm().clamp_min(1e-30)
        return weight * gain

    def check(self, weight: Tensor, name: str) -> None:
        """:raises InputError: where ``weight``, of the layer ``name``, is all 0 or outside the map's domain [-1, 1]."""
        largest = float(weight.detach().abs().max())
        if not 0 < largest < math.inf:
            what = "is all 0" if largest == 0 else f"holds {largest:g}"
            raise InputError(f"mu-law: weight {name!r} {what}; map a network with trained weights")
        if not self.normalize and largest > 1:
            raise InputError(
                f"mu-law: weight {name!r} holds {largest:.4g}, outside the map's domain [-1, 1]; set mu_normalize = true"
            )

    @in_float32
    def inverse(self, weight: Tensor) -> Tensor:
        """The weight that :meth:`forward` maps to ``weight``.

        :raises InputError: for ``gain_only``, whose gain the mapped weight does not tell.
        """
        if self.gain_only:
            raise InputError("gain_only: a mapped weight does not tell its gain; keep the network that is not mapped")
        largest = weight.detach().abs().max().clamp_min(1e-30) if self.normalize else 1.0
        return mu_law_inverse(weight / largest, self.mu) * largest

    def extra_repr(self) -> str:
        return f"mu={self.mu:g}, normalize={self.normalize}, gain_only={self.gain_only}"
