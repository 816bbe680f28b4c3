"""Affine quantizers, and every activation with one: values, gradients, ranges and state."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import InputError, QuantHardtanh, QuantReLU, quantize, surrogate
from art_qplugins.attacks.adaptive.full_precision import full_precision, other_bits
from art_qplugins.quantizers import QuantActivation, QuantAffine, StochasticQuantizer, activation_quantizers
from art_qplugins.quantizers.functional import affine_grid, quant_affine, quant_relu
from art_qplugins.quantizers.functions import QUANTIZABLE

RANGES = [(0.0, 6.0), (-0.17, 6.0), (-3.0, 1.0), (-1.0, 1.0), (-4.0, 0.0), (0.5, 2.0)]


def levels(num_bits, low, high):
    """The levels as numbers, by hand: zero among them, and both ends within half a step."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (2**num_bits - 1)
    below = int(np.floor(-low / step + 0.5))
    return step * (np.arange(2**num_bits) - below)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("num_bits", [1, 2, 3, 8])
def test_values_are_the_nearest_level_and_the_gradient_is_one_strictly_inside(num_bits, low, high):
    layer, wanted = QuantAffine(num_bits, low, high), levels(num_bits, low, high)
    x = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor(wanted, dtype=torch.float32)]).requires_grad_()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    distance = (y.detach().double().numpy() - x.detach().double().numpy().clip(wanted[0], wanted[-1])).__abs__()
    rounding = 2 * np.finfo(np.float32).eps * np.abs(wanted).max()
    assert distance.max() <= (wanted[1] - wanted[0]) / 2 + rounding
    assert len(y.unique()) == 2**num_bits and 0.0 in y
    np.testing.assert_allclose(y.unique().detach().double(), wanted, rtol=1e-6, atol=1e-12)
    ends = [torch.tensor(end, dtype=torch.float32) for end in layer.range]
    assert torch.equal(gradient, ((x > ends[0]) & (x < ends[1])).float())


def test_ties_go_to_the_even_level_and_a_range_from_zero_is_a_quantized_relu():
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert quant_affine(x, 3, 1.0, 4).tolist() == [-2.0, 0.0, 0.0, 2.0, 2.0]
    assert affine_grid(3, -4.0, 3.0) == (1.0, 4) and affine_grid(2, 0.0, 3.0) == (1.0, 0)
    x = torch.randn(10_000) * 4
    assert torch.equal(QuantAffine(4, 0.0, 6.0)(x), quant_relu(x, 4, 6.0))


#: By the module, its function by hand and the range of its quantized values with clip = 6.
HAND = {
    "Hardswish": (nn.Hardswish(), lambda x: x * np.clip(x + 3, 0, 6) / 6, (-0.375, 6)),
    "Hardsigmoid": (nn.Hardsigmoid(), lambda x: np.clip(x + 3, 0, 6) / 6, (0, 1)),
    "GELU": (nn.GELU(), lambda x: torch.special.ndtr(torch.tensor(x)).numpy() * x, (-0.1701, 6)),
    "GELU tanh": (
        nn.GELU("tanh"),
        lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
        (-0.1701, 6),
    ),
    "SiLU": (nn.SiLU(), lambda x: x / (1 + np.exp(-x)), (-0.2785, 6)),
}


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("name", HAND)
def test_an_activation_is_its_function_on_the_levels_of_its_range(name, num_bits):
    module, function, (low, high) = HAND[name]
    twin = quantize(nn.Sequential(module), num_bits, strict=True)
    assert not any(isinstance(m, type(module)) for m in twin.modules())
    x, wanted = np.linspace(-9, 9, 3001), levels(num_bits, low, high)
    y = twin(torch.tensor(x, dtype=torch.float32)).double().numpy()
    assert np.abs(y - wanted[np.abs(y[:, None] - wanted).argmin(1)]).max() < 1e-6
    assert np.abs(y - function(x).clip(wanted[0], wanted[-1])).max() <= (wanted[1] - wanted[0]) / 2 + 1e-6


@pytest.mark.parametrize("name", HAND)
def test_its_gradient_is_that_of_the_function_inside_the_range_and_zero_outside(name):
    module, _, _ = HAND[name]
    (_, quantizer), *_ = activation_quantizers(twin := quantize(nn.Sequential(module), 3))
    x = torch.linspace(-9, 9, 3001, requires_grad=True)
    value = module(x)
    (plain,) = torch.autograd.grad(value.sum(), x)
    (found,) = torch.autograd.grad(twin(x).sum(), x)
    low, high = quantizer.range
    assert torch.equal(found, torch.where((value > low) & (value < high), plain, 0.0))


