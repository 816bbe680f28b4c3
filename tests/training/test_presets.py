"""The protocols of the papers: what they say, what overrides them, and that each trains."""

from __future__ import annotations

import pytest
import torch

from art_qplugins import InputError, quantize, train
from art_qplugins.defences.base import Defence
from art_qplugins.models import MODELS
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.model import Training
from art_qplugins.training.presets import PRESETS, with_preset

#: By preset: the shape of its images, and a small network of the paper's kind.
NETWORKS = {
    "dq-cifar10": ((3, 32, 32), "wrn", {"depth": 10, "widen_factor": 1}, {"activation_bits": 1}),
    "dq-svhn": ((3, 32, 32), "wrn", {"depth": 10, "widen_factor": 1}, {"activation_bits": 4}),
    "mu-law-mnist": ((1, 28, 28), "mnist-cnn", {}, {}),
    "mu-law-cifar10": ((3, 32, 32), "wrn", {"depth": 10, "widen_factor": 1}, {}),
    "sq-cifar10": ((3, 32, 32), "resnet8", {}, {"activation_bits": 2, "alpha": 2.0}),
}


class Enough(Exception):
    pass


class TwoSteps(Defence):
    def __init__(self):
        self.weights = []

    def after_step(self, model):
        self.weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        if len(self.weights) == 2:
            raise Enough


def test_every_preset_has_a_network_here():
    assert NETWORKS.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_takes_two_steps(name):
    shape, architecture, options, quantized = NETWORKS[name]
    settings = Training.model_validate({"preset": name, "batch_size": 4})
    network = MODELS[architecture].load()(shape, 10, **MODELS[architecture].resolve(options))
    network = quantize(network, **quantized) if quantized else network
    x, y = torch.rand(8, *shape), torch.arange(8)
    steps = TwoSteps()
    with pytest.raises(Enough):
        train(network, (x, y), [steps], **settings.arguments())
    first, second = steps.weights
    assert torch.isfinite(second).all() and not torch.equal(first, second)


#: Lin et al. 2019, section 4, by epoch from 0.
RATES = {
    "dq-cifar10": {0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 160: 0.0008, 199: 0.0008},
    "dq-svhn": {0: 0.01, 79: 0.01, 80: 0.001, 119: 0.001, 120: 0.0001, 159: 0.0001},
}


@pytest.mark.parametrize("name", RATES)
def test_the_learning_rates_are_those_of_the_paper(name):
    told = []
    settings = Training.model_validate({"preset": name, "batch_size": 2, "augment": []})
    train(torch.nn.Linear(1, 2), (torch.rand(2, 1), torch.arange(2)), **settings.arguments(), progress=told.append)
    # What is told after an epoch is the rate of the next step.
    after = {
        epoch: told[epoch - 1].learning_rate if epoch else 0.1 ** (1 + (name == "dq-svhn")) for epoch in RATES[name]
    }
    assert after == pytest.approx(RATES[name])
    assert len(told) == (200 if name == "dq-cifar10" else 160)


def recipe(train, data="cifar10"):
    return parse_recipe(
        {
            "name": "r",
            "data": {"name": data},
            "threat": {"eps": [0.1]},
            "models": [{"name": "m", "train": train}],
            "attacks": [{"id": "art:fgsm"}],
        }
    )


def test_a_preset_is_shown_resolved_and_every_value_can_be_overridden():
    settings = recipe({"preset": "dq-cifar10", "learning_rate": 0.05, "augment": ["flip"]}).models[0].train
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (200, 128, 0.05)
    assert settings.schedule.options == {"milestones": [60, 120, 160], "gamma": 0.2}
    assert [one.name for one in settings.augment] == ["flip"]
    shown = settings.model_dump()
    assert shown["preset"] == "dq-cifar10" and shown["optimizer"]["options"]["nesterov"] is True


@pytest.mark.parametrize(
    ("train", "data", "words"),
    [
        ({"preset": "dq-cifar10"}, "mnist", "models.m.train.preset: 'dq-cifar10' is a protocol for cifar10"),
        ({"preset": "dq-cifar"}, "cifar10", "unknown preset 'dq-cifar'; did you mean 'dq-cifar10'"),
        ({"preset": 5}, "cifar10", "unknown preset 5"),
        ({"preset": "dq-cifar10", "epochs": 100}, "cifar10", "milestone 160 is beyond the training of 100 epochs"),
        ({"optimizer": "SDG"}, "cifar10", "models.m.train: optimizer: unknown optimizer 'SDG'"),
        ({"optimizer": {"name": "SGD", "options": {"momentun": 0.5}}}, "cifar10", "did you mean 'momentum'"),
        ({"augment": ["crop", {"name": "cutout", "options": {"size": 0}}]}, "cifar10", "cutout: option size: it is 0"),
        ({"keep": "best"}, "cifar10", 'models.m.train.keep: "best" needs images to validate on; set data.validation'),
        ({"precision": "fp8"}, "cifar10", "models.m.train.precision: it is 'fp8'"),
        ({"epoch": 3}, "cifar10", "models.m.train.epoch: unknown key; did you mean 'epochs'"),
    ],
)
def test_what_is_wrong_is_one_line(train, data, words):
    with pytest.raises(InputError) as caught:
        recipe(train, data)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_precision_of_a_recipe_is_that_of_models_that_name_none():
    tables = {
        "name": "r",
        "precision": "bf16-mixed",
        "data": {"name": "digits"},
        "threat": {"eps": [0.1]},
        "models": [{"name": "a"}, {"name": "b", "train": {"precision": "32-true", "epochs": 3}}],
        "attacks": [{"id": "art:fgsm"}],
    }
    a, b = parse_recipe(tables).models
    assert (a.train.precision, b.train.precision, b.train.epochs) == ("bf16-mixed", "32-true", 3)


def test_none_takes_back_a_preset():
    assert with_preset({"preset": "none", "epochs": 3}) == {"epochs": 3}
