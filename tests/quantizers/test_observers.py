"""Observed ranges against numpy's percentiles and a search over the values themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from art_qplugins.quantizers.functional import affine_grid, quant_affine
from art_qplugins.quantizers.observers import BINS, RANGES, Histogram, Observer

GENERATOR = torch.Generator().manual_seed(0)
NORMAL = torch.randn(60_000, generator=GENERATOR)
VALUES = {
    "relu": NORMAL.relu(),
    "gelu": torch.nn.functional.gelu(2 * NORMAL),
    "normal": NORMAL * 3 - 1,
    "long tail": NORMAL**5,
    "negative": -NORMAL.abs(),
    "tiny": NORMAL * 1e-6,
    "outlier": torch.cat([NORMAL, torch.tensor([30.0])]),
}


def seen(values, kind=Histogram):
    observer = kind()
    for part in values.split(7_001):
        observer(part)
    return observer


@pytest.mark.parametrize("name", VALUES)
def test_counts_are_exact_in_any_order(name):
    values = VALUES[name]
    one, other = seen(values), seen(values.sort().values)
    assert torch.equal(one.counts, other.counts) and one.reach == other.reach
    assert int(one.counts.sum()) == len(values) and (one.low, one.high) == (float(values.min()), float(values.max()))
    edges = np.linspace(-one.reach, one.reach, BINS + 1)
    expected, _ = np.histogram(values.double().numpy(), edges)
    assert np.array_equal(expected, one.counts)
    assert one.reach / 2 <= float(values.abs().max()) <= one.reach


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("name", VALUES)
def test_percentiles_are_those_of_the_sorted_values_up_to_a_bin(name, percent):
    observer, ordered = seen(VALUES[name]), VALUES[name].double().sort().values.tolist()
    found, bin_ = RANGES["percentile"][1](observer, 8, percent), 2 * observer.reach / BINS
    for value, share in zip(found, (1 - percent / 100, percent / 100), strict=True):
        rank = round(share * len(ordered))  # of the value from 1; the share may be off by a rounding error
        between = ordered[max(rank - 2, 0)], ordered[min(rank, len(ordered) - 1)]
        assert between[0] - 1.01 * bin_ <= value <= between[1] + 1.01 * bin_


def error(values, num_bits, low, high):
    return float((quant_affine(values, num_bits, *affine_grid(num_bits, low, high)) - values).double().square().mean())


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("name", VALUES)
def test_the_range_of_the_least_error_is_about_that_of_a_search_over_all_values(name, num_bits):
    values = VALUES[name]
    low, high = RANGES["mse"][1](seen(values), num_bits, 99.0)
    lowest, highest = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    some = values[-6_000:]
    shares = np.linspace(0.02, 1, 50)
    lows, highs = (end * shares if end else [0.0] for end in (lowest, highest))
    best = min((error(some, num_bits, *ends), ends) for ends in itertools.product(lows, highs))[1]
    assert error(values, num_bits, low, high) <= 1.1 * error(values, num_bits, *best)
    assert error(values, num_bits, low, high) <= 1.001 * error(values, num_bits, lowest, highest)
    assert lowest <= low <= 0 <= high <= highest


def test_the_least_error_clips_an_outlier_that_min_max_keeps():
    values = VALUES["outlier"]
    assert RANGES["mse"][1](seen(values), 4, 99.0)[1] < 10 < RANGES["min-max"][1](seen(values, Observer), 4, 99.0)[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    for kind in (Observer, Histogram):
        with pytest.raises(ValueError, match="not finite"):
            kind()(torch.tensor([0.0, value]))
