"""The adaptive attacks on random networks, rescaled logits, what they leave behind, and their errors."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from adaptive_nets import OURS, RANDOM, SCALINGS, Noisy, estimator, linear, margin, short, worst_margin
from torch import nn

from art_qplugins import InputError, Threat
from art_qplugins.attacks.adaptive.draws import needed_draws
from art_qplugins.attacks.adaptive.full_precision import full_precision
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.attacks.adaptive.scalings import hessian_scales, jacobian_scales
from art_qplugins.attacks.craft import craft
from art_qplugins.attacks.views import LogitScale
from art_qplugins.evaluation.score import score
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import QuantReLU, activation_quantizers
from art_qplugins.quantizers.surrogates import Surrogate

# --- Random networks


def random_weights(spread):
    """Mean logits are those of the linear model; a single draw's gradient is mostly noise."""
    return linear(2, [Noisy(spread)])


def test_eot_beats_one_draw_where_a_draw_says_little():
    model, x, y = random_weights(3.0)
    threat, mean = Threat("Linf", 0.05), nn.Sequential(*model[1:])
    reached = {}
    for draws in (1, 32):
        options = {"eot_iter": draws, "max_iter": 10}
        crafted = craft(estimator(model, 2), "artq:eot", x, y, threat=threat, options=options)
        reached[draws] = margin(mean, crafted.x_adv, y).mean()  # the mean margin, without any draw
    assert reached[32] < reached[1] - 0.2
    assert worst_margin(model, x, y, threat).mean() - 1e-3 < reached[32]


class Rolled(nn.Module):
    """Pixels and logits of one draw, and how many images each call had. Draws of one seed are the same."""

    def __init__(self, network):
        super().__init__()
        self.network, self.drawn = network, []

    def forward(self, x):
        shift = float(torch.rand(()))
        if x.requires_grad:
            self.drawn.append(shift)
        return self.network(x) * (1 + shift)


def test_a_frozen_seed_has_the_same_noise_at_every_step_and_the_other_attacks_fresh_noise():
    noise = {}
    for name in ("artq:frozen-seed", "artq:single-draw", "artq:eot"):
        model, x, y = linear(2)
        options = {"max_iter": 6} | ({"eot_iter": 1} if name == "artq:eot" else {})
        craft(estimator(rolled := Rolled(model), 2), name, x, y, threat=Threat("Linf", 0.05), options=options)
        noise[name] = rolled.drawn[1:]  # the first call asks whether there is a gradient
    assert len(noise["artq:frozen-seed"]) == 6 and len(set(noise["artq:frozen-seed"])) == 1
    assert all(len(set(noise[name])) == len(noise[name]) >= 6 for name in ("artq:single-draw", "artq:eot"))


def test_an_attack_that_knows_one_draw_loses_to_the_mean_over_many():
    """One draw's gradient is mostly noise, and the same noise at every step is never averaged."""
    model, x, y = random_weights(3.0)
    threat, mean, reached = Threat("Linf", 0.05), nn.Sequential(*model[1:]), {}
    for name, options in (("artq:frozen-seed", {}), ("artq:eot", {"eot_iter": 32})):
        crafted = craft(estimator(model, 2), name, x, y, threat=threat, options=options | {"max_iter": 10})
        reached[name] = margin(mean, crafted.x_adv, y).mean()
    assert reached["artq:eot"] < reached["artq:frozen-seed"] - 0.2


def test_a_single_draw_is_one_member_of_an_ensemble_and_leaves_it_as_it_was(stochastic, digits):
    x, y = digits[1].x()[:8], digits[1].y()[:8]
    ensemble = StochasticEnsemble(copy.deepcopy(stochastic.network), 6).eval()
    settings = {"threat": Threat("Linf", 0.1), "options": {"max_iter": 3}}
    crafted = craft(estimator(ensemble, 10), "artq:single-draw", x, y, **settings)
    whole = craft(estimator(ensemble, 10), "artq:pgd", x, y, **settings)
    assert ensemble.eot_draws is None
    assert (crafted.backward_samples, whole.backward_samples) == (3 * 8, 3 * 8 * 6)


def test_draws_grow_until_their_mean_gradient_agrees_with_itself():
    # Noise of x (1 + s r) on the gradient w (1 + s r): the cosine of two means of m is about 1 / (1 + s^2 / m).
    for spread, expected in ((0.3, 1), (2.0, 8), (3.0, 16)):
        model, x, y = random_weights(spread)
        settings = {"name": "artq:eot", "threat": Threat("Linf", 0.1), "batch_size": 40, "seed": 0, "max_iter": 5}
        assert needed_draws(AttackRun(module=model, x=x, y=y, random=True, **settings), model) == expected


# --- Scalings


