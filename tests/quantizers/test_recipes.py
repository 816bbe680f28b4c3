"""Quantized models of recipes: what they start from, what they went through, and what is said of it."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
import torch

from art_qplugins import InputError, StochasticQuantizer, quantization_report, quantize
from art_qplugins.data import load
from art_qplugins.models.rules import RULES
from art_qplugins.quantizers import QuantAffine, is_stochastic
from art_qplugins.recipes.build import build_models, estimator_for
from art_qplugins.recipes.checks import doubts
from art_qplugins.recipes.describe import describe
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.model import ModelSettings


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


# --- Which function activations have, and which of them and of the layers are quantized


def activations(model):
    """The repr of every activation."""
    return [repr(getattr(model, name)).replace("\n", "") for name in ("act1", "act2", "act3")]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"activation_function": "relu6"}, ["ReLU6()"] * 3),
        ({"activation_function": "relu1"}, ["Hardtanh(min_val=0.0, max_val=1.0)"] * 3),
        ({"activation_function": "tanh", "weight_bits": 4}, ["Tanh()"] * 3),
        ({"activation_function": "relu6", "activation_bits": 2}, ["QuantReLU(num_bits=2, clip=6)"] * 3),
        ({"activation_function": "relu1", "activation_bits": 2}, ["QuantReLU(num_bits=2, clip=1)"] * 3),
        (
            {"activation_function": "tanh", "activation_bits": 2},
            ["Sequential(  (0): Tanh()  (1): QuantHardtanh(num_bits=2, min_val=-1, max_val=1))"] * 3,
        ),
        ({"activation_bits": 2, "activation_layers": 1}, ["ReLU()", "ReLU()", "QuantReLU(num_bits=2, clip=6)"]),
        (
            {"activation_function": "relu6", "activation_bits": 2, "activation_layers": ["act1"]},
            ["QuantReLU(num_bits=2, clip=6)", "ReLU6()", "ReLU6()"],
        ),
    ],
    ids=str,
)
def test_a_recipe_says_the_function_of_activations_and_which_are_quantized(table, expected, tmp_path):
    trained = built(tmp_path, small("a", epochs=1, quantize=table))["a"]
    assert activations(trained) == expected
    (file,) = tmp_path.glob("a-*.safetensors")
    loaded = built(tmp_path, small("a", checkpoint=str(file), quantize=table))["a"]
    x = load("digits", "test").x()[:5]
    assert activations(loaded) == expected and torch.equal(loaded(x), trained(x))


def test_a_model_is_quantized_after_training_in_full_precision_with_its_function(tmp_path):
    tanh = {"activation_function": "tanh"}
    models = [small("a", epochs=1, quantize=tanh), small("b", base="a", quantize=tanh | {"activation_bits": 8})]
    models = built(tmp_path, *models)
    x = load("digits", "test").x()[:50]
    torch.testing.assert_close(models["b"](x), models["a"](x), rtol=0, atol=0.2)
    assert not torch.equal(models["b"](x), models["a"](x))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"mu": 1.0, "mu_layers": ["fcl"]},
            "mu_layers: none of the layers with weights is called 'fcl'; the layers with weights are: ",
        ),
        ({"activation_bits": 2, "activation_layers": ["act9"]}, "activation_layers: none of the activations is called"),
        ({"activation_bits": 2, "activation_layers": 9}, "activation_layers is 9, and the network has 3 activations"),
    ],
)
def test_a_layer_that_is_not_there_is_refused_with_the_models_name(table, message, tmp_path):
    with pytest.raises(InputError, match=rf"^models\.a\.quantize: {message}[^\n]*$"):
        built(tmp_path, small("a", quantize=table))


def said(**more):
    return describe(recipe(small("plain"), small("m", **more)).models[1])


def test_a_description_tells_training_through_maps_from_mapping_afterwards():
    maps = {"mu": 255.0, "weight_bits": 3}
    lines = "convnet; last layer mu-law mapped (mu = 255, raw); 3-bit weights (symmetric: -3 to 3, per channel)"
    assert said(epochs=2, quantize=maps) == f"{lines}; trained through these maps"
    assert said(epochs=2, quantize=maps, base="plain") == f"{lines}; trained through these maps; trained on from plain"
    assert said(epochs=0, quantize=maps, base="plain") == f"{lines}; quantized after training from plain"
    assert said(epochs=2, quantize={"activation_bits": 2}) == "convnet; 2-bit activations on [0, 6]"
    assert said(epochs=2, checkpoint="a.safetensors", quantize=maps) == lines


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"quantize": {"activation_function": "tanh"}}, "tanh activations"),
        (
            {"quantize": {"activation_function": "relu1", "activation_bits": 4}},
            "relu1 activations; 4-bit activations",
        ),
        (
            {"quantize": {"activation_bits": 4, "activation_layers": 2}},
            "4-bit activations on [0, 6], only the last 2",
        ),
        (
            {"quantize": {"activation_bits": 4, "activation_layers": ["act1", "act3"]}},
            "4-bit activations on [0, 6], only act1, act3",
        ),
        (
            {"quantize": {"mu": 255.0, "mu_layers": ["conv1", -1], "mu_normalize": True}},
            "conv1, layer -1 mu-law mapped (mu = 255, normalized)",
        ),
        (
            {"quantize": {"mu": 5.0, "mu_gain_only": True}},
            "last layer scaled by the gain of the mu-law (mu = 5, raw)",
        ),
        (
            {"quantize": {"weight_bits": 3, "symmetric": False, "granularity": "per_tensor"}},
            "3-bit weights (affine without a zero point, per tensor)",
        ),
        (
            {"quantize": {"weight_bits": 3, "symmetric": False, "zero_point": True}},
            "3-bit weights (affine with a zero point, per channel)",
        ),
        (
            {"quantize": {"weight_bits": 3, "narrow_range": False}},
            "3-bit weights (symmetric: -4 to 3, per channel)",
        ),
        ({"quantize": {"weight_bits": 1}}, "1-bit weights (symmetric: two levels, per channel)"),
        (
            {"quantize": {"activation_bits": 2, "alpha": 2.0}, "rule": "majority-vote", "draws": 5},
            "stochastic 2-bit activations (alpha = 2), majority vote of 5 draws",
        ),
        (
            {"quantize": {"activation_bits": 2, "alpha": 2.0}, "frozen": True},
            "stochastic 2-bit activations (alpha = 2), mean of 8 fixed draws",
        ),
    ],
)
def test_a_description_tells_functions_layers_and_rules(model, expected):
    assert said(**model) == f"convnet; {expected}"


# --- The rule of a random model

RANDOM = {"activation_bits": 2, "alpha": 2.0}


def estimator(folder, **more):
    parsed, data = recipe(small("a", quantize=RANDOM, **more)), load("digits", "train")
    module = build_models(parsed, data, folder, device=torch.device("cpu"))["a"]
    return parsed.models[0], estimator_for(parsed.models[0], module, data)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"draws": 3, "rule": "majority-vote"},
        {"rule": "mean-logits", "eot_draws": 2, "eot_chunk": 1},
        {"frozen": True, "draws": 2},
    ],
    ids=str,
)
def test_a_recipe_says_how_draws_become_an_answer(given, tmp_path):
    settings, made = estimator(tmp_path, **given)
    defaults = {"draws": 8, "rule": "mean-probability", "eot_draws": None, "eot_chunk": None, "frozen": False}
    assert {key: getattr(made.model, key) for key in defaults} == defaults | given
    assert settings.stochastic == is_stochastic(made.model) == ("frozen" not in given)


def test_the_rule_is_no_part_of_a_checkpoints_name(tmp_path):
    estimator(tmp_path)
    estimator(tmp_path, rule="majority-vote", eot_draws=2, eot_chunk=1)
    estimator(tmp_path, frozen=True)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_the_rules_of_recipes_are_those_of_ensembles():
    assert get_args(ModelSettings.model_fields["rule"].annotation) == tuple(RULES)


def test_a_suite_attacks_a_frozen_model_as_a_deterministic_one():
    def ids(**more):
        tables = {"name": "t", "data": {"name": "digits"}, "threat": {"eps": [0.1]}, "attacks": [{"suite": "standard"}]}
        return {attack.id for attack in parse_recipe(tables | {"models": [small("a", **more)]}).attacks}

    deterministic, random = ids(), ids(quantize=RANDOM)
    assert "autoattack:standard" in deterministic - random and "autoattack:rand" in random
    assert "autoattack:standard" in ids(quantize=RANDOM, frozen=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frozen": True, "eot_draws": 4}, "eot_draws: a frozen ensemble has the gradient of its own draws; leave"),
        ({"rule": "mean"}, "rule: input should be 'mean-probability', 'mean-logits' or 'majority-vote'"),
        ({"eot_draws": 0}, "eot_draws: it is 0; give a whole number from 1 to 10000"),
        ({"eot_chunk": 0}, "eot_chunk: it is 0; give a whole number of at least 1"),
        ({"frozen": 1}, "frozen: it is 1; give true or false"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=rf"^recipe: models\.a\.{message}[^\n]*$"):
        recipe(small("a", quantize=RANDOM, **given))


@pytest.mark.parametrize("key", ["draws", "rule", "eot_draws", "eot_chunk", "frozen"])
def test_a_rule_of_a_model_that_is_not_random_has_no_effect(key):
    value = {"rule": "mean-logits", "frozen": True}.get(key, 3)
    parsed = recipe(small("a", **{key: value}))
    assert f"a: {key} has no effect, because the model is not random" in list(doubts(parsed))
    factory = {"name": "a", "factory": "package.module:network", key: value}
    with pytest.raises(InputError, match=rf"models\.a\.{key}: the network comes from its factory; leave {key} out"):
        recipe(factory)


# --- Ranges that are observed


OBSERVED = {"activation_bits": 3, "ranges": "mse", "calibration": 100, "weight_bits": 4, "exempt": [0]}


def bounds(model):
    return [m.bounds.tolist() for m in model.modules() if isinstance(m, QuantAffine)]


def test_ranges_are_observed_with_the_weights_of_the_base_and_kept_in_the_checkpoint(tmp_path):
    given = [small("plain", epochs=2), small("q", base="plain", quantize=OBSERVED)]
    models = built(tmp_path, *given)
    weights = {key: OBSERVED[key] for key in ("weight_bits", "exempt")}
    images = load("digits", "train").take(100, seed=0).x()
    expected = quantize(models["plain"], 3, ranges="mse", calibration=images, **weights)
    assert np.allclose(bounds(models["q"]), bounds(expected), rtol=1e-5)
    assert {p.bits for p in quantization_report(models["q"]) if p.type == "Linear"} == {4}
    assert next(p.bits for p in quantization_report(models["q"]) if p.type == "Conv2d") is None
    again = built(tmp_path, *given)["q"]  # from the checkpoint
    assert bounds(again) == bounds(models["q"])
    assert torch.equal(again(images), models["q"](images))
    file = next(tmp_path.glob("q-*.safetensors"))
    taken = built(tmp_path, small("taken", checkpoint=str(file), quantize=OBSERVED))["taken"]
    assert bounds(taken) == bounds(again)
    with pytest.raises(InputError, match=r"belongs to another model \(quantize\.ranges is "):
        built(tmp_path, small("other", checkpoint=str(file), quantize=OBSERVED | {"ranges": "min-max"}))


def test_ranges_are_of_a_network_behind_its_normalization(tmp_path):
    model = small("q", quantize=OBSERVED, normalize={"mean": [0.5], "std": [0.01]})
    found = bounds(built(tmp_path, model)["q"])
    assert found[0][1] > 5 * bounds(built(tmp_path, small("r", quantize=OBSERVED))["r"])[0][1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"activation_bits": 3, "ranges": "mse"}, "models.m.quantize: ranges: 'mse' is observed on images"),
        ({"activation_bits": 3, "calibration": 5}, "models.m.quantize: calibration: fixed ranges need no images"),
    ],
)
def test_ranges_without_images_are_refused(table, message, tmp_path):
    with pytest.raises(InputError, match=message):
        built(tmp_path, small("m", quantize=table))


def test_observed_ranges_are_said():
    assert "3-bit activations on observed ranges (mse)" in describe(
        ModelSettings.model_validate(small("m", quantize=OBSERVED))
    )
