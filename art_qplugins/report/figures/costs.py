"""Accuracy against gradients spent, one line per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from art_qplugins.report import select, words
from art_qplugins.report.figures.curves import look
from art_qplugins.report.figures.style import (
    SOFT,
    WIDTH,
    legend_above,
    legend_height,
    panel_title,
    percent_axis,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The attacks that get a mark of their own: its name in the legend, and its marker.
_MARKED = {
    "autoattack:standard": ("AutoAttack standard", "*"),
    "autoattack:rand": ("AutoAttack rand", "X"),
    "artq:worst-case": ("artq:worst-case", "D"),
}


@styled
def spending(found: Mapping[str, Sequence[select.Spent]]) -> Figure:
    """For each model, the worst case over attacks that cost at most so many gradients. Marks show single attacks.

    :param found: by model, its attacks at one norm and eps, the cheapest first.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(WIDTH, 3.1 + legend_height(list(found))), layout="constrained")
    axes = figure.subplots()
    last = max(attack.gradients for attacks in found.values() for attack in attacks)
    for index, (name, attacks) in enumerate(found.items()):
        colour, _, dash = look(index)
        costs = [attack.gradients for attack in attacks]
        worst = [attack.worst for attack in attacks]
        axes.step([*costs, last], [*worst, worst[-1]], where="post", color=colour, linestyle=dash, label=name, lw=1.6)
        for attack in attacks:
            if attack.cell.attack in _MARKED:
                axes.plot(
                    attack.gradients,
                    attack.accuracy,
                    marker=_MARKED[attack.cell.attack][1],
                    linestyle="",
                    markerfacecolor="white",
                    markeredgecolor=colour,
                    markersize=6,
                    clip_on=False,
                )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: words.count(value))
    axes.xaxis.set_minor_formatter(lambda value, _: "")  # within one power of ten it would write formulas
    percent_axis(axes.yaxis)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("gradients per image")
    panel_title(axes, "Accuracy, worst case over attacks that cost at most this")
    handles, names = axes.get_legend_handles_labels()
    shown = {attack.cell.attack for attacks in found.values() for attack in attacks}
    for marked, (name, marker) in _MARKED.items():
        if marked in shown:
            handles.append(Line2D([], [], color=SOFT, marker=marker, linestyle="", markerfacecolor="white"))
            names.append(f"{name} alone")
    legend_above(figure, handles, names)
    return figure


def spending_alt(found: Mapping[str, Sequence[select.Spent]]) -> str:
    """Alternative text of the lines."""
    lines = []
    for name, attacks in found.items():
        steps = ", ".join(
            f"{words.percent(a.worst)} after {words.count(a.gradients)} ({a.cell.attack})" for a in attacks
        )
        lines.append(f"{name}: {steps}")
    return f"Accuracy against gradients per image. {'. '.join(lines)}."
