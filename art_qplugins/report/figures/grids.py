"""How far the models of a sweep of two settings are from their baseline: a heat map."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.fields import Metric
from art_qplugins.evaluation.records import Difference, Results
from art_qplugins.report import words
from art_qplugins.report.figures.style import SOFT, WIDTH, heat_map_axes, heat_map_square, styled
from art_qplugins.report.figures.sweeps import Values, in_words, sweeps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Grid", "about", "grids", "heat_map", "heat_map_alt"]

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
    def metric(self) -> Metric:
        """Of all cells."""
        return next(iter(self.cells.values())).metric


def grids(results: Results) -> list[Grid]:
    """Those that the records hold: every sweep of two settings, clean first, then by norm and eps."""
    same, found = replicates(results), []
    for sweep in sweeps(results):
        if len(sweep.axes) == 2:
            names = {values: same.get(models[0].name, models[0].name) for values, models in sweep.models.items()}
            found += _grids((sweep.axes[0], sweep.axes[1]), names, results.differences)
    return found


def _grids(axes: tuple[str, str], names: dict[Values, str], differences: Sequence[Difference]) -> list[Grid]:
    """:param names: of the models, by the values of both settings."""
    by_number: dict[tuple[Any, ...], dict[str, Difference]] = defaultdict(dict)
    for row in differences:
        if row.second in names.values():
            by_number[row.first, row.metric, row.norm, row.eps][row.second] = row
    return [
        Grid(axes=axes, cells={values: rows[name] for values, name in names.items() if name in rows})
        for rows in by_number.values()
    ]


@styled
def heat_map(grid: Grid) -> Figure:
    """The differences in points. A significant one is bold."""
    from matplotlib.figure import Figure

    rows, columns = (sorted({values[axis] for values in grid.cells}) for axis in (0, 1))
    height = 0.42 * len(rows) + 0.75
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.16, 0.24 / height, 0.8, 0.42 * len(rows) / height))
    for (row, column), difference in grid.cells.items():
        _square(axes, rows.index(row), columns.index(column), difference)
    heat_map_axes(axes, list(map(in_words, rows)), list(map(in_words, columns)))
    axes.set_xlabel(grid.axes[1])
    axes.xaxis.set_label_position("top")
    axes.set_ylabel(grid.axes[0])
    figure.text(0.01, 0.05 / height, "points above or below the baseline; bold: significant at 5 %", color=SOFT)
    return figure


def _square(axes: Axes, row: int, column: int, difference: Difference) -> None:
    if difference.invalid:
        heat_map_square(axes, row, column, "invalid", fill=(0.96, 0.96, 0.96), dark=False)
        return
    deep = min(1.0, abs(difference.difference) / _FULL)
    target = _BETTER if difference.difference > 0 else _WORSE
    fill = tuple(0.96 + (end - 0.96) * deep for end in target)
    weight = "bold" if difference.significant else "normal"
    heat_map_square(axes, row, column, words.signed(difference.difference), fill=fill, dark=deep > 0.6, weight=weight)


def about(grid: Grid) -> str:
    """What the numbers are differences of."""
    one = next(iter(grid.cells.values()))  # all have the baseline, norm and eps in common
    at = "" if one.eps is None else f" at {words.threat(one.norm, one.eps)}"
    return f"{words.METRICS[one.metric]}{at}, against {one.first}"


def heat_map_alt(grid: Grid) -> str:
    """Alternative text."""
    parts = [
        f"{in_words(row)}, {in_words(column)}: {_in_words(difference)}"
        for (row, column), difference in grid.cells.items()
    ]
    return f"Difference in points of the {about(grid)}, over {grid.axes[0]} and {grid.axes[1]}. {'; '.join(parts)}."


def _in_words(difference: Difference) -> str:
    if difference.invalid:
        return "invalid"
    return words.signed(difference.difference) + (" (significant)" if difference.significant else "")
