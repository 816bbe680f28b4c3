"""A recipe with ``information``: what is recorded of a stochastic model, and what is told meanwhile."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import art_qplugins
from art_qplugins import QuantizedClassifier, StochasticQuantizer, Threat, evaluate
from art_qplugins.evaluation.network_records import ChangedInformation
from art_qplugins.metrics import auroc
from art_qplugins.report import read_run
from art_qplugins.runner.progress import Progress

SMALL = {"name": "convnet", "options": {"width": 2}}
RECIPE = {
    "name": "told",
    "data": {"name": "digits", "limit": 12},
    "threat": {"eps": [0.05, 0.1, 0.3]},
    "information": 8,
    "sensitivity": 4,
    "diagnose": False,
    "models": [
        {"name": "fp", "architecture": SMALL, "train": {"epochs": 1}},
        {
            "name": "sq",
            "architecture": SMALL,
            "quantize": {"activation_bits": 2, "alpha": 2.0},
            "draws": 4,
            "train": {"epochs": 1},
        },
        {
            "name": "other",
            "architecture": SMALL,
            "base": "fp",
            "train": {"epochs": 0},
            "quantize": {"activation_bits": 2},
        },
        {"name": "both", "members": ["fp", "other"]},
    ],
    "attacks": [
        {"id": "art:fgsm"},
        {"id": "art:fgsm", "source": "fp", "models": ["sq"], "limit": 5},
        {"id": "artq:random", "options": {"distribution": "normal", "std": 0.1}},
    ],
}


class Told(Progress):
    def __init__(self):
        self.parts = []

    def measured(self, *told):
        self.parts.append(told)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out, told = tmp_path_factory.mktemp("told") / "run", Told()
    return art_qplugins.run(RECIPE, out=out, progress=told), out, told


def test_stochastic_models_are_measured_under_every_attack_and_with_noise(finished):
    results = finished[0].results
    assert set(results.information) == {"sq"}
    record = results.information["sq"]
    assert (record.n, record.draws, record.skipped) == (8, 12, {})
    cells = {cell.id: cell for cell in results.cells}
    attacked = [(cells[one.cell].source, one.eps, one.n) for one in record.attacked]
    assert attacked == [*(("sq", eps, 8) for eps in (0.05, 0.1, 0.3)), *(("fp", eps, 5) for eps in (0.05, 0.1, 0.3))]
    assert [(one.norm, one.eps, one.n) for one in record.noisy] == [("Linf", eps, 8) for eps in (0.05, 0.1, 0.3)]
    for one in (*record.attacked[:3], *record.noisy):
        assert one.clean_information == record.information and one.clean_accuracy == record.accuracy
    for one in (*record.attacked, *record.noisy):
        assert one.interval[0] <= one.auroc <= one.interval[1] and one.detected == one.roc[5]
        assert one.roc == sorted(one.roc) and one.roc[-1] == 1


def test_accuracies_are_those_of_the_same_images_in_their_cells(finished):
    run = finished[0]
    outcomes = {outcome.cell.id: outcome for outcome in run.outcomes}
    clean = next(o for o in run.outcomes if (o.cell.model, o.cell.role) == ("sq", "clean")).column("correct")
    for one in run.results.information["sq"].attacked:
        outcome = outcomes[one.cell]
        rows = outcome.cell.rows or list(range(8))
        assert one.accuracy == pytest.approx(outcome.column("correct")[rows].mean())
        assert one.clean_accuracy == pytest.approx(clean[rows].mean())
        assert one.lost == pytest.approx(one.accuracy - one.clean_accuracy)


def test_the_same_run_again_measures_the_same(finished):
    before, out, _ = finished
    assert art_qplugins.run(RECIPE, out=out).results.information == before.results.information


def test_what_is_measured_is_told(finished):
    parts = finished[2].parts
    for model, what, total in (("sq", "information", 9), ("fp", "distances", 4), ("sq", "distances", 7)):
        told = [(done, of) for name, kind, done, of in parts if (name, kind) == (model, what)]
        assert told == [(done, total) for done in range(total + 1)]
    assert not any(part[:2] == ("fp", "information") for part in parts)


def test_records_without_the_field_are_read(finished, tmp_path):
    folder = finished[1]
    raw = json.loads((folder / "results.json").read_text())
    del raw["information"], raw["spec"]["resolved"]["information"]
    (tmp_path / "results.json").write_text(json.dumps(raw))
    (tmp_path / "samples.jsonl").write_bytes((folder / "samples.jsonl").read_bytes())
    assert read_run(tmp_path).results.information == {}


def test_a_network_that_cannot_be_measured_has_a_reason(finished, monkeypatch):
    def fail(*_):
        raise RuntimeError("no codes today")

    monkeypatch.setattr("art_qplugins.runner.information.Codes.told", fail)
    record = art_qplugins.run(RECIPE, out=finished[1]).results.information["sq"]
    assert record.information is None and not record.attacked and not record.noisy
    assert record.skipped == {"clean": "RuntimeError: no codes today"}


class Pair(torch.nn.Module):
    """Two classes: dark and bright. The brightness, rounded to one of four bins, is the only unit."""

    def __init__(self):
        super().__init__()
        self.code = StochasticQuantizer(2, clip=3.0)

    def forward(self, x):
        code = self.code(3 * x.flatten(1).mean(1, keepdim=True))
        return torch.cat([1.5 - code, code - 1.5], 1)


def test_an_attack_that_moves_every_code_to_another_bin_is_seen_whole():
    """Dark images are in bins 0 and 1, bright ones in 2 and 3. The attack makes dark images bright and the others dark."""
    x = np.full((16, 1, 2, 2), 0.1, np.float32)
    x[8:] = 0.9
    estimator = QuantizedClassifier(Pair(), torch.nn.CrossEntropyLoss(), (1, 2, 2), 2, device_type="cpu")
    run = evaluate(estimator, (x, np.repeat([0, 1], 8)), Threat("Linf", 0.6), ["art:fgsm"], recipe={"information": 16})
    (record,) = run.results.information.values()
    (attacked,) = record.attacked
    assert isinstance(attacked, ChangedInformation)
    assert record.information == pytest.approx(0.5, abs=1e-5)  # one bit of two
    assert attacked.gained == pytest.approx(0, abs=1e-4) and attacked.lost == -1
    assert attacked.auroc == attacked.detected == 1 == auroc([0], [1])


def test_the_benchmark_of_the_detector_reads_the_run(finished, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "benchmarks" / "sq" / "detector.py"
    asked = "--n 8 --fit 40 --draws 2 --iterations 2 --square 2 --eps 0.1"
    monkeypatch.setattr("sys.argv", [str(script), str(finished[1]), *asked.split()])
    runpy.run_path(str(script), run_name="__main__")
    told = capsys.readouterr().out
    assert "sq: n = 8, fitted on 40 training images" in told and "fp:" not in told
    rows = [line.split(" | ") for line in told.splitlines() if line.endswith("% |")]
    assert [row[0].strip("| ") for row in rows] == [
        *("none", "noise", "FGSM", "PGD", "Square"),
        *("Auto-PGD with the score in its loss", "PGD on both as one"),
    ]
