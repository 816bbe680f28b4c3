"""Bit sweeps: models that differ only in their bits and their seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from art_qplugins.evaluation.records import Interval, ModelResult, Results
from art_qplugins.report import words
from art_qplugins.report.figures.style import BLUE, GREY, INK, LIGHT_BLUE, WIDTH, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Settings of a model that set its bits, and their names in the figure.
_BITS = {"activation_bits": "activation bits", "weight_bits": "weight bits"}
#: Settings that may differ between the variants of a swept model besides the bits. A swept base has a name per variant.
_PER_VARIANT = {"name", "seed", "replicate_of", "base", "checkpoint", "quantize"}

_Variant = tuple[Mapping[str, int | None], ModelResult]


@dataclass(frozen=True, kw_only=True)
class BitSweep:
    """Models that differ only in their bits and their seeds.

    :ivar what: the swept bits: "activation bits", "weight bits", or "activation / weight bits".
    :ivar models: (name of the bits, models with these bits, one per seed), from few bits to many.
    """

    what: str
    models: list[tuple[str, list[ModelResult]]]


def bit_sweeps(results: Results) -> list[BitSweep]:
    """The sweeps of the resolved recipe. Model names are not parsed."""
    by_name = {model.name: model for model in results.models if model.n}
    groups: dict[str, list[_Variant]] = defaultdict(list)
    for given in _settings(results):
        if given.get("name") in by_name and isinstance(given.get("quantize"), dict):
            quantize = given["quantize"]
            other = {key: value for key, value in given.items() if key not in _PER_VARIANT}
            other["quantize"] = {key: value for key, value in quantize.items() if key not in _BITS}
            bits = {key: quantize.get(key) for key in _BITS}
            groups[json.dumps(other, sort_keys=True, default=str)].append((bits, by_name[given["name"]]))
    return [sweep for group in groups.values() if (sweep := _sweep(group)) is not None]


def _settings(results: Results) -> Iterable[dict[str, Any]]:
    """The settings of each model, as the recipe resolved them."""
    models = results.spec.get("resolved", {}).get("models", [])
    return [dict(given) for given in models if isinstance(given, dict)]


def _sweep(group: Sequence[_Variant]) -> BitSweep | None:
    swept = [key for key in _BITS if len({bits[key] for bits, _ in group}) > 1]
    if not swept:
        return None
    models: dict[tuple[float, ...], list[ModelResult]] = defaultdict(list)
    for bits, model in group:
        # A model without a quantizer sorts after any number of bits.
        models[tuple(float("inf") if bits[key] is None else float(bits[key] or 0) for key in swept)].append(model)
    what = _BITS[swept[0]] if len(swept) == 1 else "activation / weight bits"
    return BitSweep(what=what, models=[(" / ".join(map(_bits, key)), models[key]) for key in sorted(models)])


def _bits(number: float) -> str:
    return "none" if number == float("inf") else f"{number:g}"


@styled
def bit_bars(sweep: BitSweep) -> Figure:
    """Clean, claimed and corrected accuracy for every number of bits: the mean over seeds, and a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    axes = figure.add_subplot()
    styles = (("clean", GREY, ""), ("claimed", LIGHT_BLUE, "////"), ("at most", BLUE, ""))
    for shift, (name, fill, hatch) in zip((-0.27, 0.0, 0.27), styles, strict=True):
        label: str | None = name
        for place, (_, models) in enumerate(sweep.models):
            values = [value for model in models if (value := _number(model, name)) is not None]
            if values:
                mean, at = sum(values) / len(values), place + shift
                axes.bar(at, mean, 0.25, color=fill, hatch=hatch, edgecolor="white", lw=0, label=label, zorder=2)
                label = None  # one entry of the legend is enough
                _spread(axes, at, mean, values, models, name)
    axes.set_xticks(range(len(sweep.models)), [bits for bits, _ in sweep.models])
    axes.set_xlabel(sweep.what)
    axes.set_ylim(0, 1)
    percent_axis(axes.yaxis)
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4)
    return figure


def _spread(axes: Axes, at: float, mean: float, values: list[float], models: list[ModelResult], name: str) -> None:
    """The interval of a single model, or one dot per seed."""
    if len(models) == 1:
        low, high = _interval(models[0], name) or (mean, mean)
        axes.plot([at, at], [low, high], color=INK, lw=1, marker="_", markersize=5, zorder=3)
    else:
        axes.plot([at] * len(values), values, "o", color=INK, markersize=3, markerfacecolor="white", zorder=3)


def _number(model: ModelResult, name: str) -> float | None:
    if name == "clean":
        return model.clean_accuracy
    if model.verdict == "INVALID":  # no number of an INVALID model counts
        return None
    if name == "claimed":
        return model.claim.accuracy
    return model.claim.corrected if model.claim.corrected is not None else _worst(model)


def _worst(model: ModelResult) -> float | None:
    return min((robust.accuracy for robust in model.robust), default=None)


def _interval(model: ModelResult, name: str) -> Interval | None:
    return {"clean": model.clean_interval, "claimed": None}.get(name, model.claim.interval)


def bit_bars_alt(sweep: BitSweep) -> str:
    """Alternative text of the bars."""
    parts = []
    for bits, models in sweep.models:
        for model in models:
            numbers = [f"{name} {words.percent(_number(model, name))}" for name in ("clean", "claimed", "at most")]
            parts.append(f"{bits} ({model.name}): {', '.join(numbers)}")
    return f"Accuracy over {sweep.what}. {'; '.join(parts)}."
