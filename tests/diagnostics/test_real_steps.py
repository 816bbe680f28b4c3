"""The steps of a diagnosis on real models: a number in closed form, and a second diagnosis that computes nothing."""

from __future__ import annotations

import pytest
import torch
from oracle import classifier, images, linear, robust_accuracy
from torch import nn

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics import clean_cell
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.scheduler import Scheduler
from art_qplugins.evaluation.store import Store
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize
from art_qplugins.recipes.schema import Diagnosis
from art_qplugins.runner.assess import assess_model
from art_qplugins.runner.plan import ModelUnderTest
from art_qplugins.runner.progress import Progress


class Watch(Progress):
    def __init__(self):
        self.computed, self.reused = [], []

    def cell(self, outcome, reused):
        (self.reused if reused else self.computed).append(outcome.cell.id)


def random_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    return StochasticEnsemble(quantize(network, activation_bits=2, clip=1.0, alpha=2.0), 2).eval()


def diagnosed(model, out, *, eps=0.05, n=24, norm="Linf", attack="art:pgd", level=3):
    x, y = images(model, n)
    claim = CellSpec(model="m", source="m", attack=attack, norm=norm, eps=eps, seed=0)
    clean = clean_cell("m", norm=norm, seed=0, eps=eps)
    watch = Watch()
    estimators = {"m": classifier(model), "o": classifier(linear(0.5))}
    scheduler = Scheduler(Evaluator(estimators, x, y, [str(i) for i in range(n)]), Store(out), watch)
    scheduler.run([clean, claim])
    result = assess_model(scheduler, ModelUnderTest("m", "", clean, claim), diagnosis=Diagnosis(level=level))
    return scheduler, result, watch, (x, y)


def test_on_a_linear_network_the_number_is_the_one_in_closed_form(tmp_path):
    model = linear()
    eps = 0.01
    _, result, watch, (x, y) = diagnosed(model, tmp_path, eps=eps)
    exact = robust_accuracy(model[1], x, y, eps)
    assert 0 < exact < 1
    assert result.claim.corrected == exact <= result.claim.accuracy
    assert result.verdict != "MASKED" and not [s for s in result.steps if s.status == "failed"]
    assert len(watch.computed) == 2 + sum(len(s.cells) for s in result.steps)


@pytest.mark.parametrize(
    "make",
    [lambda: linear(100.0), pytest.param(random_network, marks=pytest.mark.slow)],
    ids=["large logits", "random"],
)
def test_a_real_diagnosis_again_computes_nothing_and_says_the_same(make, tmp_path):
    model = make()
    _, first, watch, _ = diagnosed(model, tmp_path, n=8)
    assert not [s for s in first.steps if s.status == "failed"], first.steps
    assert watch.reused == []
    _, again, watched, _ = diagnosed(model, tmp_path, n=8)
    assert watched.computed == [] and watched.reused == watch.computed
    assert again == first


def test_a_claim_in_a_norm_that_most_attacks_do_not_have_fails_at_no_step(tmp_path):
    _, result, _, _ = diagnosed(linear(), tmp_path, norm="L1", eps=0.3, attack="autoattack:apgd-ce", level=2, n=12)
    assert not [s for s in result.steps if s.status == "failed"], result.steps
    lacking = [a for a in ("artq:apgd-margin", "art:pgd") if "L1" not in ATTACKS[a].norms]
    reasons = {s.reason for s in result.steps if s.id in ("margin", "restart", "doubling", "transfer")}
    assert lacking and {f"{a} has no norm L1" for a in lacking} == reasons - {""}
    assert "failed-cells" not in {f.id for f in result.findings if f.fired}
    assert all(s.reason for s in result.steps if s.status == "skipped")
