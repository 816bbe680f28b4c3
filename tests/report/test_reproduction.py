"""The rows of a paper: pooled over seeds, with what is left and what follows."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import art_qplugins
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.outcome import outcomes_of
from art_qplugins.evaluation.pooled import pooled_cells
from art_qplugins.evaluation.records import Audit, Pooled, PooledCell
from art_qplugins.report import read_run, write_report
from art_qplugins.report.reproduction import follows, number, summary

N = 40


class Bright(nn.Module):
    """Class 0 where the mean is above a level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([mean - self.level, self.level - mean], 1)


#: At eps 0.1 FGSM takes 0.1 from the mean.
IMAGES = np.broadcast_to(np.linspace(0.505, 0.695, N)[:, None, None, None], (N, 1, 2, 2)).astype(np.float32)


def rows(folder: Path) -> list[PooledCell]:
    found = read_run(folder)
    return [
        row for row in pooled_cells(found.results, outcomes_of(found.results, found.samples)) if row.paper is not None
    ]


def run(out: Path, attacks: list[dict[str, object]], levels: dict[str, float]) -> None:
    estimators = {
        name: QuantizedClassifier(Bright(level), nn.CrossEntropyLoss(), (1, 2, 2), 2, device_type="cpu")
        for name, level in levels.items()
    }
    given = {"name": "p", "threat": {"eps": [0.1]}, "attacks": attacks, "diagnose": False}
    art_qplugins.run(given, estimators=estimators, data=(IMAGES, np.zeros(N, dtype=np.int64)), out=out)


def test_a_row_has_what_is_measured_and_what_is_left(tmp_path: Path) -> None:
    run(
        tmp_path,
        [{"id": "artq:random", "reference": 0.9}, {"id": "art:fgsm"}],
        {"net": 0.5},
    )
    (row,) = rows(tmp_path)
    assert (row.model, row.paper, row.trainings) == ("net", 0.9, 1)
    assert row.measured is not None and row.measured.accuracy > 0.9
    assert row.left is not None and row.left.accuracy == pytest.approx(0.5) and row.left.images == N
    assert row in read_run(tmp_path).results.pooled  # as the run wrote it
    assert row.overstated == pytest.approx(row.measured.accuracy - 0.5)
    assert "Other attacks leave" in follows(row)
    text = (tmp_path / "report.html").read_text()
    assert "Against the paper" in text and follows(row).split(".")[-2].strip() in text.replace("&nbsp;", " ")


def test_only_images_that_a_limited_attack_was_given_count_in_what_is_left(tmp_path: Path) -> None:
    run(
        tmp_path,
        [{"id": "artq:random", "reference": 0.9}, {"id": "art:fgsm", "limit": 10}],
        {"net": 0.5},
    )
    (row,) = rows(tmp_path)
    assert row.left is not None and row.left.images == 10
    assert row.measured is not None and row.measured.images == N


def test_seeds_of_a_model_are_one_row(tmp_path: Path) -> None:
    run(tmp_path, [{"id": "art:fgsm"}], {"a": 0.5, "b": 0.52})
    results = read_run(tmp_path).results
    models = [{**m, "replicate_of": "net"} for m in results.spec["resolved"]["models"]]
    spec = {**results.spec, "resolved": {**results.spec["resolved"], "models": models}}
    cells = [c.model_copy(update={"reference": 0.5}) if c.attack == "art:fgsm" else c for c in results.cells]
    changed = results.model_copy(update={"spec": spec, "cells": cells})
    (tmp_path / "results.json").write_text(changed.model_dump_json(by_alias=True))
    (row,) = rows(tmp_path)
    own = [c.accuracy for c in cells if c.attack == "art:fgsm"]
    assert (row.model, row.trainings) == ("net", 2) and row.measured is not None
    assert row.measured.accuracy == pytest.approx(np.mean(own)) and "2\N{NO-BREAK SPACE}seeds" in number(row.measured)
    assert sum(count for _, count in row.verdicts) == 2
    write_report(tmp_path)
    assert "2\N{NO-BREAK SPACE}seeds" in unescape((tmp_path / "report.html").read_text())


def at(accuracy: float, low: float, high: float) -> Pooled:
    return Pooled(accuracy=accuracy, interval=(low, high), images=100, trainings=1)


@pytest.mark.parametrize(
    ("paper", "measured", "left", "said"),
    [
        (0.5, at(0.52, 0.42, 0.62), None, "Reproduced: the interval holds the paper's number."),
        (0.9, at(0.52, 0.42, 0.62), None, "Not reproduced: 38 points below the paper."),
        (0.1, at(0.52, 0.42, 0.62), None, "Not reproduced: 42 points above the paper."),
        (0.5, at(0.52, 0.42, 0.62), at(0.1, 0.05, 0.2), "Other attacks leave 42 points less."),
        (0.5, at(0.52, 0.42, 0.62), at(0.45, 0.35, 0.55), "No other attack leaves clearly less."),
        (0.5, None, None, "It could not be measured."),
    ],
)
def test_what_follows(paper: float, measured: Pooled | None, left: Pooled | None, said: str) -> None:
    row = PooledCell(model="m", trainings=1, cell="c", paper=paper, measured=measured, left=left, verdicts=[])
    assert said in follows(row).replace("\N{NO-BREAK SPACE}", " ")


def test_the_summary_counts_rows() -> None:
    found = [
        PooledCell(model="m", trainings=1, cell="c", paper=paper, measured=at(0.52, 0.42, 0.62), left=left, verdicts=[])
        for paper, left in [(0.5, None), (0.9, at(0.1, 0.05, 0.2)), (0.1, at(0.5, 0.4, 0.6))]
    ]
    said = summary(found).replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "Numbers of the paper: 3. Within the interval here: 1. Higher than here: 1. Lower than here: 1. In 1 of 2 rows "
        "under attack the worst case leaves less than the paper's attack, by 42 points at most."
    )
    assert summary([]) == "No number of the paper could be measured."


def test_the_audits_of_all_trainings_are_averaged(tmp_path: Path) -> None:
    run(tmp_path, [{"id": "art:fgsm", "reference": 0.5}], {"a": 0.5})
    found = read_run(tmp_path)
    audit = Audit(
        norm="Linf", eps=0.1, standing=20, asked=10, broke=5, n=N, estimate=0.25, interval=(0.2, 0.3), cell=None
    )

    def audited(*audits: Audit) -> float | None:
        models = [found.results.models[0].model_copy(update={"audits": list(audits)})]
        results = found.results.model_copy(update={"models": models})
        (row,) = (r for r in pooled_cells(results, outcomes_of(results, found.samples)) if r.paper is not None)
        return row.audited

    assert audited(audit) == 0.25
    assert audited() is None
    assert audited(audit.model_copy(update={"reason": "random"})) is None
    assert audited(audit.model_copy(update={"eps": 0.2})) is None
