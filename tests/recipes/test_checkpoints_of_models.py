"""A checkpoint belongs to the model that its description names, in both directions."""

from __future__ import annotations

import json

import pytest
import torch

from art_qplugins.checkpoint import save_checkpoint
from art_qplugins.data import from_arrays, load
from art_qplugins.errors import InputError
from art_qplugins.quantizers import quantization_report
from art_qplugins.recipes.build import build_models
from art_qplugins.recipes.describe import training_warnings
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.stored import check_checkpoint, check_stored, remember_maps


def recipe(*models):
    return parse_recipe(
        {
            "name": "t",
            "data": {"name": "digits"},
            "threat": {"eps": [0.1]},
            "models": list(models),
            "attacks": [{"id": "art:fgsm"}],
        }
    )


def small(name="net", **more):
    return {
        "name": name,
        "architecture": {"name": "convnet", "options": {"width": 4}},
        "train": {"epochs": 0},
        **more,
    }


def built(folder, *models, data=None):
    return build_models(recipe(*models), data or load("digits", "train"), folder, device=torch.device("cpu"))


def settings(**more):
    return recipe(small(**more)).models[0]


PLAIN = {}
KINDS = {
    "plain": PLAIN,
    "mu-law 3-bit": {"quantize": {"mu": 255.0, "weight_bits": 3}},
    "3-bit": {"quantize": {"weight_bits": 3}},
    "4-bit": {"quantize": {"weight_bits": 4}},
    "3-bit per tensor": {"quantize": {"weight_bits": 3, "granularity": "per_tensor"}},
    "2-bit activations": {"quantize": {"activation_bits": 2}},
    "normalized": {"normalize": {"mean": [0.5], "std": [0.25]}},
    "otherwise normalized": {"normalize": {"mean": [0.5], "std": [0.5]}},
    "2-bit activations in one layer": {"quantize": {"activation_bits": 2, "activation_layers": ["act1"]}},
    "tanh": {"quantize": {"activation_function": "tanh"}},
    "2-bit tanh": {"quantize": {"activation_function": "tanh", "activation_bits": 2}},
    "mu-law of two layers": {"quantize": {"mu": 255.0, "mu_layers": ["conv1", "fc2"], "weight_bits": 3}},
    "wider": {"architecture": {"name": "convnet", "options": {"width": 8}}},
    "resnet": {"architecture": {"name": "resnet18", "options": {"width": 4}}},
    "orthogonal": {"defences": [{"name": "orthogonality"}]},
    "more orthogonal": {"defences": [{"name": "orthogonality", "options": {"beta": 0.5}}]},
}


@pytest.mark.parametrize("here", KINDS)
@pytest.mark.parametrize("there", KINDS)
def test_a_checkpoint_fits_its_own_model_and_no_other(here, there):
    description = {"model": json.loads(settings(**KINDS[there]).model_dump_json())}
    taken = settings(checkpoint="it.safetensors", **KINDS[here])
    if here == there:
        check_stored(taken, description)
        return
    with pytest.raises(InputError, match=r"^models.net.checkpoint: it.safetensors belongs to another model \(\S+ is "):
        check_stored(taken, description)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"quantize": {}}, "plain"),  # a table that switches nothing on
        ({"draws": 3, "seed": 5, "name": "other"}, "plain"),
        ({"rule": "majority-vote", "eot_draws": 2, "eot_chunk": 1}, "plain"),
        ({"architecture": {"name": "convnet", "options": {"width": 4}}}, "plain"),
        ({"defences": [{"name": "orthogonality", "options": {"beta": 2e-3}}]}, "orthogonal"),
    ],
)
def test_what_is_said_in_other_words_is_the_same_model(more, parts):
    description = {"model": json.loads(settings(**KINDS[parts]).model_dump_json())}
    check_stored(recipe(small(checkpoint="it.safetensors") | more).models[0], description)


def test_weights_that_were_mapped_are_no_plain_model(tmp_path):
    """The shapes are the same, so nothing but the description tells."""
    built(tmp_path, small("fp32"), small("mu-law-3bit", base="fp32", **KINDS["mu-law 3-bit"]))
    file = next(tmp_path.glob("mu-law-3bit-*.safetensors"))
    with pytest.raises(InputError, match=r"\(quantize.mu is 255.0 there and not set here\)") as caught:
        built(tmp_path, small("fp32", checkpoint=str(file)))
    assert len(str(caught.value)) <= 300
    taken = built(tmp_path, small("again", checkpoint=str(file), **KINDS["mu-law 3-bit"]))["again"]
    assert {part.bits for part in quantization_report(taken) if part.type == "Linear"} == {3}


