"""An attack that did nothing is no silent success: its cell says so, and so does a finding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import Threat, evaluate
from art_qplugins.estimators import QuantizedClassifier


class Linear(nn.Module):
    """Four quadrants, four classes: the brightest one."""

    def __init__(self, power=None):
        super().__init__()
        self.power = power

    def forward(self, x):
        quadrants = nn.functional.avg_pool2d(x, 4).flatten(1)
        if self.power is not None:  # the same order of the classes, with another slope
            quadrants = (10 * quadrants).detach() + self.power * quadrants
        return 10 * quadrants


@pytest.fixture(scope="module")
def images():
    x = np.full((8, 1, 8, 8), 0.45, dtype=np.float32)
    y = np.arange(8) % 4
    for i, label in enumerate(y):
        row, column = divmod(int(label), 2)
        x[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.55
    return x, y


def findings(net, images, attack, **options):
    estimator = QuantizedClassifier(net, nn.CrossEntropyLoss(), (1, 8, 8), 4, clip_values=(0.0, 1.0))
    run = evaluate(estimator, images, Threat("Linf", 0.2), [(attack, options)], level=0)
    (cell,) = [c for c in run.results.cells if c.role == "attack"]
    return cell, {f.id for f in run.results.models[0].findings if f.fired}


def test_an_attack_that_works_is_not_accused(images):
    cell, found = findings(Linear(), images, "art:bim")
    assert (cell.status, cell.accuracy, cell.visited, cell.undefined) == ("success", 0.0, True, 0)
    assert not found & {"idle-attack", "undefined-path", "other-options"}


@pytest.mark.parametrize("attack", ["art:bim", "art:fgsm", "torchattacks:bim"])
def test_an_attack_along_a_gradient_of_zero_is_said_to_have_done_nothing(images, attack):
    cell, found = findings(Linear(power=0.0), images, attack)
    assert (cell.accuracy, cell.visited) == (1.0, False)
    assert "idle-attack" in found


def test_fewer_steps_than_by_default_are_a_word_in_the_report(images):
    _, found = findings(Linear(), images, "art:bim", max_iter=1)
    assert "other-options" in found


def test_more_steps_than_by_default_are_not(images):
    _, found = findings(Linear(), images, "art:bim", max_iter=40)
    assert "other-options" not in found


class Lost(nn.Module):
    """Its gradient is NaN, and its logits are not."""

    def forward(self, x):
        quadrants = nn.functional.avg_pool2d(x, 4).flatten(1)
        return 10 * quadrants + torch.where(quadrants > 2, quadrants, 0 * quadrants).abs().sqrt()


@pytest.mark.parametrize(
    "attack",
    [
        *("artq:apgd-margin", "torchattacks:bim", "art:bim", "art:pgd-numpy", "autoattack:apgd-ce"),
        pytest.param("art:cw-linf", marks=pytest.mark.slow),
    ],
)
def test_an_attack_along_a_gradient_of_nan_says_so(images, attack):
    cell, found = findings(Lost(), images, attack)
    assert cell.undefined > 0
    assert "undefined-path" in found
