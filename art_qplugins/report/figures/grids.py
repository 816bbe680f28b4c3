"""How far the models of two swept settings are from their baseline: a square for each pair of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.records import Difference, Results
from art_qplugins.report import words
from art_qplugins.report.figures.style import INK, SOFT, WIDTH, styled
from art_qplugins.report.figures.sweeps import Sweep, Values, in_words, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Grid", "grid_alt", "grids", "squares"]

#: Blue is better than the baseline, vermilion is worse. These are the colours of a difference of so much, or more.
_BETTER, _WORSE, _FULL = (0.0, 0.45, 0.70), (0.84, 0.37, 0.0), 0.3


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The differences of a sweep of two settings from one baseline, clean or at one norm and eps.

    :ivar axes: the settings of the rows and of the columns.
    :ivar cells: by the values of both.
    """

    axes: tuple[str, str]
    cells: dict[Values, Difference]

    @property
    def any(self) -> Difference:
        """One of the cells. All have the baseline, norm and eps in common."""
        return next(iter(self.cells.values()))


def grids(results: Results) -> list[Grid]:
    """Those that the records hold: every sweep of two settings, clean first, then by norm and eps."""
    same = replicates(results)
    return [
        grid
        for sweep in sweeps(results)
        if len(sweep.axes) == 2
        for grid in _grids(
            sweep, {values: same.get(m[0].name, m[0].name) for values, m in sweep.models.items()}, results
        )
    ]


def _grids(sweep: Sweep, names: dict[Values, str], results: Results) -> list[Grid]:
    at = {(row.second, row.first, row.metric, row.norm, row.eps): row for row in results.differences}
    whats = dict.fromkeys(key[1:] for key in at if key[0] in names.values())
    found = []
    for what in whats:
        cells = {values: row for values, name in names.items() if (row := at.get((name, *what))) is not None}
        found.append(Grid(axes=(sweep.axes[0], sweep.axes[1]), cells=cells))
    return found


@styled
def squares(grid: Grid) -> Figure:
    """The differences in points. A difference that the test shows is bold."""
    from matplotlib.figure import Figure

    rows, columns = (sorted({values[axis] for values in grid.cells}) for axis in (0, 1))
    height = 0.42 * len(rows) + 0.75
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.16, 0.24 / height, 0.8, 0.42 * len(rows) / height))
    for (row, column), difference in grid.cells.items():
        _square(axes, rows.index(row), columns.index(column), difference)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([i + 0.5 for i in range(len(columns))], list(map(in_words, columns)))
    axes.set_yticks([i + 0.5 for i in range(len(rows))], list(map(in_words, rows)))
    axes.xaxis.tick_top()
    axes.set_xlabel(grid.axes[1])
    axes.xaxis.set_label_position("top")
    axes.set_ylabel(grid.axes[0])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.text(0.01, 0.05 / height, "points above or below the baseline; bold: shown by the test", color=SOFT)
    return figure


def _square(axes: Axes, row: int, column: int, difference: Difference) -> None:
    from matplotlib.patches import Rectangle

    deep = min(1.0, abs(difference.difference) / _FULL)
    target = _BETTER if difference.difference > 0 else _WORSE
    red, green, blue = (0.96 + (end - 0.96) * deep for end in target)
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=(red, green, blue), edgecolor="white", linewidth=1.5))
    axes.text(
        column + 0.5,
        row + 0.5,
        words.signed(difference.difference),
        ha="center",
        va="center",
        color="white" if deep > 0.6 else INK,
        fontweight="bold" if difference.shown else "normal",
    )


def about(grid: Grid) -> str:
    """What the squares are differences of."""
    one = grid.any
    at = "" if one.eps is None else f" at {words.threat(one.norm, one.eps)}"
    return f"{words.METRICS[one.metric]}{at}, against {one.first}"


def grid_alt(grid: Grid) -> str:
    """Alternative text of the squares."""
    parts = [
        f"{in_words(row)}, {in_words(column)}: {words.signed(difference.difference)}{' (shown)' if difference.shown else ''}"
        for (row, column), difference in grid.cells.items()
    ]
    return f"Difference in points of the {about(grid)}, over {grid.axes[0]} and {grid.axes[1]}. {'; '.join(parts)}."
