"""What an attack asks the module for: other points than the clean images, and points that are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins.attacks.craft import craft
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.gradients.visits import watching
from art_qplugins.threat import Threat

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


def seen(*calls):
    net = nn.Identity()
    with watching(net, X) as visits:
        for points in calls:
            net(points)
    net(torch.full_like(X, torch.nan))  # after the attack
    return visits.elsewhere, visits.undefined


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([], (False, 0)),
        ([X], (False, 0)),
        (
            [X.flip(0), X[2:3], X[[1, 1, 4]], X.double(), X.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)],
            (False, 0),
        ),
        ([X.transpose(2, 3)], (True, 0)),  # the same pixels in another order
        ([X, torch.nextafter(X, torch.ones_like(X))], (True, 0)),
        ([torch.where(torch.arange(6)[:, None, None, None] == 3, torch.nan, X)], (False, 1)),
        ([X * torch.inf, X], (False, 6)),
        ([X * torch.nan, X * 0.5, X * torch.nan], (True, 12)),
        ([X[:, :, :2], X[0], X[:0]], (False, 0)),  # no images like these
    ],
)
def test_visits_are_points_that_are_no_clean_image(calls, expected):
    assert seen(*calls) == expected


class Blunt(nn.Module):
    """Has logits, and the gradient that it is told to have."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        if self.factor == 0:
            x = x.detach() + 0 * x
        return self.last(x.flatten(1))


def crafted(attack, factor=1, **options):
    net = QuantizedClassifier(Blunt(factor).eval(), nn.CrossEntropyLoss(), (1, 4, 4), 3, clip_values=(0.0, 1.0))
    return craft(net, attack, X, Y, threat=Threat("Linf", 0.1), options=options)


def test_an_attack_along_a_zero_gradient_visits_nothing():
    made = crafted("art:bim", 0)
    assert made.visited is False
    assert torch.equal(made.x_adv, X)


@pytest.mark.parametrize(
    "attack", ["art:bim", "torchattacks:bim", "autoattack:square", "artq:apgd-margin", "art:cw-linf"]
)
def test_an_attack_that_works_visits_other_points(attack):
    made = crafted(attack)
    assert (made.visited, made.undefined) == (True, 0)
