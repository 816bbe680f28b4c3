"""The weight maps as parametrizations of real layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from art_qplugins import InputError, MuLawMapping, UniformWeightQuantizer
from art_qplugins.quantizers.functional import mu_law, quantize_weight

LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 5, 3), (2, 3, 6, 6), nn.functional.conv2d),
    "linear": (lambda: nn.Linear(7, 4), (2, 7), nn.functional.linear),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    """(layer, its input, the function that it computes from input, weight and bias)"""
    make, shape, function = LAYERS[request.param]
    return make(), torch.randn(shape), function


@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"granularity": "per_tensor"}, {"narrow_range": False}])
@pytest.mark.parametrize("num_bits", [1, 3])
def test_a_quantized_layer_computes_with_the_quantized_weight_and_trains_the_float_one(layer, num_bits, options):
    layer, x, function = layer
    weight, bias = layer.weight.detach().clone(), layer.bias
    parametrize.register_parametrization(layer, "weight", UniformWeightQuantizer(num_bits, **options))
    quantized = quantize_weight(weight, num_bits, **options)
    assert not torch.equal(quantized, weight)
    assert torch.equal(layer(x), function(x, quantized, bias))
    original = layer.parametrizations.weight.original
    assert torch.equal(original, weight)
    # Straight through: the float weight gets what a layer with the quantized weight would get.
    upstream = torch.randn_like(layer(x))
    plain = quantized.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(x, plain, bias), plain, upstream)
    (ours,) = torch.autograd.grad(layer(x), original, upstream)
    assert torch.equal(ours, expected)
    (ones,) = torch.autograd.grad(layer.weight.sum(), original)
    assert torch.equal(ones, torch.ones_like(weight))


@pytest.mark.parametrize("normalize", [True, False])
def test_registering_the_mu_law_does_change_the_weight(layer, normalize):
    layer, x, function = layer
    weight, bias = layer.weight.detach().clone(), layer.bias
    parametrize.register_parametrization(layer, "weight", MuLawMapping(255.0, normalize=normalize))
    largest = weight.abs().max() if normalize else 1.0
    mapped = largest * mu_law(weight / largest, 255.0)
    torch.testing.assert_close(layer.weight, mapped)
    torch.testing.assert_close(layer(x), function(x, mapped, bias))
    # torch applies a right_inverse when a parametrization is registered, which would cancel the map.
    assert torch.equal(layer.parametrizations.weight.original, weight)
    small = (weight != 0) & (weight.abs() < 0.9 * largest)
    assert (layer.weight.abs() > weight.abs())[small].all()


@pytest.mark.parametrize("maps", [UniformWeightQuantizer(3), MuLawMapping()], ids=lambda m: type(m).__name__)
def test_neither_map_has_a_right_inverse(maps):
    assert not hasattr(maps, "right_inverse")


def test_normalized_mu_law_takes_any_scale_and_keeps_the_greatest_weight():
    w = torch.randn(6, 5, dtype=torch.float64)
    mapping = MuLawMapping(100.0, normalize=True)
    for scale in (1e-3, 1.0, 50.0):
        torch.testing.assert_close(mapping(scale * w), scale * mapping(w))
        assert mapping(scale * w).abs().max() == pytest.approx(float(scale * w.abs().max()), rel=1e-12)
    assert torch.equal(mapping(torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("normalize", [True, False])
def test_the_inverse_is_the_inverse(normalize):
    w = torch.rand(6, 5, dtype=torch.float64) * 2 - 1
    mapping = MuLawMapping(255.0, normalize=normalize)
    torch.testing.assert_close(mapping.inverse(mapping(w)), w)
    torch.testing.assert_close(mapping(mapping.inverse(w)), w)


def test_the_mapping_is_differentiable():
    w = (torch.rand(4, 3, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(MuLawMapping(255.0), w)


@pytest.mark.parametrize("mu", [0.0, -1.0, float("inf"), float("nan")])
def test_a_mu_that_is_none_is_refused(mu):
    with pytest.raises(InputError, match=rf"^mu: it is {mu!r}[,;] [^\n]+$"):
        MuLawMapping(mu)


def test_bad_settings_of_the_quantizer_are_refused_with_the_good_ones():
    with pytest.raises(InputError, match="granularity: it is 'perchannel'; give 'per_channel' or"):
        UniformWeightQuantizer(3, granularity="perchannel")
    with pytest.raises(InputError, match="num_bits: it is 0"):
        UniformWeightQuantizer(0)


def test_both_say_all_their_settings():
    said = "num_bits=3, symmetric=False, granularity='per_tensor', narrow_range=False, zero_point=True"
    options = {"symmetric": False, "granularity": "per_tensor", "narrow_range": False, "zero_point": True}
    assert UniformWeightQuantizer(3, **options).extra_repr() == said
    assert MuLawMapping(100, normalize=True).extra_repr() == "mu=100, normalize=True, gain_only=False"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mu", [1.0, 255.0])
def test_the_control_lengthens_the_weight_as_the_map_does_and_keeps_its_direction(layer, mu, normalize):
    layer, x, function = layer
    weight, bias = layer.weight.detach().clone(), layer.bias
    parametrize.register_parametrization(layer, "weight", MuLawMapping(mu, normalize=normalize, gain_only=True))
    mapped = MuLawMapping(mu, normalize=normalize)(weight)
    gain = mapped.norm() / weight.norm()
    assert gain > 1
    torch.testing.assert_close(layer.weight, gain * weight)
    torch.testing.assert_close(layer(x), function(x, gain * weight, bias))
    (slope,) = torch.autograd.grad(layer.weight.sum(), layer.parametrizations.weight.original)
    torch.testing.assert_close(slope, torch.full_like(weight, float(gain)))  # a constant
    with pytest.raises(InputError, match="gain_only: "):
        layer.parametrizations.weight[0].inverse(weight)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("value", "said"), [(0.0, "is all 0"), (math.nan, "holds nan"), (math.inf, "holds inf")])
def test_weights_that_the_map_has_no_gain_for_are_refused(layer, value, said, normalize):
    layer = layer[0]
    nn.init.constant_(layer.weight, value)
    with pytest.raises(InputError, match=f"^mu-law: weight 'fc' {said}; map a network with trained weights$"):
        MuLawMapping(255.0, normalize=normalize).check(layer.weight, "fc")
