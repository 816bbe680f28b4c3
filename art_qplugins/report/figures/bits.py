"""Accuracy against bits, clean and in the worst case, as figure 1 of Lin, Gan & Han (2019) has it: a line for each family."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from art_qplugins.evaluation.fields import Interval
from art_qplugins.evaluation.records import ModelResult, Results
from art_qplugins.report import select, words
from art_qplugins.report.figures.curves import look
from art_qplugins.report.figures.style import (
    WIDTH,
    legend_above,
    legend_height,
    panel_title,
    percent_axis,
    styled,
)
from art_qplugins.report.figures.svg import Drawing, drawn
from art_qplugins.report.figures.sweeps import BITS, Sweep, Values, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FLOAT", "Family", "OverBits", "Point", "drawings", "over_bits", "written"]

#: The place of float32, after all numbers of bits.
FLOAT = math.inf


@dataclass(frozen=True)
class Point:
    """Models of one family with the same bits, one per seed.

    :ivar models: their names.
    :ivar worst: the worst case; ``None`` where no number of a model counts.
    :ivar clean: the mean over seeds with its interval; of one model the 95 % interval over images, of several from the
        lowest to the highest of them.
    """

    models: list[str]
    clean: tuple[float, Interval]
    worst: tuple[float, Interval] | None


@dataclass(frozen=True)
class Family:
    """Models that differ only in their bits and seeds, and their network in float32."""

    name: str
    points: dict[float, Point]


@dataclass(frozen=True)
class OverBits:
    """The families of a run over one setting.

    :ivar axis: ``"activation bits"`` or ``"weight bits"``.
    :ivar threat: the norm and eps of the worst case.
    """

    axis: str
    threat: tuple[str, float]
    families: list[Family]

    @property
    def bits(self) -> list[float]:
        return sorted({bits for family in self.families for bits in family.points})


def over_bits(results: Results) -> list[OverBits]:
    """What a run tells of bits: by setting, families of two numbers of bits at least."""
    threats = (select.threat(model, results) for model in results.models)
    at = next((threat for threat in threats if threat is not None), None)
    if at is None:
        return []
    found: dict[str, list[Family]] = {}
    for sweep in sweeps(results):
        for place, axis in enumerate(sweep.axes):
            if axis in BITS.values():
                found.setdefault(axis, []).extend(_families(sweep, place, at, results))
    return [OverBits(axis, at, families) for axis, families in found.items() if families]


def _families(sweep: Sweep, place: int, at: tuple[str, float], results: Results) -> Iterator[Family]:
    """The families of a sweep over the setting at ``place`` of its axes: one for each combination of the other settings."""
    groups: dict[Values, dict[float, list[ModelResult]]] = defaultdict(dict)
    for values, models in sweep.models.items():
        groups[values[:place] + values[place + 1 :]][values[place]] = models
    others = sweep.axes[:place] + sweep.axes[place + 1 :]
    for values, by_bits in groups.items():
        if len(by_bits.keys() - {FLOAT}) > 1:
            quantized = [model for bits, models in by_bits.items() if bits != FLOAT for model in models]
            whole = by_bits.get(FLOAT) or sweep.whole or _bases(quantized, results)
            points = {bits: _point(models, at) for bits, models in by_bits.items()}
            points |= {FLOAT: _point(whole, at)} if whole else {}
            told = [f"{axis} {value:g}" for axis, value in zip(others, values, strict=True) if value != FLOAT]
            yield Family(", ".join([_name(quantized, results), *told]), points)


def _bases(quantized: Sequence[ModelResult], results: Results) -> list[ModelResult]:
    """The networks in float32 that were quantized."""
    settings = {given["name"]: given for given in results.settings}
    names = {settings[model.name].get("base") for model in quantized}
    whole = [name for name in names if name in settings and settings[name].get("quantize") is None]
    return [model for model in results.models if model.name in whole and model.n]


def _name(quantized: Sequence[ModelResult], results: Results) -> str:
    """The model that the recipe sweeps; of models that it writes out one by one, the first and the last."""
    names = [model.name for model in quantized]
    given = results.spec.get("given")
    tables = given.get("models") if isinstance(given, dict) else None
    asked = [table.get("name") for table in tables if isinstance(table, dict)] if isinstance(tables, list) else []
    swept = [one for one in asked if isinstance(one, str) and all(name.startswith(f"{one}-") for name in names)]
    return max(swept, key=len) if swept else f"{names[0]} to {names[-1]}"


def _point(models: Sequence[ModelResult], at: tuple[str, float]) -> Point:
    robust = [select.robust_at(model, *at) for model in models if model.verdict != "INVALID"]
    worst = [(one.accuracy, one.interval) for one in robust if one is not None]
    return Point(
        [model.name for model in models],
        _pooled([(model.clean_accuracy, model.clean_interval) for model in models]),
        _pooled(worst) if worst else None,
    )


def _pooled(several: Sequence[tuple[float, Interval]]) -> tuple[float, Interval]:
    values = [value for value, _ in several]
    return sum(values) / len(values), several[0][1] if len(several) == 1 else (min(values), max(values))


def written(bits: float) -> str:
    return "float32" if bits == FLOAT else f"{bits:g}"


def drawings(results: Results) -> list[tuple[Drawing, OverBits]]:
    """A figure for each setting, and what it shows."""
    found = over_bits(results)
    return [(drawn(f"section-bits-{i}", alt(one), curves(one)), one) for i, one in enumerate(found, 1)]


@styled
def curves(one: OverBits) -> Figure:
    """Against bits, the clean accuracy (dotted, hollow) and the worst case (solid) of each family, with intervals."""
    from matplotlib.figure import Figure

    names = [f"{family.name}, {kind}" for family in one.families for kind in ("clean", "worst case")]
    figure = Figure(figsize=(WIDTH, 2.7 + legend_height(names)), layout="constrained")
    axes = figure.add_subplot()
    for index, family in enumerate(one.families):
        shift = 0.06 * (index - (len(one.families) - 1) / 2)  # so that intervals of families stand beside each other
        places = {bits: one.bits.index(bits) + shift for bits in family.points}
        clean = {places[bits]: point.clean for bits, point in family.points.items()}
        worst = {places[bits]: point.worst for bits, point in family.points.items() if point.worst is not None}
        _line(axes, clean, index, hollow=True)
        _line(axes, worst, index, hollow=False)
    axes.set_xticks(range(len(one.bits)), [written(bits) for bits in one.bits])
    axes.set_xlabel(one.axis)
    percent_axis(axes.yaxis)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="x", visible=False)
    panel_title(axes, f"Accuracy, clean and at most at {words.threat(*one.threat)}")
    legend_above(figure, axes.containers, names)
    return figure


def _line(axes: Axes, points: Mapping[float, tuple[float, Interval]], index: int, *, hollow: bool) -> None:
    """Accuracies by their place on the axis, with whiskers."""
    colour, marker, _ = look(index)
    places = sorted(points)
    values = [points[place][0] for place in places]
    beyond = [[abs(points[place][1][end] - points[place][0]) for place in places] for end in (0, 1)]
    face, dash = ("white", ":") if hollow else (colour, "-")
    style: dict[str, Any] = {
        "marker": marker,
        "markersize": 4,
        "markerfacecolor": face,
        "linestyle": dash,
        "linewidth": 1.2,
    }
    axes.errorbar(places, values, yerr=beyond, color=colour, elinewidth=0.8, **style)


def alt(one: OverBits) -> str:
    """The numbers in words."""
    parts = []
    for family in one.families:
        for bits, point in sorted(family.points.items()):
            worst = words.NONE if point.worst is None else words.percent(point.worst[0])
            parts.append(f"{family.name}, {written(bits)}: clean {words.percent(point.clean[0])}, at most {worst}")
    return f"Accuracy over {one.axis} at {words.threat(*one.threat)}. {'; '.join(parts)}."
