"""Records to figures: robustness over eps, one model's attacks side by side, and the margins that explain masking.

All are drawn 4.6 inches wide with 8.5 point text, which fits a phone as it is and half of a desktop page. Series differ
by marker, dash or hatch as well as by colour (Okabe and Ito's palette), so that grey print tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from art_qplugins.evaluation.records import Cell, ModelResult, Results
from art_qplugins.report import across, select, words
from art_qplugins.report.files import Run, slug
from art_qplugins.report.svg import cut, styled, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6
INK, SOFT = "#22252a", "#4a4f57"
COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#b3478f", "#8a6d00", "#2f8fc4", "#22252a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.6)), (0, (1.5, 1.2)), (0, (5, 1.4, 1.2, 1.4)), (0, (3, 1, 1, 1, 1, 1)))
KIND_STYLE: dict[select.Kind, tuple[str, str]] = {  # fill, hatch
    "white-box": ("#0072b2", ""),
    "adaptive": ("#d55e00", "////"),
    "transfer": ("#5ba7d4", "||||"),
    "black-box": ("#8d9299", "xxxx"),
}

# In float32, cross-entropy rounds to 0 above the first margin and all of its gradient above the second.
LOSS_IS_ZERO, GRADIENT_IS_ZERO = 16.6, 103.3

# Above this many attacks a bar figure stops being readable; the table of cells has them all.
MAX_BARS = 24


@dataclass(frozen=True, kw_only=True)
class Drawing:
    name: str  # of the file, without ending
    svg: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Everything drawn for one run; the per-model lists run along ``results.models``."""

    curves: Drawing | None
    transfer: Drawing | None
    bits: list[Drawing]
    bars: list[Drawing | None]
    margins: list[Drawing | None]
    gradients: list[Drawing | None]

    def all(self) -> list[Drawing]:
        whole = (self.curves, self.transfer, *self.bits)
        each = (*self.bars, *self.margins, *self.gradients)
        return [drawing for drawing in (*whole, *each) if drawing is not None]


def figures(run: Run) -> Figures:
    """Draw whatever the records hold; a figure without data is left out."""
    results = run.results
    curves = None
    if any(model.robust for model in results.models):
        curves = _drawing("robust-accuracy", curves_alt(results), robust_curves(results))
    matrix = across.transfer(results)
    sweeps = across.bit_sweeps(results)
    return Figures(
        curves=curves,
        transfer=None if matrix is None else _drawing("transfer", across.heat_map_alt(matrix), across.heat_map(matrix)),
        bits=[
            _drawing(f"bits-{index + 1}", across.bit_bars_alt(sweep), across.bit_bars(sweep))
            for index, sweep in enumerate(sweeps)
        ],
        bars=[_bars(model, results) for model in results.models],
        margins=[_margins(model, run) for model in results.models],
        gradients=[_gradients(model, run) for model in results.models],
    )


def _bars(model: ModelResult, results: Results) -> Drawing | None:
    cells = select.attacks(model, results)
    if not cells:
        return None
    return _drawing(f"attacks-{slug(model.name)}", bars_alt(model, cells), attack_bars(model, cells))


def _margins(model: ModelResult, run: Run) -> Drawing | None:
    values = select.clean_margins(model, run)
    if not values:
        return None
    return _drawing(f"margins-{slug(model.name)}", margins_alt(model, values), margin_histogram(values))


def _gradients(model: ModelResult, run: Run) -> Drawing | None:
    values = select.clean_gradients(model, run)
    if not values:
        return None
    return _drawing(f"gradients-{slug(model.name)}", gradients_alt(model, values), gradient_histogram(values))


def _drawing(name: str, alt: str, figure: Figure) -> Drawing:
    return Drawing(name=name, svg=to_svg(figure, alt=alt, prefix=f"{name}-"), alt=alt)


@styled
def robust_curves(results: Results) -> Figure:
    """Worst case over attacks against eps, one line a model and one panel a norm, with interval bands.

    A hollow marker is a claim that did not hold; the dotted line falls to what is left of it.
    """
    from matplotlib.figure import Figure

    norms = sorted({robust.norm for model in results.models for robust in model.robust})
    legend_rows = -(-len(results.models) // 2)
    figure = Figure(figsize=(WIDTH, 2.6 * len(norms) + 0.25 + 0.2 * legend_rows), layout="constrained")
    panels = figure.subplots(len(norms), 1, squeeze=False)[:, 0]
    for axes, norm in zip(panels, norms, strict=True):
        for index, model in enumerate(results.models):
            _curve(axes, model, norm, index)
        _percent_axis(axes.yaxis)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(f"eps ({norm})")
        axes.set_title("Accuracy, worst case over the attacks run", loc="left", fontsize=8.5, color=SOFT)
        seen = sorted({0.0} | {robust.eps for m in results.models for robust in m.robust if robust.norm == norm})
        if len(seen) <= 7:
            axes.set_xticks(seen, [words.eps(value) for value in seen])
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=2, handlelength=3.2, columnspacing=1.4)
    return figure


