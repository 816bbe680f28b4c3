"""Scales of the logits, each against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from art_qplugins.attacks.adaptive.scalings import SCALINGS, error_signal_scale, hessian_scales, jacobian_scales


def test_the_scale_per_image_makes_the_two_largest_logits_five_apart():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.1, 0.0, -4.0], [0.0, 1e3, 0.0], [1e-6, 0.0, -1.0]], dtype=torch.float64)
    scale = SCALINGS["per-image"](nn.Identity(), logits, torch.zeros(4, dtype=torch.long), logits)
    found = scale(logits, torch.arange(4))
    torch.testing.assert_close(found, torch.tensor([5.0, 50.0, 0.005, 5e6], dtype=torch.float64))
    top = (found[:, None] * logits).topk(2, dim=1).values
    torch.testing.assert_close(top[:, 0] - top[:, 1], torch.full((4,), 5.0, dtype=torch.float64))


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("error", [0.01, 0.4, 1e-72])
def test_at_its_scale_cross_entropy_has_the_error_signal_that_was_asked_for(error, classes):
    """Where all other logits are equal and gamma below that of the label."""
    gamma = 0.3
    beta = float(error_signal_scale(torch.tensor([gamma], dtype=torch.float64), error, classes))
    others = (classes - 1) * math.exp(-beta * gamma)
    assert others / (1 + others) == pytest.approx(error, rel=1e-9)


def test_the_scale_by_the_jacobian_is_one_over_its_mean_singular_value():
    weight = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    linear = nn.Linear(4, 10, bias=False).double()
    linear.weight.data = weight
    network, x = nn.Sequential(nn.Flatten(), linear), torch.rand(3, 1, 2, 2, dtype=torch.float64)
    found = jacobian_scales(network, x, (1 - network(x)).argmax(1), x)  # all are wrong, so none is saturated
    expected = 1 / torch.linalg.svdvals(weight).mean()  # 4 of them: as many as pixels
    torch.testing.assert_close(found, expected.expand(3))


@pytest.mark.parametrize("images", [1, 3])
def test_the_number_of_classes_costs_one_image(images):
    seen, network = [], nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    hessian_scales(network, torch.rand(images, 1, 2, 2), torch.zeros(images, dtype=torch.long))
    assert seen == [1, images]
