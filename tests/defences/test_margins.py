"""The search for margins against networks whose margins are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from art_qplugins import InputError, margins, random_directions

SHAPE = (1, 7, 7)


class Counting(nn.Module):
    """A network, and how many images each of its passes saw."""

    def __init__(self, network):
        super().__init__()
        self.network, self.batches = network, []

    def forward(self, x):
        self.batches.append(len(x))
        assert not self.training and not torch.is_grad_enabled()
        return self.network(x)


def linear(classes=3):
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), classes))


def exact(network, x, y, directions, largest):
    """The smallest t > 0 at which another logit reaches that of the label."""
    units = (directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).flatten(1).double()
    weight, bias = (p.detach().double() for p in network[1].parameters())
    logits, slopes = x.flatten(1).double() @ weight.T + bias, units @ weight.T
    gap = logits.gather(1, y[:, None]) - logits  # (images, classes)
    closing = slopes[None] - slopes.T[y][:, :, None]  # (images, directions, classes)
    t = gap[:, None] / closing
    t = torch.where((closing > 0) & (gap[:, None] > 0), t, math.inf).amin(2)
    return torch.where(t > largest, math.inf, t)


@pytest.mark.parametrize("tolerance", [1e-3, 0.05])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 40.0])
def test_of_a_linear_network_they_are_exact_up_to_the_tolerance(tolerance, scale):
    network, x = linear(), torch.rand(60, *SHAPE)
    y = network(x).argmax(1)
    directions = torch.cat([random_directions(20, SHAPE), torch.randn(5, *SHAPE)]) * scale
    found = margins(network, x, y, directions, largest=10.0, tolerance=tolerance)
    known = exact(network, x, y, directions, 10.0)
    assert found.distance.shape == (60, 25)
    near = (known / 10 - 1).abs() < 0.01  # rounding decides whether these are within the largest distance
    small = known < 10 / 64 / 2**10  # these are halved from the first distance on
    assert torch.equal(found.distance.isfinite()[~near], known.isfinite()[~near])
    both = found.distance.isfinite() & known.isfinite() & ~small
    assert 100 < both.sum() < both.numel()
    error = 1 - known[both] / found.distance[both].double()  # of the end that is misclassified
    assert error.min() > -1e-4 and error.max() < tolerance + 1e-4


def test_an_image_that_is_misclassified_has_none_to_go():
    network, x = linear(), torch.rand(10, *SHAPE)
    y = network(x).argmax(1)
    found = margins(network, x, (y + torch.arange(10) % 2) % 3, random_directions(4, SHAPE), largest=10.0)
    assert (found.distance[1::2] == 0).all() and (found.distance[::2] > 0).all()


@pytest.mark.parametrize("batch_size", [1, 7, 64, 5000])
def test_batches_are_full_and_change_nothing(batch_size):
    network, x = linear(), torch.rand(12, *SHAPE)
    y, directions = network(x).argmax(1), random_directions(10, SHAPE)
    counting = Counting(network).train()
    found = margins(counting, x, y, directions, largest=10.0, batch_size=batch_size)
    assert counting.training
    told = []
    whole = margins(network, x, y, directions, largest=10.0, progress=lambda done, of: told.append((done, of)))
    assert told == sorted(told) and told[-1] == (120, 120)
    assert torch.equal(found.distance, whole.distance)
    assert sum(counting.batches) == found.passes == whole.passes
    assert max(counting.batches) <= batch_size
    search = counting.batches[-(-12 // batch_size) :]
    assert search == sorted(search, reverse=True)  # full until no pair is left
    assert found.passes <= 30 * 120


def test_the_network_and_the_images_do_not_change():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(math.prod(SHAPE), 2)).train()
    x, before = torch.rand(6, *SHAPE), {k: v.clone() for k, v in network.state_dict().items()}
    kept = x.clone()
    margins(network, x, torch.zeros(6, dtype=torch.int64), random_directions(3, SHAPE), largest=1.0)
    assert torch.equal(x, kept) and network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_random_directions_are_orthonormal_and_of_their_seed():
    directions = random_directions(49, SHAPE, seed=5).flatten(1)
    torch.testing.assert_close(directions @ directions.T, torch.eye(49), atol=1e-5, rtol=0)
    assert torch.equal(random_directions(49, SHAPE, seed=5).flatten(1), directions)
    assert not torch.equal(random_directions(49, SHAPE, seed=6).flatten(1), directions)
    state = torch.get_rng_state()
    random_directions(2, SHAPE)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"directions": torch.zeros(1, *SHAPE)},
            "directions: the length of direction 0 is 0; a margin needs a direction",
        ),
        (
            {"directions": torch.stack([torch.ones(SHAPE), torch.full(SHAPE, math.nan)])},
            "directions: the length of direction 1 is nan; a margin needs a direction",
        ),
        (
            {"directions": torch.ones(1, 1, 2, 2)},
            r"directions: their shape is \(1, 2, 2\), and images have \(1, 7, 7\)",
        ),
        ({"largest": 0.0}, "largest: it is 0.0; "),
        ({"largest": math.inf}, "largest: it is inf, "),
        ({"tolerance": 0.0}, "tolerance: it is 0.0; "),
        ({"tolerance": 1e-9}, "tolerance: it is 1e-09; "),
        ({"batch_size": 0}, "batch_size: it is 0; "),
        ({"y": torch.zeros(2)}, "y: it is "),
    ],
)
def test_what_has_no_margin_is_refused_in_one_line(given, message):
    good = {"y": torch.zeros(2, dtype=torch.int64), "directions": torch.ones(1, *SHAPE), "largest": 1.0}
    with pytest.raises(InputError, match=f"^{message}[^\n]*$"):
        margins(linear(), torch.rand(2, *SHAPE), **{**good, **given})


def test_a_space_has_no_more_orthogonal_directions_than_dimensions():
    with pytest.raises(
        InputError, match=r"^count: it is 50; images of 49 numbers have at most 49 orthogonal directions$"
    ):
        random_directions(50, SHAPE)
