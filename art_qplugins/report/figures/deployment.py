"""Robustness of deployed files against what they cost: their size, and the time of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from art_qplugins.evaluation.fields import Interval
from art_qplugins.evaluation.records import Results
from art_qplugins.report import select, words
from art_qplugins.report.figures.curves import LOOKS, look
from art_qplugins.report.figures.style import WIDTH, legend_above, legend_height, panel_title, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Placed", "costs", "costs_alt", "placed", "threat_of"]


@dataclass(frozen=True)
class Placed:
    """A file, its costs and its worst case.

    :ivar seconds: of one image; ``None`` where it could not be timed.
    """

    name: str
    size: float
    seconds: float | None
    accuracy: float
    interval: Interval


def threat_of(results: Results) -> tuple[str, float] | None:
    """The norm and eps of the first model that has one."""
    found = (select.threat(model, results) for model in results.models)
    return next((threat for threat in found if threat is not None), None)


def placed(results: Results) -> list[Placed]:
    """The files with a worst case that counts, in the order of the recipe."""
    at, found = threat_of(results), []
    for model in results.models:
        record = results.deployment.get(model.name)
        robust = None if at is None or model.verdict == "INVALID" else select.robust_at(model, *at)
        if record is not None and robust is not None:
            alone = next((speed.seconds for speed in record.speeds if speed.batch == 1), None)
            found.append(Placed(model.name, float(record.size), alone, robust.accuracy, robust.interval))
    return found


@styled
def costs(points: Sequence[Placed], at: tuple[str, float]) -> Figure:
    """Worst-case accuracy with intervals, against the size of each file and against the time of an image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 2.7 + legend_height([point.name for point in points])), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for index, point in enumerate(points):
        (colour, _, _), (_, marker, _) = look(index), look(index + index // LOOKS)  # no two of them look the same
        beyond = [[point.accuracy - point.interval[0]], [point.interval[1] - point.accuracy]]
        for axes, x in zip(panels, (point.size / 1e6, point.seconds and point.seconds * 1e3), strict=True):
            if x:
                axes.errorbar(
                    x,
                    point.accuracy,
                    yerr=beyond,
                    color=colour,
                    marker=marker,
                    markersize=5,
                    linestyle="",
                    elinewidth=0.8,
                    label=point.name,
                )
    sizes, times = [point.size / 1e6 for point in points], [1e3 * point.seconds for point in points if point.seconds]
    for axes, name, values in zip(panels, ("MB of the file", "ms of an image"), (sizes, times), strict=True):
        axes.set_xlabel(name)
        axes.set_xlim(0, 1.1 * max(values, default=1))
    percent_axis(panels[0].yaxis)
    panels[0].set_ylim(-0.03, 1.03)
    panel_title(panels[0], f"Accuracy, at most at {words.threat(*at)}")
    legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def costs_alt(points: Sequence[Placed]) -> str:
    """The numbers in words."""
    parts = []
    for point in points:
        time = "" if point.seconds is None else f", {point.seconds * 1e3:.3g} ms"
        parts.append(f"{point.name}: {point.size / 1e6:.3g} MB{time}, at most {words.percent(point.accuracy)}")
    return f"Worst-case accuracy of files against size and time. {'; '.join(parts)}."
