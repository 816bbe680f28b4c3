"""The quantizers by name: what each row promises, what a table switches on, and rows of other packages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import InputError, QuantReLU, StochasticQuantizer, quantize
from art_qplugins.data import load
from art_qplugins.estimators import QuantizedClassifier, SQEnsembleClassifier
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers import QUANTIZERS, Quantizer, activation_quantizers
from art_qplugins.quantizers.protocol import ActivationQuantizer
from art_qplugins.quantizers.registry import switched_on, weight_keys
from art_qplugins.recipes.build import build_models, estimator_for
from art_qplugins.recipes.describe import describe
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.model import Quantization

# A table that switches each row on, and says so in words.
TABLES = {
    "stochastic": ({"activation_bits": 2, "alpha": 1.5}, "stochastic 2-bit activations (alpha = 1.5), mean of 8 draws"),
    "mu-law": ({"mu": 10.0, "mu_layers": 2}, "last 2 layers mu-law mapped (mu = 10, raw)"),
    "uniform": ({"activation_bits": 3, "clip": 1.0}, "3-bit activations on [0, 1]"),
    "learned-clip": ({"activation": "learned-clip", "activation_bits": 3}, "3-bit activations, learned clip"),
    "uniform-weight": (
        {"weight_bits": 4, "granularity": "per_tensor"},
        "4-bit weights (symmetric: -7 to 7, per tensor)",
    ),
}


def table(**given):
    return Quantization(**given).model_dump()


def test_every_row_has_a_table_here():
    assert list(TABLES) == list(QUANTIZERS)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_row_makes_its_module_of_a_table_and_says_it_in_words(name):
    row, (given, line) = QUANTIZERS[name], TABLES[name]
    full = table(**given)
    assert row.is_on(full) and not row.is_on(table()) and row in switched_on(full)
    assert row.line(full | {"draws": 8}) == line
    module = row.make(full)
    assert isinstance(module, nn.Module)
    assert isinstance(module, ActivationQuantizer) == (row.place == "activation")
    assert set(row.switch) <= set(row.keys) <= set(Quantization.model_fields)
    assert module(torch.rand(3, 4)).shape == (3, 4)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if QUANTIZERS[name].estimator])
def test_a_rows_estimator_is_one_of_arts(name):
    assert issubclass(QUANTIZERS[name].load_estimator(), QuantizedClassifier)


def test_the_keys_of_weights_are_all_but_those_of_activations():
    assert set(Quantization.model_fields) - weight_keys() == {
        "activation",
        "activation_function",
        "activation_layers",
        "options",
        "activation_bits",
        "clip",
        "alpha",
        "ranges",
        "calibration",
        "percentile",
        "also",
        "functional",
        "fold_batch_norm",
    }


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, []),
        ({"clip": 1.0, "mu_layers": 2}, []),
        ({"activation_function": "tanh"}, []),
        ({"activation_function": "tanh", "activation_bits": 2}, ["uniform"]),
        ({"activation_bits": 2}, ["uniform"]),
        ({"activation_bits": 2, "activation": "uniform"}, ["uniform"]),
        ({"activation_bits": 2, "activation": "learned-clip"}, ["learned-clip"]),
        ({"activation_bits": 2, "alpha": 1.0}, ["stochastic"]),
        ({"activation_bits": 2, "alpha": 1.0, "mu": 1.0, "weight_bits": 2}, ["stochastic", "mu-law", "uniform-weight"]),
        ({"activation_bits": 2, "mu": 1.0, "weight_bits": 2}, ["mu-law", "uniform", "uniform-weight"]),
    ],
)
def test_a_table_switches_on_what_its_keys_say(given, names):
    assert [row.name for row in switched_on(table(**given))] == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 2.0}, "needs activation_bits"),
        ({"activation": "uniform"}, "activation and options need activation_bits"),
        ({"options": {"top": 1.0}}, "activation and options need activation_bits"),
        ({"activation": "unifrom", "activation_bits": 2}, r"unknown quantizer 'unifrom'; did you mean 'uniform'\?"),
        (
            {"activation": "mu-law", "activation_bits": 2},
            "'mu-law' quantizes weights; there is: learned-clip, stochastic, uniform",
        ),
        ({"activation": "stochastic", "activation_bits": 2}, "quantizer 'stochastic' needs alpha"),
        ({"activation": "uniform", "activation_bits": 2, "alpha": 2.0}, "quantizer 'uniform' has no alpha"),
        ({"activation_bits": 2, "options": {"top": 1.0}}, "quantizer 'uniform' has no options; leave out top"),
        ({"activation_function": "relu1", "clip": 1.0}, "clip: the activation function 'relu1' has a range of its own"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(given, message):
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        switched_on(table(**given))
    arguments = {"activation_options" if key == "options" else key: value for key, value in given.items()}
    with pytest.raises(InputError, match=message):
        quantize(ConvNet((1, 8, 8), 10), **arguments)
    with pytest.raises(InputError, match=rf"^recipe: models\.a\.quantize: [^\n]*{message}"):
        parse_recipe(recipe(given))


# --- Rows of other packages


def recipe(given, **more):
    return {
        "name": "r",
        "data": {"name": "digits", "limit": 10},
        "threat": {"eps": [0.1]},
        "models": [{"name": "a", "quantize": given, "train": {"epochs": 0}, **more}],
        "attacks": [{"id": "art:pgd"}],
    }


def test_a_quantizer_of_another_package_is_used_from_python(foreign):
    module = quantize(
        ConvNet((1, 8, 8), 10), 3, weight_bits=4, activation="power-of-two", activation_options={"top": 2.0}
    )
    found = [quantizer for _, quantizer in activation_quantizers(module)]
    assert [type(q).__name__ for q in found] == ["PowerOfTwo"] * 3
    assert [(q.num_bits, q.top) for q in found] == [(3, 2.0)] * 3


def test_a_quantizer_of_another_package_is_used_from_a_recipe(foreign, tmp_path):
    chosen = {"activation": "power-of-two", "activation_bits": 3, "options": {"top": 2.0}, "mu": 1.0}
    parsed = parse_recipe(recipe(chosen))
    settings, data = parsed.models[0], load("digits", "train")
    assert not settings.stochastic
    assert describe(settings) == "convnet; 3-bit activations at powers of two; last layer mu-law mapped (mu = 1, raw)"
    module = build_models(parsed, data, tmp_path, device=torch.device("cpu"))["a"]
    assert [q.top for _, q in activation_quantizers(module)] == [2.0] * 3
    assert type(estimator_for(settings, module, data)).__name__ == "MuLawClassifier"
    again = build_models(parsed, data, tmp_path, device=torch.device("cpu"))["a"]
    x = data.x()[:5]
    assert torch.equal(again(x), module(x)) and len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_random_quantizer_of_another_package_makes_an_ensemble(foreign, tmp_path):
    foreign(
        Quantizer(
            name="coin",
            target="art_qplugins.quantizers:StochasticQuantizer",
            help="a random one",
            place="activation",
            arguments={"activation_bits": "num_bits", "clip": "clip"},
            switch=("activation_bits",),
            line=lambda table: "coins",
            random=True,
            estimator="art_qplugins.estimators:SQEnsembleClassifier",
        )
    )
    given = recipe({"activation": "coin", "activation_bits": 1}, draws=3)
    parsed = parse_recipe(given | {"attacks": [{"suite": "adaptive"}, {"id": "autoattack:rand"}]})
    module = build_models(parsed, load("digits", "train"), tmp_path, device=torch.device("cpu"))["a"]
    assert parsed.models[0].stochastic and "artq:eot" in {attack.id for attack in parsed.attacks}
    assert [m.layer for m in module.modules() if isinstance(m, StochasticQuantizer)] == [0, 1, 2]
    made = estimator_for(parsed.models[0], module, load("digits", "train"))
    assert isinstance(made, SQEnsembleClassifier) and made.draws == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": {"topp": 1.0}}, r"power-of-two: unknown option 'topp'; did you mean 'top'\?"),
        ({"options": {"top": "high"}}, "power-of-two: option top: it is 'high'"),
        ({"clip": 3.0}, "quantizer 'power-of-two' has no clip"),
        ({"alpha": 2.0}, "quantizer 'power-of-two' has no alpha"),
    ],
)
def test_its_options_are_checked(foreign, given, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(recipe({"activation": "power-of-two", "activation_bits": 2, **given}))


def test_a_module_that_no_attack_could_undo_is_refused(foreign):
    foreign(
        Quantizer(
            name="rounded",
            target="torch.nn:Threshold",
            help="no quantizer",
            place="activation",
            arguments={"activation_bits": "threshold"},
            options={"value": 0.0},
            switch=("activation_bits",),
            line=lambda table: "",
        )
    )
    with pytest.raises(InputError, match=r"^quantizer 'rounded' makes a Threshold, [^\n]* full_precision [^\n]*$"):
        quantize(ConvNet((1, 8, 8), 10), 2, activation="rounded")


def test_the_default_is_never_another_packages(foreign):
    module = quantize(ConvNet((1, 8, 8), 10), 2)
    assert sum(isinstance(m, QuantReLU) for m in module.modules()) == 3
