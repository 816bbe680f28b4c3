"""Histograms over the clean images: their logit margins and the size of their gradients.

In float32, cross-entropy rounds to 0 above a margin of 16.6. Its whole gradient rounds to 0 above a margin of 103.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from art_qplugins.evaluation.records import ModelResult
from art_qplugins.report import words
from art_qplugins.report.figures.style import BLUE, INK, VERMILION, WIDTH, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS_IS_ZERO, GRADIENT_IS_ZERO = 16.6, 103.3

_LINEAR_WIDTH = 4.0  # the axis of margins is about linear for margins within this


@styled
def margin_histogram(margins: Sequence[float]) -> Figure:
    """Clean logit margins and the two cut-offs of float32 cross-entropy. The axis is linear near 0.

    :param margins: logit of the label minus the largest other logit, one per image, finite.
    """
    from matplotlib.figure import Figure

    values = np.asarray(margins, dtype=np.float64)
    low, high = min(-2.0, values.min()), max(3.5 * GRADIENT_IS_ZERO, values.max() * 1.15)
    edges = _LINEAR_WIDTH * np.sinh(np.linspace(np.arcsinh(low / _LINEAR_WIDTH), np.arcsinh(high / _LINEAR_WIDTH), 49))
    figure = Figure(figsize=(WIDTH, 2.45), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("asinh", linear_width=_LINEAR_WIDTH)
    axes.hist(values, bins=[float(edge) for edge in edges], color=BLUE, edgecolor="white", linewidth=0.4, zorder=3)
    axes.axvspan(LOSS_IS_ZERO, GRADIENT_IS_ZERO, color="#f3ead7", lw=0, zorder=0)
    axes.axvspan(GRADIENT_IS_ZERO, high, color="#e9d5cd", lw=0, zorder=0)
    for limit, word in ((LOSS_IS_ZERO, "loss\nrounds to 0"), (GRADIENT_IS_ZERO, "gradient\nrounds to 0")):
        axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (3, 1.5)), zorder=4)
        axes.annotate(
            f"{limit:g}: {word}",
            (limit, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=7.5,
            linespacing=1.1,
        )
    ticks = [tick for tick in (-100, -10, 0, 5, 10, 50, 100, 1e3, 1e4, 1e5, 1e6) if low <= tick <= high]
    axes.set_xticks(
        ticks, [f"{tick:,.0f}".replace(",", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}") for tick in ticks]
    )
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    _count_images(axes)
    axes.set_xlabel("margin of clean images: logit of the label minus largest other logit")
    return figure


@styled
def gradient_histogram(gradients: Sequence[float]) -> Figure:
    """Largest entry of each clean image's gradient, on a logarithmic scale. Exact zeros have a bar of their own.

    :param gradients: max |dL/dx| per image, finite and not negative.
    """
    from matplotlib.figure import Figure

    values = np.asarray(gradients, dtype=np.float64)
    decades = np.floor(np.log10(values[values > 0])) if (values > 0).any() else np.array([0.0])
    low, high = int(decades.min()), int(decades.max()) + 1
    step = max(1, -(-(high - low) // 48))  # decades per bar, if there are very many
    step = step if high - low > 12 else 0
    edges = np.arange(low, high + step, step) if step else np.linspace(low, high, 4 * (high - low) + 1)
    counts, edges = np.histogram(np.log10(values[values > 0]), bins=edges)
    zeros, span = int((values == 0).sum()), edges[-1] - edges[0]
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    axes = figure.add_subplot()
    widths = np.diff(edges)
    axes.bar(edges[:-1] + widths / 2, counts, widths, color=BLUE, edgecolor="white", linewidth=0.4, zorder=3)
    at, wide = edges[0] - 0.12 * span, 0.05 * span
    if zeros:
        axes.bar(at, zeros, wide, color=VERMILION, hatch="////", edgecolor="white", linewidth=0, zorder=3)
        axes.annotate(f"{zeros}", (at, zeros), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
    every = max(1, -(-(high - low) // 6))
    ticks = list(range(low, high + 1, every))
    names = [f"1e{tick}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
    axes.set_xticks([at, *ticks] if zeros else ticks, ["zero", *names] if zeros else names)
    axes.set_xlim(at - wide if zeros else edges[0] - 0.02 * span, edges[-1] + 0.02 * span)
    axes.margins(y=0.12)
    _count_images(axes)
    axes.set_xlabel("largest entry of the loss gradient at clean images, float32")
    return figure


def _count_images(axes: Axes) -> None:
    """Use few whole numbers on the axis of counts, and grid lines only for them."""
    axes.grid(axis="x", visible=False)
    axes.locator_params(axis="y", nbins=4, integer=True)


def margins_alt(model: ModelResult, margins: Sequence[float]) -> str:
    """Alternative text of the histogram of margins."""
    values = np.asarray(margins)
    return (
        f"Histogram of the clean logit margins of {model.name}: median {np.median(values):.1f}; "
        f"{words.percent(float(np.mean(values > LOSS_IS_ZERO)))} above {LOSS_IS_ZERO}, where float32 cross-entropy is 0; "
        f"{words.percent(float(np.mean(values > GRADIENT_IS_ZERO)))} above {GRADIENT_IS_ZERO}, where its gradient is 0."
    )


def gradients_alt(model: ModelResult, gradients: Sequence[float]) -> str:
    """Alternative text of the histogram of gradients."""
    values = np.asarray(gradients)
    return (
        f"Histogram of the largest gradient entry of the clean images of {model.name}: median {np.median(values):.2g}; "
        f"exactly zero on {words.percent(float(np.mean(values == 0)))} of {len(values)} images."
    )
