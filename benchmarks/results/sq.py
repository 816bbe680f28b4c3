"""The results page of stochastic-quantization ensembles, from the records of its recipes.

    python benchmarks/results/sq.py          # benchmarks/results/sq/*.json make benchmarks/results/sq.md
    python benchmarks/results/sq.py RUN ...  # the same, after taking what it needs of these runs

The first table has, of every model that draws afresh: what the paper claims, the accuracy under the gradient of one draw, under EOT, in
the worst case, after ten tries beside the clean images, and the verdict. The information plane follows each run that measured it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from page import Page

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.records import Cell, ModelResult, PooledCell, Results, Tries
from art_qplugins.report import reproduction, words
from art_qplugins.report.plane import planes

#: The tries of the persistent attacker in the first table.
TRIES = 10
_SINGLE, _EOT = "artq:single-draw", "artq:eot"


def first(runs: Mapping[str, Results]) -> str:
    """The first table: one row for each random model of each recipe and each strength."""
    heads = (
        "recipe",
        "model",
        "threat",
        "claimed",
        "single draw",
        "EOT",
        "left in the worst case",
        f"after {TRIES} tries",
        "verdict",
    )
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, results in runs.items():
        lines += [f"| {name} | {' | '.join(row)} |" for row in rows(results)]
    return "\n".join(lines) if len(lines) > 2 else ""


def rows(results: Results) -> list[list[str]]:
    """Of one run."""
    same, cells = replicates(results), {cell.id: cell for cell in results.cells}
    eot = {_where(row, cells): row.measured for row in results.pooled if cells[row.cell].attack == _EOT}
    found = []
    for row in results.pooled:
        cell = cells[row.cell]
        if cell.attack != _SINGLE:
            continue
        trainings = [model for model in results.models if same.get(model.name, model.name) == row.model]
        measured = (row.measured, eot.get(_where(row, cells)), row.left)
        numbers = [words.percent(row.paper), *map(reproduction.number, measured)]
        verdicts = ", ".join(f"{verdict} {count} of {row.trainings}" for verdict, count in row.verdicts)
        left = tried(trainings, cell.norm, cell.eps)
        found.append([row.model, words.threat(cell.norm, cell.eps), *numbers, left, verdicts])
    return found


def _where(row: PooledCell, cells: Mapping[str, Cell]) -> tuple[str, str, float]:
    """Model, norm and eps."""
    cell = cells[row.cell]
    return row.model, cell.norm, cell.eps


def tried(trainings: Sequence[ModelResult], norm: str | None, eps: float) -> str:
    """What is left after ten tries, with the clean images in brackets: means over trainings."""
    attacked = [
        after(robust.tries)
        for model in trainings
        for robust in model.robust
        if (robust.norm, robust.eps) == (norm, eps)
    ]
    clean = [after(model.clean_tries) for model in trainings]
    if not attacked or None in attacked or None in clean:
        return words.NONE
    return f"{words.percent(fmean(v for v in attacked if v is not None))} (clean {words.percent(fmean(v for v in clean if v is not None))})"


def after(tries: Sequence[Tries]) -> float | None:
    return next((one.accuracy for one in tries if one.tries == TRIES), None)


def plane(_: Path, results: Results) -> list[str]:
    """The information plane as a table: the change of information and accuracy, and what a detector sees."""
    lines = [
        "What codes tell of images (a reconstruction of the adversarial information plane). Means over trainings; intervals cover images.",
        "",
        "| model | images | change of information | change of accuracy | AUROC | detected at 5 % |",
        "|" + "---|" * 6,
    ]
    found = planes(results)
    for one in found:
        for what, points in {"noise": one.noise, **one.attacks}.items():
            for at in points:
                low, high = at.interval
                lines.append(
                    f"| {one.model} | {what}, {words.threat(one.norm, at.eps)} | {at.gained:+.4f} | {words.signed(at.lost)} "
                    f"| {at.auroc:.2f} [{low:.2f}, {high:.2f}] | {words.percent(at.detected)} |"
                )
    return lines if found else []


PAGE = Page(
    folder=Path(__file__).parent / "sq",
    order=("mnist", "cifar10", "autoattack", "alpha", "beta", "size"),
    moved=False,
    first=first,
    pooled=(_SINGLE, _EOT),
    more={"mnist": plane, "cifar10": plane},
)

if __name__ == "__main__":
    PAGE.write(sys.argv[1:])