def test_the_scales_of_njs_and_hns_are_those_of_a_direct_computation():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4)).eval()
    x = torch.rand(8, 1, 4, 4)
    with torch.no_grad():
        net[3].weight *= 8
        logits = net(x)
    y = logits.argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified
    jacobians = torch.stack([torch.autograd.functional.jacobian(net, image[None])[0].flatten(1) for image in x])
    for p in net.parameters():
        p.requires_grad_(False)

    mean = torch.linalg.svdvals(jacobians).mean()
    expected = []
    for z, label in zip(logits / mean, y, strict=True):
        beta = 1.0
        if abs(1 - float(z.softmax(0)[label])) < 0.01:
            beta = -math.log(0.01 / (0.99 * 3)) / float(z.max() - z.min())
        expected.append(beta / float(mean))
    torch.testing.assert_close(jacobian_scales(net, x, y, x), torch.tensor(expected), rtol=1e-3, atol=1e-6)

    expected = []
    for z, label, J in zip(logits.double(), y, jacobians.double(), strict=True):
        first, second = z.topk(2).values.tolist()
        ends = [-math.log(e / ((1 - e) * 3)) / (first - second) for e in (1 - 1 / 4 - 0.01, 1e-72)]
        norms = []
        for beta in np.linspace(*ends, 100):
            p = (beta * z).softmax(0)
            norms.append(float((beta**2 * J.T @ (torch.diag(p) - torch.outer(p, p)) @ J).norm()))
        best = int(np.argmax(norms))
        usable = 0 < best < 99 and int(z.argmax()) == int(label)
        expected.append(float(np.linspace(*ends, 100)[best]) if usable else 1.0)
    found = hessian_scales(net, x, y)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-6)
    assert found[0] == 1 and len(set(found.tolist())) > 5


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rescaling_finds_the_gradient_that_a_large_scale_hides(fp32, digits, scaling):
    x, y, threat = digits[1].x()[:40], digits[1].y()[:40], Threat("Linf", 0.15)
    hidden = LogitScale(fp32, 1e-4).eval()
    accuracy = {}
    for name, options in (("autoattack:apgd-ce", {}), ("artq:rescaled", {"scaling": scaling})):
        crafted = craft(estimator(hidden, 10), name, x, y, threat=threat, options=options)
        accuracy[name] = score(hidden, crafted.x_adv, y, seed=0)["correct"].mean()
    assert accuracy["artq:rescaled"] < accuracy["autoattack:apgd-ce"] - 0.2


# --- What is left behind


class Bomb(nn.Module):
    """Raises at its n-th call, inside the network."""

    def __init__(self, calls):
        super().__init__()
        self.remaining = calls

    def forward(self, x):
        self.remaining -= 1
        if self.remaining < 0:
            raise RuntimeError("the network's own failure")
        return x


def state(model):
    return {
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "surrogates": [getattr(m, "surrogate", None) for m in model.modules()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
    }


@pytest.mark.parametrize("calls", [0, 3, 25, 10**9])
@pytest.mark.parametrize("name", OURS)
def test_all_is_as_before_also_after_a_failure_at_any_time(name, calls):
    front = [Noisy(0.1)] if name in RANDOM else []
    model, x, y = linear(10, [*front, QuantReLU(4, 1.0, surrogate=Surrogate("leaky")), Bomb(calls)])
    example = estimator(model, 10)
    model[len(front)].train()
    before = state(model)
    settings = {"threat": Threat("Linf", 1e-3), "options": short(name, 30)}
    if calls < 10**9:
        with pytest.raises(RuntimeError, match="the network's own failure"):
            craft(example, name, x, y, **settings)
    else:
        craft(example, name, x, y, **settings | {"options": short(name, 2)})
    assert state(model) == before


def test_a_forward_that_was_the_users_own_comes_back():
    layer = QuantReLU(2, 1.0)
    layer.forward = own = lambda x: x * 2
    with full_precision(nn.Sequential(layer), torch.zeros(1, 1, 2, 2)):
        assert layer.forward is not own
    assert layer.forward is own


def test_a_random_network_and_its_copy_are_attacked_alike(stochastic, digits):
    x, y = digits[1].x()[:8], digits[1].y()[:8]
    settings = {"threat": Threat("Linf", 0.1), "options": {"max_iter": 3, "eot_iter": 2}, "seed": 5}
    twin = StochasticEnsemble(copy.deepcopy(stochastic.network), 4).eval()
    first = craft(estimator(stochastic, 10), "artq:eot", x, y, **settings).x_adv
    craft(estimator(twin, 10), "artq:eot", x, y, **settings | {"seed": 6})  # leaves its stream where it was
    assert torch.equal(first, craft(estimator(twin, 10), "artq:eot", x, y, **settings).x_adv)
    assert len(activation_quantizers(stochastic)) == 3


# --- Errors


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("artq:full-precision", {}, ["Sequential has no quantized activation", "artq:apgd-margin"]),
        ("artq:joint", {}, ["no quantized activation"]),
        ("artq:bits", {}, ["no bit width to change"]),
        ("artq:bits", {"bits": []}, ["option bits: it is []", "at least 1"]),
        ("artq:bits", {"bits": [2, 99]}, ["option bits: it is [2, 99]", "from 1 to 16"]),
        ("artq:joint", {"weights": [2]}, ["option weights: it is [2]"]),
        ("artq:eot", {}, ["Sequential is deterministic", "artq:apgd-margin"]),
        ("artq:frozen-seed", {}, ["Sequential is deterministic", "artq:apgd-margin"]),
        ("artq:single-draw", {}, ["Sequential is deterministic", "artq:pgd"]),
        ("artq:apgd-margin", {"max_iter": 0}, ["max_iter: it is 0"]),
        ("artq:multi-targeted", {"targets": 0}, ["targets: it is 0"]),
        ("artq:rescaled", {"scaling": "jacobi"}, ["'jacobi'", "'jacobian'"]),
        ("artq:surrogates", {"kinds": ["repair"]}, ["'repair'", "'repaired'"]),
        ("artq:surrogates", {"kinds": ["tanh"]}, ["'tanh', which does not apply", "as-is"]),
    ],
)
def test_what_an_attack_lacks_is_said_in_one_line(name, options, parts):
    model, x, y = linear(10)
    with pytest.raises(InputError) as caught:
        craft(estimator(model, 10), name, x, y, threat=Threat("Linf", 0.1), options=options)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)
