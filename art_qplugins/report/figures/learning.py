"""The curves of a training, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from art_qplugins.evaluation.network_records import FeedbackRound, TrainedEpoch
from art_qplugins.report import words
from art_qplugins.report.figures.style import BLUE, GREY, INK, SOFT, VERMILION, WIDTH, panel_title, percent_axis, styled
from art_qplugins.report.training import ATTACK, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The most epochs that get markers.
_MARKED = 20
#: Losses above the first, of which the largest is so many times the smallest, have a logarithmic axis.
_LEAST, _TIMES = 1e-30, (10, 1e12)
#: The colour and the dash of a class by its level of robustness.
_LEVELS: dict[str, tuple[str, str | tuple[float, tuple[float, ...]]]] = {
    "high": (BLUE, "-"),
    "medium": (GREY, (0, (5, 1.6))),
    "low": (VERMILION, (0, (1.5, 1.2))),
}


@styled
def training_curves(training: Training) -> Figure:
    """Accuracy on validation images where it was measured, loss, and learning rate by epoch, a panel each.

    A dotted line is at the epoch whose weights were kept, where the recipe keeps the best.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    heights = [1.45] * training.validated + [1.6] * bool(training.rounds) + [1.15, 0.7]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    drawn = training.drawn
    if training.validated:
        _accuracies(panels[0], drawn, robustly=training.robustly)
    if training.rounds:
        _rounds(panels[-3], training.rounds)
    _losses(panels[-2], drawn)
    _line(panels[-1], drawn, [told.learning_rate for told in drawn], SOFT)
    panels[-1].locator_params(axis="y", nbins=2)
    panels[-1].set_ylim(bottom=0)
    _numbers(panels[-1], "Learning rate")
    for axes in panels:
        axes.grid(axis="x", visible=False)
        if training.best is not None:
            axes.axvline(training.best.epoch, color=GREY, linewidth=1.2, linestyle=":", zorder=1)
    panels[-1].set_xlim(0 if training.rounds else 1, len(training.curve))
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    panels[-1].set_xlabel("epoch")
    return figure


def _accuracies(axes: Axes, drawn: Sequence[TrainedEpoch], *, robustly: bool) -> None:
    """Clean and robust accuracy on the validation images."""
    _line(axes, drawn, [told.validation_accuracy for told in drawn], BLUE, label="clean")
    if robustly:
        robust = [told.robust_validation_accuracy for told in drawn]
        _line(axes, drawn, robust, VERMILION, marker="s", dash=(0, (5, 1.6)), label=f"under {ATTACK}")
    percent_axis(axes.yaxis)
    axes.set_ylim(-0.03, 1.03)
    panel_title(axes, "Accuracy on validation images")
    axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.96), ncols=2, handlelength=2.6, columnspacing=1.2)


def _rounds(axes: Axes, rounds: Sequence[FeedbackRound]) -> None:
    """The mean margin of each class by round, and the mean of all. A class has the look of its last level."""
    at = [told.epochs for told in rounds]
    for of_class in zip(*(told.classes for told in rounds), strict=False):
        colour, dash = _LEVELS[of_class[-1].level]
        values = [math.nan if one.mean is None else one.mean for one in of_class]
        axes.plot(at, values, color=colour, linestyle=dash, linewidth=0.8, clip_on=False)
    means = [math.nan if told.mean is None else told.mean for told in rounds]
    axes.plot(at, means, color=INK, linewidth=2, marker="o", markersize=4, markeredgecolor="white", clip_on=False)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=4)
    _numbers(axes, "Margins along random directions, L2")


def _losses(axes: Axes, drawn: Sequence[TrainedEpoch]) -> None:
    from matplotlib.ticker import LogLocator

    values = [told.loss for told in drawn]
    _line(axes, drawn, values, INK)
    if min(values) > _LEAST and _TIMES[0] <= (times := max(values) / min(values)) <= _TIMES[1]:
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if times < 300 else (1,), numticks=5))
        _numbers(axes, "Loss, logarithmic")
    else:
        axes.locator_params(axis="y", nbins=4)
        _numbers(axes, "Loss")


def _line(
    axes: Axes,
    drawn: Sequence[TrainedEpoch],
    values: Sequence[float | None],
    colour: str,
    *,
    marker: str = "o",
    dash: str | tuple[float, tuple[float, ...]] = "-",
    label: str | None = None,
) -> None:
    axes.plot(
        [told.epoch for told in drawn],
        [math.nan if value is None else value for value in values],
        color=colour,
        linestyle=dash,
        linewidth=1.6,
        marker=marker if len(drawn) <= _MARKED else "",
        markersize=4,
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=label,
        clip_on=False,
    )


def _numbers(axes: Axes, title: str) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: words.loss(value))
    panel_title(axes, title)


def training_alt(name: str, training: Training) -> str:
    """Alternative text of the curves: where they begin and end."""
    first, last = training.curve[0], training.curve[-1]
    ranges = [f"loss from {words.loss(first.loss)} to {words.loss(last.loss)}"]
    if training.validated:
        pair = (words.percent(told.validation_accuracy) for told in (first, last))
        ranges.append(f"accuracy on validation images from {' to '.join(pair)}")
    if training.robustly:
        pair = (words.percent(told.robust_validation_accuracy) for told in (first, last))
        ranges.append(f"under {ATTACK} from {' to '.join(pair)}")
    rates = [told.learning_rate for told in training.curve]
    ranges.append(f"learning rate from {words.loss(rates[0])} to {words.loss(rates[-1])}")
    if training.rounds:
        pair = (
            words.loss(told.mean) if told.mean is not None else "none"
            for told in (training.rounds[0], training.rounds[-1])
        )
        ranges.append(f"mean margin from {' to '.join(pair)}")
    kept = "" if training.best is None else f" The weights of epoch {training.best.epoch} were kept."
    return f"Training of {name} in {last.epoch} epochs: {', '.join(ranges)}.{kept}"
