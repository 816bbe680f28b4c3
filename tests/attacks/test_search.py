"""Random search from the best images: where it starts, what it keeps, and what leads it."""

from __future__ import annotations

import pytest
import torch
from adaptive_nets import estimator, linear, margin, worst_margin
from torch import nn

from art_qplugins import Threat
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.attacks.adaptive.search import search
from art_qplugins.attacks.craft import craft
from art_qplugins.evaluation.score import check_legal
from art_qplugins.gradients.saturation import before_saturation

THREAT = Threat("Linf", 0.06)


def run_of(model, x, y, start=None, threat=THREAT):
    return AttackRun(
        name="a", module=model, x=x, y=y, threat=threat, batch_size=7, seed=0, max_iter=0, start=start, random=False
    )


class Steps(nn.Module):
    def forward(self, x):
        return (x * 40).round() / 40


def test_it_breaks_what_can_clearly_be_broken_without_a_gradient():
    model, x, y = linear(10, [Steps()])
    crafted = craft(estimator(model, 10), "artq:search", x, y, threat=THREAT, options={"n_queries": 600})
    check_legal(x, crafted.x_adv, THREAT)
    can = worst_margin(model, x, y, THREAT) < -0.4
    assert int(can.sum()) > 20 and (margin(model, crafted.x_adv, y)[can] < 0).all()
    assert crafted.backward_samples == 0 and crafted.forward_samples <= 600 * len(x) + 16


def test_it_goes_on_from_the_best_points_and_never_ends_worse():
    model, x, y = linear(10, [Steps()])
    half = run_of(model, x, y)
    search(half, 40)
    before, start = half.margin.clone(), half.image.clone()
    again = run_of(model, x, y, start)
    search(again, 1)
    torch.testing.assert_close(again.margin, before)
    assert torch.equal(again.image, start)
    search(again, 60)
    assert (again.margin <= before).all() and (again.margin < before).any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_it_stays_in_the_ball(norm):
    model, x, y = linear(10)
    threat = Threat(norm, {"Linf": 0.03, "L2": 0.2}[norm])
    run = run_of(model, x, y, threat=threat)
    search(run, 50)
    check_legal(x, run.image, threat)


class Squashed(nn.Module):
    """Probabilities that are flat almost everywhere: a softmax of large logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return torch.softmax(500 * self.network(x), 1)


def test_the_tensor_before_a_saturation_leads_where_the_logits_are_flat():
    model, x, y = linear(10)
    flat = Squashed(nn.Sequential(*model))
    view = before_saturation(flat, x, radius=THREAT.eps)
    assert view is not None
    can = worst_margin(model, x, y, THREAT) < -0.4
    left = {}  # the logits lead nowhere, and the tensor to the boundary
    for name, leads in (("logits", None), ("tensor", view)):
        run = run_of(flat, x, y, x.clone())
        search(run, 600, leads)
        assert torch.equal(run.broken, (flat(run.image).argmax(1) != y))
        left[name] = int((~run.broken)[can].sum())
    assert left["tensor"] == 0 < left["logits"]
