"""Activations that are called as functions are found by reading the code; nothing runs and nothing else is found."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import relu as renamed

from art_qplugins.quantizers.calls import functional_calls

swish = F.silu


def helper(x):
    return torch.sigmoid(x)


def outer(x):
    return helper(x) * 2


def again(x, times):
    return back(x, times - 1) if times else torch.sigmoid(x)


def back(x, times):
    return again(x, times)


def found(module):
    return [call.function for call in functional_calls(module)]


def network(forward, **attributes):
    """A module with this forward pass."""
    module = type("Net", (nn.Module,), {"forward": forward})()
    module.layer, module.relu, module.clip = nn.Linear(2, 2), nn.ReLU(), 3.0
    module.register_buffer("scale", torch.ones(1))
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


class Calls:
    """Forward passes with one activation each."""

    def function(self, x):
        return F.relu(self.layer(x))

    def full_name(self, x):
        return torch.nn.functional.relu(x)

    def module_alias(self, x):
        return functional.relu(x)

    def renamed(self, x):
        return renamed(x)

    def of_torch(self, x):
        return torch.relu(x)

    def method(self, x):
        return self.layer(x).relu()

    def in_place(self, x):
        return x.relu_()

    def of_the_class(self, x):
        return torch.Tensor.relu(x)

    def alias_in_the_function(self, x):
        act = F.relu
        return act(x)

    def branch(self, x):
        if self.training:
            return x
        return F.relu(x)

    def comprehension(self, x):
        return [F.relu(part) for part in x.split(1)]

    def inner_function(self, x):
        def act(z):
            return F.relu(z)

        return act(x)


class Others:
    """Forward passes with an activation of another name."""

    def sigmoid(self, x):
        return outer(x)

    def silu(self, x):
        return swish(x)

    def clamp(self, x):
        return x.clamp(0, 1)

    def clip(self, x):
        return torch.clip(x, min=0)

    def hardtanh(self, x):
        return F.hardtanh(x, -2, 2)

    def gelu(self, x):
        return F.gelu(x, approximate="tanh")

    def softmax(self, x):
        return x.softmax(-1)


class Without:
    """Forward passes without one."""

    def modules(self, x):
        return self.relu(self.layer(x))

    def numbers(self, x):
        return x * np.clip(self.clip, 0, 1)

    def guard(self, x):
        return x / x.norm().clamp(min=1e-12)

    def guard_as_a_function(self, x):
        return torch.log(torch.clamp(x, 1e-6))

    def of_a_buffer(self, x):
        return x * self.scale.clamp(0, 1)

    def log_probabilities(self, x):
        return F.log_softmax(self.layer(x), dim=1)

    def pooling(self, x):
        return F.max_pool2d(x, 2).flatten(1)


def methods(cls):
    return [pytest.param(f, id=name) for name, f in vars(cls).items() if not name.startswith("_")]


@pytest.mark.parametrize("forward", methods(Calls))
def test_a_call_is_found(forward):
    assert found(network(forward)) == ["relu"]


@pytest.mark.parametrize("forward", methods(Others))
def test_it_has_its_name(forward):
    assert found(network(forward)) == [forward.__name__]


@pytest.mark.parametrize("forward", methods(Without))
def test_what_is_no_activation_is_not_found(forward):
    assert found(network(forward)) == []


def test_the_place_is_told():
    line = Calls.function.__code__.co_firstlineno + 1
    assert [call.where for call in functional_calls(network(Calls.function))] == [f"Calls.function, line {line}"]


class Block(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def tail(self, x):
        return F.elu(x)

    def forward(self, x):
        return self.tail(self.act(x))


class Child(Block):
    table = np.zeros(3)  # compared with nothing

    def forward(self, x):
        return super().forward(torch.tanh(x))


def test_functions_that_a_module_holds_and_its_other_methods_are_read():
    assert sorted(found(Block(F.gelu))) == ["elu", "gelu"]
    assert sorted(found(Block(functools.partial(F.gelu, approximate="tanh")))) == ["elu", "gelu"]
    assert found(Block(nn.GELU())) == ["elu"]
    assert sorted(found(Child(nn.GELU()))) == ["elu", "tanh"]
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=F.gelu)
    assert [(c.function, c.where) for c in functional_calls(layer)] == [("gelu", "the attribute activation")]


def test_a_decorated_forward_and_one_of_the_instance_are_read():
    decorated = network(torch.no_grad()(Calls.function))
    assert found(decorated) == ["relu"]
    own = nn.Linear(2, 2)
    own.forward = lambda x: torch.relu(x)
    assert found(own) == ["relu"]


def test_code_that_cannot_be_read_is_said_to_be():
    namespace = {"nn": nn, "F": F}
    exec("class Typed(nn.Module):\n    def forward(self, x):\n        return F.relu(x)", namespace)
    exec("class Safe(nn.Module):\n    def forward(self, x):\n        return x + 1", namespace)
    assert [(c.function, c.where) for c in functional_calls(namespace["Typed"]())] == [("", "Typed.forward")]
    assert found(namespace["Safe"]()) == []


def test_code_of_torch_is_not_read():
    for module in (nn.ReLU(), nn.Linear(2, 2), nn.Sequential(nn.ReLU()), nn.MultiheadAttention(4, 2), nn.ModuleList()):
        assert found(module) == []


def test_nothing_runs():
    class Loud(nn.Module):
        @property
        def size(self):
            raise AssertionError

        def forward(self, x):
            raise AssertionError(F.relu(x) + self.size)

    assert found(Loud()) == ["relu"]


def test_functions_that_call_one_another_are_read_once():
    assert found(network(lambda self, x: again(x, 3))) == ["sigmoid"]
    assert found(network(lambda self, x: helper(x) + helper(x) + back(x, 1))) == ["sigmoid", "sigmoid"]
