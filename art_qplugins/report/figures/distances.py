"""Distances of activations: over eps where the first activations are read, and over layers at one eps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.network_records import Distances
from art_qplugins.evaluation.records import Results
from art_qplugins.report import words
from art_qplugins.report.figures.curves import look
from art_qplugins.report.figures.style import model_axes, styled, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A mean and its standard error.
Mean = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far the images of one attack move what layers read. Trainings of one model with several seeds are one.

    :ivar source: the model that all images were crafted for; ``None`` where each model's are its own.
    :ivar found: by model, then by eps: each layer with its mean.
    """

    attack: str
    norm: str
    source: str | None
    found: Mapping[str, Mapping[float, Mapping[str, Mean]]]

    @property
    def eps(self) -> list[float]:
        """Those at which every model was measured, else all."""
        several = [set(by_eps) for by_eps in self.found.values()]
        return sorted(set.intersection(*several) or set.union(*several))

    @property
    def over_eps(self) -> dict[str, list[tuple[float, Mean]]]:
        """By model, the mean where its second layer reads: behind the first activations, as in figure 3a."""
        return {
            model: [(eps, _second(by_eps[eps])) for eps in sorted(by_eps) if by_eps[eps]]
            for model, by_eps in self.found.items()
        }

    def over_layers(self, eps: float) -> dict[str, list[tuple[str, Mean]]]:
        """By model, the mean at each layer, as in figure 3b."""
        return {model: list(by_eps[eps].items()) for model, by_eps in self.found.items() if eps in by_eps}


def _second(layers: Mapping[str, Mean]) -> Mean:
    return list(layers.values())[min(1, len(layers) - 1)]


def moved(results: Results) -> list[Moved]:
    """Every attack whose images were measured: on the model that they were crafted for, and those from one source on all."""
    cells = {cell.id: cell for cell in results.cells}
    measured = [
        (cell, found)
        for record in results.sensitivity.values()
        for found in record.distances
        if (cell := cells.get(found.cell)) is not None and cell.role == "attack" and found.layers
    ]
    same = replicates(results)

    def of(model: str) -> str:
        return same.get(model, model)

    kinds = dict.fromkeys((cell.attack, cell.norm) for cell, _ in measured)
    sources = dict.fromkeys(of(cell.source) for cell, _ in measured if cell.source != cell.model)
    sets = []
    for attack, norm in kinds:
        for source in (None, *sources):
            chosen = [
                (of(cell.model), cell.eps, found)
                for cell, found in measured
                if (cell.attack, cell.norm) == (attack, norm)
                and (cell.source == cell.model if source is None else of(cell.source) == source)
            ]
            if source is None or any(model != source for model, *_ in chosen):
                sets.append(_moved(attack, norm, source, chosen))
    return [one for one in sets if one.found]


def _moved(attack: str, norm: str, source: str | None, chosen: list[tuple[str, float, Distances]]) -> Moved:
    trainings: dict[str, dict[float, list[Distances]]] = {}
    for model, eps, distances in chosen:
        trainings.setdefault(model, {}).setdefault(eps, []).append(distances)
    found = {
        model: {eps: _over_trainings([one.layers for one in several]) for eps, several in by_eps.items()}
        for model, by_eps in trainings.items()
    }
    return Moved(attack=attack, norm=norm, source=source, found=found)


def _over_trainings(several: list[dict[str, Mean]]) -> dict[str, Mean]:
    """The mean of each layer, and its standard error: of the images, which are the same, and of the trainings."""
    result = {}
    for layer in several[0]:
        means, errors = zip(*(layers[layer] for layers in several if layer in layers), strict=True)
        between = statistics.variance(means) / len(means) if len(means) > 1 else 0.0
        result[layer] = statistics.fmean(means), math.sqrt(statistics.fmean(e**2 for e in errors) + between)
    return result


@styled
def over_eps(one: Moved) -> Figure:
    """The mean over images against eps, a line for each model, with bands of two standard errors."""
    figure, axes = model_axes([*one.found])
    for index, (model, points) in enumerate(one.over_eps.items()):
        _line(axes, index, model, [eps for eps, _ in points], [mean for _, mean in points])
    axes.set_xlabel(f"eps ({one.norm})")
    if len(one.eps) <= 9:
        axes.set_xticks(one.eps, [words.eps(eps) for eps in one.eps])
    titled(figure, axes, "Distance behind the first activations, relative to them")
    return figure


@styled
def over_layers(one: Moved, eps: float) -> Figure:
    """The mean over images at the input of each layer, in the order of the forward pass."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = model_axes([*one.found])
    for index, (model, layers) in enumerate(one.over_layers(eps).items()):
        _line(axes, index, model, list(range(1, len(layers) + 1)), [mean for _, mean in layers])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("layer that reads the activations; the first reads the image")
    titled(figure, axes, f"Distance at {words.threat(one.norm, eps)}, relative to the clean activations")
    return figure


def _line(axes: Axes, index: int, model: str, at: list[float] | list[int], means: list[Mean]) -> None:
    colour, marker, dash = look(index)
    low, high = ([max(0.0, mean + way * error) for mean, error in means] for way in (-2, 2))
    axes.fill_between(at, low, high, color=colour, alpha=0.13, lw=0)
    axes.plot(
        at,
        [mean for mean, _ in means],
        color=colour,
        marker=marker,
        linestyle=dash,
        linewidth=1.5,
        markersize=4,
        label=model,
    )


def over_eps_alt(one: Moved) -> str:
    """Alternative text."""
    lines = [
        f"{model}: " + ", ".join(f"{mean:.3g} at {words.eps(eps)}" for eps, (mean, _) in points)
        for model, points in one.over_eps.items()
    ]
    return f"Relative distance behind the first activations over eps. {'. '.join(lines)}."


def over_layers_alt(one: Moved, eps: float) -> str:
    """Alternative text."""
    lines = [
        f"{model}: " + ", ".join(f"{mean:.3g} at {layer}" for layer, (mean, _) in layers)
        for model, layers in one.over_layers(eps).items()
    ]
    return f"Relative distance at the input of each layer at {words.threat(one.norm, eps)}. {'. '.join(lines)}."
