"""A page of results, from the records of the recipes of one folder.

A page ``NAME`` is written to ``benchmarks/results/NAME.md``. ``NAME/`` has the records, ``RECIPE.md`` for what follows from a run, and
``head.md`` and ``foot.md``, which begin and end the page. Each run gives a table: paper, measured under the paper's attack, left in
the worst case, verdict. Seeds are pooled, with an interval over trainings and images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from art_qplugins.evaluation.compare import differences as differences_of
from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.outcome import outcomes_of
from art_qplugins.evaluation.pooled import cell_of_trainings, pooled_cells
from art_qplugins.evaluation.reading import read_records
from art_qplugins.evaluation.records import Cell, ModelResult, PooledCell, Results, Sample
from art_qplugins.report import baselines, reproduction, words
from art_qplugins.report.figures import distances, grids, sweeps
from art_qplugins.report.figures.svg import to_svg

#: What ``read_records`` gives.
Records = tuple[Results, dict[str, list[Sample]]]
#: The fields of results that are tables by model.
_BY_MODEL = ("training", "sensitivity", "information")


@dataclass(frozen=True, kw_only=True)
class Page:
    """The page of one method.

    :ivar folder: of its records. The recipes have the same folder under ``benchmarks/``.
    :ivar order: its recipes, in the order of the page.
    :ivar ahead: the recipe whose heat maps stand right after the first table.
    :ivar moved: draw how far attacks move what layers read, where a recipe measured it.
    :ivar more: lines that follow the table of a recipe, made of its record, which is also given as a file.
    :ivar middle: the first table has, of several strengths, only the middle one, and no transfer.
    :ivar first: makes the first table of all records; without it, it is that of the papers' numbers.
    :ivar pooled: attacks whose cells the tables have too.
    :ivar kept: it may write files beside the record of a run. It has the records of the run, and the file of the record.
    """

    folder: Path
    order: Sequence[str]
    ahead: str | None = None
    moved: bool = True
    more: Mapping[str, Callable[[Path, Results], list[str]]] = field(default_factory=dict)
    middle: bool = False
    first: Callable[[Mapping[str, Results]], str] | None = None
    pooled: Sequence[str] = ()
    kept: Callable[[Records, Path], None] | None = None

    def write(self, runs: Sequence[str]) -> None:
        """Take the records of ``runs``, which are folders, and write the page of all records."""
        taken: dict[str, list[Records]] = defaultdict(list)
        for run in runs:
            records = read_records(Path(run))
            taken[str(records[0].spec["resolved"]["name"])].append(records)
        for name, of in taken.items():
            self._take(name, joined(of))
        found = {path.stem: Results.model_validate_json(path.read_bytes()) for path in self.folder.glob("*.json")}
        kept_runs = {name: found[name] for name in self.order if name in found}
        missing = [name for name in self.order if name not in found]
        table = first(kept_runs, middle=self.middle) if self.first is None else self.first(kept_runs)
        parts = [(self.folder / "head.md").read_text().rstrip(), table]
        if self.ahead in kept_runs:
            parts.append("\n".join(self._heat_maps(self.ahead, kept_runs[self.ahead])))
        parts += [self._run(name, results) for name, results in kept_runs.items()]
        if missing:
            parts.append(f"Not run yet: {', '.join(missing)}.")
        parts.append((self.folder / "foot.md").read_text().rstrip())
        text = "\n\n".join(part for part in parts if part) + "\n"
        self.folder.with_suffix(".md").write_text(text.replace("\N{NO-BREAK SPACE}", " "))

    def _take(self, name: str, records: Records) -> None:
        """Write the record of a run: of its diagnosis only what it found, and of its measurements what a page shows."""
        results, samples = records
        if results.status != "success":
            raise SystemExit(f"{name}: its status is {results.status}; run it to its end")
        pooled = pooled_cells(results, outcomes_of(results, samples), also=self.pooled)
        told, information = {row.cell for row in pooled}, dict(results.information)
        same, measured = replicates(results), {one.cell for of in information.values() for one in of.attacked}
        shown = {cell_of_trainings(cell, same) for cell in results.cells if cell.id in told}
        cells = [
            cell
            for cell in results.cells
            if cell.id in told or (cell.id in measured and cell_of_trainings(cell, same) in shown)
        ]
        for model, of in information.items():
            attacked = [one for one in of.attacked if one.cell in {cell.id for cell in cells}]
            information[model] = of.model_copy(update={"attacked": attacked})
        models = [without_details(model) for model in results.models]
        unseen = {"terms": []} if self.moved else {"terms": [], "distances": []}
        sensitivity = {model: of.model_copy(update=unseen) for model, of in results.sensitivity.items()}
        slim = results.model_copy(
            update={
                **{"models": models, "cells": cells, "pooled": pooled},
                **{"sensitivity": sensitivity, "information": information},
            }
        )
        file = self.folder / f"{name.removeprefix(f'{self.folder.name}-').rpartition('-')[0]}.json"
        file.write_text(slim.model_dump_json(indent=1) + "\n")
        if self.kept is not None:
            self.kept(records, file)

    def _run(self, name: str, results: Results) -> str:
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
        if name in self.more:
            lines += ["", *self.more[name](self.folder / f"{name}.json", results)]
        told = [row for row in results.pooled if row.paper is not None]
        if told:
            lines += ["", reproduction.summary(told)]
        for number, one in enumerate(distances.moved(results) if self.moved else (), 1):
            crafted = "each model" if one.source is None else one.source
            lines += ["", *self._figures(f"{name}-{number}", one, f"{one.attack} on {crafted}")]
        claimed = any(model.claim.accuracy is not None for model in results.models)
        shown = [sweep for sweep in sweeps.sweeps(results) if claimed and len(sweep.axes) == 1]
        for number, sweep in enumerate(shown, 1):
            file = self.folder / f"{name}-sweep-{number}.svg"
            file.write_text(to_svg(sweeps.bars(sweep), alt=sweeps.bars_alt(sweep), prefix=f"{file.stem}-"))
            models = {same.get(m.name, m.name) for group in sweep.models.values() for m in group}
            lines += ["", f"![Accuracy over {sweep.what}: {', '.join(sorted(models))}]({self.folder.name}/{file.name})"]
        if results.differences:
            lines += ["", baselines.summary(results.differences), "", *differences(results)]
            lines += [] if name == self.ahead else ["", *self._heat_maps(name, results)]
        if (note := self.folder / f"{name}.md").exists():
            lines += ["", note.read_text(encoding="utf-8").rstrip()]
        lines += [
            "",
            f"    artq run benchmarks/{self.folder.name}/{name}.toml --profile {profile(results)} --data-root DIR",
        ]
        return "\n".join(lines)

    def _heat_maps(self, name: str, results: Results) -> list[str]:
        """Draw the differences from baselines over two swept settings, under attack, and return the lines that show them."""
        lines = []
        for number, grid in enumerate((grid for grid in grids.grids(results) if grid.metric == "robust_accuracy"), 1):
            file = self.folder / f"{name}-heat-map-{number}.svg"
            file.write_text(to_svg(grids.heat_map(grid), alt=grids.heat_map_alt(grid), prefix=f"{file.stem}-"))
            lines.append(f"![{grids.about(grid)}: points above or below it]({self.folder.name}/{file.name})")
        return lines

    def _figures(self, name: str, one: distances.Moved, about: str) -> list[str]:
        """Draw how far activations move, and return the lines that show it."""
        eps = one.eps[-1]
        drawn = {"layers": (distances.over_layers(one, eps), distances.over_layers_alt(one, eps))}
        if len(one.eps) > 1:
            drawn = {"eps": (distances.over_eps(one), distances.over_eps_alt(one)), **drawn}
        lines = []
        for kind, (figure, alt) in drawn.items():
            file = self.folder / f"{name}-{kind}.svg"
            file.write_text(to_svg(figure, alt=alt, prefix=f"{name}-{kind}-"))
            lines.append(f"![Distances of activations, {about}]({self.folder.name}/{file.name})")
        return lines


def without_details(model: ModelResult) -> ModelResult:
    """Without what no page shows: steps, checks that found nothing, texts that every finding of a check has, ids of attacks."""
    texts = {"mitigation": "", "shows_not": "", "source": ""}
    findings = [one.model_copy(update=texts) for one in model.findings if one.answer == "fired"]
    robust = [one.model_copy(update={"attacks": []}) for one in model.robust]
    return model.model_copy(update={"findings": findings, "robust": robust, "steps": []})


def joined(runs: Sequence[Records]) -> Records:
    """Runs of one recipe and profile as one, whose models differ in their seeds."""
    if len(runs) == 1:
        return runs[0]
    (first, _), samples = runs[0], {cell: of for _, one in runs for cell, of in one.items()}
    names = Counter(model.name for results, _ in runs for model in results.models)
    if twice := [name for name, count in names.items() if count > 1]:
        raise SystemExit(
            f"{first.spec['resolved']['name']}: several runs have {twice[0]}; give runs of different seeds"
        )
    models = [model for results, _ in runs for model in results.spec["resolved"]["models"]]
    update = {
        "spec": {**first.spec, "resolved": {**first.spec["resolved"], "models": models}},
        "status": next((results.status for results, _ in runs if results.status != "success"), "success"),
        **{key: {k: v for results, _ in runs for k, v in getattr(results, key).items()} for key in _BY_MODEL},
        **{key: [one for results, _ in runs for one in getattr(results, key)] for key in ("models", "cells")},
    }
    whole = first.model_copy(update=update)
    return whole.model_copy(update={"differences": differences_of(whole, outcomes_of(whole, samples))}), samples


def first(runs: Mapping[str, Results], *, middle: bool) -> str:
    """The numbers of the paper with what is left, by recipe.

    :param middle: of several strengths only the middle one, and no transfer.
    """
    lines = ["| recipe | model | attack | paper | measured | left in the worst case | verdict |", "|" + "---|" * 7]
    for name, results in runs.items():
        cells = {cell.id: cell for cell in results.cells}
        shown = [row for row in results.pooled if row.paper is not None and cells[row.cell].role != "clean"]
        strengths = sorted({cells[row.cell].eps for row in shown})
        for row in shown:
            cell = cells[row.cell]
            several = middle and len(strengths) > 1
            if not several or (cell.eps == strengths[len(strengths) // 2] and cell.source == cell.model):
                lines.append(f"| {name} | {row.model} | {attack(cell)} | " + " | ".join(numbers(row)) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def settings(results: Results) -> str:
    """How long networks were trained, and what was audited: the profile may have other values by now."""
    spec = results.spec["resolved"]
    epochs = sorted({model["train"]["epochs"] for model in results.settings if not model.get("members")} - {0})
    limit = spec["data"]["train_limit"]
    told = [f"Trained for {' or '.join(map(str, epochs))} epochs on {'all' if limit is None else f'{limit:,}'} images"]
    if any(model.stochastic for model in results.models):
        told.append(f"draws that score an image of a random model: {spec['score_draws']}")
    if spec.get("audit") is not None:
        told.append(f"audited images of each training: {spec['audit']}")
    if spec["diagnose"]:
        most = {"queries": spec["diagnosis"]["queries"], "gradients": spec["diagnosis"]["budget"]}
        told += [f"{what} of a diagnosis: {value:g} an image" for what, value in most.items() if value is not None]
    return f"{'; '.join(told)}."


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
