"""The results page of mu-law mapping and feedback learning, from the records of its recipes.

    python benchmarks/results/mu_law.py          # benchmarks/results/mu-law/*.json make benchmarks/results/mu-law.md
    python benchmarks/results/mu_law.py RUN ...  # the same, after taking what it needs of these runs

The slides give one number for each data set: by how many points mapping is better, on average over the 13 columns of both tables
(27.84 for CIFAR-10, 7.55 for MNIST). It is computed here with an interval: as the slides do, with what is left in the worst case in
place of each white-box column, and for a gain in place of the map.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from page import Page, Records
from scipy.stats import t as student

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.outcome import Outcome, left_by_image, outcomes_of
from art_qplugins.evaluation.records import Results
from art_qplugins.report import words

#: Each mapped row and its control, with the row that both are compared with.
PAIRS = [
    (changed + bits, plain + bits)
    for plain, mapped, gain in (
        ("orig", "mu-orig", "gain-orig"),
        ("adv", "adv-mu", "gain-adv"),
        ("fl", "mu-fl", "gain-fl"),
    )
    for bits in ("", "-q")
    for changed in (mapped, gain)
]
_FIELDS = ("model", "compared with", "columns", "slides", "measured", "measured low", "measured high")
_LEFT = ("left", "left low", "left high")

#: The outcomes of a column by training.
_Column = list[Outcome]


class Mean(NamedTuple):
    """A mean difference over columns, and its 95 % interval over trainings and images."""

    mean: float
    low: float
    high: float


def mean_difference(columns: Sequence[Mapping[str, Sequence[float]]]) -> Mean:
    """The mean over columns of the mean difference.

    Trainings and images are crossed, and the columns share both: see :func:`art_qplugins.metrics.pooled_accuracy`, of which this
    is the form for several columns with images of their own.

    :param columns: of each column the differences by image, one for each training.
    """
    values = [np.array(list(column.values()), dtype=float) for column in columns]  # (images, trainings) each
    by_training = np.mean([of.mean(0) for of in values], axis=0)
    mean, trainings = float(by_training.mean()), len(by_training)
    pull: dict[str, float] = defaultdict(float)
    for column, of in zip(columns, values, strict=True):
        for image, value in zip(column, of.mean(1) - of.mean(), strict=True):
            pull[image] += value / len(of) / len(columns)
    images = len(pull)
    parts = [(sum(value**2 for value in pull.values()) * images / (images - 1), images - 1)] if images > 1 else []
    if trainings > 1:
        parts.append((float(by_training.var(ddof=1)) / trainings, trainings - 1))
    variance = sum(part for part, _ in parts)
    if not variance:
        return Mean(mean, mean, mean)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(student.ppf(0.975, freedom) * np.sqrt(variance))
    return Mean(mean, mean - half, mean + half)


def means(records: Records) -> list[dict[str, object]]:
    """The row of each pair of a run: over the columns that have a number of the slides."""
    results, samples = records
    same = replicates(results)
    by_model: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes_of(results, samples):
        by_model[outcome.cell.model].append(outcome)
    trainings: dict[str, list[str]] = defaultdict(list)
    for model in results.models:
        trainings[same.get(model.name, model.name)].append(model.name)
    rows: list[dict[str, object]] = []
    for changed, plain in PAIRS:
        if changed not in trainings or plain not in trainings:
            continue
        tables = {name: _columns([by_model[one] for one in trainings[name]], same) for name in (changed, plain)}
        told = [key for key, of in tables[plain].items() if of[0].cell.reference is not None and key in tables[changed]]
        both = [(tables[changed][key], tables[plain][key]) for key in told]
        slides = [(a[0].cell.reference, b[0].cell.reference) for a, b in both]
        measured = mean_difference([_differences(*pair, left=None) for pair in both])
        left = mean_difference([_differences(*pair, left=by_model) for pair in both])
        known = [a - b for a, b in slides if a is not None and b is not None]
        paper = sum(known) / len(known) if len(known) == len(slides) else None
        rows.append(dict(zip((*_FIELDS, *_LEFT), (changed, plain, len(both), paper, *measured, *left), strict=True)))
    return rows


def _columns(outcomes: Sequence[Sequence[Outcome]], same: Mapping[str, str]) -> dict[tuple[object, ...], _Column]:
    """Those that every training has, by attack, source, norm and eps."""
    found: dict[tuple[object, ...], _Column] = defaultdict(list)
    for of in outcomes:
        for outcome in of:
            cell = outcome.cell
            source = "" if cell.source == cell.model else same.get(cell.source, cell.source)
            if outcome.ok and cell.role != "probe":
                found[cell.role, cell.label, source, cell.norm, cell.eps].append(outcome)
    return {key: of for key, of in found.items() if len(of) == len(outcomes)}


def _differences(
    changed: _Column, plain: _Column, *, left: Mapping[str, Sequence[Outcome]] | None
) -> dict[str, list[float]]:
    """By image, of each training.

    :param left: the outcomes of each model, to take what is left in the worst case of a white-box column.
    """

    def correct(outcome: Outcome) -> dict[str, float]:
        cell = outcome.cell
        if left is None or cell.role != "attack" or cell.source != cell.model:
            return outcome.correct_by_image()
        return left_by_image(left[cell.model], cell.norm, cell.eps)

    firsts, seconds = ([correct(outcome) for outcome in column] for column in (changed, plain))
    shared = sorted(set.intersection(*(set(of) for of in (*firsts, *seconds))))
    return {image: [a[image] - b[image] for a, b in zip(firsts, seconds, strict=True)] for image in shared}


def keep(records: Records, file: Path) -> None:
    """Write the means of a run beside its record, where it has some."""
    if rows := means(records):
        with file.with_name(f"{file.stem}-means.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [*_FIELDS, *_LEFT], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def told(file: Path, results: Results) -> list[str]:
    """The means as a table."""
    lines = [
        "| model | compared with | slides | under the slides' attacks | left in the worst case |",
        "|---|---|---|---|---|",
    ]
    for row in csv.DictReader(file.with_name(f"{file.stem}-means.csv").read_text().splitlines()):
        paper = float(row["slides"]) if row["slides"] else None
        numbers = [
            f"{words.signed(float(row[name]))} [{words.signed(float(row[f'{name} low']))}, {words.signed(float(row[f'{name} high']))}]"
            for name in ("measured", "left")
        ]
        slides = words.NONE if paper is None else words.signed(paper)
        lines.append(f"| {row['model']} | {row['compared with']} | {slides} | " + " | ".join(numbers) + " |")
    return ["Mean difference over the columns of both tables, in points:", "", *lines]


PAGE = Page(
    folder=Path(__file__).parent / "mu-law",
    order=("mnist", "cifar10", "ablation-mnist", "beyond-mnist"),
    moved=False,
    more={"mnist": told, "cifar10": told},
    kept=keep,
)

if __name__ == "__main__":
    PAGE.write(sys.argv[1:])
