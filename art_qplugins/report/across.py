"""What only several models show together: who fools whom, and what the number of bits does."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from art_qplugins.evaluation.records import Cell, ModelResult, Results
from art_qplugins.report import select, words
from art_qplugins.report.svg import cut, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Settings of a model that change how many bits it has, and in which words they are told.
_BITS = {"activation_bits": "activation bits", "weight_bits": "weight bits"}


# ------------------------------------------------------------------------------------------------- transfer


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One attack at one budget, crafted on every source and put to every target."""

    attack: str
    norm: str
    eps: float
    sources: list[str]
    targets: list[str]
    cells: Mapping[tuple[str, str], Cell]  # by source and target; those that were run


def transfer(results: Results) -> Transfer | None:
    """The fullest matrix that the records hold: at most one attack and budget, and two pairs of models or more.

    Of equally full ones that at the budget of the first model's claim, else the one with the largest eps.
    """
    groups: dict[tuple[Any, ...], dict[tuple[str, str], Cell]] = defaultdict(dict)
    finished = {model.name for model in results.models}
    for cell in results.cells:
        if (
            cell.model in finished
            and cell.role == "attack"
            and cell.status == "success"
            and cell.accuracy is not None
            and cell.rows is None
        ):
            key = (cell.label, json.dumps(cell.params, sort_keys=True, default=str), cell.norm, cell.eps)
            groups[key].setdefault((cell.source, cell.model), cell)
    at = select.budget(results.models[0], results) if results.models else None
    ranked = sorted(
        ((_crossings(cells), key[2:] == at, key[3], key) for key, cells in groups.items()), key=lambda item: item[:3]
    )
    if not ranked or ranked[-1][0] < 2:
        return None
    key = ranked[-1][3]
    cells = groups[key]
    order = [model.name for model in results.models]
    order += sorted({name for pair in cells for name in pair} - set(order))  # substitutes
    # A model that was attacked by no other and attacks no other has its number elsewhere.
    crossing = {name for source, target in cells if source != target for name in (source, target)}
    return Transfer(
        attack=str(key[0]),
        norm=str(key[2]),
        eps=float(key[3]),
        sources=[name for name in order if name in crossing and any(source == name for source, _ in cells)],
        targets=[name for name in order if name in crossing and any(target == name for _, target in cells)],
        cells=cells,
    )


def _crossings(cells: Mapping[tuple[str, str], Cell]) -> int:
    return sum(source != target for source, target in cells)


@styled
def heat_map(matrix: Transfer) -> Figure:
    """Accuracy of each target (column) on what was crafted on each source (row); the diagonal is framed."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = len(matrix.sources), len(matrix.targets)
    names = [cut(name, 20) for name in matrix.sources]
    above = 0.35 + 0.062 * max(len(cut(name, 20)) for name in matrix.targets)
    height = 0.42 * rows + above
    figure = Figure(figsize=(4.6, height))
    left = min(0.34, 0.04 + 0.0165 * max(map(len, names)))
    axes = figure.add_axes((left, 0.02, 0.97 - left, 0.42 * rows / height))
    for row, source in enumerate(matrix.sources):
        for column, target in enumerate(matrix.targets):
            cell = matrix.cells.get((source, target))
            share = 0.0 if cell is None or cell.accuracy is None else cell.accuracy
            # White to dark blue; text flips to white where the ground gets dark.
            fill = "#f4f4f1" if cell is None else _shade(share)
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=fill, edgecolor="white", linewidth=1.5))
            text = words.NONE if cell is None else f"{100 * share:.0f}"
            ink = "white" if cell is not None and share > 0.5 else "#22252a"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink)
            if source == target:
                frame = {"facecolor": "none", "edgecolor": "#22252a", "linewidth": 1.4}
                axes.add_patch(Rectangle((column + 0.04, row + 0.05), 0.92, 0.9, **frame))
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_xticks([i + 0.5 for i in range(columns)], [cut(name, 20) for name in matrix.targets], rotation=90)
    axes.set_yticks([i + 0.5 for i in range(rows)], names)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.text(0.01, 1 - 0.08 / height, "crafted on (row), put to (column); accuracy, %", va="top", color="#4a4f57")
    return figure


def _shade(share: float) -> tuple[float, float, float]:
    light, dark = (0.92, 0.95, 0.98), (0.0, 0.27, 0.49)
    red, green, blue = (a + (b - a) * share for a, b in zip(light, dark, strict=True))
    return red, green, blue


def heat_map_alt(matrix: Transfer) -> str:
    pairs = [
        f"{source} to {target} {words.percent(cell.accuracy)}"
        for source in matrix.sources
        for target in matrix.targets
        if (cell := matrix.cells.get((source, target))) is not None
    ]
    at = words.budget(matrix.norm, matrix.eps)
    return f"Transfer of {matrix.attack} at {at}, accuracy left by source and target: {', '.join(pairs)}."


# ----------------------------------------------------------------------------------------------------- bits


@dataclass(frozen=True, kw_only=True)
class BitSweep:
    """Models that differ in their bits and their seeds alone.

    :ivar what: which bits are swept: "activation bits", "weight bits", or both in one word "activation / weight bits".
    :ivar models: (name of the bits, models with these bits, one a seed), from few to many.
    """

    what: str
    models: list[tuple[str, list[ModelResult]]]


def bit_sweeps(results: Results) -> list[BitSweep]:
    """From the resolved recipe: nothing is read out of the models' names."""
    by_name = {model.name: model for model in results.models if model.n}
    settings = results.spec.get("resolved", {}).get("models", [])
    groups: dict[str, list[tuple[dict[str, int | None], ModelResult]]] = defaultdict(list)
    for given in settings if isinstance(settings, list) else []:
        if isinstance(given, dict) and given.get("name") in by_name and isinstance(given.get("quantize"), dict):
            quantize = given["quantize"]
            other = {key: value for key, value in given.items() if key not in _PER_VARIANT}
            other["quantize"] = {key: value for key, value in quantize.items() if key not in _BITS}
            bits = {key: quantize.get(key) for key in _BITS}
            groups[json.dumps(other, sort_keys=True, default=str)].append((bits, by_name[given["name"]]))
    return [sweep for group in groups.values() if (sweep := _sweep(group)) is not None]


