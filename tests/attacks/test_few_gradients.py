"""The worst case for few gradients: exact oracles, what it spends, and what its options do."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from adaptive_nets import Noisy, Rounded, estimator, linear, margin, worst_margin
from torch import nn

from art_qplugins import InputError, Threat
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.attacks.adaptive.worst_case import EFFORTS, worst_case
from art_qplugins.attacks.craft import craft
from art_qplugins.evaluation.score import check_legal
from art_qplugins.gradients.counting import counting
from art_qplugins.gradients.margin import logit_margin


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_of_a_linear_model_it_breaks_exactly_what_can_be_broken(norm):
    model, x, y = linear(10)
    threat = Threat(norm, {"Linf": 0.06, "L2": 0.35}[norm])
    worst = worst_margin(model, x, y, threat)
    crafted = craft(estimator(model, 10), "artq:worst-case", x, y, threat=threat)
    check_legal(x, crafted.x_adv, threat)
    clear = worst.abs() > 1e-3
    assert 5 < int((worst < 0).sum()) < len(x) - 5
    assert torch.equal((margin(model, crafted.x_adv, y) < 0)[clear], (worst < 0)[clear])


def piecewise(hidden, seed):
    """A network of three pixels with one hidden layer of ReLUs, and images around its boundaries."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 4)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(hidden, 3, generator=generator))
        model[1].bias.copy_(
            -(model[1].weight * torch.rand(hidden, 3, generator=generator)).sum(1)
        )  # lines cross the cube
        model[3].weight.copy_(torch.randn(4, hidden, generator=generator))
        model[3].bias.zero_()
        x = torch.rand(150, 1, 1, 3, generator=generator)
        return model, x, model(x).argmax(1)


def exact(model, x, y, eps):
    """min of the margin over the box: within each cell of the planes the margin is concave, so it is at a corner of one."""
    weight, bias = model[1].weight.double(), model[1].bias.double()
    network = nn.Sequential(*model).double()
    worst = []
    for image, label in zip(x.double(), y, strict=True):
        point = image.flatten()
        low, high = (point - eps).clamp(0, 1), (point + eps).clamp(0, 1)
        sides = torch.eye(3, dtype=torch.float64)
        normals = torch.cat([weight, sides, sides])
        offsets = torch.cat([-bias, low, high])
        triples = torch.tensor(list(itertools.combinations(range(len(normals)), 3)))
        matrices, wanted = normals[triples], offsets[triples]
        regular = torch.linalg.det(matrices).abs() > 1e-9
        corners = torch.linalg.solve(matrices[regular], wanted[regular])
        inside = ((corners >= low - 1e-9) & (corners <= high + 1e-9)).all(1)
        corners = corners[inside].view(-1, 1, 1, 3)
        worst.append(logit_margin(network(corners), label.expand(len(corners))).min())
    network.float()
    return torch.stack(worst).float()


def test_of_small_relu_networks_it_breaks_all_but_a_percent_of_what_can_be_broken():
    missed = possible = 0
    for seed in range(4):
        model, x, y = piecewise(10, seed)
        threat = Threat("Linf", 0.08)
        with torch.no_grad():
            worst = exact(model, x, y, threat.eps)
            crafted = craft(estimator(model, 4, (1, 1, 3)), "artq:worst-case", x, y, threat=threat)
            broken = model(crafted.x_adv).argmax(1) != y
        assert int((worst > 1e-4).sum()) > 20
        assert not broken[worst > 1e-4].any()
        can = worst < -1e-4
        missed, possible = missed + int((~broken)[can].sum()), possible + int(can.sum())
    assert possible > 200 and missed <= 0.01 * possible


@pytest.mark.parametrize("budget", [1, 7.5, 30])
def test_a_budget_is_never_exceeded(budget):
    model, x, y = linear(10)
    threat = Threat("Linf", 1e-4)  # nothing breaks
    crafted = craft(estimator(model, 10), "artq:worst-case", x, y, threat=threat, options={"budget": budget})
    assert 0 < crafted.backward_samples <= budget * len(x)


