"""The figures of a run, each drawn once as SVG. The other modules of this package draw them."""

from __future__ import annotations

from dataclasses import dataclass

from art_qplugins.evaluation.records import ModelResult, Results
from art_qplugins.files import short_name
from art_qplugins.report import select
from art_qplugins.report.figures import bars, bits, costs, curves, histograms, information, learning, sweeps, transfer
from art_qplugins.report.figures.svg import Drawing, drawn
from art_qplugins.report.files import Run
from art_qplugins.report.training import training

__all__ = ["Drawing", "Figures", "draw"]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All figures of one run. Lists with one figure per model have the order of ``results.models``."""

    curves: Drawing | None
    costs: Drawing | None
    transfer: Drawing | None
    sweeps: list[Drawing]
    bars: list[Drawing | None]
    margins: list[Drawing | None]
    gradients: list[Drawing | None]
    training: list[Drawing | None]
    information: list[Drawing]
    bits: list[Drawing]

    def all(self) -> list[Drawing]:
        across = (self.curves, self.costs, self.transfer, *self.sweeps, *self.information, *self.bits)
        each = (*self.bars, *self.margins, *self.gradients, *self.training)
        return [drawing for drawing in (*across, *each) if drawing is not None]


def draw(run: Run) -> Figures:
    """Draw every figure for which the records hold data."""
    results = run.results
    return Figures(
        curves=_curves(results),
        costs=_costs(run),
        transfer=_transfer(results),
        sweeps=[
            drawn(f"sweep-{index}", sweeps.bars_alt(sweep), sweeps.bars(sweep))
            for index, sweep in enumerate(sweeps.sweeps(results), 1)
            if len(sweep.models) <= sweeps.MOST_BARS
        ],
        bars=[_bars(model, results) for model in results.models],
        margins=[_margins(model, run) for model in results.models],
        gradients=[_gradients(model, run) for model in results.models],
        training=[_training(model, results) for model in results.models],
        information=[drawing for drawing, _ in information.drawings(results)],
        bits=[drawing for drawing, _ in bits.drawings(results)],
    )


def _curves(results: Results) -> Drawing | None:
    if not any(model.robust for model in results.models):
        return None
    return drawn("robust-accuracy", curves.curves_alt(results), curves.robust_curves(results))


def _costs(run: Run) -> Drawing | None:
    found = {model.name: select.spending(model, run) for model in run.results.models}
    found = {name: attacks for name, attacks in found.items() if attacks}
    if not any(len(attacks) > 1 for attacks in found.values()):
        return None
    return drawn("gradients-spent", costs.spending_alt(found), costs.spending(found))


def _transfer(results: Results) -> Drawing | None:
    matrix = transfer.transfer(results)
    return None if matrix is None else drawn("transfer", transfer.heat_map_alt(matrix), transfer.heat_map(matrix))


def _bars(model: ModelResult, results: Results) -> Drawing | None:
    cells = select.attacks(model, results)
    if not cells:
        return None
    return drawn(f"attacks-{short_name(model.name)}", bars.bars_alt(model, cells), bars.attack_bars(model, cells))


def _margins(model: ModelResult, run: Run) -> Drawing | None:
    values = select.clean_margins(model, run)
    if not values:
        return None
    alt, figure = histograms.margins_alt(model, values), histograms.margin_histogram(values)
    return drawn(f"margins-{short_name(model.name)}", alt, figure)


def _gradients(model: ModelResult, run: Run) -> Drawing | None:
    values = select.clean_gradients(model, run)
    if not values:
        return None
    alt, figure = histograms.gradients_alt(model, values), histograms.gradient_histogram(values)
    return drawn(f"gradients-{short_name(model.name)}", alt, figure)


def _training(model: ModelResult, results: Results) -> Drawing | None:
    found = training(model.name, results)
    if found is None or len(found.curve) == 1:
        return None
    alt, figure = learning.training_alt(model.name, found), learning.training_curves(found)
    return drawn(f"training-{short_name(model.name)}", alt, figure)
