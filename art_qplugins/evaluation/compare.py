"""Are two models, or two runs, really different? Paired tests on per-image correctness, from records alone.

Neither torch nor ART is needed. What the tests speak of is the sampling of images (and, of replicates, of nothing more
than the seeds at hand); a significant difference between attacks that were too weak is still one between weak attacks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.evaluation.outcome import Outcome, legal_at, worst_case
from art_qplugins.evaluation.records import Interval, Results, Sample
from art_qplugins.metrics import resampled_means

__all__ = ["Comparison", "Difference", "McNemar", "Records", "clustered_bootstrap", "compare", "holm", "mcnemar"]
__all__ += ["paired_test", "pairs"]

Metric = Literal["clean_accuracy", "robust_accuracy"]


class Records(Protocol):
    """A finished run: ``results.json`` and ``samples.jsonl``, as :func:`art_qplugins.report.read_run` reads them."""

    @property
    def results(self) -> Results: ...
    @property
    def samples(self) -> Mapping[str, Sequence[Sample]]: ...


# ------------------------------------------------------------------------------------------------ tests on arrays


class McNemar(NamedTuple):
    """``only_first`` images are right under the first alone, ``only_second`` under the second alone."""

    p_value: float
    only_first: int
    only_second: int


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """McNemar's exact test (McNemar 1947): of the images on which two models differ, is each right on half?

    :param first: (images,) 0 or 1, like ``second``, of the same images in the same order.
    :return: the two-sided binomial p value; 1 where they never differ.
    :raises ValueError: where an entry is neither 0 nor 1.
    """
    from scipy.stats import binomtest

    one, other = _same_shape(first, second)
    if not (np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all()):
        raise ValueError("McNemar's test is for images that are right or wrong; use paired_test for fractions")
    only_first, only_second = int((one > other).sum()), int((one < other).sum())
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return McNemar(p, only_first, only_second)


def clustered_bootstrap(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, resamples: int = 4000
) -> Interval:
    """Percentile interval of ``mean(first) - mean(second)``, resampling images with all that was measured of each.

    An image's results under several seeds go together, so replicates do not count as further images.

    :param first: (replicates, images) or (images,) correctness in [0, 1]; ``second`` of the same images, whose number of
        replicates may be another.
    """
    difference = _by_image(first) - _by_image(second)
    low, high = np.quantile(
        resampled_means(difference, resamples=resamples), [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    return float(low), float(high)


def paired_test(first: ArrayLike, second: ArrayLike, *, flips: int = 9999) -> float:
    """Two-sided p value of "no difference", by image: exact McNemar for right or wrong, else a sign-flip test.

    The latter exchanges the two models on random sets of images (Fisher's randomization test), which is what McNemar's
    does on images that are right or wrong, and keeps an image's replicates together.

    :param first: (replicates, images) or (images,), like ``second``.
    """
    one, other = _by_image(first), _by_image(second)
    if np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all():
        return mcnemar(one, other).p_value
    difference = one - other
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    draws = np.random.default_rng(0)
    seen = abs(difference.sum())
    at_least = sum(
        abs((difference * draws.choice((-1.0, 1.0), len(difference))).sum()) >= seen - 1e-12 for _ in range(flips)
    )
    return (at_least + 1) / (flips + 1)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment (Holm 1979): rejecting those below alpha errs anywhere with at most alpha.

    :return: as many, in the same order, at most 1.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted


def _same_shape(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"paired tests need the same images: shapes are {one.shape} and {other.shape}")
    return one, other


def _by_image(values: ArrayLike) -> NDArray[np.float64]:
    result = np.asarray(values, dtype=float)
    return result if result.ndim == 1 else result.mean(0)


# ---------------------------------------------------------------------------------------------------- from records


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One number of two models or of one model in two runs, on the same images.

    ``difference`` is second minus first, and so is its 95 % ``interval``: negative where the second is worse.
    """

    first: str
    second: str
    metric: Metric
    norm: str | None
    eps: float | None
    n: int
    replicates: tuple[int, int]
    first_accuracy: float
    second_accuracy: float
    difference: float
    interval: Interval
    p_value: float
    p_holm: float = 1.0  # over all rows of its table


@dataclass(frozen=True)
class Comparison:
    """Two runs, model by model and budget by budget; what only one of them has is named."""

    rows: Sequence[Difference]
    only_first: Sequence[str]
    only_second: Sequence[str]


class _Measured(NamedTuple):
    metric: Metric
    norm: str | None
    eps: float | None


_Table = dict[str, dict[_Measured, NDArray[np.float64]]]


def pairs(run: Records) -> list[Difference]:
    """Every two models of a run, at every budget that both have. Replicates of a model count as one."""
    table = _pooled(run)
    rows = [
        _difference(a, b, what, table[a][what], table[b][what])
        for a, b in itertools.combinations(table, 2)
        for what in table[a]
        if what in table[b]
    ]
    return _adjusted(rows)


def compare(a: Records, b: Records) -> Comparison:
    """The models that two runs have in common, paired image by image.

    :raises InputError: where the runs are not on the same images, or have no model in common.
    """
    _check_same_images(a, b)
    first, second = _pooled(a), _pooled(b)
    common = [name for name in first if name in second]
    if not common:
        raise InputError(
            f"the runs have no model in common: {', '.join(first)} and {', '.join(second)}"
            + (did_you_mean(next(iter(first)), list(second)) if first else "")
        )
    rows = [
        _difference(name, name, what, first[name][what], second[name][what])
        for name in common
        for what in first[name]
        if what in second[name]
    ]
    here = [name for name in first if name not in second], [name for name in second if name not in first]
    return Comparison(_adjusted(rows), *here)


def _check_same_images(a: Records, b: Records) -> None:
    for name, what in (("name", "data set"), ("sha256", "content")):
        one, other = a.results.data.get(name), b.results.data.get(name)
        if one != other:
            raise InputError(f"the runs are not on the same images: their {what} is {one} and {other}")
    ids = [{s.sample for rows in run.samples.values() for s in rows} for run in (a, b)]
    if ids[0] != ids[1]:
        raise InputError(
            f"the runs are not on the same images: {len(ids[0])} and {len(ids[1])}, {len(ids[0] & ids[1])} of them in "
            "both; run both with the same data.limit and data.seed"
        )


def _pooled(run: Records) -> _Table:
    """(replicates, images) of every model, or (1, images), in the order of the sample ids."""
    groups: dict[str, list[str]] = {}
    replicate_of = _replicates(run.results)
    for model in run.results.models:
        groups.setdefault(replicate_of.get(model.name) or model.name, []).append(model.name)
    return {name: _stack([_correct(run, member) for member in members]) for name, members in groups.items()}


def _replicates(results: Results) -> dict[str, str]:
    models = results.spec.get("resolved", {}).get("models", [])
    return {m["name"]: m["replicate_of"] for m in models if isinstance(m, dict) and m.get("replicate_of")}


def _stack(parts: Sequence[Mapping[_Measured, NDArray[np.float64]]]) -> dict[_Measured, NDArray[np.float64]]:
    shared = [what for what in parts[0] if all(what in part for part in parts)]
    return {what: np.stack([part[what] for part in parts]) for what in shared}


def _correct(run: Records, model: str) -> dict[_Measured, NDArray[np.float64]]:
    """Per image, what the clean images and the worst case at every budget leave, sorted by sample id."""
    outcomes = [Outcome.from_samples(c, run.samples.get(c.id, [])) for c in run.results.cells if c.model == model]
    outcomes = [o for o in outcomes if o.ok]
    clean = [o for o in outcomes if o.cell.role == "clean"]
    if not clean:
        return {}
    order = np.argsort(clean[0].ids)
    found: dict[_Measured, NDArray[np.float64]] = {
        _Measured("clean_accuracy", None, None): clean[0].column("correct")[order]
    }
    # Budgets of the recipe's attacks: a probe may have been given a budget that allows every image.
    for norm, eps in sorted({(o.cell.norm, o.cell.eps) for o in outcomes if o.cell.role == "attack"}):
        found[_Measured("robust_accuracy", norm, eps)] = worst_case(legal_at(outcomes, norm, eps))[order]
    return found


def _difference(a: str, b: str, what: _Measured, first: NDArray[np.float64], second: NDArray[np.float64]) -> Difference:
    low, high = clustered_bootstrap(second, first)
    return Difference(
        first=a,
        second=b,
        metric=what.metric,
        norm=what.norm,
        eps=what.eps,
        n=first.shape[1],
        replicates=(len(first), len(second)),
        first_accuracy=float(first.mean()),
        second_accuracy=float(second.mean()),
        difference=float(second.mean() - first.mean()),
        interval=(low, high),
        p_value=paired_test(first, second),
    )


def _adjusted(rows: Iterable[Difference]) -> list[Difference]:
    found = list(rows)
    adjusted = holm([row.p_value for row in found])
    return [replace(row, p_holm=float(p)) for row, p in zip(found, adjusted, strict=True)]
