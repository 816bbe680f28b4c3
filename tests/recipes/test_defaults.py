"""The table of settings that all models share."""

from __future__ import annotations

from typing import Any

import pytest

from art_qplugins.errors import InputError
from art_qplugins.recipes.load import change, parse_recipe
from art_qplugins.recipes.merge import choose, with_defaults

DEFAULTS = {
    "architecture": {"name": "convnet", "options": {"width": 2}},
    "train": {"epochs": 4, "batch_size": 32},
    "defences": ["gaussian-noise"],
}


def recipe(*models: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "shared",
        "data": {"name": "digits", "limit": 20},
        "threat": {"eps": [0.1]},
        "models": list(models),
        "attacks": [{"id": "art:fgsm"}],
        "defaults": DEFAULTS,
        **more,
    }


def test_a_model_has_what_it_does_not_give():
    plain, own = parse_recipe(
        recipe(
            {"name": "plain"}, {"name": "own", "train": {"epochs": 1}, "defences": [], "quantize": {"weight_bits": 4}}
        )
    ).models
    assert (plain.architecture.options, plain.train.epochs, plain.train.batch_size) == ({"width": 2}, 4, 32)
    assert [defence.name for defence in plain.defences] == ["gaussian-noise"]
    assert (own.architecture.options, own.train.epochs, own.train.batch_size) == ({"width": 2}, 1, 32)
    assert own.defences == [] and own.quantize is not None


def test_options_of_another_network_are_its_own():
    _, other = parse_recipe(recipe({"name": "a"}, {"name": "b", "architecture": {"name": "mnist-cnn"}})).models
    assert other.architecture.options == {}


def test_a_sweep_a_profile_and_a_change_reach_them():
    given = recipe({"name": "a"}, profiles={"small": {"defaults": {"train": {"epochs": 2}}}})
    given["sweep"] = {"models.a.architecture.options.width": [3, 4]}
    chosen = change(choose(given, ["small"]), ["defaults.train.batch_size=8"])
    models = parse_recipe(chosen).models
    assert [(m.architecture.options["width"], m.train.epochs, m.train.batch_size) for m in models] == [
        (3, 2, 8),
        (4, 2, 8),
    ]


def test_a_preset_of_the_defaults_is_overridden_by_the_model():
    given = recipe({"name": "a"}, {"name": "b", "train": {"weight_decay": 0.0}})
    given["defaults"] = {"train": {"preset": "dq-cifar10", "epochs": 2, "schedule": "cosine"}}
    given["data"] = {"name": "cifar10", "limit": 20}
    a, b = parse_recipe(given).models
    assert (a.train.batch_size, a.train.epochs, a.train.weight_decay, b.train.weight_decay) == (128, 2, 5e-4, 0.0)


def test_models_of_a_factory_take_none():
    (model,) = with_defaults(recipe({"name": "a", "factory": "mine:net"}))["models"]
    assert model == {"name": "a", "factory": "mine:net"}


def test_a_model_that_is_not_trained_takes_nothing_about_training():
    (model,) = with_defaults(recipe({"name": "a", "train": {"epochs": 0}}))["models"]
    assert model["train"] == {"epochs": 0} and model["architecture"] == DEFAULTS["architecture"]


def test_nothing_that_was_given_changes():
    given = recipe({"name": "a"})
    before = repr(given)
    parse_recipe(given)
    assert repr(given) == before


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        (3, "defaults: it is 3; write [defaults]"),
        ({"name": "x"}, "defaults.name: "),
        ({"trian": {}}, "models.a.trian: unknown key"),
        ({"train": {"epochs": -1}}, "models.a.train.epochs: "),
    ],
)
def test_what_is_wrong_is_one_line(defaults, words):
    with pytest.raises(InputError) as caught:
        parse_recipe(recipe({"name": "a"}, defaults=defaults))
    assert words in str(caught.value) and "\n" not in str(caught.value)
