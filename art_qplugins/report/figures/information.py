"""The adversarial information plane, and the ROC curves of a detector that reads the information of an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from art_qplugins.evaluation.records import Results
from art_qplugins.report import words
from art_qplugins.report.figures.curves import look
from art_qplugins.report.figures.style import (
    GREY,
    INK,
    WIDTH,
    legend_above,
    legend_height,
    model_axes,
    panel_title,
    styled,
)
from art_qplugins.report.figures.svg import Drawing, drawn
from art_qplugins.report.plane import Plane, Point, planes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drawings", "in_plane", "roc_curves"]

_NOISE = "random noise"
#: More curves cannot be told apart.
_MOST = 5


def drawings(results: Results) -> list[tuple[Drawing, str]]:
    """Every figure of the section on information, with what is said below it."""
    return [pair for number, plane in enumerate(planes(results), 1) for pair in _drawings(number, plane)]


def _drawings(number: int, plane: Plane) -> Iterator[tuple[Drawing, str]]:
    name, where = f"section-information-plane-{number}", f"{plane.model}, {plane.norm}"
    about = f"{where}: clean images are at the origin, and each curve leads over larger eps."
    yield drawn(name, in_plane_alt(plane), in_plane(plane)), about
    for place, (attack, points) in enumerate(plane.attacks.items(), 1):
        name = f"section-information-roc-{number}-{place}"
        about = f"{where}: images of {attack} told from clean ones; thin and dotted, images with noise of the same eps."
        yield drawn(name, roc_curves_alt(plane, attack), roc_curves(plane, points)), about


@styled
def in_plane(plane: Plane) -> Figure:
    """The change of information and of accuracy, a curve for each attack over eps, and one for noise."""
    figure, axes = model_axes([*plane.attacks, _NOISE])
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    for index, (attack, points) in enumerate(plane.attacks.items()):
        colour, marker, dash = look(index)
        gained, lost = _from_clean(points)
        axes.plot(gained, lost, color=colour, marker=marker, linestyle=dash, linewidth=1.5, markersize=4, label=attack)
    gained, lost = _from_clean(plane.noise)
    axes.plot(gained, lost, color=GREY, marker="x", linestyle=":", linewidth=1.3, markersize=4.5, label=_NOISE)
    axes.plot(0, 0, "o", color=INK, markersize=6, zorder=5)
    axes.margins(0.06)
    axes.set_ylim(top=max(axes.get_ylim()[1], 0.05))
    axes.locator_params(axis="x", nbins=6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    axes.set_xlabel("change of information")
    panel_title(axes, "Change of accuracy, in points")
    legend_above(figure, *axes.get_legend_handles_labels())
    return figure


def _from_clean(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [0.0, *(point.gained for point in points)], [0.0, *(point.lost for point in points)]


@styled
def roc_curves(plane: Plane, points: Sequence[Point]) -> Figure:
    """The share of attacked images that is found over the share of clean ones that is, a curve for each eps."""
    from matplotlib.figure import Figure

    shown = _spread(points)
    names = [_named(plane, point) for point in shown]
    figure = Figure(figsize=(WIDTH, 3.3 + legend_height(names)), layout="constrained")
    axes, rates = figure.add_subplot(), [rate / 100 for rate in range(101)]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.7)
    for index, (name, point) in enumerate(zip(names, shown, strict=True)):
        colour, _, dash = look(index)
        axes.plot(rates, point.roc, color=colour, linestyle=dash, linewidth=1.5, label=name)
        if (noise := plane.control(point.eps)) is not None:
            axes.plot(rates, noise.roc, color=colour, linestyle=":", linewidth=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:g}\N{NO-BREAK SPACE}%")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel("clean images that are detected")
    panel_title(axes, "Attacked images that are detected; above: eps, and the area")
    legend_above(figure, *axes.get_legend_handles_labels())
    return figure


def _spread(points: Sequence[Point]) -> list[Point]:
    """At most so many, from the weakest to the strongest."""
    few = min(len(points), _MOST)
    return [points[round(i * (len(points) - 1) / max(few - 1, 1))] for i in range(few)]


def _named(plane: Plane, point: Point) -> str:
    noise = plane.control(point.eps)
    return f"{words.eps(point.eps)}: {point.auroc:.2f}" + ("" if noise is None else f", noise {noise.auroc:.2f}")


def in_plane_alt(plane: Plane) -> str:
    """Alternative text."""
    lines = [
        f"{attack}: "
        + ", ".join(f"{point.gained:+.3f} and {words.signed(point.lost)} at {words.eps(point.eps)}" for point in points)
        for attack, points in {**plane.attacks, _NOISE: plane.noise}.items()
        if points
    ]
    return f"Change of information and of accuracy in points on {plane.model}, {plane.norm}. {'. '.join(lines)}."


def roc_curves_alt(plane: Plane, attack: str) -> str:
    """Alternative text."""
    areas = ", ".join(_named(plane, point) for point in plane.attacks[attack])
    return f"ROC curves of {attack} on {plane.model}; area by eps: {areas}."