def test_every_function_is_never_below_its_lowest_value_and_gets_near_it():
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    for name, function in QUANTIZABLE.items():
        if name == "softmax":
            continue
        value = function.call(x.clone())
        assert function.low <= value.min() <= function.low + 5e-4, name
        assert value.max() <= function.high and (function.high == np.inf or value.max() == function.high), name


def test_softmax_and_what_layer_norm_takes_are_quantized_where_they_are_asked_for():
    model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Softmax(dim=1)).eval()
    twin = quantize(model, 8, also=["softmax", "layer-norm"], strict=True)
    assert set(twin.state_dict()) >= set(model.state_dict())
    x = torch.randn(50, 6)
    with torch.no_grad():
        h = quant_affine(model[0](x), 8, *affine_grid(8, -6.0, 6.0))
        h = quant_affine(model[2](model[1](h)), 8, *affine_grid(8, -0.1701, 6.0))
        h = quant_affine(h, 8, *affine_grid(8, -6.0, 6.0)).softmax(1)
        assert torch.equal(twin(x), quant_affine(h, 8, 1 / 255, 0))
    again = quantize(twin, 2, also=["softmax", "layer-norm"], strict=True)
    assert {q.num_bits for _, q in activation_quantizers(again)} == {2} and len(activation_quantizers(again)) == 4
    assert all(len(m._forward_pre_hooks) <= 1 for m in again.modules())
    with pytest.raises(InputError, match=r"^also: Sequential has no module for 'softmax'"):
        quantize(nn.Sequential(nn.ReLU()), 4, also=["softmax"])


def test_fixed_forms_of_relu_hardtanh_and_tanh_are_as_before():
    twin = quantize(nn.Sequential(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-2, 1), nn.Tanh()), 4, clip=3)
    assert [type(m) for m in twin] == [QuantReLU, QuantReLU, QuantHardtanh, nn.Sequential]
    assert [m.range for m in list(twin)[:3]] == [(0, 3), (0, 3), (-2, 1)]


def test_a_stochastic_quantizer_takes_the_range_of_the_function():
    twin = quantize(nn.Sequential(nn.GELU(), nn.Hardsigmoid()), 2, alpha=2.0, clip=3.0)
    assert all(isinstance(q, StochasticQuantizer) for q, _ in activation_quantizers(twin))
    ranges = [[float(end) for end in q.range] for _, q in activation_quantizers(twin)]
    assert ranges == [pytest.approx([-0.1701, 3.0], abs=1e-5), pytest.approx([0, 1], abs=1e-5)]


def test_attacks_undo_it_and_choose_its_surrogate():
    model, x = nn.Sequential(nn.Flatten(), nn.GELU()), torch.linspace(-2, 5, 64).view(1, 1, 8, 8)
    twin = quantize(model, 1)
    low, high = twin[1].quantizer.range
    with full_precision(twin, x):
        assert torch.equal(twin(x), model(x).clamp(low, high))
    with other_bits(twin, 12):
        torch.testing.assert_close(twin(x), model(x).clamp(low, high), rtol=0, atol=2e-3)
    far = torch.full((1, 1, 1, 1), 50.0, requires_grad=True)
    assert torch.autograd.grad(twin(far).sum(), far)[0].item() == 0
    with surrogate(twin, "identity"):
        assert torch.autograd.grad(twin(far).sum(), far)[0].item() == 1


def test_the_range_is_in_the_state_and_in_copies_and_pickles():
    layer, other = QuantAffine(4, -0.3, 2.7), QuantAffine(4, 0.0, 1.0)
    x = torch.randn(1000)
    other.load_state_dict(layer.state_dict())
    for one in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(one(x), layer(x)) and one.range == layer.range
    assert repr(layer) == "QuantAffine(num_bits=4, scale=0.2, zero_point=2)"


def test_odd_arguments_are_refused():
    for arguments in ((0, 0, 1), (4, 1, 1), (4, float("nan"), 1), (4, 0, float("inf"))):
        with pytest.raises(InputError):
            QuantAffine(*arguments)
    with pytest.raises(InputError, match="function"):
        QuantActivation("sine", QuantAffine(4, 0, 1))
