"""Estimators stay on their device, whichever the current one is: on two accelerators that torch pretends to have."""

from __future__ import annotations

import copy

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch._subclasses import FakeTensorMode

import art_qplugins.recipes.factory
from art_qplugins import QuantizedClassifier, Threat, api
from art_qplugins.attacks.catalogue import Attack
from art_qplugins.attacks.craft import craft
from art_qplugins.data import load
from art_qplugins.estimators.devices import resolve_device
from art_qplugins.evaluation.binarization import _estimator
from art_qplugins.recipes.build import estimator_for
from art_qplugins.recipes.factory import make_estimator
from art_qplugins.recipes.model import ModelSettings

CONTRACT = (nn.CrossEntropyLoss(), (1, 8, 8), 10)
SECOND = torch.device("cuda", 1)


class Linear(nn.Module):
    """Its weights are buffers, since parameters that are only pretended can be neither moved nor copied."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.zeros(64, 10))

    def parameters(self, recurse=True):
        return self.buffers(recurse)

    def __deepcopy__(self, memo):
        return Linear().to(self.weight.device)

    def forward(self, x):
        return x.flatten(1) @ self.weight


@pytest.fixture(autouse=True)
def current(monkeypatch):
    """Two CUDA devices without memory, as ``torch.cuda`` shows them. Gives the number of the current one, in a list."""
    number = [0]

    def exchange(device):
        before, number[0] = number[0], number[0] if device < 0 else device
        return before

    for name in ("_exchange_device", "_maybe_exchange_device"):
        monkeypatch.setattr(torch.cuda, name, exchange)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: number[0])
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": torch.zeros(8, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            torch.zeros(1).to(SECOND)
        except RuntimeError as error:
            pytest.skip(f"torch {torch.__version__} pretends no accelerator where there is none: {error}")
        yield number


def on_second():
    return QuantizedClassifier(Linear(), *CONTRACT, device_type="cuda:1")


def where(estimator):
    """The devices of an estimator, of its module and of what it answers."""
    logits = estimator.model(estimator._inputs(torch.zeros(2, 1, 8, 8)))
    return {estimator.device, estimator.model.weight.device, logits.device}


def test_an_estimator_is_on_the_device_that_is_named(current):
    assert where(on_second()) == {SECOND}
    assert current == [0]


def test_a_name_without_a_number_is_the_device_that_is_current_now(monkeypatch):
    made = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *size, device: made(*size, device="cuda:1" if device == "cuda" else device)
    )
    assert resolve_device("cuda") == SECOND
    assert where(QuantizedClassifier(Linear(), *CONTRACT, device_type="cuda").with_model(Linear())) == {SECOND}


def arts(module):
    """ART's own classifier, made where the second device was current."""
    with torch.cuda.device(1):
        return PyTorchClassifier(module, *CONTRACT)


def from_factory(monkeypatch):
    monkeypatch.setattr(art_qplugins.recipes.factory, "make_module", lambda name: Linear().to(SECOND))
    for name in ("adapted", "_try"):  # a tensor without memory has no values
        monkeypatch.setattr(art_qplugins.recipes.factory, name, lambda estimator, *_: estimator)
    return make_estimator("mine:net", None, load("digits", "test"))


COPIES = {
    "with_model": lambda _: on_second().with_model(Linear()),
    "deepcopy": lambda _: copy.deepcopy(on_second()),
    "binarization": lambda _: _estimator(on_second(), Linear()),
    "one of ART's": lambda _: api._ours("net", arts(Linear())),
    "a recipe's": lambda _: estimator_for(ModelSettings(name="net"), Linear().to(SECOND), load("digits", "test")),
    "a factory's": from_factory,
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_what_is_made_of_an_estimator_or_a_module_stays_where_that_is(make, monkeypatch):
    assert where(make(monkeypatch)) == {SECOND}


@pytest.mark.parametrize("device_type", ["gpu", "cuda:1"])
def test_a_clone_to_be_trained_again_is_on_the_same_device(device_type, current):
    class Plain:
        """An optimizer that holds nothing."""

        defaults = {}

        def __init__(self, parameters):
            self.param_groups = [{"params": list(parameters)}]

    current[0] = 1
    estimator = QuantizedClassifier(Linear(), *CONTRACT, Plain([]), device_type=device_type)
    current[0] = 0
    assert where(estimator.clone_for_refitting()) == {SECOND}
    assert current == [0]


def test_what_an_attack_builds_around_the_module_stays_where_the_module_is(monkeypatch, current):
    """Several of ART's attacks make a plain classifier of it, and that one goes to the current device."""
    estimator, seen = on_second(), []

    def adapter(given, attack, x, y, **settings):
        rebuilt = PyTorchClassifier(given.model, *CONTRACT, device_type=str(given.device))
        seen.append((rebuilt.device, given.model.weight.device))
        return x

    monkeypatch.setattr(Attack, "load", lambda self: adapter)
    x, y = torch.zeros(2, 1, 8, 8, device=SECOND), torch.zeros(2, dtype=torch.long, device=SECOND)
    craft(estimator, "art:square", x, y, threat=Threat("Linf", 0.1))
    assert seen == [(SECOND, SECOND)] and current == [0]
