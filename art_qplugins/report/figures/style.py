"""The style of every figure: width, colours and fonts.

Every figure is 4.6 inches wide with text of 8.5 points. It fits a phone, and half of a desktop page. Series differ by
marker, dash or hatch as well as by colour (Okabe and Ito's palette), so that they can be told apart in grey print.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

P = ParamSpec("P")

WIDTH = 4.6  # inches
INK, SOFT = "#22252a", "#4a4f57"
BLUE, LIGHT_BLUE, VERMILION, GREY = "#0072b2", "#5ba7d4", "#d55e00", "#8d9299"

#: Text stays text, so that it is small and can be searched and copied. The reader's browser sets it in its own font.
#: Matplotlib measures it in DejaVu Sans, which is wider than those fonts. Text that fits there fits everywhere.
STYLE: dict[Any, Any] = {  # Matplotlib types the keys as a union of all their names
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,  # a "$" in a model's name starts no formula
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#9aa0a8",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e1e3e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#9aa0a8",
    "ytick.color": "#9aa0a8",
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "art_qplugins",  # ids that are the same every time
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the report's style. The caller's Matplotlib settings do not change."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


#: Characters of a name in a legend of two columns, and of one.
_SHORT, _LONG = 26, 62


def percent_axis(axis: Axis) -> None:
    """Ticks from 0 to 100 %, every quarter."""
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100\N{NO-BREAK SPACE}%"])


def plain_numbers(axis: Axis) -> None:
    """Numbers in place of the formulas that a logarithmic axis has."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def cut(text: str, length: int) -> str:
    """``text`` on one line, at most ``length`` characters long."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def legend_columns(names: Sequence[str]) -> int:
    """Of a legend above a figure: one where a name needs the width of two."""
    return 2 if all(len(name) <= _SHORT for name in names) else 1


def legend_height(names: Sequence[str]) -> float:
    """Of a legend above a figure, in inches."""
    return 0.2 * -(-len(names) // legend_columns(names))


def legend_above(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """The legend of the lines of a figure."""
    columns = legend_columns(names)
    shown = [cut(name, _SHORT if columns == 2 else _LONG) for name in names]
    figure.legend(handles, shown, loc="outside upper left", ncols=columns, handlelength=3.2, columnspacing=1.4)


def heat_map_axes(axes: Axes, rows: Sequence[str], columns: Sequence[str], *, rotation: float = 0) -> None:
    """Axes of a heat map: the first row at the top, the names of columns above it."""
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([i + 0.5 for i in range(len(columns))], columns, rotation=rotation)
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def heat_map_square(
    axes: Axes, row: int, column: int, text: str, *, fill: Any, dark: bool, weight: str = "normal"
) -> None:
    """One square with its number, white where the fill is dark."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=fill, edgecolor="white", linewidth=1.5))
    ink = "white" if dark else INK
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontweight=weight)


def model_axes(models: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with a line for each model, and room for their names."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 2.7 + legend_height(models)), layout="constrained")
    return figure, figure.add_subplot()


def panel_title(axes: Axes, title: str) -> None:
    """Above the left end of a panel."""
    axes.set_title(title, loc="left", fontsize=8.5, color=SOFT)


def titled(figure: Figure, axes: Axes, title: str) -> None:
    """End such a figure: from 0 on, with its title and the names of its lines."""
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    panel_title(axes, title)
    legend_above(figure, *axes.get_legend_handles_labels())
