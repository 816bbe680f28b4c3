"""What a swept change of weights does to logits: their gain, their margins and the gradients that are left, beside the accuracy."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.records import ModelResult, Results
from art_qplugins.report import words
from art_qplugins.report.figures.curves import look
from art_qplugins.report.figures.style import (
    WIDTH,
    legend_above,
    legend_height,
    panel_title,
    percent_axis,
    plain_numbers,
    styled,
)
from art_qplugins.report.figures.sweeps import Sweep, accuracy, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of a sweep: means over its trainings. ``None`` where a training has no such number.

    :ivar claimed: accuracy under the claimed attack; ``left`` in the worst case.
    :ivar gain: of the logits over those of the base.
    :ivar low: quantile of the logit margin at 5 %; ``median`` at 50 %, ``high`` at 95 %.
    :ivar no_gradient: share of images without a gradient.
    """

    value: float
    claimed: float | None
    left: float | None
    gain: float | None
    low: float | None
    median: float | None
    high: float | None
    no_gradient: float | None


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Models whose weights were changed after training, over one swept setting: the points of each line, by its name."""

    axis: str
    lines: dict[str, list[Point]]


def changed(results: Results) -> list[Changed]:
    """Those that the run measured, one for each setting."""
    lines: dict[str, dict[str, list[Point]]] = defaultdict(dict)
    for sweep in sweeps(results):
        models = [model for group in sweep.models.values() for model in group]
        known = [results.sensitivity.get(model.name) for model in models]
        if len(sweep.axes) == 1 and all(one is not None and one.gain is not None for one in known):
            points = [_point(results, values[0], group) for values, group in sweep.models.items()]
            lines[sweep.axes[0]][_name(results, sweep)] = points
    return [Changed(axis=axis, lines=of) for axis, of in lines.items()]


def _name(results: Results, sweep: Sweep) -> str:
    """Of the swept model: a variant has the value after it."""
    first = next(iter(sweep.models.values()))[0].name
    same = replicates(results).get(first, first)
    return same.partition(f"-{sweep.axes[0].replace(' ', '_')}=")[0]


def _point(results: Results, value: float, models: Sequence[ModelResult]) -> Point:
    records = [results.sensitivity[model.name] for model in models]
    logits = [record.logits for record in records]
    low, median, high = (_mean([None if of is None else of.margins[which] for of in logits]) for which in (0, 2, 4))
    return Point(
        value=value,
        claimed=_mean([accuracy(model, "claimed") for model in models]),
        left=_mean([accuracy(model, "at most") for model in models]),
        gain=_mean([record.gain for record in records]),
        low=low,
        median=median,
        high=high,
        no_gradient=_mean([None if of is None else of.no_gradient for of in logits]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


@styled
def over_values(found: Changed) -> Figure:
    """Panels over the swept setting, and a line for each model."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(WIDTH, 6.4 + legend_height([*found.lines])), layout="constrained")
    shares, gain, margins, gradients = figure.subplots(4, 1, sharex=True)
    for index, (name, points) in enumerate(found.lines.items()):
        colour, marker, dash = look(index)
        at = [point.value for point in points]
        wide = {"color": colour, "linestyle": dash, "marker": marker, "linewidth": 1.5, "markersize": 4}
        shares.plot(at, _of(points, lambda p: p.claimed), label=name, **wide)
        shares.plot(at, _of(points, lambda p: p.left), color=colour, linestyle=dash, linewidth=0.7)
        gain.plot(at, _of(points, lambda p: p.gain), **wide)
        gradients.plot(at, _of(points, lambda p: p.no_gradient), **wide)
        low, median, high = (_of(points, take) for take in (lambda p: p.low, lambda p: p.median, lambda p: p.high))
        margins.plot(at, median, **wide)
        margins.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    _titled(shares, "Accuracy under the claimed attack; thin: at most")
    _titled(gain, "Gain of the logits")
    _titled(margins, "Logit margins: median, and 5 to 95 % of images")
    _titled(gradients, "Images whose gradient is exactly zero")
    for axes in (shares, gradients):
        axes.set_ylim(-0.03, 1.03)
        percent_axis(axes.yaxis)
    values = [point.value for points in found.lines.values() for point in points]
    if min(values) > 0 and max(values) >= 20 * min(values):
        shares.set_xscale("log")
        plain_numbers(gradients.xaxis)
    gains = [point.gain for points in found.lines.values() for point in points if point.gain is not None]
    if min(gains) > 0:
        gain.set_yscale("log")
        gain.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(gains) < 100 * min(gains) else (1,), numticks=5))
        plain_numbers(gain.yaxis)
    margins.set_yscale("symlog", linthresh=1)
    plain_numbers(margins.yaxis)
    gradients.set_xlabel(found.axis)
    legend_above(figure, *shares.get_legend_handles_labels())
    return figure


def _of(points: Sequence[Point], take: Callable[[Point], float | None]) -> list[float]:
    return [math.nan if (value := take(point)) is None else value for point in points]


def _titled(axes: Axes, title: str) -> None:
    axes.grid(axis="x", visible=False)
    panel_title(axes, title)


def over_values_alt(found: Changed) -> str:
    """Alternative text."""
    parts = []
    for name, points in found.lines.items():
        for p in points:
            margin, gain = (words.NONE if value is None else f"{value:.3g}" for value in (p.median, p.gain))
            parts.append(
                f"{name}, {p.value:g}: {words.percent(p.claimed)} under the claimed attack, {words.percent(p.left)} in the worst case, "
                f"gain {gain}, median margin {margin}, without a gradient {words.percent(p.no_gradient)}"
            )
    return f"Accuracy, logits and gradients over {found.axis}. {'; '.join(parts)}."
