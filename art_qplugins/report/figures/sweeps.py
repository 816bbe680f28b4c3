"""Models that differ only in their bits or in what the recipe sweeps, and in their seeds: bars for each value."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from art_qplugins.evaluation.fields import Interval
from art_qplugins.evaluation.records import ModelResult, Results
from art_qplugins.report import words
from art_qplugins.report.figures.style import BLUE, GREY, INK, LIGHT_BLUE, WIDTH, percent_axis, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Settings that make a sweep also where the recipe writes each model out, and their names in the figure.
BITS = {"quantize.activation_bits": "activation bits", "quantize.weight_bits": "weight bits"}
#: Settings that may differ between the variants of a swept model. A swept base has a name per variant.
_PER_VARIANT = ("name", "seed", "replicate_of", "base", "baseline", "checkpoint", "reference")
#: More bars have no room for their labels.
MOST_BARS = 12

Values = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Models that differ only in the swept settings and their seeds.

    :ivar axes: the swept settings, e.g. "activation bits".
    :ivar models: by the values of the settings, from small to large: models with these values, one per seed.
    :ivar whole: of a sweep of bits, the same models without quantization. They are among ``models`` where bits alone differ.
    """

    axes: list[str]
    models: dict[Values, list[ModelResult]]
    whole: list[ModelResult]

    @property
    def what(self) -> str:
        return " / ".join(self.axes)

    @property
    def named(self) -> list[tuple[str, list[ModelResult]]]:
        """The values in words, with their models."""
        return [(" / ".join(map(in_words, values)), models) for values, models in self.models.items()]


def sweeps(results: Results) -> list[Sweep]:
    """The sweeps of the resolved recipe. Model names are not parsed."""
    by_name = {model.name: model for model in results.models if model.n}
    swept = dict.fromkeys([*BITS, *_paths(results)])
    groups: dict[str, list[tuple[dict[str, Any], ModelResult]]] = defaultdict(list)
    plain: dict[str, list[ModelResult]] = defaultdict(list)
    for given in results.settings:
        if given.get("name") not in by_name:
            continue
        model, leaves = by_name[given["name"]], dict(_leaves(given))
        values = {path: leaves.pop(path, None) for path in swept}
        if given.get("quantize") is None:  # full precision, which stands beside every sweep of bits
            plain[_key(leaves)].append(model)
        groups[_key(leaves)].append((values, model))
    found = []
    for key, group in groups.items():
        axes = [path for path in swept if len({values[path] for values, _ in group}) > 1]
        if not axes:
            continue
        whole = [] if axes[0] not in BITS else plain.get(_key(json.loads(key), without="quantize"), [])
        found.append(_sweep(axes, group, [model for model in whole if all(model is not other for _, other in group)]))
    return [sweep for sweep in found if len(sweep.models) > 1]


def _paths(results: Results) -> list[str]:
    """The settings of models that the recipe sweeps, from a model's table on."""
    given = results.spec.get("given")
    table = given.get("sweep") if isinstance(given, dict) else None
    paths = [path.split(".") for path in _ends(table)] if isinstance(table, dict) else []
    return [".".join(path[2:]) for path in paths if path[0] == "models" and len(path) > 2]


def _ends(table: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _ends(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its path. Lists of named tables are entered by name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if path or key not in _PER_VARIANT:
                yield from _leaves(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        for one in value:
            yield from _leaves(one, f"{path}.{one['name']}")
    else:
        yield path, value


def _key(leaves: Mapping[str, Any], *, without: str = "") -> str:
    kept = {k: v for k, v in leaves.items() if not without or k.split(".")[0] != without}
    if not without and kept.get("quantize", ...) is None:
        del kept["quantize"]
    return json.dumps(kept, sort_keys=True, default=str)


def _sweep(axes: Sequence[str], group: Sequence[tuple[dict[str, Any], ModelResult]], whole: list[ModelResult]) -> Sweep:
    models: dict[Values, list[ModelResult]] = defaultdict(list)
    for values, model in group:
        models[tuple(_number_of(values[path]) for path in axes)].append(model)
    if whole and len(axes) == 1:
        models[(float("inf"),)] = whole
    names = [BITS.get(path, path.rpartition(".")[2].replace("_", " ")) for path in axes]
    return Sweep(axes=names, models={key: models[key] for key in sorted(models)}, whole=whole)


def _number_of(value: Any) -> float:
    """What is no number, such as no quantizer, comes after all numbers."""
    return float(value) if isinstance(value, (int, float)) else float("inf")


def in_words(number: float) -> str:
    return "none" if number == float("inf") else f"{number:g}"


@styled
def bars(sweep: Sweep) -> Figure:
    """Clean, claimed and corrected accuracy for every value: the mean over seeds, and a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    axes = figure.add_subplot()
    styles = (("clean", GREY, ""), ("claimed", LIGHT_BLUE, "////"), ("at most", BLUE, ""))
    for shift, (name, fill, hatch) in zip((-0.27, 0.0, 0.27), styles, strict=True):
        label: str | None = name
        for place, (_, models) in enumerate(sweep.named):
            values = [value for model in models if (value := accuracy(model, name)) is not None]
            if values:
                mean, at = sum(values) / len(values), place + shift
                axes.bar(at, mean, 0.25, color=fill, hatch=hatch, edgecolor="white", lw=0, label=label, zorder=2)
                label = None  # one entry of the legend is enough
                _spread(axes, at, mean, values, models, name)
    names = [value for value, _ in sweep.named]
    axes.set_xticks(range(len(names)), names)
    if sum(map(len, names)) > 40:
        axes.tick_params(axis="x", labelrotation=35)
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


def accuracy(model: ModelResult, name: str) -> float | None:
    """The number that is called "clean", "claimed" or "at most"; ``None`` where it has none."""
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


def bars_alt(sweep: Sweep) -> str:
    """Alternative text of the bars."""
    parts = []
    for bits, models in sweep.named:
        for model in models:
            numbers = [f"{name} {words.percent(accuracy(model, name))}" for name in ("clean", "claimed", "at most")]
            parts.append(f"{bits} ({model.name}): {', '.join(numbers)}")
    return f"Accuracy over {sweep.what}. {'; '.join(parts)}."
