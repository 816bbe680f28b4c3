"""Robust accuracy over eps, one line per model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from art_qplugins.evaluation.records import ModelResult, Results
from art_qplugins.report import words
from art_qplugins.report.figures.style import WIDTH, legend_above, legend_height, panel_title, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#b3478f", "#8a6d00", "#2f8fc4", "#22252a")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: After so many, colours and markers begin anew.
LOOKS = len(_COLOURS)
_DASHES = ("-", (0, (5, 1.6)), (0, (1.5, 1.2)), (0, (5, 1.4, 1.2, 1.4)), (0, (3, 1, 1, 1, 1, 1)))


@styled
def robust_curves(results: Results) -> Figure:
    """Worst case over attacks against eps, one line per model and one panel per norm, with interval bands.

    A hollow marker is a claim that did not hold. A dotted line leads from it to the corrected accuracy.
    """
    from matplotlib.figure import Figure

    norms = sorted({robust.norm for model in results.models for robust in model.robust})
    height = 2.6 * len(norms) + 0.25 + legend_height([model.name for model in results.models])
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(len(norms), 1, squeeze=False)[:, 0]
    for axes, norm in zip(panels, norms, strict=True):
        for index, model in enumerate(results.models):
            colour, marker, dash = look(index)
            _curve(axes, model, norm, colour, marker, dash)
            _failed_claim(axes, model, norm, colour, marker)
        _label(axes, results, norm)
    legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def look(index: int) -> tuple[str, str, str | tuple[float, tuple[float, ...]]]:
    """Colour, marker and dash of a model by its place, the same in every figure with lines."""
    return _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)], _DASHES[index % len(_DASHES)]


def _label(axes: Axes, results: Results, norm: str) -> None:
    percent_axis(axes.yaxis)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(f"eps ({norm})")
    panel_title(axes, "Accuracy, worst case over the attacks run")
    shown = sorted({0.0} | {robust.eps for m in results.models for robust in m.robust if robust.norm == norm})
    if len(shown) <= 7:
        axes.set_xticks(shown, [words.eps(value) for value in shown])


def _curve(
    axes: Axes, model: ModelResult, norm: str, colour: str, marker: str, dash: str | tuple[float, tuple[float, ...]]
) -> None:
    points = [(0.0, model.clean_accuracy, model.clean_interval)] if model.n else []
    points += [(robust.eps, robust.accuracy, robust.interval) for robust in model.robust if robust.norm == norm]
    points.sort(key=lambda point: point[0])
    eps = [point[0] for point in points]
    axes.fill_between(eps, [p[2][0] for p in points], [p[2][1] for p in points], color=colour, alpha=0.13, lw=0)
    axes.plot(
        eps,
        [point[1] for point in points],
        color=colour,
        marker=marker,
        linestyle=dash,
        linewidth=1.6,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=model.name,
        clip_on=False,
    )


def _failed_claim(axes: Axes, model: ModelResult, norm: str, colour: str, marker: str) -> None:
    """A hollow marker at the claimed accuracy, with a dotted line to the corrected one."""
    eps, claimed, corrected = model.claim.eps, model.claim.accuracy, model.claim.corrected
    if model.claim.status != "OVERSTATED" or model.claim.norm != norm:
        return
    if eps is None or claimed is None or corrected is None:
        return
    axes.plot([eps, eps], [corrected, claimed], color=colour, linestyle=":", linewidth=1.3)
    axes.plot(
        eps,
        claimed,
        color=colour,
        marker=marker,
        markersize=6,
        markerfacecolor="white",
        markeredgewidth=1.4,
        clip_on=False,
    )
    if claimed - corrected > 0.15:  # only a single model leaves room to explain the hollow marker
        axes.annotate(
            f"claimed {words.percent(claimed)}",
            (eps, claimed),
            xytext=(-7, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=colour,
        )


def curves_alt(results: Results) -> str:
    """Alternative text of the curves."""
    lines = []
    for model in results.models:
        points = [f"clean {words.percent(model.clean_accuracy) if model.n else 'not known'}"]
        points += [f"{words.threat(r.norm, r.eps)}: at most {words.percent(r.accuracy)}" for r in model.robust]
        lines.append(f"{model.name}: {', '.join(points)}")
    return f"Accuracy over eps, worst case over attacks. {'. '.join(lines)}."
