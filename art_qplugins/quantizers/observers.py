"""Ranges of activations, observed over batches in one pass and in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from art_qplugins.quantizers.functional import affine_grid

__all__ = ["RANGES", "Histogram", "Observer", "min_max", "mse", "percentile"]

#: Bins of a histogram. Its reach is below twice the largest magnitude, so a bin is narrower than 1/2048 of that.
BINS = 2**13
#: Values that are counted at once. What is computed of them stays in the processor's cache.
_PART = 2**18
#: Ends that the search for the least error tries on each side.
_TRIED = 128
#: How often it turns from one side to the other.
_TURNS = 4


class Observer:
    """The lowest and the highest of all values that it was given.

    :raises ValueError: where a value is not finite.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def __call__(self, values: Tensor) -> None:
        """:param values: any shape, floating point."""
        low, high = (float(end) for end in torch.aminmax(values.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values that are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)


class Histogram(Observer):
    """Also the counts of the values, in even bins from ``-reach`` to ``reach``, a power of two.

    Where a value is beyond it the reach doubles, and bins are merged in pairs. So counts are exact, whatever comes first.

    :ivar counts: (BINS,) int64.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reach = 2.0**-40
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def __call__(self, values: Tensor) -> None:
        super().__call__(values)
        while max(-self.low, self.high) > self.reach:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(merged, (BINS // 4, BINS // 4))
            self.reach *= 2
        for part in values.detach().flatten().split(_PART):
            # A power of two, so that the product is exact, and edges are where they are said to be.
            bins = part.float().mul(BINS / 2 / self.reach).floor_().to(torch.int32).add_(BINS // 2)
            found = torch.bincount(bins, minlength=BINS + 1).cpu()
            found[BINS - 1] += found[BINS]  # the end itself
            self.counts += found[:BINS]

    @property
    def centres(self) -> Tensor:
        """(BINS,) float64: the middles of the bins, within the values seen."""
        step = 2 * self.reach / BINS
        middles = -self.reach + step * (torch.arange(BINS, dtype=torch.float64) + 0.5)
        return middles.clamp(self.low, self.high)

    def quantile(self, share: float) -> float:
        """The value below which a share of the values is, up to the width of a bin."""
        below = self.counts.cumsum(0)
        rank = max(math.ceil(share * int(below[-1]) - 1e-6), 1)  # 0.05 * 1000 is above 50
        return float(self.centres[int(torch.searchsorted(below, rank))])

    def errors(self, num_bits: int, ranges: Sequence[tuple[float, float]]) -> Tensor:
        """The mean squared error of the values on the affine grid of each range, up to the width of a bin."""
        used = self.counts.nonzero().flatten()
        values, weights = self.centres[used], self.counts[used].double() / self.counts.sum()
        grids = torch.tensor([affine_grid(num_bits, *ends) for ends in ranges], dtype=torch.float64)
        scale, zero_point = grids[:, :1], grids[:, 1:]
        levels = (values / scale).round_().clamp_(-zero_point, 2**num_bits - 1 - zero_point).mul_(scale)
        return levels.sub_(values).square_() @ weights


def min_max(seen: Observer, num_bits: int, percent: float) -> tuple[float, float]:
    """From the lowest to the highest value."""
    return seen.low, seen.high


def percentile(seen: Observer, num_bits: int, percent: float) -> tuple[float, float]:
    """From the (100 - percent)th to the percent-th percentile."""
    assert isinstance(seen, Histogram)
    return seen.quantile(1 - percent / 100), seen.quantile(percent / 100)


def mse(seen: Observer, num_bits: int, percent: float) -> tuple[float, float]:
    """The range inside that of the values whose grid has the least mean squared error.

    Each end is searched in turn among even steps to 0, given the other.
    """
    assert isinstance(seen, Histogram)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    shares = [i / _TRIED for i in range(_TRIED, 0, -1)]

    def best(ranges: list[tuple[float, float]]) -> tuple[float, float]:
        return ranges[int(seen.errors(num_bits, ranges).argmin())]

    lows, highs = ([end * share for share in shares] if end else [0.0] for end in (low, high))
    found = (low, high)
    for _ in range(_TURNS if low and high else 1):
        before = found
        found = best([(found[0], end) for end in highs]) if high else found
        found = best([(end, found[1]) for end in lows]) if low else found
        if found == before:
            break
    return found


#: By name: what observes, and the range from what was seen, the bits and the percentage.
RANGES: dict[str, tuple[type[Observer], Callable[[Observer, int, float], tuple[float, float]]]] = {
    "min-max": (Observer, min_max),
    "percentile": (Histogram, percentile),
    "mse": (Histogram, mse),
}
