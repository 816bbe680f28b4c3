"""The loop of our own: linear models whose worst case is known, its cost, and where it starts."""

from __future__ import annotations

import pytest
import torch
from adaptive_nets import (
    DETERMINISTIC,
    OURS,
    RANDOM,
    SCALINGS,
    SEARCH,
    Fine,
    Noisy,
    Rounded,
    estimator,
    linear,
    margin,
    short,
    worst_margin,
)
from torch import nn

from art_qplugins import ATTACKS, Threat
from art_qplugins.attacks.adaptive.auto_pgd import checkpoints
from art_qplugins.attacks.craft import craft
from art_qplugins.attacks.views import LogitScale
from art_qplugins.evaluation.score import check_legal, score
from art_qplugins.quantizers import QuantReLU


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    ("name", "options"),
    [(n, {}) for n in OURS if n not in ("artq:rescaled", SEARCH)]
    + [("artq:rescaled", {"scaling": s}) for s in SCALINGS],
)
def test_each_attack_finds_the_worst_point_of_a_linear_model(name, options, norm):
    front = [Noisy(0.05) if name in RANDOM else Fine()]
    model, x, y = linear(2, front)
    threat = Threat(norm, {"Linf": 0.02, "L2": 0.12}[norm])
    crafted = craft(estimator(model, 2), name, x, y, threat=threat, options=options)
    check_legal(x, crafted.x_adv, threat)
    worst = worst_margin(model, x, y, threat)
    reached = margin(nn.Sequential(*model[1:]), crafted.x_adv, y)  # of the mean, where the model is random
    assert 5 < int((worst < 0).sum()) < len(x) - 5
    if name in RANDOM:  # nothing leaves its loop
        torch.testing.assert_close(reached, worst, atol=0.01, rtol=0)
    else:
        robust = worst > 1e-3
        torch.testing.assert_close(reached[robust], worst[robust], atol=1e-3, rtol=0)
        assert (margin(model, crafted.x_adv, y)[worst < -1e-3] < 0).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_multi_targeted_breaks_all_that_can_be_broken_among_ten_classes(norm):
    model, x, y = linear(10)
    threat = Threat(norm, {"Linf": 0.06, "L2": 0.35}[norm])
    worst = worst_margin(model, x, y, threat)
    crafted = craft(estimator(model, 10), "artq:multi-targeted", x, y, threat=threat)
    clear = worst.abs() > 1e-3
    assert 5 < int((worst < 0).sum()) < len(x) - 5
    assert torch.equal((margin(model, crafted.x_adv, y) < 0)[clear], (worst < 0)[clear])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", OURS)
def test_images_are_legal_where_the_box_binds_and_the_seed_fixes_them(name, norm):
    front = [Noisy(0.3) if name in RANDOM else QuantReLU(3, 1.0)]
    model, _, _ = linear(10, front)
    x = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(2)).round()  # black and white
    y = model(x).argmax(1)
    threat = Threat(norm, {"Linf": 0.3, "L2": 2.0}[norm])
    settings = {"threat": threat, "options": short(name, 5)}
    first, again = (craft(estimator(model, 10), name, x, y, **settings, seed=3).x_adv for _ in range(2))
    other = craft(estimator(model, 10), name, x, y, **settings, seed=4).x_adv
    check_legal(x, first, threat)
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_batch_size_does_not_matter(name):
    model, x, y = linear(10, [QuantReLU(8, 1.0)])
    settings = {"threat": Threat("Linf", 0.04), "options": short(name, 6)}
    whole = craft(estimator(model, 10), name, x, y, **settings, batch_size=40).x_adv
    parts = craft(estimator(model, 10), name, x, y, **settings, batch_size=7).x_adv
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["artq:apgd-margin", "artq:multi-targeted"])
@pytest.mark.parametrize("scale", [2.0**14, 2.0**-14])
def test_no_scale_of_the_logits_changes_an_image(fp32, digits, name, scale):
    x, y = digits[1].x()[:24], digits[1].y()[:24]
    settings = {"threat": Threat("Linf", 0.1), "options": {"max_iter": 8}}
    plain = craft(estimator(fp32, 10), name, x, y, **settings)
    scaled = craft(estimator(LogitScale(fp32, 1 / scale), 10), name, x, y, **settings)
    assert torch.equal(plain.x_adv, scaled.x_adv)
    assert plain.backward_samples == scaled.backward_samples


def test_an_image_that_is_broken_costs_nothing_more():
    model, x, y = linear(2)
    tried = 2 * 8  # to see that the model is not random
    wrong = craft(estimator(model, 2), "artq:apgd-margin", x, 1 - y, threat=Threat("Linf", 1e-4))
    assert (wrong.forward_samples, wrong.backward_samples) == (tried + 40, 40)  # each is asked once
    assert (margin(model, wrong.x_adv, 1 - y) < 0).all()

    safe = craft(estimator(model, 2), "artq:apgd-margin", x, y, threat=Threat("Linf", 1e-6), options={"max_iter": 7})
    assert (margin(model, safe.x_adv, y) > 0).all()
    assert (safe.forward_samples, safe.backward_samples) == (tried + 8 * 40, 7 * 40)

    half = torch.where(torch.arange(40) < 20, y, 1 - y)
    both = craft(estimator(model, 2), "artq:apgd-margin", x, half, threat=Threat("Linf", 1e-6), options={"max_iter": 7})
    assert both.backward_samples == 7 * 20 + 20


def test_an_image_of_a_random_network_is_never_done():
    model, x, y = linear(2, [Noisy(0.01)])
    crafted = craft(estimator(model, 2), "artq:apgd-margin", x, 1 - y, threat=Threat("Linf", 1e-4))
    assert crafted.backward_samples == 20 * len(x)


def test_checkpoints_are_those_of_the_paper():
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_the_start_is_used():
    model, x, y = linear(2, [Rounded(4)])  # no gradient: an attack cannot leave its start
    start = (x + 0.015).clamp(0, 1)
    for name in ("artq:apgd-margin", "artq:multi-targeted"):
        crafted = craft_from(model, name, x, y, start)
        assert torch.equal(crafted, start)


def craft_from(model, name, x, y, start):
    attack = ATTACKS[name]
    with torch.random.fork_rng(devices=[]):
        return attack.load()(
            estimator(model, 2),
            attack,
            x,
            y,
            threat=Threat("Linf", 0.02),
            options=attack.resolve({}),
            batch_size=16,
            seed=0,
            start=start,
        )


def test_multi_targeted_is_no_weaker_than_autoattacks_targeted_part(fp32, digits):
    test = digits[1].take(60, seed=0)
    x, y, threat = test.x(), test.y(), Threat("Linf", 0.1)
    ours = craft(estimator(fp32, 10), "artq:multi-targeted", x, y, threat=threat)
    theirs = craft(estimator(fp32, 10), "autoattack:apgd-t", x, y, threat=threat)
    accuracy = [score(fp32, c.x_adv, y, seed=0)["correct"].mean() for c in (ours, theirs)]
    assert 0.1 < accuracy[1] < 0.9
    assert accuracy[0] <= accuracy[1] + 1 / 60
    assert ours.backward_samples < theirs.backward_samples / 4
