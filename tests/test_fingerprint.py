"""Fingerprints of networks that keep odd things. None of them ends a run, and each changes where its content does."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins.fingerprint import fingerprint


class Odd(nn.Linear):
    """Its settings hold themselves, and its state is no tensor."""

    def __init__(self, note=1, version=1):
        super().__init__(2, 2)
        nn.init.zeros_(self.weight), nn.init.zeros_(self.bias)
        self.settings, self.version = [note], version
        self.settings.append(self.settings)
        self.table = {"note": [self.settings]}
        self.table["self"] = self.table

    def get_extra_state(self):
        return {"version": self.version}

    def set_extra_state(self, state):
        self.version = state["version"]


def test_what_holds_itself_is_followed_once_and_counts():
    assert fingerprint(Odd()) == fingerprint(Odd())
    assert len({fingerprint(Odd()), fingerprint(Odd(note=2)), fingerprint(Odd(version=2))}) == 3


class Wrapped(torch.Tensor):
    """Of a class that holds other tensors and refuses every operation, as those of torchao do."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes"], {"scale": self.scale}

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(func)


@dataclasses.dataclass(frozen=True)
class Settings:
    value: float


def quantized(v):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        return torch.quantize_per_tensor(torch.tensor([v, 2.0]), 0.1, 0, torch.qint8)


def per_channel(v):
    scales, zeros = torch.tensor([0.1, v]), torch.zeros(2, dtype=torch.int64)
    return torch.quantize_per_channel(torch.ones(2, 2), scales, zeros, 0, torch.qint8)


def of_inference(v):
    with torch.inference_mode():
        return torch.tensor([v])


class Held(nn.Module):
    """It keeps ``held`` in an attribute, or in its state."""

    def __init__(self, held, extra=False):
        super().__init__()
        self.extra, self.held = held if extra else None, None if extra else held
        if isinstance(held, nn.Parameter) or not isinstance(held, torch.Tensor):
            self.__dict__["held"] = self.held

    def get_extra_state(self):
        return self.extra


CONTENTS = {
    "tensor": lambda v: torch.tensor([v]),
    "bfloat16": lambda v: torch.tensor([v], dtype=torch.bfloat16),
    "float8": lambda v: torch.tensor([v]).to(torch.float8_e4m3fn),
    "complex": lambda v: torch.tensor([v], dtype=torch.complex64).conj(),
    "sparse": lambda v: torch.tensor([0.0, v]).to_sparse(),
    "of inference mode": of_inference,
    "quantized": quantized,
    "quantized per channel": per_channel,
    "of another class": lambda v: Wrapped(torch.tensor([int(v)]), 1.0),
    "of another class with other settings": lambda v: Wrapped(torch.tensor([1]), v),
    "numpy": lambda v: np.float32(v),
    "tuple": lambda v: ((quantized(v), None), [v]),
    "set": lambda v: {v, 7.0},
    "bytes": lambda v: str(v).encode(),
    "frozen dataclass": Settings,
    "module in a list": lambda v: [nn.Linear(1, 1).requires_grad_(False), constant(v)],
}


def constant(v):
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, v), nn.init.constant_(layer.bias, v)
    return layer


def seeded(make, v):
    torch.manual_seed(0)
    return make(v)


@pytest.mark.parametrize("extra", [False, True], ids=["attribute", "state"])
@pytest.mark.parametrize("make", CONTENTS.values(), ids=CONTENTS)
def test_the_content_of_every_kind_of_value_counts(make, extra):
    never = functools.partial(pytest.fail, "what can be read needs no answers")
    one, same, other = (fingerprint(Held(seeded(make, v), extra), never) for v in (1.0, 1.0, 2.0))
    assert one == same != other


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_packed_parameters_count():
    def packed(value):
        weight = torch.quantize_per_tensor(torch.full((2, 3), value), 0.1, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(weight, torch.zeros(2))

    one, same, other = (fingerprint(Held(packed(v)), lambda: pytest.fail("it can be read")) for v in (1.0, 1.0, 2.0))
    assert one == same != other


class Session:
    """An object of another runtime: nothing of it can be read, copied or pickled."""

    def __init__(self, weight):
        self._weight = weight

    def __getattribute__(self, name):
        if name in ("run", "__class__"):
            return super().__getattribute__(name)
        raise RuntimeError("there is nothing to see")

    def run(self, x):
        return x * object.__getattribute__(self, "_weight")

    def __reduce__(self):
        raise TypeError("it does not pickle")


class Runs(nn.Module):
    def __init__(self, session):
        super().__init__()
        self.session = session

    def forward(self, x):
        return self.session.run(x)


def asked(module):
    return fingerprint(module, lambda: module(torch.ones(2, 3)))


def test_where_nothing_can_be_read_answers_count():
    assert fingerprint(Runs(Session(1.0))) == fingerprint(Runs(Session(2.0)))
    assert asked(Runs(Session(1.0))) == asked(Runs(Session(1.0))) != asked(Runs(Session(1.0 + 1e-6)))


def test_the_file_that_an_object_keeps_counts():
    def made(file):
        return Runs(types.SimpleNamespace(file=file, run=torch.sign))

    assert asked(made(b"one")) == asked(made(b"one")) != asked(made(b"two"))


def test_a_function_of_the_user_may_hold_weights_so_answers_count():
    def made(weight):
        return Runs(types.SimpleNamespace(run=lambda x: x * weight))

    assert asked(made(1.0)) == asked(made(1.0)) != asked(made(2.0))


def test_random_answers_and_answers_that_raise_do_not_count():
    noisy = Runs(types.SimpleNamespace(run=torch.rand_like))
    assert asked(noisy) == asked(noisy) == fingerprint(noisy)
    broken = Runs(types.SimpleNamespace(run=lambda x: x.no_such_thing))
    assert asked(broken) == fingerprint(broken)


def test_a_module_and_its_parent_may_hold_each_other():
    def family(weight):
        parent, child = nn.Module(), constant(weight)
        parent.kept, child.parent = [child], [parent]
        return parent

    assert fingerprint(family(1.0)) == fingerprint(family(1.0)) != fingerprint(family(2.0))


ELSEWHERE = """
import torch
from torch import nn
from art_qplugins.fingerprint import fingerprint
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
net.act, net.names = nn.functional.relu, {"b", "a", "c"}
net.other = object()
found = [fingerprint(torch.fx.symbolic_trace(net)), fingerprint(net, lambda: net(torch.ones(1, 1, 4, 4)))]
"""


def test_equal_models_have_one_fingerprint_in_all_processes():
    here = {}
    exec(ELSEWHERE, here)
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", f"{ELSEWHERE}\nprint(*found)"]
    there = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert len(set(here["found"])) == 2 and there.split() == here["found"]


def test_two_graphs_with_the_same_weights_differ():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return x * self.scale

    first, second = (torch.fx.symbolic_trace(Scaled(scale)) for scale in (0.5, 0.25))
    assert fingerprint(first) != fingerprint(second)
