"""Quantized models of recipes: what they start from, what they went through, and what is said of it."""

from __future__ import annotations

import json

import pytest
import torch

from art_qplugins import InputError, StochasticQuantizer, quantization_report
from art_qplugins.data import load
from art_qplugins.recipes.build import build_models, describe
from art_qplugins.recipes.load import parse_recipe


def small(name, epochs=0, **more):
    network = {"name": "convnet", "options": {"width": 4}}
    return {"name": name, "architecture": network, "train": {"epochs": epochs}, **more}


def recipe(*models):
    attacks = [{"id": "art:fgsm"}]
    return parse_recipe(
        {"name": "t", "data": {"name": "digits"}, "threat": {"eps": [0.1]}, "models": models, "attacks": attacks}
    )


def built(folder, *models):
    return build_models(recipe(*models), load("digits", "train"), folder, device=torch.device("cpu"))


def ranges(model):
    return [tuple(map(float, layer.range)) for layer in model.modules() if isinstance(layer, StochasticQuantizer)]


@pytest.mark.parametrize(("first", "second"), [(2, 4), (4, 2), (3, 3)])
def test_bins_keep_the_range_of_their_base_at_any_number_of_bits(first, second, tmp_path):
    def random(bits):
        return {"activation_bits": bits, "alpha": 2.0, "clip": 3.0}

    models = built(
        tmp_path,
        small("a", epochs=1, quantize=random(first)),
        small("b", base="a", quantize=random(second)),
    )
    assert ranges(models["a"]) != [(0.0, pytest.approx(3.0))] * 3  # learned
    for here, there in zip(ranges(models["b"]), ranges(models["a"]), strict=True):
        assert here == pytest.approx(there, rel=1e-5, abs=1e-6)


MAP = {"mu": 255.0, "mu_normalize": True}


@pytest.mark.parametrize("between", [None, {"weight_bits": 4}])
def test_a_model_that_starts_from_a_mapped_one_is_not_mapped_again(between, tmp_path):
    models = [small("plain"), small("mapped", base="plain", quantize=MAP)]
    if between is not None:
        models.append(small("between", base="mapped", quantize=between))
    again = small("again", base=models[-1]["name"], quantize=MAP)
    for _ in range(2):  # the second time from checkpoints
        with pytest.raises(InputError, match=r"^models\.again\.quantize: mu-law: weight 'fc2' is mapped already"):
            built(tmp_path, *models, again)
    quantized = built(tmp_path, *models, small("q", base=models[-1]["name"], quantize={"weight_bits": 3}))["q"]
    assert {part.bits for part in quantization_report(quantized) if part.type == "Linear"} == {3}


@pytest.mark.parametrize("earlier", [False, True])
def test_a_checkpoint_brings_the_record_also_one_of_an_earlier_version(earlier, tmp_path):
    table = MAP | {"weight_bits": 5}
    built(tmp_path, small("plain"), small("mapped", base="plain", quantize=table))
    file = next(tmp_path.glob("mapped-*.safetensors"))
    description = json.loads(file.with_suffix(".json").read_text())
    assert description["weight_maps"]["conv1"][0]["quantizer"] == "uniform-weight"
    if earlier:
        del description["weight_maps"]
        file.with_suffix(".json").write_text(json.dumps(description))
    taken = built(tmp_path, small("taken", checkpoint=str(file), quantize=table))["taken"]
    assert {part.bits for part in quantization_report(taken) if part.type == "Conv2d"} == {5}
    with pytest.raises(InputError, match=r"mapped already"):
        built(
            tmp_path, small("taken", checkpoint=str(file), quantize=table), small("again", base="taken", quantize=MAP)
        )


def said(**more):
    return describe(recipe(small("plain"), small("m", **more)).models[1])


def test_a_description_tells_training_through_maps_from_mapping_afterwards():
    maps = {"mu": 255.0, "weight_bits": 3}
    lines = "convnet; last layer mu-law mapped (mu = 255); 3-bit weights, per channel"
    assert said(epochs=2, quantize=maps) == f"{lines}; trained through these maps"
    assert said(epochs=2, quantize=maps, base="plain") == f"{lines}; trained through these maps; trained on from plain"
    assert said(epochs=0, quantize=maps, base="plain") == f"{lines}; quantized after training from plain"
    assert said(epochs=2, quantize={"activation_bits": 2}) == "convnet; 2-bit activations on [0, 6]"
    assert said(epochs=2, checkpoint="a.safetensors", quantize=maps) == lines
