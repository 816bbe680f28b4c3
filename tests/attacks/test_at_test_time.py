"""Networks that take steps of their own before they answer, and the views that give their gradients back."""

from __future__ import annotations

import pytest
import torch
from adaptive_nets import estimator, linear, margin, worst_margin
from torch import nn

from art_qplugins import Threat
from art_qplugins.attacks.adaptive.at_test_time import (
    InnerAlone,
    ThroughInner,
    Unrolled,
    inner_network,
    views_at_test_time,
)
from art_qplugins.attacks.craft import craft

THREAT = Threat("Linf", 0.06)


class FixedPoint(nn.Module):
    """The solution of z = z / 2 + u(x), z = 2 u(x), by iterations that autograd does not see."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        u = self.network(x)
        with torch.no_grad():
            z = torch.zeros_like(u)
            for _ in range(30):
                z = z / 2 + u
        return z


class Away(nn.Module):
    """An anti-adversary (Alfarra et al. 2022): signed steps that make the network's own first answer surer."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        label = self.network(x).argmax(1)
        with torch.enable_grad():
            moved = x.detach().requires_grad_()
            for _ in range(3):
                own = self.network(moved).gather(1, label[:, None]).sum()
                (gradient,) = torch.autograd.grad(own, moved)
                moved = (moved + 0.02 * gradient.sign()).detach().requires_grad_()
        return self.network(moved.detach())


class Vote(nn.Module):
    """Three shifted copies, one vote each."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        answers = torch.stack([self.network(x + shift) for shift in (-0.01, 0.0, 0.01)])
        return nn.functional.one_hot(answers.argmax(2), answers.shape[2]).float().mean(0)


class Numpy(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) + torch.from_numpy(x.detach().numpy().sum((1, 2, 3), keepdims=True)[:, 0, 0])


def slope(network, x):
    point = x.clone().requires_grad_()
    return torch.autograd.grad(network(point)[:, 0].sum(), point)[0]


def test_an_unrolled_solver_has_the_gradient_of_its_solution_and_the_same_answers():
    model, x, _ = linear(10)
    solver = FixedPoint(model).eval()
    torch.testing.assert_close(slope(Unrolled(solver), x), 2 * slope(model, x))
    assert torch.equal(Unrolled(solver)(x.clone().requires_grad_()), solver(x))
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert not Unrolled(solver)(x).requires_grad


def test_what_applies_is_found_by_trying():
    model, x, _ = linear(10)
    found = {
        network: [*views_at_test_time(network.eval(), x, batch_size=40, seed=0)]
        for network in (model, nn.Sequential(model), FixedPoint(model), Away(model), Vote(model), Numpy(model))
    }
    assert list(found.values()) == [
        [],
        [],
        ["unrolled"],
        ["unrolled", "inner", "inner-alone"],
        ["inner", "inner-alone"],
        [],
    ]


def test_steps_that_do_not_fit_into_memory_are_not_unrolled(monkeypatch):
    model, x, _ = linear(10)
    monkeypatch.setattr("art_qplugins.attacks.adaptive.at_test_time._MEMORY", 100)
    assert not views_at_test_time(FixedPoint(model).eval(), x, batch_size=40, seed=0)


def test_the_inner_network_is_asked_at_the_pixels_themselves():
    model, x, _ = linear(10)
    vote = Vote(model).eval()
    assert inner_network(vote, x[:2]) is model and inner_network(nn.Sequential(model), x[:2]) is None
    view = ThroughInner(vote, model)
    point = x.clone().requires_grad_()
    assert torch.equal(view(point), vote(x))
    torch.testing.assert_close(slope(view, x), slope(model, x))
    assert not any(part._forward_hooks for part in vote.modules())


@pytest.mark.parametrize("kind", [FixedPoint, Away, Vote])
def test_a_loop_at_test_time_is_broken_as_the_network_within_it(kind):
    model, x, y = linear(10)
    network = kind(model).eval()
    can = worst_margin(model, x, y, THREAT) < -0.3
    left = {}
    for name in ("artq:apgd-margin", "artq:surrogates"):
        crafted = craft(estimator(network, 10), name, x, y, threat=THREAT)
        left[name] = float((margin(network, crafted.x_adv, y) > 0)[can].float().mean())
    assert int(can.sum()) > 20 and left["artq:apgd-margin"] > 0.6
    assert left["artq:surrogates"] < 0.45


def test_the_inner_network_alone_answers_for_itself_and_knows_the_answer_of_the_whole():
    model, x, _ = linear(10)
    whole = Away(model).eval()
    alone = InnerAlone(whole, model)
    assert torch.equal(alone(x), model(x)) and torch.equal(alone.answer, whole(x))
    torch.testing.assert_close(slope(alone, x), slope(model, x))


def test_targeted_passes_follow_a_gradient_even_where_none_is_faithful():
    """A vote does not change in small steps, so no gradient predicts it; that of the copies leads across all the same."""
    model, x, y = linear(10)
    vote = Vote(model).eval()
    can, left = worst_margin(model, x, y, THREAT) < -0.3, {}
    for targets in (0, 9):
        crafted = craft(estimator(vote, 10), "artq:surrogates", x, y, threat=THREAT, options={"targets": targets})
        left[targets] = int((margin(vote, crafted.x_adv, y) > 0)[can].sum())
    assert left[9] <= left[0]
    assert left[9] <= 0.1 * int(can.sum())
