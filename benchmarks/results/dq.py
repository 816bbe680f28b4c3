"""The results page of Defensive Quantization, from the records of its recipes.

    python benchmarks/results/dq.py          # benchmarks/results/dq/*.json make benchmarks/results/dq.md
    python benchmarks/results/dq.py RUN ...  # the same, after taking what it needs of these runs' results.json

Each run gives a table: paper, measured under the paper's attack, left in the worst case, verdict. Seeds are pooled, with an
interval over trainings and images. ``dq/NAME.md`` says what follows from a run; ``head.md`` and ``foot.md`` begin and end the page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.records import Cell, PooledCell, Results
from art_qplugins.report import baselines, reproduction, words
from art_qplugins.report.figures import distances, grids, sweeps
from art_qplugins.report.figures.svg import to_svg

HERE = Path(__file__).parent
#: The order of the page.
ORDER = (*(f"table{n}" for n in range(1, 7)), *(f"figure{n}" for n in (1, 3, 5, 6, 7)))
#: What goes beyond the paper. The heat maps of the first stand right after the first table.
BEYOND = ("beyond-mnist", "reasons", "beyond-cifar10", "beyond-clip", "beyond-decay")


def main(folders: Sequence[str]) -> None:
    for folder in folders:
        take(Results.model_validate_json((Path(folder) / "results.json").read_bytes()))
    runs = {path.stem: Results.model_validate_json(path.read_bytes()) for path in (HERE / "dq").glob("*.json")}
    names = [name for name in (*ORDER, *BEYOND) if name in runs]
    missing = [name for name in (*ORDER, *BEYOND) if name not in runs]
    parts = [(HERE / "dq" / "head.md").read_text().rstrip(), first(runs, names)]
    parts += ["\n".join(heat_maps(BEYOND[0], runs[BEYOND[0]]))] if BEYOND[0] in runs else []
    parts += [run(name, runs[name]) for name in names]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.")
    parts.append((HERE / "dq" / "foot.md").read_text().rstrip())
    text = "\n\n".join(part for part in parts if part) + "\n"
    (HERE / "dq.md").write_text(text.replace("\N{NO-BREAK SPACE}", " "))


def take(results: Results) -> None:
    """Write the record of a run: of its diagnosis only what it found."""
    if results.status != "success":
        raise SystemExit(f"{results.spec['resolved']['name']}: its status is {results.status}; run it to its end")
    told = {row.cell for row in results.pooled}
    models = [
        model.model_copy(update={"findings": [f for f in model.findings if f.answer == "fired"], "steps": []})
        for model in results.models
    ]
    slim = results.model_copy(update={"models": models, "cells": [c for c in results.cells if c.id in told]})
    name = str(results.spec["resolved"]["name"]).removeprefix("dq-").rpartition("-")[0]
    (HERE / "dq" / f"{name}.json").write_text(slim.model_dump_json(indent=1) + "\n")


def first(runs: dict[str, Results], names: list[str]) -> str:
    """The numbers of the paper with what is left, by recipe. Of several strengths the middle one, and no transfer."""
    lines = ["| recipe | model | attack | paper | measured | left in the worst case | verdict |", "|" + "---|" * 7]
    for name in names:
        cells = {cell.id: cell for cell in runs[name].cells}
        shown = [row for row in runs[name].pooled if row.paper is not None and cells[row.cell].role != "clean"]
        strengths = sorted({cells[row.cell].eps for row in shown})
        for row in shown:
            cell = cells[row.cell]
            if len(strengths) == 1 or (cell.eps == strengths[len(strengths) // 2] and cell.source == cell.model):
                lines.append(f"| {name} | {row.model} | {attack(cell)} | " + " | ".join(numbers(row)) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def gains(results: Results) -> list[str]:
    """Of table 1: by how much the best number of bits is above full precision under FGSM, as the paper's "quantize gain"."""
    left: dict[str, dict[str, PooledCell]] = {}
    cells = {cell.id: cell for cell in results.cells}
    for row in results.pooled:
        if cells[row.cell].role != "clean" and row.measured is not None:
            arm, _, bits = row.model.rpartition("-")
            left.setdefault(arm, {})[bits] = row
    lines = ["| training | paper: gain | measured: gain | worst case: gain |", "|---|---|---|---|"]
    for arm, by_bits in left.items():
        plain, quantized = by_bits.get("fp"), [row for bits, row in by_bits.items() if bits != "fp"]
        if plain is None or not quantized:
            continue
        values = []
        for take in (
            lambda r: r.paper,
            lambda r: r.measured and r.measured.accuracy,
            lambda r: r.left and r.left.accuracy,
        ):
            numbers_, base = [take(row) for row in quantized], take(plain)
            known = base is not None and all(value is not None for value in numbers_)
            values.append(words.signed(max(numbers_) - base) if known else words.NONE)
        lines.append(f"| {arm} | " + " | ".join(values) + " |")
    return lines if len(lines) > 2 else []


