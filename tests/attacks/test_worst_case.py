"""The usual attacks against linear models, whose worst case is known in closed form: z = W x + b."""

from __future__ import annotations

import pytest
import torch
from core_nets import CASES, QUANTIZED, SATURATED, cheap, linear, margin, worst_margin

from art_qplugins import ATTACKS, Threat
from art_qplugins.attacks.craft import craft

EXACT = ["art:fgsm", "art:bim", "art:pgd", "art:mifgsm", "artq:pgd-margin"]
EXACT += ["torchattacks:fgsm", "torchattacks:pgd", "torchattacks:mifgsm", "torchattacks:eotpgd"]


@pytest.mark.parametrize(("name", "norm"), [c for c in CASES if c[0] in EXACT and c[1] in ("Linf", "L2")])
def test_a_gradient_attack_reaches_the_exact_worst_case_of_a_linear_model(name, norm):
    estimator, x, y = linear(2)
    eps = {"Linf": 0.1, "L2": 0.25}[norm]
    # One step is the worst case itself; in Linf, 2.5 eps of steps reach the corner from any start in the ball. In L2 the
    # iterates turn towards the worst point by rel_eps_step a step, whatever the start.
    options = {"max_iter": 100, "rel_eps_step": 0.2} if norm == "L2" and not ATTACKS[name].one_step else {}
    crafted = craft(estimator, name, x, y, threat=Threat(norm, eps), options=options)
    worst = worst_margin(estimator.model, x, y, norm, eps)
    torch.testing.assert_close(margin(estimator.model, crafted.x_adv, y), worst, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("autoattack:apgd-t", "Linf"),
        ("autoattack:apgd-t", "L2"),
        ("autoattack:fab-t", "Linf"),
        ("autoattack:fab-t", "L2"),
        ("autoattack:standard", "Linf"),
    ],
)
def test_autoattack_breaks_what_can_be_broken_in_a_linear_model_and_nothing_else(name, norm):
    estimator, x, y = linear(10)
    eps = {"Linf": 0.06, "L2": 0.35}[norm]
    worst = worst_margin(estimator.model, x, y, norm, eps)
    crafted = craft(estimator, name, x, y, threat=Threat(norm, eps))
    broken = margin(estimator.model, crafted.x_adv, y) < 0
    clear = worst.abs() > 0.02
    assert 5 < int((worst < 0).sum()) < len(x) - 5  # the oracle says something of both kinds
    assert clear.float().mean() > 0.8
    assert torch.equal(broken[clear], (worst < 0)[clear])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_apgd_on_cross_entropy_is_exact_where_there_are_two_classes(norm):
    estimator, x, y = linear(2)
    eps = {"Linf": 0.02, "L2": 0.12}[norm]
    worst = worst_margin(estimator.model, x, y, norm, eps)
    crafted = craft(estimator, "autoattack:apgd-ce", x, y, threat=Threat(norm, eps))
    clear = worst.abs() > 0.02
    assert 5 < int((worst < 0).sum()) < len(x) - 5
    assert torch.equal((margin(estimator.model, crafted.x_adv, y) < 0)[clear], (worst < 0)[clear])


# The suites are made of the parts that are here.
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        c
        for c in CASES
        if c[1] in ("Linf", "L2") and ATTACKS[c[0]].models == "any" and c[0] not in QUANTIZED + SATURATED
    ],
)
def test_no_attack_gets_below_the_worst_case(name, norm):
    estimator, x, y = linear(10, seed=1)
    eps = {"Linf": 0.02, "L2": 0.08}[norm]
    crafted = craft(estimator, name, x, y, threat=Threat(norm, eps), options=cheap(name))
    assert (margin(estimator.model, crafted.x_adv, y) >= worst_margin(estimator.model, x, y, norm, eps) - 1e-4).all()
