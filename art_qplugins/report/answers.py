"""The section on how several models answer the same images: clean, and each after the attack on that model.

It is figure 7 of Lin, Gan & Han (2019).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from art_qplugins.evaluation.records import Cell, Sample
from art_qplugins.report import select, words
from art_qplugins.report.files import Run
from art_qplugins.report.gallery import class_name, data_uri
from art_qplugins.report.rendering import template

__all__ = ["section"]

#: Images that are shown, and the most models that have a column.
_SHOWN, _MOST = 6, 6


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One image as one model sees it: a picture, and the answer with its probability."""

    picture: str
    said: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class _Column:
    """The claimed attack on one model."""

    cell: Cell
    images: NDArray[np.float32]
    rows: dict[str, tuple[int, Sample]]


def section(run: Run) -> str | None:
    """The HTML; ``None`` where fewer than two models, or more than six, have the same claimed attack and their images."""
    columns = _columns(run)
    if not 2 <= len(columns) <= _MOST:
        return None
    clean = select.clean(run.results.models[0], run.results)
    originals = None if clean is None else run.images(clean.id)
    if clean is None or originals is None:
        return None
    chosen = _chosen(run.samples[clean.id], columns)
    if not chosen:
        return None
    cell = columns[0].cell
    return template("answers.html.j2").render(
        models=[column.cell.model for column in columns],
        attack=cell.attack,
        threat=words.threat(cell.norm, cell.eps),
        rows=[
            (
                class_name(run, sample.label),
                data_uri(originals[row]),
                [_answer(run, column, sample.sample) for column in columns],
            )
            for row, sample in chosen
        ],
    )


def _columns(run: Run) -> list[_Column]:
    """By model, the claimed attack of the first model where it was run on all images."""
    first = next((cell for model in run.results.models if (cell := select.claimed(model, run.results))), None)
    found = []
    for model in run.results.models:
        cell = select.claimed(model, run.results)
        same = cell and first and (cell.attack, cell.norm, cell.eps) == (first.attack, first.norm, first.eps)
        images = run.images(cell.id) if cell and same else None
        if cell is not None and images is not None:
            rows = {sample.sample: (row, sample) for row, sample in enumerate(run.samples[cell.id])}
            found.append(_Column(cell=cell, images=images, rows=rows))
    return found


def _chosen(clean: list[Sample], columns: list[_Column]) -> list[tuple[int, Sample]]:
    """Images about which the models differ come first, then others, and one of each label before a second one."""
    repeats: Counter[tuple[bool, int]] = Counter()
    ranked = []
    for row, sample in enumerate(clean):
        if not all(sample.sample in column.rows for column in columns):
            continue
        right = [column.rows[sample.sample][1].correct >= 0.5 for column in columns]
        agree = all(right) or not any(right)
        ranked.append((agree, repeats[agree, sample.label], row, sample))
        repeats[agree, sample.label] += 1
    return [(row, sample) for *_, row, sample in sorted(ranked, key=lambda item: item[:3])[:_SHOWN]]


def _answer(run: Run, column: _Column, name: str) -> _Answer:
    row, sample = column.rows[name]
    probability = sample.measures.get("confidence")
    said = class_name(run, sample.prediction) + ("" if probability is None else f", {words.percent(probability)}")
    return _Answer(picture=data_uri(column.images[row]), said=said, right=sample.correct >= 0.5)