def test_a_budget_of_less_than_a_step_is_refused():
    model, x, y = linear(10)
    with pytest.raises(InputError, match=r"option budget: it is 0\.5"):
        craft(estimator(model, 10), "artq:worst-case", x, y, threat=Threat("Linf", 0.1), options={"budget": 0.5})


def test_more_effort_spends_more_and_leaves_no_more():
    model, x, y = linear(10, [Rounded(30)])  # steps: gradients say nothing, and the search does
    spent, left = [], []
    for effort in ("quick", "standard", "thorough"):
        crafted = craft(
            estimator(model, 10), "artq:worst-case", x, y, threat=Threat("Linf", 0.06), options={"effort": effort}
        )
        spent.append(crafted.forward_samples)
        left.append(int((margin(model, crafted.x_adv, y) >= 0).sum()))
    assert spent == sorted(spent) and left[2] <= left[0]


def test_an_image_that_is_broken_costs_nothing_more():
    model, x, y = linear(2)
    wrong = craft(estimator(model, 2), "artq:worst-case", x, 1 - y, threat=Threat("Linf", 1e-4))
    assert wrong.backward_samples == len(x)


def test_of_a_random_network_it_keeps_the_lowest_mean_margin():
    model, x, y = linear(10, [Noisy(0.05)])
    threat = Threat("Linf", 0.06)
    can = worst_margin(model, x, y, threat) < -0.5
    crafted = craft(estimator(model, 10), "artq:worst-case", x, y, threat=threat, options={"effort": "quick"})
    mean = nn.Sequential(*model[1:])
    assert int(can.sum()) > 10 and (margin(mean, crafted.x_adv, y)[can] < 0).float().mean() > 0.9


class NeverPredicted(nn.Module):
    """The network with one more class, which is never predicted."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        return torch.cat([logits, logits.amin(1, keepdim=True) - 1e9], 1)


def test_a_class_that_is_never_predicted_changes_nothing():
    model, x, y = linear(10)
    threat = Threat("Linf", 0.06)
    worst = worst_margin(model, x, y, threat)
    crafted = craft(estimator(NeverPredicted(model), 11), "artq:worst-case", x, y, threat=threat)
    clear = worst.abs() > 1e-3
    assert torch.equal((margin(model, crafted.x_adv, y) < 0)[clear], (worst < 0)[clear])


class NotANumber(torch.autograd.Function):
    """The identity, whose gradient is NaN where the first pixel is below 0.5."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.where((x.flatten(1)[:, 0] < 0.5)[:, None, None, None], torch.nan, gradient)


class Undefined(nn.Module):
    """The network with such a gradient."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(NotANumber.apply(x))


def test_a_gradient_that_is_nan_on_some_images_spoils_no_other_image():
    model, x, y = linear(10)
    threat = Threat("Linf", 0.06)
    worst = worst_margin(model, x, y, threat)
    crafted = craft(estimator(Undefined(model), 10), "artq:worst-case", x, y, threat=threat)
    check_legal(x, crafted.x_adv, threat)
    broken = margin(model, crafted.x_adv, y) < 0
    whole = (x.flatten(1)[:, 0] > 0.5 + threat.eps) & (worst.abs() > 1e-3)
    assert crafted.undefined > 0 and 5 < int(whole.sum()) < len(x)
    assert torch.equal(broken[whole], (worst < 0)[whole])
    assert not broken[worst > 1e-3].any()


def test_a_long_climb_on_the_nearest_few_ends_it():
    model, x, y = linear(10)
    spent = []
    for last in (0, 40):
        settings = {"batch_size": 250, "seed": 0, "max_iter": 20}
        run = AttackRun(name="artq:worst-case", module=model, x=x, y=y, threat=Threat("Linf", 1e-4), **settings)
        with counting(model) as counter:
            worst_case(run, replace(EFFORTS["standard"], last=last))
        assert len(run.robust_rows()) == len(x)  # nothing breaks
        spent.append(counter.backward)
    assert spent[1] - spent[0] == 40 * math.ceil(0.1 * len(x))
