"""The worst case from Python, and the audit by sampling: exact, covered as often as it says, counted in the number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom
from torch import nn

from art_qplugins import InputError, QuantizedClassifier, Threat, evaluate, metrics, worst_case
from art_qplugins.runner.audit import audited
from art_qplugins.runner.progress import Progress


def audit_of(**counts):
    return audited(norm="Linf", eps=0.1, **counts)


def test_the_largest_number_that_a_sample_allows_is_exact():
    for population, drawn, found in [(601, 40, 0), (601, 236, 0), (30, 10, 3), (12, 12, 5), (7, 1, 1)]:
        most = metrics.most_in_population(found, drawn=drawn, population=population)
        assert hypergeom.cdf(found, population, most, drawn) > 0.05
        more = most + 1
        assert more > population - drawn + found or hypergeom.cdf(found, population, more, drawn) <= 0.05
    assert metrics.most_in_population(5, drawn=12, population=12) == 5  # all were asked


def test_what_an_audit_can_show():
    nothing = audit_of(standing=601, asked=40, broke=0, n=1000, gradients=1900.0)
    assert nothing.interval == pytest.approx((0.560, 0.601), abs=0.001) and nothing.estimate == 0.601
    assert str(nothing) == ("AutoAttack on 40 of 601 standing images broke 0: it would leave 60.1 % [56.0, 60.1]")
    low, high = audit_of(standing=601, asked=236, broke=0, n=1000, gradients=0.0).interval
    assert high - low < 0.006


@pytest.mark.parametrize(("standing", "breakable"), [(300, 8), (300, 0), (80, 30)])
def test_the_interval_covers_the_full_answer_as_often_as_it_says(standing, breakable):
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        broke = int((random.permutation(standing)[:40] < breakable).sum())
        low, high = audit_of(standing=standing, asked=40, broke=broke, n=400, gradients=0.0).interval
        covered += low - 1e-9 <= (standing - breakable) / 400 <= high + 1e-9
    assert covered >= 930  # 950 on average, and 7 is a standard deviation


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    x = torch.rand(60, 1, 8, 8)
    return network, x, network(x).argmax(1)


def estimator(network, nb_classes=10):
    return QuantizedClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), nb_classes, device_type="cpu")


def test_of_a_linear_model_nothing_is_left_for_the_audit(model):
    network, x, y = model
    found = worst_case(estimator(network), x, y, Threat("Linf", 0.02), audit=10)
    assert 0 < found.accuracy < 1 and found.n == 60
    assert (found.audit.asked, found.audit.broke) == (10, 0)
    assert np.mean(network(torch.from_numpy(found.x_adv)).argmax(1).numpy() == y.numpy()) == found.accuracy
    assert str(found).startswith("worst-case leaves") and "AutoAttack on 10 of" in str(found)
    assert found.gradients < found.audit.gradients


def test_what_the_audit_breaks_counts(model):
    network, x, y = model
    cheap = worst_case(estimator(network), x, y, Threat("Linf", 0.03), effort="quick", budget=1)
    full = worst_case(estimator(network), x, y, Threat("Linf", 0.03), effort="quick", budget=1, audit=1000)
    assert full.audit.asked == full.audit.standing == round(60 * cheap.accuracy)
    assert full.accuracy == pytest.approx(cheap.accuracy - full.audit.broke / 60)
    assert full.audit.interval == pytest.approx((full.accuracy, full.accuracy))
    left = network(torch.from_numpy(full.x_adv)).argmax(1) == y
    assert float(left.float().mean()) == pytest.approx(full.accuracy)


def test_where_no_image_stands_there_is_nothing_to_audit(model):
    network, x, y = model
    found = worst_case(estimator(network), x, (y + 1) % 10, Threat("Linf", 0.02), audit=10)
    assert found.accuracy == 0 and found.audit is None and "AutoAttack" not in str(found)


class Noisy(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) + 0.3 * torch.randn(len(x), 10)


def test_a_random_model_is_not_audited(model):
    network, x, y = model
    found = worst_case(estimator(Noisy(network)), x, y, Threat("Linf", 0.005), effort="quick", audit=5)
    assert (found.audit.asked, found.audit.cell) == (0, None) and found.audit.interval[0] == 0
    assert str(found).endswith("; no audit: the model is random, and AutoAttack judges it on one draw")


def test_a_model_that_autoattack_cannot_attack_is_not_audited_and_keeps_its_number(model):
    x = model[1]
    three = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    found = worst_case(estimator(three, 3), x, three(x).argmax(1), Threat("Linf", 0.02), effort="quick", audit=5)
    assert found.audit.asked == 0 and "classes" in found.audit.reason and 0 < found.accuracy < 1


def test_a_run_audits_every_eps_and_counts_what_the_audits_break(model):
    network, x, y = model
    settings = {"diagnose": False, "audit": 12}
    threats = [Threat("Linf", eps) for eps in (0.01, 0.03)]
    found = evaluate(estimator(network), (x, y), threats, ["art:fgsm"], recipe=settings).models[0]
    assert [audit.eps for audit in found.audits] == [0.01, 0.03]
    for audit, robust in zip(found.audits, found.robust, strict=True):
        assert audit.asked == min(12, audit.standing) and audit.n == 60 and audit.cell in robust.attacks
        assert robust.accuracy == pytest.approx((audit.standing - audit.broke) / 60)
        assert audit.interval[0] <= audit.estimate <= audit.interval[1] == pytest.approx(robust.accuracy)
    assert found.spent.gradients < 10  # without the audits


class Told(Progress):
    def __init__(self):
        self.steps = []

    def step(self, model, title, gradients, queries):
        self.steps.append((title, gradients))


def test_until_asks_about_as_many_images_as_the_bound_needs(model):
    network, x, y = model
    told = Told()
    found = worst_case(estimator(network), x, y, Threat("Linf", 0.01), until=10.0, progress=told)
    audit, standing = found.audit, found.audit.standing
    assert audit.broke == 0 and len(found.runs) == 2  # one effort and one look, since a linear model hides nothing
    most = [
        metrics.most_in_population(0, drawn=m, population=standing, confidence=0.975)
        for m in (audit.asked - 1, audit.asked)
    ]
    assert most[1] <= 6 < most[0]  # 10 % of 60 images
    assert [title for title, _ in told.steps] == [f"audit of {audit.asked} images"]
    assert audit.interval[0] >= found.accuracy - 0.1 and told.steps[0][1] > 100


@pytest.mark.slow
def test_until_takes_more_effort_where_an_audit_breaks_too_many(model):
    """With one gradient an image no effort gets far, and the audits break what is left."""
    network, x, y = model
    threat = Threat("Linf", 0.03)
    found = worst_case(estimator(network), x, y, threat, until=2.0, budget=1)
    efforts = [run.cells[-1].params.get("effort", "audit") for run in found.runs]
    full = evaluate(estimator(network), (x, y), threat, ["autoattack:standard"], recipe={"diagnose": False})
    assert efforts[:4] == ["quick", "audit", "standard", "audit"]
    assert found.accuracy - full.models[0].robust[0].accuracy <= 0.02
    assert found.audit.interval[0] <= full.models[0].robust[0].accuracy + 1e-9


def test_until_ends_where_no_image_stands_or_none_can_be_audited(model):
    network, x, y = model
    assert worst_case(estimator(network), x, (y + 1) % 10, Threat("Linf", 0.02), until=1.0).audit is None
    assert worst_case(estimator(Noisy(network)), x, y, Threat("Linf", 0.005), until=1.0).audit is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"audit": 0}, "audit"),
        ({"effort": "most"}, "effort"),
        ({"budget": 0.1}, "budget"),
        ({"until": 0}, "until"),
        ({"audit": 3, "until": 1.0}, "leave one"),
    ],
)
def test_what_cannot_be_used_is_said(model, given, said):
    network, x, y = model
    with pytest.raises(InputError, match=said):
        worst_case(estimator(network), x, y, Threat("Linf", 0.02), **given)
