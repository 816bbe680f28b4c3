"""Diversified restarts: where they start, what they climb, and surfaces on which one descent gets stuck."""

from __future__ import annotations

import torch
from adaptive_nets import estimator, margin
from torch import nn

from art_qplugins import Threat
from art_qplugins.attacks.adaptive.diversified import diversified
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.attacks.craft import craft

SHAPE = (1, 4, 4)


class Ridge(nn.Module):
    """Two pixels decide. The margin falls slowly along the first to a floor, and along the second only far from the image.

    z_0 is constant. z_1 rises with the first pixel up to a floor that leaves the image correct. z_2 stays low until the second
    pixel is far from the middle, and wins there. Its gradient hides behind that of z_1, which is larger almost everywhere.
    """

    def forward(self, x):
        first, second = x[:, 0, 0, 0] - 0.5, x[:, 0, 0, 1] - 0.5
        own = torch.ones_like(first)
        decoy = 0.5 + 0.4 * torch.tanh(10 * first)
        way = -1 + 0.1 * second + 40 * (second - 0.15).clamp_min(0)
        return torch.stack([own, decoy, way], 1)


def images(n):
    return torch.full((n, *SHAPE), 0.5)


def made(net, x, y, **settings):
    settings = {"batch_size": 8, "seed": 0, "max_iter": 8, "threat": Threat("Linf", 0.2), **settings}
    return AttackRun(name="artq:test", module=net, x=x, y=y, **settings)


def test_restarts_reach_a_class_that_hides_behind_a_nearer_one():
    x, y, threat = images(30), torch.zeros(30, dtype=torch.long), Threat("Linf", 0.2)
    with torch.no_grad():
        assert (Ridge()(x).argmax(1) == 0).all()
    left = {}
    for name in ("artq:apgd-margin", "artq:diversified"):
        crafted = craft(estimator(Ridge(), 3, SHAPE), name, x, y, threat=threat)
        left[name] = float((margin(Ridge(), crafted.x_adv, y) > 0).float().mean())
    assert left["artq:apgd-margin"] > 0.9
    assert left["artq:diversified"] == 0


class Seen(nn.Module):
    """A linear network. It notes its inputs."""

    def __init__(self, bias=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(5, 16, generator=generator))
        self.bias = bias * torch.eye(5)[0]
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return x.flatten(1) @ self.weight.T + self.bias


def test_starts_are_at_corners_of_the_ball_along_a_random_mix_of_the_logits():
    net, x = Seen(bias=100.0), images(12)
    run = made(net, x, torch.zeros(12, dtype=torch.long), batch_size=12, max_iter=4)
    diversified(run, 2)
    # The clean images; for each restart two steps of its start, then a pass of one step and one of four.
    assert [len(a) for a in net.asked] == [12] * (1 + 2 * (2 + 2 + 5))
    for first in (3, 12):
        start = net.asked[first]
        torch.testing.assert_close((start - x).abs(), torch.full_like(x, 0.2))
        assert len(start.unique(dim=0)) > 6  # each image has its own direction


def test_a_given_start_is_where_the_first_restart_begins():
    net, x = Seen(bias=100.0), images(4)
    run = made(net, x, torch.zeros(4, dtype=torch.long), start=x + 0.01)
    diversified(run, 1)
    assert torch.equal(net.asked[1], x + 0.01)


def test_what_is_broken_is_left_alone():
    net, x = Seen(), images(6)
    with torch.no_grad():
        y = net(x).argmax(1)
    run = made(net, x, (y + 1) % 5)
    diversified(run, 5)
    assert run.robust_rows().numel() == 0
    assert len(net.asked) == 1 + 1  # for y, and for the nearest classes
