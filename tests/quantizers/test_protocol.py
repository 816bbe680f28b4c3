"""Every quantizer of activations shows its range and the function that it rounds; what does is found in a network."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from art_qplugins import QuantHardtanh, QuantReLU, StochasticQuantizer, UniformWeightQuantizer
from art_qplugins.quantizers import QUANTIZERS, activation_quantizers
from art_qplugins.quantizers.protocol import ActivationQuantizer, as_quantizer
from art_qplugins.quantizers.surrogates import Surrogate, surrogate_layers
from art_qplugins.recipes.model import Quantization


def of_row(row, bits):
    """The module of a row of the registry, with its highest level at 1.5."""
    table = {"activation": row.name, "activation_bits": bits, "clip": 1.5}
    return row.make(Quantization(**table, **({"alpha": 2.0} if "alpha" in row.arguments else {})).model_dump())


OURS = {
    "QuantReLU": lambda bits: QuantReLU(bits, 1.5),
    "QuantHardtanh": lambda bits: QuantHardtanh(bits, -0.5, 1.5),
    "stochastic-2": lambda bits: StochasticQuantizer(bits, alpha=2.0, clip=1.5),
    "stochastic-1.5": lambda bits: StochasticQuantizer(bits, alpha=1.5, clip=1.5),
    "stochastic-signed": lambda bits: StochasticQuantizer(bits, clip=1.5, low=-0.5),
    **{name: partial(of_row, row) for name, row in QUANTIZERS.items() if row.place == "activation"},
}


class Conventional(nn.Module):
    """What other packages may write: the attributes of QuantReLU and no more."""

    def __init__(self, num_bits=3, clip=2.0, surrogate=None):
        super().__init__()
        self.num_bits, self.clip, self.surrogate = num_bits, clip, surrogate


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
@pytest.mark.parametrize("num_bits", [1, 3])
def test_it_rounds_its_full_precision_form_to_levels_of_its_range(make, num_bits):
    quantizer = make(num_bits)
    assert isinstance(quantizer, ActivationQuantizer) and quantizer.num_bits == num_bits
    low, high = map(float, quantizer.range)
    assert low in (0.0, -0.5) and high == pytest.approx(1.5, rel=1e-5)
    step = (high - low) / (2**num_bits - 1)
    x = torch.linspace(-1, 3, 401)
    value, real = quantizer(x).detach(), quantizer.full_precision(x).detach()
    torch.testing.assert_close((value - low) / step, ((value - low) / step).round(), rtol=0, atol=1e-4)
    assert real.min() >= low - 1e-6 and real.max() <= high + 1e-6
    if "stochastic" not in str(type(quantizer)).lower():
        assert ((value - real).abs() <= step / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_the_full_precision_form_has_the_gradient_of_the_quantizer(make):
    quantizer = make(2).double()
    points = [torch.linspace(-1, 3, 402, dtype=torch.float64).requires_grad_() for _ in range(2)]
    values = quantizer(points[0]), quantizer.full_precision(points[1])
    slopes = [torch.autograd.grad(value.sum(), x)[0] for value, x in zip(values, points, strict=True)]
    # The slope of a random quantizer is its mean over a cell of a table, but at alpha = 2.
    exact = getattr(quantizer, "alpha", 2) == 2
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-8 if exact else 1e-3)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_the_full_precision_form_of_a_random_quantizer_is_the_mean_of_its_draws(alpha):
    quantizer, x = StochasticQuantizer(2, alpha=alpha, clip=1.5), torch.linspace(-1, 3, 41)
    draws = quantizer(x.expand(20_000, -1)).detach()
    torch.testing.assert_close(quantizer.full_precision(x).detach(), draws.mean(0), rtol=0, atol=0.02)


def test_the_quantizers_of_a_network_are_found_in_order():
    shared = QuantReLU(4)
    network = nn.Sequential(shared, nn.ReLU(), nn.Sequential(StochasticQuantizer(2), Conventional()), shared)
    found = activation_quantizers(network)
    assert [part for part, _ in found] == [shared, network[2][0], network[2][1]]
    assert [quantizer.num_bits for _, quantizer in found] == [4, 2, 3]
    assert found[0][1] is shared


def test_a_module_with_the_attributes_of_quantrelu_takes_part():
    quantizer = as_quantizer(Conventional(3, 2))
    assert (quantizer.num_bits, quantizer.range) == (3, (0.0, 2.0))
    assert quantizer.full_precision(torch.tensor([-1.0, 1.0, 3.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "module",
    [nn.ReLU(), nn.Linear(2, 2), UniformWeightQuantizer(3), Conventional(surrogate="leaky"), Conventional(surrogate=3)],
)
def test_what_is_no_quantizer_of_activations_is_not_taken_for_one(module):
    assert as_quantizer(module) is None
    assert surrogate_layers(module) == []


def test_random_quantizers_have_no_surrogate_to_exchange():
    network = nn.Sequential(QuantReLU(2), StochasticQuantizer(2), Conventional(surrogate=Surrogate("leaky")))
    assert surrogate_layers(network) == [network[0], network[2]]