@pytest.mark.parametrize(
    "stored",
    [
        {"architecture": {"name": "of another package"}},
        {"architecture": 5, "quantize": "x"},
        {"quantize": {"weight_bits": 10**9}},
        {"defences": {"a": "b"}},
        {},
    ],
)
def test_descriptions_of_networks_that_are_not_known(stored):
    with pytest.raises(InputError, match=r"^models.net.checkpoint: it.safetensors belongs to another model"):
        check_stored(settings(checkpoint="it.safetensors"), {"model": stored})


def test_weights_for_other_images_are_refused(tmp_path):
    built(tmp_path, small())
    file = str(next(tmp_path.glob("*.safetensors")))
    digits = load("digits", "test")
    other = from_arrays(digits.x()[:20, :, :7, :7], digits.labels[:20], classes=digits.classes)
    with pytest.raises(InputError, match=r"conv|fc|input_shape is \[1, 8, 8\] there and \[1, 7, 7\] here"):
        built(tmp_path / "b", small(checkpoint=file), data=other)
    with pytest.raises(InputError, match=r"input_shape is \[1, 8, 8\] there and \[1, 7, 7\] here"):
        check_stored(settings(checkpoint=file), json.loads(file_json(file)), other)


def file_json(file):
    with open(file.removesuffix(".safetensors") + ".json") as about:
        return about.read()


def test_without_a_description_the_recipe_has_to_say_so(tmp_path):
    built(tmp_path, small())
    file = next(tmp_path.glob("*.safetensors"))
    file.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"has no description .* set unverified_checkpoint = true$"):
        built(tmp_path, small(checkpoint=str(file)))
    trusted = small(checkpoint=str(file), unverified_checkpoint=True)
    assert built(tmp_path, trusted)["net"] is not None
    assert training_warnings(recipe(trusted).models[0]) == [f"nothing says that {file} are weights of this model"]
    with pytest.raises(InputError, match="does not say that its weights were quantized"):
        built(tmp_path, trusted | KINDS["3-bit"])
    save_checkpoint(file, built(tmp_path, trusted)["net"], {})  # a hash alone names no model
    with pytest.raises(InputError, match=r"set unverified_checkpoint = true$"):
        built(tmp_path, small(checkpoint=str(file)))


def test_trust_does_not_overrule_a_description():
    description = {"model": json.loads(settings(**KINDS["wider"]).model_dump_json())}
    with pytest.raises(InputError, match=r"architecture.options.width is 8 there and 4 here"):
        check_stored(settings(checkpoint="it.safetensors", unverified_checkpoint=True), description)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (small(unverified_checkpoint=True), "it has no checkpoint"),
        ({"name": "net", "factory": "m:f", "checkpoint": "x", "unverified_checkpoint": True}, "comes from its factory"),
    ],
)
def test_trust_where_it_means_nothing_is_refused(model, why):
    with pytest.raises(InputError, match=f"^recipe: models.net.unverified_checkpoint: .*{why}"):
        recipe(model)


def test_a_checkpoint_is_checked_before_anything_is_built(tmp_path):
    built(tmp_path, small())
    file = str(next(tmp_path.glob("*.safetensors")))
    check_checkpoint(settings(checkpoint=file))
    check_checkpoint(settings())
    with pytest.raises(InputError, match="belongs to another model"):
        check_checkpoint(settings(checkpoint=file, **KINDS["3-bit"]))
    with pytest.raises(InputError, match="no such file"):
        check_checkpoint(settings(checkpoint=str(tmp_path / "none.safetensors")))


@pytest.mark.parametrize(
    "maps",
    [5, [1], {"conv1": 5}, {"conv1": [{}]}, {"none": [{"quantizer": "uniform-weight"}]}, {"conv1": [{"quantizer": 5}]}],
)
def test_odd_records_of_maps_are_refused(tmp_path, maps):
    module = built(tmp_path, small())["net"]
    with pytest.raises(InputError, match="weight_maps that fit no network"):
        remember_maps(module, {"weight_maps": maps})
