"""Suites: what they expand to for each norm and kind of model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import ATTACKS, InputError, Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.attacks.suites import SUITES, expand
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.threat import NORMS

KINDS = [(s, q) for s in (False, True) for q in (False, True)]


def ids(expanded):
    return [attack for attack, _ in expanded]


@pytest.mark.parametrize(("stochastic", "quantized"), KINDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SUITES)
def test_what_is_chosen_applies_and_what_is_dropped_says_why(name, norm, stochastic, quantized):
    if not any(norm in ATTACKS[attack].norms for attack in ids(SUITES[name].attacks)):
        assert norm in ("L1", "L0")
        with pytest.raises(InputError, match=f"has no attack in {norm} here"):
            expand(name, norm, eps=8 / 255, stochastic=stochastic, quantized=quantized)
        return
    chosen, dropped = expand(name, norm, eps=8 / 255, stochastic=stochastic, quantized=quantized)
    assert sorted(ids(chosen) + ids(dropped)) == sorted(ids(SUITES[name].attacks))
    assert all(reason for _, reason in dropped)
    for attack, options in chosen:
        row = ATTACKS[attack]
        row.resolve(options)
        assert norm in row.norms
        assert row.models in ("any", "stochastic" if stochastic else "deterministic")
        assert quantized or not row.quantized


def test_standard_is_the_published_autoattack_and_nothing_else():
    assert expand("standard", "Linf", eps=8 / 255)[0] == [("autoattack:standard", {})]
    chosen, dropped = expand("standard", "Linf", eps=8 / 255, stochastic=True)
    assert chosen == [("autoattack:rand", {})]
    assert dropped == [("autoattack:standard", "it is for deterministic models and this one is stochastic")]


def test_adaptive_follows_the_model():
    always = ["artq:apgd-margin", "artq:multi-targeted", "artq:rescaled", "artq:surrogates"]
    undo = ["artq:full-precision", "artq:bits", "artq:joint"]
    assert ids(expand("adaptive", "L2", eps=8 / 255)[0]) == always
    assert ids(expand("adaptive", "L2", eps=8 / 255, quantized=True)[0]) == always + undo
    assert ids(expand("adaptive", "L2", eps=8 / 255, quantized=True, stochastic=True)[0]) == [
        *always,
        *undo,
        "artq:eot",
    ]


def test_black_box_asks_for_no_gradient_in_any_norm():
    for norm in NORMS:
        chosen, _ = expand("black-box", norm, eps=8 / 255)
        assert {ATTACKS[a].knowledge for a in ids(chosen)} == {"black-box"}


def test_a_paper_of_attacks_in_two_norms_gives_each_its_own():
    assert ids(expand("mu-law", "Linf", eps=8 / 255)[0]) == ["art:fgsm", "art:pgd", "art:bim", "art:mifgsm"]
    chosen, dropped = expand("mu-law", "L2", eps=8 / 255)
    assert "art:cw-l2" in ids(chosen)
    assert dropped == [("art:bim", "it has no norm L2")]


@pytest.mark.parametrize(("eps", "steps"), [(1, 1), (2, 2), (4, 5), (8, 10), (16, 20)])
def test_defensive_quantization_steps_as_often_as_its_paper(eps, steps):
    """min(eps + 4, 1.25 eps) steps of 1/255, rounded down."""
    chosen = dict(expand("dq", "Linf", eps=eps / 255)[0])
    assert chosen["art:pgd"] == {"max_iter": steps, "rel_eps_step": pytest.approx(1 / eps)}
    assert chosen["torchattacks:rfgsm"] == {"max_iter": 1, "rel_eps_step": 0.5}


def test_a_budget_below_one_level_of_a_pixel_has_one_step_of_its_size():
    assert dict(expand("dq", "Linf", eps=0.001)[0])["art:pgd"] == {"max_iter": 1, "rel_eps_step": 1.0}


def test_what_is_not_installed_is_left_out(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchattacks", None)
    chosen, dropped = expand("black-box", "Linf", eps=8 / 255)
    assert ("torchattacks:spsa", "torchattacks is not installed") in dropped
    assert "autoattack:square" in ids(chosen)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (("qick", "Linf"), ["unknown suite 'qick'", "quick"]),
        (("quick", "linf"), ["norm: it is 'linf'", "Linf"]),
        (("adaptive", "L1"), ["suite 'adaptive'", "no attack in L1", "quick, standard, black-box"]),
    ],
)
def test_a_wrong_name_is_answered_with_its_neighbour(settings, parts):
    with pytest.raises(InputError) as caught:
        expand(*settings, eps=8 / 255)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


def test_what_a_caller_does_to_the_options_stays_with_the_caller():
    expand("quick", "Linf", eps=8 / 255)[0][-1][1]["n_queries"] = 1
    assert dict(expand("quick", "Linf", eps=8 / 255)[0])["autoattack:square"] == {"n_queries": 500}


def test_random_plus_gradient_step_is_half_and_half():
    """Lin et al. 2019, equation 2, on a model whose gradient is positive in every value: half of eps at random, half down."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 64))
        model[1].bias.zero_()
    x, y = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.int64)
    options = dict(expand("dq", "Linf", eps=8 / 255)[0])["torchattacks:rfgsm"]
    estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 2, device_type="cpu")
    found = craft(estimator, "torchattacks:rfgsm", x, y, threat=Threat("Linf", 0.1), options=options).x_adv - x
    ends = torch.stack([(found - end).abs() for end in (-0.1, 0.0)]).amin(0)  # down and down, or up and down
    assert ends.max() < 1e-6
    assert 0.3 < (found < -0.05).float().mean() < 0.7