def _curve(axes: Axes, model: ModelResult, norm: str, index: int) -> None:
    points = [(0.0, model.clean_accuracy, model.clean_interval)] if model.n else []
    points += [(robust.eps, robust.accuracy, robust.interval) for robust in model.robust if robust.norm == norm]
    points.sort(key=lambda point: point[0])
    eps = [point[0] for point in points]
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    axes.fill_between(eps, [p[2][0] for p in points], [p[2][1] for p in points], color=colour, alpha=0.13, lw=0)
    axes.plot(
        eps,
        [point[1] for point in points],
        color=colour,
        marker=marker,
        linestyle=DASHES[index % len(DASHES)],
        linewidth=1.6,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=cut(model.name, 26),
        clip_on=False,
    )
    claim = model.claim
    if claim.status != "OVERSTATED" or claim.norm != norm or None in (claim.eps, claim.accuracy, claim.corrected):
        return
    axes.plot([claim.eps] * 2, [claim.corrected, claim.accuracy], color=colour, linestyle=":", linewidth=1.3)
    axes.plot(
        claim.eps,
        claim.accuracy,
        color=colour,
        marker=marker,
        markersize=6,
        markerfacecolor="white",
        markeredgewidth=1.4,
        clip_on=False,
    )
    if claim.accuracy - claim.corrected > 0.15:  # where there is room, say what the hollow marker is
        axes.annotate(
            f"claimed {words.percent(claim.accuracy)}",
            (claim.eps, claim.accuracy),
            xytext=(-7, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=colour,
        )


@styled
def attack_bars(model: ModelResult, cells: Sequence[Cell]) -> Figure:
    """Accuracy that each attack leaves at one budget, strongest first, with interval whiskers.

    :param cells: scored cells of one model at one budget, as :func:`select.attacks` gives them.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = list(cells[:MAX_BARS])
    names = select.labels(shown)
    kinds = [name for name in select.KINDS if any(select.kind(cell) == name for cell in shown)]
    pitch, above = 0.4, 0.62  # inches a row, and inches for the legend and the two numbers
    height = pitch * len(shown) + above + 0.35
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.03, 0.33 / height, 0.915, pitch * len(shown) / height))
    for row, cell in enumerate(shown):
        fill, hatch = KIND_STYLE[select.kind(cell)]
        at = row + 0.68
        axes.barh(at, cell.accuracy, height=0.34, color=fill, hatch=hatch, edgecolor="white", linewidth=0)
        if cell.interval is not None:
            axes.plot(cell.interval, [at, at], color=INK, linewidth=1, marker="|", markersize=5)
        bold = "bold" if select.is_claimed(model, cell) else "normal"
        axes.text(0, row + 0.28, cut(names[cell.id], 44), va="center", fontweight=bold)
        axes.text(1, row + 0.28, words.accuracy(cell.accuracy, cell.interval), va="center", ha="right", color=SOFT)
    _reference_lines(axes, model, len(shown))
    axes.set_xlim(0, 1)
    axes.set_ylim(len(shown), 0)
    _percent_axis(axes.xaxis)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    patches = [
        Patch(facecolor=KIND_STYLE[name][0], hatch=KIND_STYLE[name][1], edgecolor="white", label=name) for name in kinds
    ]
    figure.legend(
        handles=patches,
        loc="upper left",
        bbox_to_anchor=(0.02, 1),
        ncols=4,
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0.2,
    )
    return figure


def _reference_lines(axes: Axes, model: ModelResult, rows: int) -> None:
    """The claimed and the corrected number, drawn beside the bars only, so that no line runs through a name."""
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
        pointer = offset_copy(axes.transData, axes.figure, y=lift, units="points")
        axes.plot(value, 0, marker="v", markersize=4, color=INK, transform=pointer, clip_on=False)


@styled
def margin_histogram(margins: Sequence[float]) -> Figure:
    """Clean logit margins against the two cut-offs of float32 cross-entropy, on an axis that is linear near 0."""
    from matplotlib.figure import Figure

    values = np.asarray(margins, dtype=np.float64)
    low, high = min(-2.0, values.min()), max(3.5 * GRADIENT_IS_ZERO, values.max() * 1.15)
    edges = _WIDTH_AT_ZERO * np.sinh(
        np.linspace(np.arcsinh(low / _WIDTH_AT_ZERO), np.arcsinh(high / _WIDTH_AT_ZERO), 49)
    )
    figure = Figure(figsize=(WIDTH, 2.45), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("asinh", linear_width=_WIDTH_AT_ZERO)
    axes.hist(values, bins=edges, color="#0072b2", edgecolor="white", linewidth=0.4, zorder=3)
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
    axes.grid(axis="x", visible=False)
    axes.yaxis.get_major_locator().set_params(nbins=4, integer=True)
    axes.set_xlabel("margin of clean images: logit of the label minus best other logit")
    return figure


@styled
def gradient_histogram(gradients: Sequence[float]) -> Figure:
    """Largest entry of each clean image's gradient, on a logarithmic scale; exact zeros as a bar of their own.

    :param gradients: max |dL/dx| per image, finite and not negative.
    """
    from matplotlib.figure import Figure

    values = np.asarray(gradients, dtype=np.float64)
    decades = np.floor(np.log10(values[values > 0])) if (values > 0).any() else np.array([0.0])
    low, high = int(decades.min()), int(decades.max()) + 1
    step = max(1, -(-(high - low) // 48))  # decades a bar, where there are very many
    step = step if high - low > 12 else 0
    edges = np.arange(low, high + step, step) if step else np.linspace(low, high, 4 * (high - low) + 1)
    counts, edges = np.histogram(np.log10(values[values > 0]), bins=edges)
    zeros, span = int((values == 0).sum()), edges[-1] - edges[0]
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    axes = figure.add_subplot()
    widths = np.diff(edges)
    axes.bar(edges[:-1] + widths / 2, counts, widths, color="#0072b2", edgecolor="white", linewidth=0.4, zorder=3)
    at, wide = edges[0] - 0.12 * span, 0.05 * span
    if zeros:
        axes.bar(at, zeros, wide, color="#d55e00", hatch="////", edgecolor="white", linewidth=0, zorder=3)
        axes.annotate(f"{zeros}", (at, zeros), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
    every = max(1, -(-(high - low) // 6))
    ticks = list(range(low, high + 1, every))
    names = [f"1e{tick}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
    axes.set_xticks([at, *ticks] if zeros else ticks, ["zero", *names] if zeros else names)
    axes.set_xlim(at - wide if zeros else edges[0] - 0.02 * span, edges[-1] + 0.02 * span)
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)
    axes.yaxis.get_major_locator().set_params(nbins=4, integer=True)
    axes.set_xlabel("largest entry of the loss gradient at clean images, float32")
    return figure


_WIDTH_AT_ZERO = 4.0  # the axis is about linear for margins within this


def _percent_axis(axis: object) -> None:
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100\N{NO-BREAK SPACE}%"])


def curves_alt(results: Results) -> str:
    """What the curves say, for whoever cannot see them."""
    lines = []
    for model in results.models:
        points = [f"clean {words.percent(model.clean_accuracy) if model.n else 'not known'}"]
        points += [f"{words.budget(r.norm, r.eps)}: at most {words.percent(r.accuracy)}" for r in model.robust]
        lines.append(f"{model.name}: {', '.join(points)}")
    return f"Accuracy over eps, worst case over attacks. {'. '.join(lines)}."


def bars_alt(model: ModelResult, cells: Sequence[Cell]) -> str:
    names = select.labels(list(cells))
    bars = ", ".join(f"{names[cell.id]} ({select.kind(cell)}) {words.percent(cell.accuracy)}" for cell in cells)
    return f"Accuracy of {model.name} under each attack, strongest first: {bars}. {words.claim(model.claim)}."


def margins_alt(model: ModelResult, margins: Sequence[float]) -> str:
    values = np.asarray(margins)
    return (
        f"Histogram of the clean logit margins of {model.name}: median {np.median(values):.1f}; "
        f"{words.percent(float(np.mean(values > LOSS_IS_ZERO)))} above {LOSS_IS_ZERO}, where float32 cross-entropy is 0; "
        f"{words.percent(float(np.mean(values > GRADIENT_IS_ZERO)))} above {GRADIENT_IS_ZERO}, where its gradient is 0."
    )


def gradients_alt(model: ModelResult, gradients: Sequence[float]) -> str:
    values = np.asarray(gradients)
    return (
        f"Histogram of the largest gradient entry of the clean images of {model.name}: median {np.median(values):.2g}; "
        f"exactly zero on {words.percent(float(np.mean(values == 0)))} of {len(values)} images."
    )
