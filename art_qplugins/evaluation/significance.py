"""Paired tests on per-image correctness: pure functions on arrays.

The tests are about the sampling of images. They say nothing about seeds other than those of the replicates. A
significant difference under attacks that are too weak is still a difference under weak attacks. Whole runs are compared
in ``compare.py``. Intervals of a single number are in :mod:`art_qplugins.metrics`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from art_qplugins.errors import shown
from art_qplugins.evaluation.fields import Interval
from art_qplugins.metrics import resampled_means, shares

__all__ = ["McNemar", "clustered_bootstrap", "holm", "mcnemar", "paired_test"]


class McNemar(NamedTuple):
    """``only_first`` images are correct under the first model only, ``only_second`` under the second only."""

    p_value: float
    only_first: int
    only_second: int


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """McNemar's exact test (McNemar 1947): is each model correct on half of the images on which they differ?

    :param first: (images,) 0 or 1. ``second`` has the same images in the same order.
    :return: the two-sided binomial p value. It is 1 where the models never differ.
    :raises ValueError: where an entry is neither 0 nor 1, or there is none, or the shapes differ.
    """
    from scipy.stats import binomtest

    one, other = _same_shape(first, second)
    if not (np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all()):
        raise ValueError("McNemar's test needs entries of 0 or 1; use paired_test for fractions")
    only_first, only_second = int((one > other).sum()), int((one < other).sum())
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return McNemar(p, only_first, only_second)


def clustered_bootstrap(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, resamples: int = 4000
) -> Interval:
    """Percentile interval of ``mean(first) - mean(second)``. Each resampled image brings all its replicates.

    So replicates do not count as further images.

    :param first: (replicates, images) or (images,) correctness in [0, 1]. ``second`` has the same images and may have
        another number of replicates.
    :raises ValueError: where an entry is NaN or not in [0, 1].
    """
    means = resampled_means(_by_image(first) - _by_image(second), resamples=resamples)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_test(first: ArrayLike, second: ArrayLike, *, flips: int = 9999) -> float:
    """Two-sided p value of "no difference", by image.

    It is McNemar's exact test if every entry is 0 or 1. Otherwise it is a sign-flip test (Fisher's randomization test):
    it exchanges the two models on random sets of images. McNemar's test is the exact form of it. The replicates of an
    image stay together.

    :param first: (replicates, images) or (images,), like ``second``.
    :raises ValueError: where an entry is NaN or not in [0, 1].
    """
    one, other = _by_image(first), _by_image(second)
    if np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all():
        return mcnemar(one, other).p_value
    difference = one - other
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    draws = np.random.default_rng(0)
    observed = abs(float(difference.sum()))
    at_least = sum(
        abs(float((difference * draws.choice((-1.0, 1.0), len(difference))).sum())) >= observed - 1e-12
        for _ in range(flips)
    )
    return (at_least + 1) / (flips + 1)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment (Holm 1979). It controls the family-wise error rate.

    :return: the adjusted p values in the same order, at most 1.
    :raises ValueError: where a p value is NaN or not in [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values are in [0, 1], and these are {shown(p.tolist())}")
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted


def _same_shape(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = shares(first), shares(second)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"paired tests need the same images: shapes are {one.shape} and {other.shape}")
    return one, other


def _by_image(values: ArrayLike) -> NDArray[np.float64]:
    """The mean over replicates, (images,)."""
    result = shares(values)
    return result if result.ndim == 1 else np.asarray(result.mean(0))
