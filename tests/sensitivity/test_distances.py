"""Distances between the activations of clean and changed images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import InputError, activation_distances, quantize
from art_qplugins.models.convnet import ConvNet


def images(n=6, seed=0):
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return x, (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


def test_it_is_the_length_of_the_change_by_that_of_the_clean_activations():
    x, changed = images()
    first, second = nn.Linear(64, 20), nn.Linear(20, 3)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    found = activation_distances(network, x, changed)
    assert list(found) == ["1", "3"]
    with torch.no_grad():
        for layer, part in (("1", network[:1]), ("3", network[:3])):
            a, b = part(x).double(), part(changed).double()
            torch.testing.assert_close(found[layer], (b - a).norm(dim=1) / a.norm(dim=1))


def test_batches_change_nothing():
    x, changed = images()
    network = quantize(ConvNet((1, 8, 8), 10, width=4), activation_bits=3)
    whole, parts = (activation_distances(network, x, changed, batch_size=size) for size in (6, 4))
    for layer in whole:
        torch.testing.assert_close(whole[layer], parts[layer], rtol=1e-4, atol=1e-6)


def test_a_change_within_a_level_is_gone_behind_a_quantizer_and_one_across_a_threshold_grows():
    """Figure 3a: quantization takes away small changes, and makes larger ones as large as a level."""
    first = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(first.weight)
    network = nn.Sequential(first, nn.ReLU6(), nn.Conv2d(1, 1, 1))
    coarse = quantize(network, activation_bits=1, clip=1.0)
    x = torch.full((2, 1, 4, 4), 0.9)
    x[1] = 0.6
    changed = x - 0.2
    plain, found = (activation_distances(m, x, changed)["2"] for m in (network, coarse))
    torch.testing.assert_close(plain, torch.tensor([0.2 / 0.9, 0.2 / 0.6], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_a_random_network_has_the_same_draws_for_both_images(stochastic):
    x, changed = images()
    assert all(not values.any() for values in activation_distances(stochastic, x, x).values())
    found = activation_distances(stochastic, x, changed)
    assert all(values.shape == (6,) and (values > 0).all() for values in found.values())
    again = activation_distances(stochastic, x, changed)
    assert all(torch.equal(found[layer], again[layer]) for layer in found)


def test_where_all_activations_are_zero_the_distance_is_zero_or_infinite():
    first = nn.Conv2d(1, 1, 1)
    nn.init.ones_(first.weight)
    nn.init.constant_(first.bias, -0.5)
    network = nn.Sequential(first, nn.ReLU(), nn.Conv2d(1, 1, 1))
    x = torch.zeros(2, 1, 4, 4)
    changed = torch.stack([x[0] + 0.1, x[1] + 1])
    assert activation_distances(network, x, changed)["2"].tolist() == [0.0, torch.inf]


def test_images_of_other_shapes_are_one_line():
    x, _ = images()
    with pytest.raises(InputError, match=r"changed: its shape is \(2, 1, 8, 8\), and x has \(6, 1, 8, 8\)"):
        activation_distances(ConvNet((1, 8, 8), 10, width=4), x, x[:2])
