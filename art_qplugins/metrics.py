"""Statistics of per-image results, as pure functions on arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from art_qplugins.domains import COUNT, MOST, Number, check
from art_qplugins.errors import InputError, shown

__all__ = [
    "accuracy",
    "after_tries",
    "auroc",
    "auroc_interval",
    "finite",
    "gap_lower_bound",
    "most_in_population",
    "pooled_accuracy",
    "resampled_means",
    "shares",
    "true_positive_rate",
    "wilson_interval",
    "worst_case",
]

_BETWEEN = Number(0, 1, above=True, below=True)


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), (lower, upper) in [0, 1].

    :param successes: at most ``n``. It may be a fraction, such as a sum of per-image probabilities. Their variance is
        at most the binomial variance, so the interval is then conservative.
    :param n: number of images, at least 1.
    :raises ValueError: where ``n`` is below 1, or ``successes`` is NaN or not in [0, n].
    """
    from scipy.stats import norm

    check("n", n, COUNT)
    check("successes", successes, Number(0, n))
    check("confidence", confidence, _BETWEEN)
    z = norm.ppf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(max(0.0, min(centre - half, p))), float(min(1.0, max(centre + half, p)))


def accuracy(correct: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Mean of per-image correctness in [0, 1], and its 95 % Wilson interval.

    :raises ValueError: where there is no image, or a value is NaN or not in [0, 1].
    """
    values = shares(correct, name="correct")
    return float(values.mean()), wilson_interval(float(values.sum()), len(values))


def after_tries(correct: ArrayLike, draws: ArrayLike, tries: int) -> NDArray[np.float64]:
    """For each image, an estimate of the probability that it is right at every one of k tries, each with fresh noise.

    One try is right with probability p, so k independent tries are with :math:`p^k`: a persistent attacker succeeds with
    :math:`1 - (1 - q)^k`, where q = 1 - p. Of S draws s are right. The share of the subsets of k draws that are right
    throughout, :math:`\\binom{s}{k} / \\binom{S}{k}`, has exactly the mean :math:`p^k` (Halmos 1946). The power
    :math:`(s/S)^k` is too high, by Jensen's inequality.

    Beyond S draws no estimate is unbiased, because each has a mean that is a polynomial in p of degree S at most. There the
    answer is that of k = S. Its mean :math:`p^S` is above :math:`p^k`, and never above that of :math:`(s/S)^k`.

    :param correct: the share s / S of right draws, of any shape; NaN where there is none.
    :param draws: S, of the same shape or one number; NaN where there is none.
    :param tries: k, at least 1.
    :return: in [0, 1], of the shape of ``correct``; NaN where it is.
    :raises ValueError: where a share is not in [0, 1], or not a share of whole draws.
    """
    check("tries", tries, COUNT)
    share, of = _array("correct", correct), _array("draws", draws)
    if of.ndim and of.shape != share.shape:
        raise InputError(f"correct is {share.shape} and draws {of.shape}; give the draws of each image, or one number")
    of = np.broadcast_to(of, share.shape)
    known = ~np.isnan(share)
    if not ((share >= 0) & (share <= 1) & (of >= 1) & (of <= MOST) & (of == np.floor(of)))[known].all():
        raise InputError("correct: a value is not in [0, 1], or its draws are no whole number of at least 1")
    right = np.rint(share * of)
    if not (np.abs(share * of - right) <= 1e-6 * of)[known].all():
        raise InputError("correct: a value is no share of its draws; give right draws by all draws")
    result = np.where(known, 1.0, np.nan)
    for drawn in range(min(tries, int(of[known].max(initial=1)))):
        factor = np.clip(right - drawn, 0, None) / np.clip(of - drawn, 1, None)
        result = np.where(drawn < of, result * factor, result)
    return result


def pooled_accuracy(correct: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Mean correctness over trainings and images, and its 95 % interval, which covers the sampling of both.

    Trainings and images are crossed: each network has the same images. The variance of the mean is at most the variance
    between the means of trainings by their number, plus that between the means of images by theirs. The interval has
    Student's quantile for the degrees of freedom of that sum (Satterthwaite 1946). With two or three trainings that
    differ it is wide, as it should be. It is never narrower than Wilson's interval over the images.

    :param correct: (trainings, images) in [0, 1].
    :raises ValueError: where there is no image, or a value is NaN or not in [0, 1].
    """
    from scipy.stats import t

    values = np.atleast_2d(shares(correct, name="correct"))
    trainings, images = values.shape
    mean = float(values.mean())
    low, high = wilson_interval(mean * images, images)
    if trainings == 1 or images == 1:
        return mean, (low, high)
    parts = np.array([values.mean(1).var(ddof=1) / trainings, values.mean(0).var(ddof=1) / images])
    if not parts.any():
        return mean, (low, high)
    freedom = parts.sum() ** 2 / (parts**2 / [trainings - 1, images - 1]).sum()
    half = float(t.ppf(0.975, freedom) * np.sqrt(parts.sum()))
    return mean, (max(0.0, min(low, mean - half)), min(1.0, max(high, mean + half)))


def most_in_population(found: int, *, drawn: int, population: int, confidence: float = 0.95) -> int:
    """The upper end of a one-sided exact interval for how many of a population have a property.

    :param found: those that have it, of ``drawn`` that were drawn without replacement from ``population``.
    :return: the largest number for which as few as ``found`` in the sample have a probability above 1 - ``confidence``.
    :raises ValueError: where ``drawn`` is above ``population``, or ``found`` above ``drawn``.
    """
    from scipy.stats import hypergeom

    check("population", population, Number(1, 10_000_000, whole=True))
    check("drawn", drawn, Number(0, population, whole=True))
    check("found", found, Number(0, drawn, whole=True))
    check("confidence", confidence, _BETWEEN)
    possible = np.arange(found, population - drawn + found + 1)
    likely = hypergeom.cdf(found, population, possible, drawn) > 1 - confidence
    return int(possible[likely].max())


def shares(values: ArrayLike, *, name: str = "values") -> NDArray[np.float64]:
    """``values`` as an array.

    :raises ValueError: where there is none, or one is NaN or not in [0, 1]. A test of NaN would find nothing, and pass.
    """
    found = _array(name, values)
    fits = (found >= 0) & (found <= 1)
    if found.ndim == 0 or not (fits.size and fits.all()):
        raise InputError(
            f"{name}: {int((~fits).sum())} of {fits.size} values are not in [0, 1]; give correctness by image"
        )
    return found


def _array(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: it is {shown(values)}; give an array of numbers") from None


def finite(value: float) -> float | None:
    """``value``, or ``None`` where it is infinite or NaN, which JSON does not have."""
    return float(value) if np.isfinite(value) else None


def worst_case(correct: ArrayLike, selection: ArrayLike) -> NDArray[np.float64]:
    """For each image, the correctness under its strongest attack. Several equally strong attacks are averaged.

    The strongest attack is chosen by ``selection``, and its result is read from ``correct``. For a deterministic model
    the two are equal. For a stochastic model they come from independent draws, because a minimum over ``correct``
    itself would count lucky draws as successes of the attack.

    :param correct: (attacks, images) in [0, 1]; NaN where an attack was not run on an image.
    :param selection: the same for other draws.
    :return: (images,) in [0, 1].
    :raises ValueError: where no attack was run on an image.
    """
    result, chosen_by = _array("correct", correct), _array("selection", selection)
    if result.ndim != 2 or result.shape != chosen_by.shape:
        raise InputError(f"correct is {result.shape} and selection {chosen_by.shape}; give both (attacks, images)")
    worst = chosen_by <= np.fmin.reduce(chosen_by, 0) + 1e-12
    if not worst.any(0).all():
        raise InputError(f"selection: no attack was run on {int((~worst.any(0)).sum())} images")
    if np.isnan(result[worst]).any():
        raise InputError("correct: it is NaN where selection is not; give both of the same attacks")
    return np.asarray(np.where(worst, result, 0.0).sum(0) / worst.sum(0))


def gap_lower_bound(weaker: ArrayLike, stronger: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float]:
    """The gap between the accuracies under ``weaker`` and ``stronger``, and a one-sided lower bound of the gap.

    If each image is 0 or 1 and no image is better under ``stronger``, the bound is that of Clopper and Pearson on the number
    of newly broken images. Otherwise it is a bootstrap over images.

    :param weaker: (images,) correctness in [0, 1].
    :param stronger: the same on the same images.
    :return: (gap, lower bound), fractions.
    :raises ValueError: where a value is NaN or not in [0, 1].
    """
    check("confidence", confidence, _BETWEEN)
    first, second = shares(weaker, name="weaker"), shares(stronger, name="stronger")
    if first.shape != second.shape:
        raise InputError(f"weaker is {first.shape} and stronger {second.shape}; give both on the same images")
    difference = first - second
    n, gap = len(difference), float(difference.mean())
    if np.isin(difference, (0.0, 1.0)).all():
        from scipy.stats import beta

        broken = int(difference.sum())
        return gap, float(beta.ppf(1 - confidence, broken, n - broken + 1)) if broken else 0.0
    return gap, float(np.quantile(resampled_means(difference), 1 - confidence))


def resampled_means(values: NDArray[np.float64], *, resamples: int = 4000) -> NDArray[np.float64]:
    """Means of ``values`` (images,) drawn with replacement, (resamples,). The seed is always the same."""
    draws, n = np.random.default_rng(0), len(values)
    return np.array([values[draws.integers(0, n, n)].mean() for _ in range(resamples)])


def auroc(negative: ArrayLike, positive: ArrayLike) -> float:
    """The area under the ROC curve: the probability that a positive has a higher score than a negative, and half that of a tie.

    It is exact, over all pairs. 0.5 is chance.

    :param negative: (n,) scores of those that are not to be detected, and ``positive`` (m,) of those that are.
    :raises ValueError: where one of them is empty, or a score is NaN.
    """
    below, above = np.sort(_scores("negative", negative)), _scores("positive", positive)
    sides = [np.searchsorted(below, above, side=side).mean() for side in ("left", "right")]
    return float(np.mean(sides) / len(below))


def auroc_interval(negative: ArrayLike, positive: ArrayLike, *, resamples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of :func:`auroc`, a bootstrap over images. The seed is always the same.

    Both scores of an image are drawn together, because they are of one image before and after a change.

    :param negative: (images,), and ``positive`` the same images.
    :raises ValueError: as :func:`auroc`, and where there are not as many of both.
    """
    check("resamples", resamples, COUNT)
    first, second = _scores("negative", negative), _scores("positive", positive)
    if first.shape != second.shape:
        raise InputError(f"negative has {len(first)} scores and positive {len(second)}; give both of the same images")
    draws, n = np.random.default_rng(0), len(first)
    areas = [auroc(first[rows], second[rows]) for rows in (draws.integers(0, n, n) for _ in range(resamples))]
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def true_positive_rate(negative: ArrayLike, positive: ArrayLike, *, false_positive_rate: float = 0.05) -> float:
    """The share of positives above the lowest threshold that at most this share of the negatives exceeds.

    :param negative: (n,) scores of those that are not to be detected, and ``positive`` (m,) of those that are.
    :raises ValueError: where one of them is empty, or a score is NaN.
    """
    check("false_positive_rate", false_positive_rate, Number(0, 1))
    below, above = np.sort(_scores("negative", negative))[::-1], _scores("positive", positive)
    allowed = int(false_positive_rate * len(below) + 1e-9)
    threshold = below[allowed] if allowed < len(below) else -np.inf
    return float((above > threshold).mean())


def _scores(name: str, values: ArrayLike) -> NDArray[np.float64]:
    found = _array(name, values)
    if found.ndim != 1 or not found.size or np.isnan(found).any():
        raise InputError(
            f"{name}: its shape is {found.shape}, and {int(np.isnan(found).sum())} are NaN; give a list of scores"
        )
    return found
