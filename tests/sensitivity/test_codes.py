"""What codes tell of images: networks whose distributions are known, and what clean images must not gain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from art_qplugins import InputError, StochasticQuantizer, quantize
from art_qplugins.information import mutual_information
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers.noise import stochastic_layers
from art_qplugins.sensitivity.codes import Codes, calls_for


class Coded(nn.Module):
    """Pixels times 3 are rounded to the bins 0, 1, 2 and 3: a pixel of k / 3 is bin k for certain."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = StochasticQuantizer(2, clip=3.0)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.quantizer(3 * x.flatten(1)))


def images(*codes):
    """An image for each row of four codes."""
    return torch.tensor(codes).view(-1, 1, 2, 2) / 3


EVEN = images(*[[(j + unit) % 4 for unit in range(4)] for j in range(8)])  # each unit has each code twice


def nats(share):
    return -math.log(share) / math.log(4)


def test_certain_codes_that_are_all_as_frequent_tell_everything():
    told = Codes(Coded(), EVEN, batch_size=3).told(EVEN)
    assert told.mutual == pytest.approx(1, abs=1e-5)
    # of the eight others one has the code of the image, and the image that stands for itself a quarter of it
    assert told.images.tolist() == pytest.approx([nats(1.25 / 8)] * 8, rel=1e-5)


def test_an_attack_that_gives_all_images_one_code_leaves_nothing():
    told = Codes(Coded(), EVEN).told(torch.zeros_like(EVEN))
    assert told.mutual == pytest.approx(0, abs=1e-6)
    first = (3 * nats(2.25 / 8) + nats(1.25 / 8)) / 4  # one unit of each image had this code before
    assert told.images.tolist() == pytest.approx([first] * 8, rel=1e-5)


def test_between_two_bins_half_of_what_certain_codes_tell_is_noise():
    x = images(*[[j % 4] * 4 for j in range(8)])
    between = images([0.5] * 4, [2.5] * 4).repeat(4, 1, 1, 1)  # bins 0 or 1, and bins 2 or 3
    told = Codes(Coded(), x).told(between)
    assert told.mutual == pytest.approx(0.5, abs=1e-5)
    others = [[2.25 - (own == k) for k in range(4)] for own in (0, 1, 2, 3)]
    pairs = [(0, 1), (2, 3), (0, 1), (2, 3)]
    expected = [
        sum(0.5 * math.log(0.5 / (counts[k] / 8)) for k in pair) / math.log(4)
        for counts, pair in zip(others, pairs, strict=True)
    ]
    assert told.images.tolist() == pytest.approx(expected * 2, rel=1e-4)


def test_a_bin_that_no_other_image_has_is_finite():
    x = images(*[[0] * 4] * 5)
    told = Codes(Coded(), x).told(images(*[[3] * 4] * 5))
    assert told.images.tolist() == pytest.approx([nats(0.25 / 5)] * 5, rel=1e-5)


def network(**ensemble):
    torch.manual_seed(0)
    net = quantize(ConvNet((1, 8, 8), 10, width=4).eval(), activation_bits=2, alpha=1.5)
    return StochasticEnsemble(net, **ensemble) if ensemble else net


def test_fresh_clean_images_look_like_the_others():
    """Against a marginal that holds them, the images it was made of would look nearer than others of the same kind."""
    x = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = Codes(network(), x[:60], draws=3)
    own, fresh = codes.told(x[:60]).images, codes.told(x[60:]).images
    spread = math.sqrt(float(own.var() / 60 + fresh.var() / 60))
    assert abs(float(own.mean() - fresh.mean())) < 4 * spread


def test_the_information_is_that_of_the_layers_distributions():
    """One layer alone draws nothing before itself, so one draw is all draws."""
    x = torch.rand(9, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    module = Coded()
    expected = mutual_information(module.quantizer.probabilities(3 * x.flatten(1)).detach())
    for batch_size in (2, 9):
        assert Codes(module, x, batch_size=batch_size).told(x).mutual == pytest.approx(float(expected), rel=1e-5)


def test_draws_are_fixed_and_counted():
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    module = network(draws=4)
    asked = []
    module.register_forward_hook(lambda *_: asked.append(1))
    codes = Codes(module, x, draws=10, batch_size=2, seed=3)
    assert calls_for(module, 10) == 3 and len(asked) == 1 + 3 * 3
    found = codes.told(x)
    assert torch.equal(Codes(module, x, draws=10, batch_size=2, seed=3).told(x).images, found.images)
    assert not torch.equal(Codes(module, x, draws=10, batch_size=2, seed=4).told(x).images, found.images)
    assert calls_for(network(draws=4, frozen=True), 10) == 1


def test_draws_inside_an_ensemble_are_as_good_as_several_calls():
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    several, inside = (Codes(network(draws=draws), x, draws=40).told(x).mutual for draws in (1, 40))
    assert several == pytest.approx(inside, rel=0.2)


def test_a_network_without_codes_is_refused():
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(InputError, match="it has no stochastic quantizer"):
        Codes(ConvNet((1, 8, 8), 10, width=2), x)
    unreached = nn.Sequential(ConvNet((1, 8, 8), 10, width=2))
    unreached.spare = StochasticQuantizer(2)
    unreached.forward = lambda x: unreached[0](x)
    with pytest.raises(InputError, match="does not reach"):
        Codes(unreached, x)
    with pytest.raises(InputError, match="images: their shape"):
        Codes(network(), x).told(x[:1])
    assert len(stochastic_layers(network())) > 1
