"""Information, against channels whose information is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from art_qplugins import StochasticQuantizer
from art_qplugins.information import (
    entropy,
    information,
    member_information,
    member_joint,
    mutual_information,
    pooled,
    uncertainty,
)


def h(*masses):
    """Entropy in nats."""
    return -sum(m * math.log(m) for m in masses if m)


def channel(*rows):
    """A row of a channel for each image, of one unit: (N, 1, K)."""
    return torch.tensor(rows, dtype=torch.float64)[:, None]


E = 0.11
#: Channels with equally likely inputs: their rows, and I(X; Q) and I(Q; Q') in nats.
CHANNELS = {
    "binary symmetric": (
        channel([1 - E, E], [E, 1 - E]),
        math.log(2) - h(E, 1 - E),
        math.log(2) - h(2 * E * (1 - E), 1 - 2 * E * (1 - E)),  # two such channels, one after the other
    ),
    "erasure": (
        channel([1 - E, E, 0], [0, E, 1 - E]),
        (1 - E) * math.log(2),
        (1 - E) ** 2 * math.log(2),  # neither is erased
    ),
    "Z": (
        channel([1, 0], [E, 1 - E]),
        h((1 + E) / 2, (1 - E) / 2) - h(E, 1 - E) / 2,
        2 * h((1 + E) / 2, (1 - E) / 2) - h((1 + E**2) / 2, *[E * (1 - E) / 2] * 2, (1 - E) ** 2 / 2),
    ),
    "useless": (channel(*[[0.2, 0.5, 0.3]] * 4), 0.0, 0.0),
    **{f"noiseless, {k}": (channel(*torch.eye(k).tolist()), math.log(k), math.log(k)) for k in (2, 3, 8)},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("p", "known", "of_members"), CHANNELS.values(), ids=CHANNELS)
def test_of_a_known_channel(p, known, of_members, dtype):
    p, k = p.to(dtype), p.shape[-1]
    assert float(mutual_information(p)) * math.log(k) == pytest.approx(known, abs=1e-6)
    assert float(member_information(p)) * math.log(k) == pytest.approx(of_members, abs=1e-6)
    assert float(information(p, p.mean(0)).mean()) * math.log(k) == pytest.approx(known, abs=1e-6)
    # Of several units it is the mean, wherever they are.
    units = p[:, :, None].expand(-1, 3, 2, -1)
    useless = torch.full_like(units, 1 / k)
    assert float(mutual_information(torch.cat([units, useless], 1))) * math.log(k) == pytest.approx(known / 2, abs=1e-6)
    assert float(member_information(torch.cat([units, useless], 1))) * math.log(k) == pytest.approx(
        of_members / 2, abs=1e-6
    )


def distributions(seed, images, units, bins, spread):
    """Some with bins without mass."""
    draw = torch.Generator().manual_seed(seed)
    p = (torch.randn(images, units, bins, generator=draw, dtype=torch.float64) * spread).softmax(-1)
    p = p.where(p > 0.05, 0.0) + torch.nn.functional.one_hot(p.argmax(-1), bins) * 1e-3
    return p / p.sum(-1, keepdim=True)


SOME = {
    "seed": st.integers(0, 2**32),
    "images": st.integers(1, 9),
    "units": st.integers(1, 4),
    "bins": st.integers(2, 6),
    "spread": st.floats(0, 20),
}


@given(**SOME)
def test_members_know_no_more_of_each_other_than_of_the_image_and_that_is_at_most_all(**some):
    p = distributions(**some)
    of_image, of_members = float(mutual_information(p)), float(member_information(p))
    assert -1e-12 <= of_members <= of_image + 1e-12
    assert of_image <= min(1, math.log(len(p)) / math.log(p.shape[-1])) + 1e-12
    # A bin is a function of all bins: what merges bins loses information.
    merged = torch.stack([p[..., 0], p[..., 1:].sum(-1)], -1)
    assert float(mutual_information(merged)) * math.log(2) <= of_image * math.log(p.shape[-1]) + 1e-12


@given(**SOME)
def test_of_an_image_it_is_a_divergence_whose_mean_is_the_mutual_information(**some):
    p = distributions(**some)
    found = information(p, p.mean(0))
    assert found.shape == (len(p),) and float(found.min()) >= -1e-12
    assert float(found.mean()) == pytest.approx(float(mutual_information(p)), abs=1e-12)


@given(**SOME)
def test_of_parts_with_the_marginal_of_the_whole_the_mean_is_that_of_the_whole(**some):
    p = torch.cat([distributions(**some), distributions(**{**some, "seed": some["seed"] + 1})])
    parts = p.chunk(2)
    for of, joint in ((mutual_information, lambda p: p.mean(0)), (member_information, member_joint)):
        shared = joint(p)
        torch.testing.assert_close(sum(of(part, shared) for part in parts) / 2, of(p))


def test_against_the_textbook_sum_over_the_joint_distribution():
    p = (torch.randn(9, 3, 4, dtype=torch.float64) * 2).softmax(-1)
    joint = p / len(p)  # images are equally likely
    marginal = joint.sum(0, keepdim=True)
    expected = (joint * (joint / (marginal / len(p))).log()).sum((0, 2)).mean() / math.log(4)
    assert float(mutual_information(p)) == pytest.approx(float(expected), rel=1e-6)
    both = torch.einsum("nuk,nul->ukl", p, p) / len(p)
    alone = both.sum(2)
    expected = (both * (both / (alone[:, :, None] * alone[:, None])).log()).sum((1, 2)).mean() / math.log(4)
    assert float(member_information(p)) == pytest.approx(float(expected), rel=1e-6)


def test_half_a_nat_is_lost_to_unbiased_rounding_of_an_even_input():
    module = StochasticQuantizer(6).double()
    x = torch.linspace(0, 6, 200_001, dtype=torch.float64)
    p = module.probabilities(x).detach()
    lost = (1 - float(mutual_information(p))) * math.log(64)
    assert lost == pytest.approx(0.5, abs=0.02)  # the mean entropy of a Bernoulli variable with an even parameter


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_bins_without_mass_give_finite_values_and_gradients(dtype):
    p = torch.eye(3, dtype=dtype)[:2, None].repeat(2, 1, 1).requires_grad_()  # nobody uses the third bin
    new = torch.eye(3, dtype=dtype)[2:, None].requires_grad_()
    known = p.detach().mean(0)
    for value in (mutual_information(p), member_information(p), information(new, known).sum(), entropy(p).sum()):
        slopes = torch.autograd.grad(value, (p, new), allow_unused=True)
        assert value.isfinite() and all(slope is None or slope.isfinite().all() for slope in slopes)
    assert float(information(new, known).detach()) > 10  # of a bin that nobody used, much


@pytest.mark.parametrize("of", [mutual_information, member_information, lambda p: information(p, p.mean(0)).sum()])
def test_the_gradient_is_the_slope(of):
    logits = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: of(z.softmax(-1)), logits)


def test_pooling_is_the_mean_over_the_positions_of_a_channel():
    p = torch.rand(3, 4, 2, 5, 6).softmax(-1)
    found = pooled(p)
    assert found.shape == (3, 4, 6)
    torch.testing.assert_close(found[1, 2], p[1, 2].reshape(10, 6).mean(0))
    assert torch.equal(pooled(p[:, :, 0, 0]), p[:, :, 0, 0])  # after a linear layer there are no positions
    assert float(mutual_information(found)) <= float(mutual_information(p))  # convex in the channel


def test_uncertainty_of_ensembles_that_are_known():
    sure, torn = [1.0, 0.0, 0.0, 0.0], [0.25] * 4
    members = torch.tensor(
        [  # of four members: all sure, all torn, two against two, three against one
            [sure, torn, sure, sure],
            [sure, torn, sure, sure],
            [sure, torn, sure[::-1], sure],
            [sure, torn, sure[::-1], sure[::-1]],
        ]
    )
    found = uncertainty(members)
    quarter = h(0.25, 0.75)
    torch.testing.assert_close(found.entropy, torch.tensor([0, math.log(4), math.log(2), quarter]))
    torch.testing.assert_close(found.mutual_information, torch.tensor([0, 0, math.log(2), quarter]))
    torch.testing.assert_close(found.variation_ratio, torch.tensor([0, 0, 0.5, 0.25]))
