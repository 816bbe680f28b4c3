"""``quantize.fold_batch_norm`` in a recipe: the batch norm of trained weights goes into the layers before it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from art_qplugins import InputError
from art_qplugins.recipes.build import build_models
from art_qplugins.recipes.load import parse_recipe

FOLDED = {"fold_batch_norm": True, "weight_bits": 16, "activation_bits": 8}
RECIPE = {
    "name": "folded",
    "data": {"name": "digits", "limit": 20, "train_limit": 200},
    "threat": {"eps": [0.1]},
    "diagnose": False,
    "attacks": [{"id": "art:fgsm"}],
    "defaults": {"architecture": {"name": "resnet8", "options": {"width": 4}}},
}


def recipe(*models):
    return parse_recipe({**RECIPE, "models": list(models)})


def built(folder, data, *models):
    return build_models(recipe(*models), data, folder, device=torch.device("cpu"))


BASE = {"name": "base", "train": {"epochs": 1}}
PLAIN = {"name": "plain", "base": "base", "quantize": {**FOLDED, "fold_batch_norm": False}, "train": {"epochs": 0}}
AFTER = {"name": "after", "base": "base", "quantize": FOLDED, "train": {"epochs": 0}}


def norms(module):
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("folded")


@pytest.fixture(scope="module")
def models(folder, digits):
    return built(
        folder, digits[0], BASE, PLAIN, AFTER, {**AFTER, "name": "trained", "base": "after", "train": {"epochs": 1}}
    )


def test_the_network_is_the_same_without_batch_norm(models, digits):
    assert norms(models["base"]) and norms(models["plain"]) and not norms(models["after"])
    x = digits[1].x()[:50]
    with torch.no_grad():
        plain, after = models["plain"](x), models["after"](x)
    # Up to rounding of weights to 16 bits, after which an activation may be one of 255 levels off, and mostly is not.
    assert (plain - after).abs().max() < 0.05 * plain.abs().max()


def test_it_is_trained_on_without_batch_norm(models, digits):
    assert not norms(models["trained"])
    assert not torch.equal(models["trained"](digits[1].x()[:5]), models["after"](digits[1].x()[:5]))


def test_it_is_stored_and_read_again(folder, models, digits):
    again = built(folder, digits[0], BASE, AFTER)["after"].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in models["after"].state_dict().items())


def test_there_must_be_trained_weights():
    with pytest.raises(InputError, match=r"models.after.quantize.fold_batch_norm: .* give a base"):
        recipe({**AFTER, "base": None, "train": {"epochs": 1}})
