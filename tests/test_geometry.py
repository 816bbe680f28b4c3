"""Distances by hand, and random points of a ball against the distribution that each norm has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from art_qplugins import Threat
from art_qplugins.geometry import distances, random_noise, random_point

GREY = torch.full((4000, 1, 2, 2), 0.5)


def test_distances_by_hand():
    x = torch.full((3, 2, 2, 2), 0.5)
    moved = x.clone()
    moved[1, 0, 0, 0], moved[1, 1, 0, 0], moved[1, 0, 1, 1] = 0.8, 0.1, 0.5 - 1e-6
    moved[2] = 1.0
    found = {norm: distances(x, moved, norm).tolist() for norm in ("Linf", "L2", "L1", "L0")}
    assert found["L0"] == [0, 2, 4]  # a pixel counts once, whatever its channels do, and however little it moved
    assert found["Linf"] == pytest.approx([0, 0.4, 0.5], rel=1e-6)
    assert found["L2"] == pytest.approx([0, 0.5, 0.5 * np.sqrt(8)], rel=1e-6)
    assert found["L1"] == pytest.approx([0, 0.7 + 1e-6, 4], rel=1e-6)


def test_distances_are_in_float64():
    x = torch.ones(1, 1, 64, 64)
    moved = torch.full_like(x, 1 - 2.0**-24)
    assert distances(x, moved, "L1").dtype == torch.float64
    assert float(distances(x, moved, "L1")) == 4096 * 2.0**-24


def test_a_point_of_the_cube_is_uniform():
    moves = (random_point(GREY, Threat("Linf", 0.2), 3) - GREY).flatten().numpy()
    assert kstest(moves, "uniform", (-0.2, 0.4)).pvalue > 1e-6


@pytest.mark.parametrize(("norm", "order"), [("L2", 2), ("L1", 1)])
def test_in_other_balls_the_radius_to_the_power_of_the_values_is_uniform(norm, order):
    moves = (random_point(GREY, Threat(norm, 0.3), 3) - GREY).flatten(1).double()
    length = torch.linalg.vector_norm(moves, ord=order, dim=1)
    assert float(length.max()) < 0.3 + 1e-6
    assert kstest(((length / 0.3) ** 4).clamp(max=1).numpy(), "uniform").pvalue > 1e-6
    direction = moves / torch.linalg.vector_norm(moves, dim=1, keepdim=True)
    assert direction.mean(0).abs().max() < 5 * 0.5 / np.sqrt(len(GREY))
    torch.testing.assert_close(direction.T @ direction / len(GREY), torch.eye(4).double() / 4, rtol=0, atol=0.03)


@pytest.mark.parametrize("images", [1, 3])
def test_in_l0_as_many_pixels_as_eps_change_in_all_channels(images):
    x = torch.full((images, 3, 4, 4), 0.5)
    changed = random_point(x, Threat("L0", 5), 0) != x
    assert (changed.all(1) == changed.any(1)).all()
    assert changed.any(1).flatten(1).sum(1).tolist() == [5] * images


def test_in_l0_every_pixel_is_as_likely_and_its_values_are_uniform():
    points = random_point(GREY, Threat("L0", 1), 1)
    changed = (points != GREY).flatten(1)
    share = changed.double().mean(0)
    assert (share - 0.25).abs().max() < 5 * np.sqrt(0.25 * 0.75 / len(GREY))
    assert kstest(points.flatten(1)[changed].numpy(), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("threat", [Threat("Linf", 0.4), Threat("L2", 2.0), Threat("L1", 9.0), Threat("L0", 7)])
def test_points_are_images_and_belong_to_their_seed(threat):
    x = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0, 1
    point = random_point(x, threat, 0)
    assert point.min() >= 0 and point.max() <= 1
    assert float(distances(x, point, threat.norm).max()) <= threat.eps + 1e-6
    assert torch.equal(random_point(x, threat, 0), point) and not torch.equal(random_point(x, threat, 1), point)


@pytest.mark.parametrize("threat", [Threat("Linf", 0.2), Threat("L2", 0.4), Threat("L1", 0.45), Threat("L0", 3)])
def test_noise_has_the_length_eps_where_no_value_is_clipped(threat):
    noisy = random_noise(GREY, threat, 0)
    torch.testing.assert_close(
        distances(GREY, noisy, threat.norm), torch.full((len(GREY),), threat.eps).double(), rtol=1e-5, atol=0
    )
    assert ((noisy - GREY).mean(0).abs() < 5 * 0.5 / np.sqrt(len(GREY))).all()
    white = random_noise(torch.ones_like(GREY), threat, 0)
    assert white.max() == 1 and torch.equal(random_noise(GREY, threat, 0), noisy)
