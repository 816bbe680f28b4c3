"""Gradients that are planted wrong, and the views of a network that put them right."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from adaptive_nets import Fake, Rounded, Signs, estimator, linear, margin, worst_margin
from torch import nn

from art_qplugins import Threat
from art_qplugins.attacks.adaptive.backward_views import Smoothed, StraightThroughSteps
from art_qplugins.attacks.adaptive.full_precision import full_precision, other_bits
from art_qplugins.attacks.adaptive.repaired_gradients import by_fidelity
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.attacks.craft import craft
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.quantizers import QuantReLU, quantize

ROUGH = [
    ("artq:surrogates", {}),
    ("artq:surrogates", {"kinds": ["repaired"]}),
    ("artq:full-precision", {}),
    ("artq:joint", {}),
]


@pytest.mark.parametrize(("name", "options"), ROUGH)
def test_a_rounding_input_is_broken_by_what_looks_behind_it_and_by_nothing_else(name, options):
    model, x, y = linear(10, [Rounded(15)])
    threat = Threat("Linf", 0.1)
    assert (worst_margin(model, x, y, threat) < -1).all()
    plain = craft(estimator(model, 10), "artq:apgd-margin", x, y, threat=threat)
    assert (margin(model, plain.x_adv, y) > 0).float().mean() > 0.7
    behind = craft(estimator(model, 10), name, x, y, threat=threat, options=options)
    assert (margin(model, behind.x_adv, y) < 0).float().mean() > 0.9


@pytest.mark.parametrize(
    ("old", "kind"),
    [
        ("revived", "repaired"),
        ("straight", "bridged"),
        ("repaired-straight-through", "bridged"),
        ("clipped", "clipped-sign"),
    ],
)
def test_an_old_name_of_a_repaired_gradient_works_with_a_warning(old, kind):
    model, x, y = linear(10, [Signs()])
    settings = {"threat": Threat("Linf", 0.1), "seed": 3}
    plain = craft(estimator(model, 10), "artq:surrogates", x, y, options={"kinds": [kind]}, **settings)
    with pytest.warns(FutureWarning, match=f"'{old}' is called '{kind}' now"):
        named = craft(estimator(model, 10), "artq:surrogates", x, y, options={"kinds": [old]}, **settings)
    assert torch.equal(plain.x_adv, named.x_adv) and not torch.equal(plain.x_adv, x)


class Shattered(nn.Module):
    """The identity with a ripple that is small in value and turns the gradient around in most places."""

    def forward(self, x):
        return x + 0.002 * torch.sin(2 * math.pi * x / 0.004)


def test_a_shattered_gradient_is_smoothed_away():
    model, x, y = linear(10, [Shattered()])
    threat = Threat("Linf", 0.06)
    near = nn.Sequential(*model[1:])
    point = x[:1].clone().requires_grad_()
    view = Smoothed(model, threat.eps / 4, pairs=32)
    assert torch.equal(view(point), model(point))
    cosines = []
    for network in (near, model, view):
        (slope,) = torch.autograd.grad(logit_margin(network(point), y[:1]).sum(), point)
        cosines.append(slope.flatten())
    true, rough, smooth = cosines
    assert torch.cosine_similarity(smooth, true, 0) > torch.cosine_similarity(rough, true, 0) + 0.3
    attacked = {
        kind: craft(
            estimator(model, 10), "artq:surrogates", x, y, threat=threat, options={"kinds": [kind], "max_iter": 10}
        )
        for kind in ("as-is", "smoothed")
    }
    broken = {kind: (margin(model, c.x_adv, y) < 0).float().mean() for kind, c in attacked.items()}
    assert broken["smoothed"] > broken["as-is"] + 0.3


def test_the_full_precision_twin_is_the_function_that_the_quantizers_round():
    x = torch.linspace(-1, 3, 64).view(1, 1, 8, 8)
    for quantizer, top in ((QuantReLU(2, 2.0), 2.0), (Fake(None), 1.5), (Fake(1), 1.5), (Rounded(3), math.inf)):
        before = quantizer(x)
        with full_precision(quantizer, x):
            assert torch.allclose(quantizer(x), x if top == math.inf else x.clamp(0, top))
            assert set((x / 9).sign().unique().tolist()) == {-1.0, 1.0}, "an attack's steps are signs, as ever"
        assert torch.equal(quantizer(x), before)
        assert not torch.equal(before, x.clamp(0, 1.5))


STEPS = {
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round in place": lambda z: (z * 1).round_(),
    "floor in place": lambda z: (z * 1).floor_(),
    "ceil in place": lambda z: (z * 1).ceil_(),
    "a method": lambda z: z.floor(),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_twin_of_a_rounding_is_the_line_through_the_middle_of_its_steps(name):
    """Over whole steps the mean of the rounding is that of its line, which rises by 1."""
    x = ((torch.arange(64, dtype=torch.float64) + 0.5) / 16 - 2).view(1, 1, 8, 8)  # 16 points in each step
    network = nn.Identity()
    network.forward = STEPS[name]
    rounded = network(x)
    with full_precision(network, x):
        leaf = x.clone().requires_grad_()
        line = network(leaf)
        (slope,) = torch.autograd.grad(line.sum(), leaf)
    torch.testing.assert_close((line - rounded).mean(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)
    assert (line - rounded).abs().max() <= 0.5
    torch.testing.assert_close(line.diff(), torch.full((1, 1, 8, 7), 1 / 16, dtype=torch.float64))
    assert torch.equal(slope, torch.ones_like(x))


def test_a_sign_passes_back_the_slope_of_the_clip_that_binary_networks_are_trained_with():
    x = torch.linspace(-2, 2, 16).view(1, 1, 4, 4).requires_grad_()
    for step, slope in (
        (torch.sign, (x.abs() <= 1).float()),
        (torch.sgn, (x.abs() <= 1).float()),
        (lambda z: z.round(), torch.ones_like(x)),
        (lambda z: (z * 1).sign_(), torch.zeros_like(x)),
        (torch.tanh, 1 - torch.tanh(x) ** 2),
    ):
        network = nn.Identity()
        network.forward = step
        answer = StraightThroughSteps(network)(x)
        assert torch.equal(answer, step(x))
        torch.testing.assert_close(torch.autograd.grad(answer.sum(), x)[0], slope.detach())


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_the_full_precision_twin_of_a_random_layer_is_its_mean(alpha):
    net = quantize(nn.Sequential(nn.Identity(), nn.ReLU()), activation_bits=2, alpha=alpha, clip=2.0)
    x = torch.linspace(0, 2, 64).view(1, 1, 8, 8)
    with torch.no_grad():
        mean = torch.stack([net(x) for _ in range(3000)]).mean(0)
        with full_precision(net, x):
            torch.testing.assert_close(net(x), mean, atol=0.05, rtol=0)


def test_other_bits_round_the_same_range_to_other_levels():
    net = nn.Sequential(QuantReLU(2, 1.5))
    x = torch.linspace(-0.5, 2, 64).view(1, 1, 8, 8)
    for bits in (1, 3, 8):
        with other_bits(net, bits):
            torch.testing.assert_close(net(x), QuantReLU(bits, 1.5)(x))
    assert torch.equal(net(x), QuantReLU(2, 1.5)(x))


@pytest.mark.parametrize("random", [False, True])
def test_kinds_are_sorted_by_the_median_fidelity_on_the_first_64_images(random, monkeypatch):
    """A network is its fidelity on each of 130 images. Those from 64 on would turn the order around."""
    later, asked = [1.0] * 66, []
    fidelities = {
        "low": [0.2] * 64 + later,
        "unknown": [math.nan] * 64 + later,
        "middle": [0.5] * 33 + [0.0] * 31 + later,
        "edge": [0.0] * 32 + [0.9] * 32 + later,  # with one image more the median is 0.9
        "tie": [0.2] * 64 + later,
        "high": [0.8] * 64 + [0.0] * 66,
    }

    def fidelity(view, x, y, *, calls, **_):
        asked.append(calls)
        assert len(x) == len(y)
        return torch.tensor(fidelities[view][: len(x)])

    monkeypatch.setattr("art_qplugins.attacks.adaptive.repaired_gradients.fidelity", fidelity)
    run = AttackRun(
        name="a",
        module=nn.Identity(),
        x=torch.zeros(130, 1, 1, 1),
        y=torch.zeros(130, dtype=torch.long),
        threat=Threat("Linf", 0.1),
        batch_size=8,
        seed=0,
        max_iter=1,
        random=random,
    )
    order = [*by_fidelity(run, {kind: lambda kind=kind: nullcontext(kind) for kind in fidelities})]
    assert order == ["high", "middle", "edge", "low", "tie", "unknown"]
    assert asked == [4 if random else 1] * 6  # draws cost calls
