"""A bar chart of the attacks on one model at one norm and eps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from art_qplugins.evaluation.records import Cell, ModelResult
from art_qplugins.report import select, words
from art_qplugins.report.figures import style
from art_qplugins.report.figures.style import INK, SOFT, cut, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FILL_AND_HATCH: dict[select.Kind, tuple[str, str]] = {
    "white-box": (style.BLUE, ""),
    "adaptive": (style.VERMILION, "////"),
    "transfer": (style.LIGHT_BLUE, "||||"),
    "black-box": (style.GREY, "xxxx"),
}

#: With more attacks than this the figure cannot be read. The table of cells has all of them.
_MAX_BARS = 24


@styled
def attack_bars(model: ModelResult, cells: Sequence[Cell]) -> Figure:
    """Accuracy under each attack at one norm and eps, strongest attack first, with interval whiskers.

    :param cells: scored cells of one model at one norm and eps, as :func:`~art_qplugins.report.select.attacks` gives them.
    """
    from matplotlib.figure import Figure

    shown = list(cells[:_MAX_BARS])
    pitch, above = 0.4, 0.62  # inches a row, and inches for the legend and the two numbers
    height = pitch * len(shown) + above + 0.35
    figure = Figure(figsize=(style.WIDTH, height))
    axes = figure.add_axes((0.03, 0.33 / height, 0.915, pitch * len(shown) / height))
    _bars(axes, model, shown)
    _reference_lines(figure, axes, model, len(shown))
    axes.set_xlim(0, 1)
    axes.set_ylim(len(shown), 0)
    percent_axis(axes.xaxis)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    _legend(figure, shown)
    return figure


def _bars(axes: Axes, model: ModelResult, cells: list[Cell]) -> None:
    names = select.labels(cells)
    for row, cell in enumerate(cells):
        fill, hatch = _FILL_AND_HATCH[select.kind(cell)]
        at = row + 0.68
        axes.barh(at, cell.accuracy or 0.0, height=0.34, color=fill, hatch=hatch, edgecolor="white", linewidth=0)
        if cell.interval is not None:
            axes.plot(cell.interval, [at, at], color=INK, linewidth=1, marker="|", markersize=5)
        bold = "bold" if select.is_claimed(model, cell) else "normal"
        axes.text(0, row + 0.28, cut(names[cell.id], 44), va="center", fontweight=bold)
        axes.text(1, row + 0.28, words.accuracy(cell.accuracy, cell.interval), va="center", ha="right", color=SOFT)


def _reference_lines(figure: Figure, axes: Axes, model: ModelResult, rows: int) -> None:
    """Lines for the claimed and the corrected accuracy. They span only the bars, so that none crosses a name."""
    from matplotlib.transforms import offset_copy

    numbers = [
        (model.claim.accuracy, "claimed", (0, (2, 1.2)), 20),
        (model.claim.corrected, "at most", "-", 8),
    ]
    for value, word, dash, lift in numbers:
        if value is None:
            continue
        low, high = np.arange(rows) + 0.5, np.arange(rows) + 0.86
        axes.vlines([value] * rows, low, high, color=INK, linestyle=dash, linewidth=1.3, clip_on=False, zorder=4)
        right = value > 0.5
        axes.annotate(
            f"{word} {words.percent(value)}",
            (value, 0),
            xytext=(-5 if right else 5, lift),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            fontweight="bold",
            fontsize=8,
        )
        pointer = offset_copy(axes.transData, figure, y=lift, units="points")
        axes.plot(value, 0, marker="v", markersize=4, color=INK, transform=pointer, clip_on=False)


def _legend(figure: Figure, cells: list[Cell]) -> None:
    from matplotlib.patches import Patch

    kinds = [kind for kind in select.KINDS if any(select.kind(cell) == kind for cell in cells)]
    looks = [(kind, *_FILL_AND_HATCH[kind]) for kind in kinds]
    figure.legend(
        handles=[Patch(facecolor=fill, hatch=hatch, edgecolor="white", label=kind) for kind, fill, hatch in looks],
        loc="upper left",
        bbox_to_anchor=(0.02, 1),
        ncols=4,
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0.2,
    )


def bars_alt(model: ModelResult, cells: Sequence[Cell]) -> str:
    """Alternative text of the bars."""
    names = select.labels(list(cells))
    bars = ", ".join(f"{names[cell.id]} ({select.kind(cell)}) {words.percent(cell.accuracy)}" for cell in cells)
    return f"Accuracy of {model.name} under each attack, strongest first: {bars}. {words.claim(model.claim)}."
