"""Compares two models or two runs image by image, from their records only.

Neither torch nor ART is needed. The statistical tests are in ``significance.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.evaluation.outcome import Outcome, legal_at, worst_case
from art_qplugins.evaluation.records import Interval, Results, Sample
from art_qplugins.evaluation.significance import clustered_bootstrap, holm, paired_test

__all__ = ["Comparison", "Difference", "Missing", "Records", "compare", "pairs", "replicates"]

Metric = Literal["clean_accuracy", "robust_accuracy"]


class Records(Protocol):
    """The records of a finished run, as :func:`art_qplugins.report.read_run` reads them."""

    @property
    def results(self) -> Results: ...
    @property
    def samples(self) -> Mapping[str, Sequence[Sample]]: ...


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of one number between two models, or between two runs of a model, on the same images.

    Accuracies are in [0, 1].

    :ivar norm: ``norm`` and ``eps`` of a robust accuracy; ``None`` for a clean accuracy.
    :ivar n: number of images. ``replicates`` are those of the first and of the second.
    :ivar difference: second minus first. It is negative if the second is worse. ``interval`` is its 95 % interval.
    :ivar p_holm: the p value after Holm's correction over all rows of the table.
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
    p_holm: float = 1.0


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


_Table = dict[str, dict[_Measured, NDArray[np.float64]]]


def pairs(run: Records) -> list[Difference]:
    """Every pair of models of a run, at every norm and eps that both have. Replicates of a model count as one model."""
    table = _pooled(run)
    rows = [
        _difference(a, b, what, table[a][what], table[b][what])
        for a, b in itertools.combinations(table, 2)
        for what in table[a]
        if what in table[b]
    ]
    return _adjusted(rows)


def compare(a: Records, b: Records) -> Comparison:
    """Compare the models that two runs have in common, image by image.

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


def _pooled(run: Records) -> _Table:
    """The correctness of each model by its name: (replicates, images) in the order of the sample ids."""
    groups: dict[str, list[str]] = {}
    replicate_of = replicates(run.results)
    for model in run.results.models:
        groups.setdefault(replicate_of.get(model.name) or model.name, []).append(model.name)
    return {name: _stack([_correct(run, member) for member in members]) for name, members in groups.items()}


def replicates(results: Results) -> dict[str, str]:
    """The model of which each replicate is one, by name; models without a seed of a sweep are left out."""
    models = results.spec.get("resolved", {}).get("models", [])
    return {m["name"]: same for m in models if isinstance(m, dict) and (same := m.get("replicate_of"))}


def _stack(parts: Sequence[Mapping[_Measured, NDArray[np.float64]]]) -> dict[_Measured, NDArray[np.float64]]:
    shared = [what for what in parts[0] if all(what in part for part in parts)]
    return {what: np.stack([part[what] for part in parts]) for what in shared}


def _correct(run: Records, model: str) -> dict[_Measured, NDArray[np.float64]]:
    """(images,) correctness, clean and in the worst case at every norm and eps, in the order of the sample ids."""
    outcomes = [Outcome.from_samples(c, run.samples.get(c.id, [])) for c in run.results.cells if c.model == model]
    outcomes = [o for o in outcomes if o.ok]
    clean = [o for o in outcomes if o.cell.role == "clean"]
    if not clean:
        return {}
    order = np.argsort(clean[0].ids)
    found: dict[_Measured, NDArray[np.float64]] = {_Measured("clean_accuracy", None, None): clean[0].labelled[order]}
    # Only the attacks of the recipe define the eps values. A probe may have an unbounded eps. Attacks with a limit alone would
    # leave most images clean.
    attacked = [o.cell for o in outcomes if o.cell.role == "attack" and o.cell.limit is None]
    for norm, eps in sorted({(cell.norm, cell.eps) for cell in attacked}):
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
