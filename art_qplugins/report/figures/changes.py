"""How far the weights of models are from those of their bases, layer by layer."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.network_records import WeightChange
from art_qplugins.evaluation.records import Results
from art_qplugins.report import words
from art_qplugins.report.figures.curves import look
from art_qplugins.report.figures.style import GREY, cut, model_axes, plain_numbers, styled, titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: By model, each layer with the norms of its change: as a matrix, and as a map.
Changes = dict[str, dict[str, tuple[float, float]]]


def changes(results: Results) -> Changes:
    """Of every model whose weights were changed after training. Trainings of one model with several seeds are averaged."""
    same = replicates(results)
    trainings: dict[str, list[list[WeightChange]]] = {}
    for model, record in results.sensitivity.items():
        if record.changes:
            trainings.setdefault(same.get(model, model), []).append(record.changes)
    return {
        model: {
            layers[0].layer: (
                statistics.fmean(one.matrix for one in layers),
                statistics.fmean(one.operator for one in layers),
            )
            for layers in zip(*several, strict=False)
        }
        for model, several in trainings.items()
    }


#: More layers have no room for their names.
_MOST_NAMES = 6


@styled
def over_layers(found: Changes) -> Figure:
    """The matrix norm of the change over layers, and thinner the norm of the layer as a map. The slides draw a line at 1."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = model_axes([*found])
    axes.axhline(1, color=GREY, linewidth=1, linestyle=":", zorder=1)
    longest_first = sorted(found.values(), key=len, reverse=True)
    order = list(dict.fromkeys(layer for layers in longest_first for layer in layers))
    for index, (model, layers) in enumerate(found.items()):
        colour, marker, dash = look(index)
        at = [order.index(layer) + 1 for layer in layers]
        matrix, operator = zip(*layers.values(), strict=True)
        axes.plot(at, matrix, color=colour, marker=marker, linestyle=dash, linewidth=1.5, markersize=4, label=model)
        axes.plot(at, operator, color=colour, linestyle=dash, linewidth=0.7)
    axes.set_yscale("symlog", linthresh=1)
    plain_numbers(axes.yaxis)
    if len(order) <= _MOST_NAMES:
        axes.set_xticks(range(1, len(order) + 1), [cut(name or words.NONE, 12) for name in order])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    titled(figure, axes, "Norm of the change of each weight; thin: of the layer as a map")
    return figure


def over_layers_alt(found: Changes) -> str:
    """Alternative text."""
    lines = [
        f"{model}: " + ", ".join(f"{matrix:.3g} at {layer}" for layer, (matrix, _) in layers.items())
        for model, layers in found.items()
    ]
    return f"Largest singular value of the change of each weight. {'. '.join(lines)}."
