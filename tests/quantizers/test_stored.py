"""A layer remembers the maps on its stored weight: in copies, pickles and checkpoints, and nothing is mapped twice."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from art_qplugins import InputError, MuLawMapping, quantization_report, quantize
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers import bake
from art_qplugins.quantizers.stored import is_on_levels, restore_stored_maps, stored_maps, weight_maps

MAPPED = r"^mu-law: weight 'fc2' is mapped already; [^\n]+$"


def small():
    return ConvNet((1, 8, 8), 10, width=4)


def loaded(model):
    """The same module after the weights of another one were loaded."""
    model.load_state_dict(small().state_dict())
    return model


@pytest.mark.parametrize(
    "on_the_way",
    [
        lambda model: model,
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        loaded,
        lambda model: quantize(model, 3, 4),
        lambda model: nn.Sequential(model)[0].to(torch.float64).to(torch.float32),
    ],
    ids=["as it is", "deepcopy", "pickle", "load_state_dict", "quantized", "cast"],
)
def test_a_mapped_weight_is_not_mapped_again(on_the_way):
    model = on_the_way(quantize(small(), mu=255.0))
    with pytest.raises(InputError, match=MAPPED):
        quantize(model, mu=255.0)
    with pytest.raises(InputError, match=r"'fc2' is mapped already"):
        quantize(model, mu=10.0, mu_layers=3, trainable=True)


def test_nor_is_one_that_is_mapped_at_every_forward():
    model = quantize(small(), mu=255.0, trainable=True)
    with pytest.raises(InputError, match=MAPPED):
        quantize(model, mu=255.0)
    with pytest.raises(InputError, match=MAPPED):
        quantize(bake(model), mu=255.0)


def test_quantizing_again_is_no_mapping():
    once = quantize(small(), mu=255.0, weight_bits=4)
    twice = quantize(once, weight_bits=4)
    assert torch.equal(twice.fc2.weight, once.fc2.weight)
    assert [type(one).__name__ for one in weight_maps(twice.fc2)] == ["MuLawMapping"] + 2 * ["UniformWeightQuantizer"]
    assert {part.bits for part in quantization_report(twice) if part.type in ("Linear", "Conv2d")} == {4}


def test_a_map_after_quantization_leaves_the_levels():
    model = quantize(quantize(small(), weight_bits=4), mu=255.0)
    (part,) = [part for part in quantization_report(model) if part.name == "fc2.weight"]
    assert (part.bits, part.reason) == (None, "only UniformWeightQuantizer, MuLawMapping was applied")


def test_the_record_goes_through_json():
    model = quantize(small(), weight_bits=3, mu=10.0, mu_layers=2, symmetric=False)
    saved = json.loads(json.dumps(stored_maps(model)))
    assert set(saved) == {"conv1", "conv2", "fc1", "fc2"}
    assert saved["fc1"][0] == {"quantizer": "mu-law", "mu": 10.0, "normalize": False, "gain_only": False}
    other = small()
    other.load_state_dict(model.state_dict())
    restore_stored_maps(other, saved)
    assert stored_maps(other) == saved and stored_maps(small()) == {}
    assert quantization_report(other) == quantization_report(model)


def test_a_map_that_is_none_of_ours_is_not_recorded():
    model = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)))
    assert stored_maps(bake(model)) == {}
    assert isinstance(weight_maps(quantize(model, mu=1.0)[0])[0], MuLawMapping)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("roundings", "on"), [(0, True), (8, True), (8.5, False), (100, False)])
def test_a_weight_is_on_its_levels_up_to_eight_roundings_of_its_largest_value(roundings, on, dtype):
    layer = nn.Linear(3, 1, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 0.0, 1.0]]))  # the levels of 2 bits, whatever their range
    (layer,) = quantize(nn.Sequential(layer), weight_bits=2)
    with torch.no_grad():
        layer.weight[0, 1] += roundings * torch.finfo(dtype).eps * layer.weight.abs().max()
    assert is_on_levels(layer) is on