def run(name: str, results: Results) -> str:
    """One run: how it was made, all its numbers, and what follows."""
    made, spec = results.environment, results.spec["resolved"]
    device = f"art_qplugins {made.packages['art_qplugins']}, torch {made.packages['torch']}, {made.device}"
    seeds = len({model.get("seed") for model in spec["models"] if isinstance(model, dict)})
    images = f"n = {results.data['n']} images of {results.data['name']}"
    cells, same = {cell.id: cell for cell in results.cells}, replicates(results)
    lines = [
        f"## {spec['title']}",
        "",
        f"{results.created[:10]}, {device}; {images}; {'one seed' if seeds == 1 else f'{seeds} seeds'}. {settings(results)}",
        "",
        "| model | attack | paper | measured | left in the worst case | verdict |",
        "|" + "---|" * 6,
    ]
    lines += [f"| {r.model} | {attack(cells[r.cell])} | " + " | ".join(numbers(r)) + " |" for r in results.pooled]
    if name == "table1":
        lines += ["", *gains(results)]
    told = [row for row in results.pooled if row.paper is not None]
    if told:
        lines += ["", reproduction.summary(told)]
    for number, one in enumerate(distances.moved(results), 1):
        crafted = "each model" if one.source is None else one.source
        lines += ["", *figures(f"{name}-{number}", one, f"{one.attack} on {crafted}")]
    claimed = any(model.claim.accuracy is not None for model in results.models)
    shown = [sweep for sweep in sweeps.sweeps(results) if claimed and len(sweep.axes) == 1]
    for number, sweep in enumerate(shown, 1):
        file = HERE / "dq" / f"{name}-sweep-{number}.svg"
        file.write_text(to_svg(sweeps.bars(sweep), alt=sweeps.bars_alt(sweep), prefix=f"{file.stem}-"))
        models = {same.get(m.name, m.name) for group in sweep.models.values() for m in group}
        lines += ["", f"![Accuracy over {sweep.what}: {', '.join(sorted(models))}](dq/{file.name})"]
    if results.differences:
        lines += ["", baselines.summary(results.differences), "", *differences(results)]
        lines += [] if name == BEYOND[0] else ["", *heat_maps(name, results)]
    if (note := HERE / "dq" / f"{name}.md").exists():
        lines += ["", note.read_text(encoding="utf-8").rstrip()]
    lines += ["", f"    artq run benchmarks/dq/{name}.toml --profile {profile(results)} --data-root DIR"]
    return "\n".join(lines)


def settings(results: Results) -> str:
    """How long networks were trained, and what was audited: the profile may have other values by now."""
    spec = results.spec["resolved"]
    epochs = sorted({model["train"]["epochs"] for model in results.settings} - {0})
    limit = spec["data"]["train_limit"]
    told = [f"Trained for {' or '.join(map(str, epochs))} epochs on {'all' if limit is None else f'{limit:,}'} images"]
    if spec.get("audit") is not None:
        told.append(f"audited images of each training: {spec['audit']}")
    if spec["diagnose"]:
        most = {"queries": spec["diagnosis"]["queries"], "gradients": spec["diagnosis"]["budget"]}
        told += [f"{what} of a diagnosis: {value:g} an image" for what, value in most.items() if value is not None]
    return f"{'; '.join(told)}."


def heat_maps(name: str, results: Results) -> list[str]:
    """Draw the differences from baselines over two swept settings, under attack, and return the lines that show them."""
    lines = []
    for number, grid in enumerate((grid for grid in grids.grids(results) if grid.metric == "robust_accuracy"), 1):
        file = HERE / "dq" / f"{name}-heat-map-{number}.svg"
        file.write_text(to_svg(grids.heat_map(grid), alt=grids.heat_map_alt(grid), prefix=f"{file.stem}-"))
        lines.append(f"![{grids.about(grid)}: points above or below it](dq/{file.name})")
    return lines


def differences(results: Results) -> list[str]:
    """Of models from their baselines."""
    lines = ["| model | baseline | number | of the baseline | of the model | difference | p (Holm) |", "|" + "---|" * 7]
    for row in results.differences:
        low, high = map(words.signed, row.interval)
        at = words.METRICS[row.metric] + ("" if row.eps is None else f", {words.threat(row.norm, row.eps)}")
        lines.append(
            f"| {row.second} | {row.first} | {at} | {words.percent(row.first_accuracy)} | {words.percent(row.second_accuracy)} "
            f"| {words.signed(row.difference)} [{low}, {high}] | {'invalid' if row.invalid else words.p_value(row.p_holm)} |"
        )
    return lines


def figures(name: str, one: distances.Moved, about: str) -> list[str]:
    """Draw how far activations move, and return the lines that show it."""
    eps = one.eps[-1]
    drawn = {"layers": (distances.over_layers(one, eps), distances.over_layers_alt(one, eps))}
    if len(one.eps) > 1:
        drawn = {"eps": (distances.over_eps(one), distances.over_eps_alt(one)), **drawn}
    lines = []
    for kind, (figure, alt) in drawn.items():
        file = HERE / "dq" / f"{name}-{kind}.svg"
        file.write_text(to_svg(figure, alt=alt, prefix=f"{name}-{kind}-"))
        lines.append(f"![Distances of activations, {about}](dq/{file.name})")
    return lines


def attack(cell: Cell) -> str:
    if cell.role == "clean":
        return "clean"
    source = f" from {cell.source}" if cell.source != cell.model else ""
    return f"{cell.label}{source}, {words.threat(cell.norm, cell.eps)}"


def numbers(row: PooledCell) -> list[str]:
    verdicts = ", ".join(
        verdict + (f" {count} of {row.trainings}" if row.trainings > 1 else "") for verdict, count in row.verdicts
    )
    left = reproduction.number(row.left)
    left += "" if row.audited is None else f"; AutoAttack would leave {words.percent(row.audited)}"
    return [words.percent(row.paper), reproduction.number(row.measured), left, verdicts]


def profile(results: Results) -> str:
    return str(results.spec["resolved"]["name"]).rpartition("-")[2]


if __name__ == "__main__":
    main(sys.argv[1:])
