"""Models that draw afresh: numbers of a network whose probabilities are known, from the run to the tables."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from made import build_run
from torch import nn

from art_qplugins import Threat, evaluate
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.reading import read_records
from art_qplugins.quantizers import StochasticQuantizer
from art_qplugins.report import randomness, words
from art_qplugins.report.files import Run

N, DRAWS = 90, 50
P = np.tile([0.5, 0.9, 0.99], N // 3)


class Coin(nn.Module):
    """Right with probability x, the first pixel."""

    def __init__(self):
        super().__init__()
        self.coin = StochasticQuantizer(1, alpha=2.0, clip=1.0)

    def forward(self, x):
        answer = self.coin(x.flatten(1)[:, 0])
        return torch.stack([0.5 - answer, answer - 0.5], 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("coin")
    x = np.repeat(P.astype(np.float32), 16).reshape(N, 1, 4, 4)
    model = QuantizedClassifier(Coin().eval(), nn.CrossEntropyLoss(), (1, 4, 4), 2, device_type="cpu")
    attacks = [("artq:random", {}), *((name, {"max_iter": 2}) for name in ("artq:single-draw", "artq:frozen-seed"))]
    settings = {"recipe": {"score_draws": DRAWS}, "out": out, "batch_size": 40}
    evaluate(model, (x, np.ones(N, dtype=np.int64)), Threat("Linf", 1e-6), attacks, **settings)
    return out


def test_an_attack_that_does_nothing_leaves_the_clean_accuracy_after_any_number_of_tries(run):
    """Choosing among attacks by other draws than those that score makes no image fall."""
    model = read_records(run)[0].models[0]
    (robust,) = model.robust
    for found in (model.clean_tries, robust.tries):
        assert [(t.tries, t.counted) for t in found] == [(1, 1), (10, 10), (100, DRAWS)]
        for one in found:
            true = P**one.counted
            # The variance of an estimate is at most that of one coin of this probability; the other bank doubles nothing.
            assert abs(one.accuracy - true.mean()) < 5 * np.sqrt((true * (1 - true)).mean() / N)
            assert one.interval[0] <= one.accuracy <= one.interval[1]
    error = np.sqrt((P * (1 - P)).mean() / (N * DRAWS))
    assert abs(robust.accuracy - model.clean_accuracy) < 5 * np.sqrt(2) * error


def test_each_table_has_several_tries_and_what_the_attacker_knows(run):
    results = read_records(run)[0]
    model = results.models[0]
    page, tables = ((run / name).read_text(encoding="utf-8") for name in ("report.html", "results.md"))
    for text in (page, tables):
        assert "Models that draw afresh" in text and words.percent(model.clean_tries[1].accuracy) in text
        assert "After 1 try" in text and "After 100 tries" in text and f"({DRAWS} tries)" in text
        assert "knows the distribution of the noise" in text and "knows one member" in text
    with (run / "results.csv").open(encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    for cell in results.cells:
        row = rows[cell.id]
        assert float(row["after_10_tries"]) == cell.tries[1].accuracy
        assert (float(row["after_100_tries"]), row["tries_counted"]) == (cell.tries[2].accuracy, str(DRAWS))


def test_what_an_attacker_knows_depends_on_the_attack_and_on_what_it_is_crafted_on(run):
    results = read_records(run)[0]
    name = results.models[0].name
    known = {cell.attack: randomness.knowledge(cell, results) for cell in results.cells}
    expected = {"artq:random": "distribution", "artq:single-draw": "distribution", "artq:frozen-seed": "member"}
    assert known == {"artq:clean": None, **expected}
    models = [{"name": name}, {"name": "one", "base": name, "frozen": True}, {"name": "two", "frozen": True}]
    wider = results.model_copy(update={"spec": {"resolved": {"models": models}}})
    cell = next(cell for cell in results.cells if cell.attack == "artq:random")

    def knows(model, source):
        return randomness.knowledge(cell.model_copy(update={"model": model, "source": source}), wider)

    assert knows(name, "one") == "member"
    assert knows(name, "two") is None, "of other weights"
    assert knows("one", "one") == "seed"
    assert knows("one", name) is None
    alike = [{"name": n, "architecture": {"name": "convnet"}, "frozen": n == "three"} for n in (name, "three")]
    wider = results.model_copy(update={"spec": {"resolved": {"models": alike}}})
    assert knows(name, "three") == "member", "trained alike"


def test_deterministic_models_and_records_of_earlier_versions_show_nothing(tmp_path):
    results = build_run(tmp_path)
    assert randomness.tried(results) == []
    assert randomness.section(Run(folder=tmp_path, results=results, samples={})) is None


def test_a_number_for_more_tries_than_draws_says_so():
    tried = randomness.Tries(tries=100, counted=20, accuracy=0.31, interval=(0.25, 0.38))
    assert words.left(tried, bound=False) == words.left(tried, bound=True) == "≤\xa031\xa0% [25,\xa038] (20 tries)"
    exact = tried.model_copy(update={"counted": 100})
    assert words.left(exact, bound=False) == "31\xa0% [25,\xa038]"
    assert words.left(exact, bound=True) == "≤\xa031\xa0% [25,\xa038]"
