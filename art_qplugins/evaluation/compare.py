"""Compares two models or two runs image by image, from their records only.

Neither torch nor ART is needed. The statistical tests are in ``significance.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.evaluation.fields import Metric
from art_qplugins.evaluation.outcome import Outcome, left_by_image, outcomes_of
from art_qplugins.evaluation.records import Difference, Results, Sample
from art_qplugins.evaluation.significance import clustered_bootstrap, holm, paired_test

__all__ = ["Comparison", "Missing", "Records", "compare", "differences", "replicates"]


class Records(Protocol):
    """The records of a finished run, as :func:`art_qplugins.report.read_run` reads them."""

    @property
    def results(self) -> Results: ...
    @property
    def samples(self) -> Mapping[str, Sequence[Sample]]: ...


@dataclass(frozen=True)
class Comparison:
    """Two runs, paired model by model at every norm and eps.

    :ivar only_first: names of the models that only the first run has. ``only_second`` is the same for the second run.
    :ivar missing: what only the first run measured of the models of both.
    :ivar failed: attacks that only the second run has no result of: its worst case knows less.
    """

    rows: Sequence[Difference]
    only_first: Sequence[str]
    only_second: Sequence[str]
    missing: Sequence[Missing] = ()
    failed: Sequence[Missing] = ()


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A number, or an attack that is part of it, that the second of two runs does not have.

    :ivar attack: ``None`` for the number itself.
    """

    model: str
    metric: Metric
    norm: str | None
    eps: float | None
    attack: str | None = None


class _Measured(NamedTuple):
    metric: Metric
    norm: str | None
    eps: float | None


#: The correctness by image, of one training and of all trainings of a model.
_Correct = dict[_Measured, dict[str, float]]
_Table = dict[str, dict[_Measured, list[dict[str, float]]]]


def differences(results: Results, outcomes: Iterable[Outcome]) -> list[Difference]:
    """Of every model from its baseline, clean and at every norm and eps that both have. Replicates count as one model.

    :param outcomes: those of the cells of ``results``.
    """
    found = _baselines(results)
    table = _pooled(results, outcomes) if found else {}
    invalid = _invalid(results)
    rows = [
        _difference(
            first,
            second,
            what,
            table[first][what],
            table[second][what],
            invalid=not invalid.isdisjoint((first, second)),
        )
        for second, first in found.items()
        if first in table and second in table
        for what in table[first]
        if what in table[second]
    ]
    return _adjusted(rows)


def _invalid(results: Results) -> set[str]:
    """The models of which a training is INVALID."""
    same = replicates(results)
    return {same.get(model.name, model.name) for model in results.models if model.verdict == "INVALID"}


def _baselines(results: Results) -> dict[str, str]:
    """By model. Replicates of a model are one model, and have its name."""
    return {
        model.get("replicate_of") or model["name"]: model["baseline"]
        for model in results.settings
        if model.get("baseline")
    }


def compare(a: Records, b: Records) -> Comparison:
    """Compare the models that two runs have in common, image by image.

    :raises InputError: where the runs are not on the same images, or have no model in common.
    """
    _check_same_images(a, b)
    first, second = (_pooled(run.results, outcomes_of(run.results, run.samples)) for run in (a, b))
    common = [name for name in first if name in second]
    if not common:
        raise InputError(
            f"the runs have no model in common: {', '.join(first)} and {', '.join(second)}"
            + (did_you_mean(next(iter(first)), list(second)) if first else "")
        )
    invalid = _invalid(a.results) | _invalid(b.results)
    rows = [
        _difference(name, name, what, first[name][what], second[name][what], invalid=name in invalid)
        for name in common
        for what in first[name]
        if what in second[name]
    ]
    return Comparison(
        rows=_adjusted(rows),
        only_first=[name for name in first if name not in second],
        only_second=[name for name in second if name not in first],
        missing=[
            Missing(model=name, **what._asdict()) for name in common for what in first[name] if what not in second[name]
        ],
        failed=[found for found in _failed(b) if found.model in common and found not in _failed(a)],
    )


def _failed(run: Records) -> list[Missing]:
    """The attacks of the recipe that failed or were skipped."""
    replicate_of = replicates(run.results)
    return [
        Missing(
            model=replicate_of.get(cell.model, cell.model),
            metric="robust_accuracy",
            norm=cell.norm,
            eps=cell.eps,
            attack=cell.label,
        )
        for cell in run.results.cells
        if cell.role == "attack" and cell.status != "success"
    ]


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


def _pooled(results: Results, outcomes: Iterable[Outcome]) -> _Table:
    """The correctness of each model by its name: of each of its trainings, by image."""
    own: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.ok:
            own[outcome.cell.model].append(outcome)
    groups: dict[str, list[_Correct]] = defaultdict(list)
    replicate_of = replicates(results)
    for model in results.models:
        groups[replicate_of.get(model.name) or model.name].append(_correct(own[model.name]))
    return {name: _shared(members) for name, members in groups.items()}


def replicates(results: Results) -> dict[str, str]:
    """The model of which each replicate is one, by name; models without a seed of a sweep are left out."""
    return {model["name"]: same for model in results.settings if (same := model.get("replicate_of"))}


def _shared(parts: Sequence[_Correct]) -> dict[_Measured, list[dict[str, float]]]:
    return {what: [part[what] for part in parts] for what in parts[0] if all(what in part for part in parts)}


def _correct(outcomes: Sequence[Outcome]) -> _Correct:
    """By image: clean, and in the worst case at every norm and eps."""
    clean = next((o for o in outcomes if o.cell.role == "clean"), None)
    if clean is None:
        return {}
    found = {_Measured("clean_accuracy", None, None): clean.correct_by_image()}
    # Only the attacks of the recipe define the eps values. A probe may have an unbounded eps. Attacks with a limit alone would
    # leave most images clean.
    attacked = [o.cell for o in outcomes if o.cell.role == "attack" and o.cell.limit is None]
    for norm, eps in sorted({(cell.norm, cell.eps) for cell in attacked}):
        found[_Measured("robust_accuracy", norm, eps)] = left_by_image(outcomes, norm, eps)
    return found


def _difference(
    a: str,
    b: str,
    what: _Measured,
    first: Sequence[dict[str, float]],
    second: Sequence[dict[str, float]],
    *,
    invalid: bool,
) -> Difference:
    """On the images that all have.

    :param invalid: whether the verdict on either is INVALID.
    """
    shared = sorted(set.intersection(*(set(part) for part in (*first, *second))))
    one, other = (np.array([[part[name] for name in shared] for part in parts]) for parts in (first, second))
    return Difference(
        first=a,
        second=b,
        metric=what.metric,
        norm=what.norm,
        eps=what.eps,
        n=len(shared),
        replicates=(len(one), len(other)),
        first_accuracy=float(one.mean()),
        second_accuracy=float(other.mean()),
        difference=float(other.mean() - one.mean()),
        interval=clustered_bootstrap(other, one),
        p_value=paired_test(one, other),
        invalid=invalid and what.metric == "robust_accuracy",
    )


def _adjusted(rows: Iterable[Difference]) -> list[Difference]:
    found = list(rows)
    adjusted = holm([row.p_value for row in found])
    return [row.model_copy(update={"p_holm": float(p)}) for row, p in zip(found, adjusted, strict=True)]