#: What may differ between the variants of a swept model besides the bits; a swept base has another name for each.
_PER_VARIANT = {"name", "seed", "replicate_of", "base", "checkpoint", "quantize"}


def _sweep(group: Sequence[tuple[Mapping[str, int | None], ModelResult]]) -> BitSweep | None:
    swept = [key for key in _BITS if len({bits[key] for bits, _ in group}) > 1]
    if not swept:
        return None
    models: dict[tuple[float, ...], list[ModelResult]] = defaultdict(list)
    for bits, model in group:
        # No quantizer is more than any number of bits.
        models[tuple(float("inf") if bits[key] is None else float(bits[key] or 0) for key in swept)].append(model)
    what = _BITS[swept[0]] if len(swept) == 1 else "activation / weight bits"
    return BitSweep(what=what, models=[(" / ".join(map(_bits, key)), models[key]) for key in sorted(models)])


def _bits(number: float) -> str:
    return "none" if number == float("inf") else f"{number:g}"


@styled
def bit_bars(sweep: BitSweep) -> Figure:
    """Clean, claimed and at most, side by side for every number of bits; the mean over seeds, each seed a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    styles = (("clean", "#8d9299", ""), ("claimed", "#5ba7d4", "////"), ("at most", "#0072b2", ""))
    for shift, (name, fill, hatch) in zip((-0.27, 0.0, 0.27), styles, strict=True):
        label: str | None = name
        for place, (_, models) in enumerate(sweep.models):
            values = [value for model in models if (value := _number(model, name)) is not None]
            if not values:
                continue
            mean = sum(values) / len(values)
            axes.bar(
                place + shift,
                mean,
                0.25,
                color=fill,
                hatch=hatch,
                edgecolor="white",
                linewidth=0,
                label=label,
                zorder=2,
            )
            label = None  # one entry of the legend is enough
            if len(models) == 1:
                low, high = _interval(models[0], name) or (mean, mean)
                axes.plot([place + shift] * 2, [low, high], color="#22252a", lw=1, marker="_", markersize=5, zorder=3)
            else:
                at = [place + shift] * len(values)
                axes.plot(at, values, "o", color="#22252a", markersize=3, markerfacecolor="white", zorder=3)
    axes.set_xticks(range(len(sweep.models)), [bits for bits, _ in sweep.models])
    axes.set_xlabel(sweep.what)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100\N{NO-BREAK SPACE}%"])
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4)
    return figure


def _number(model: ModelResult, name: str) -> float | None:
    if name == "clean":
        return model.clean_accuracy
    if model.verdict == "INVALID":  # no number of it counts
        return None
    if name == "claimed":
        return model.claim.accuracy
    return model.claim.corrected if model.claim.corrected is not None else _robust(model)


def _robust(model: ModelResult) -> float | None:
    return min((robust.accuracy for robust in model.robust), default=None)


def _interval(model: ModelResult, name: str) -> tuple[float, float] | None:
    return {"clean": model.clean_interval, "claimed": None}.get(name, model.claim.interval)


def bit_bars_alt(sweep: BitSweep) -> str:
    parts = []
    for bits, models in sweep.models:
        for model in models:
            numbers = [f"{name} {words.percent(_number(model, name))}" for name in ("clean", "claimed", "at most")]
            parts.append(f"{bits} ({model.name}): {', '.join(numbers)}")
    return f"Accuracy over {sweep.what}. {'; '.join(parts)}."
