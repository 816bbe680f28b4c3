"""Activations that are called as functions become modules, and nothing else changes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from art_qplugins import InputError, quantization_report, quantize
from art_qplugins.fingerprint import fingerprint
from art_qplugins.quantizers import activation_quantizers
from art_qplugins.quantizers.functions import QUANTIZABLE
from art_qplugins.quantizers.tracing import call_modules

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
NAMES = list(QUANTIZABLE)

CALLS = {
    "F.relu": lambda x: F.relu(x),
    "torch.relu": lambda x: torch.relu(x),
    "x.relu": lambda x: x.relu(),
    "F.relu inplace": lambda x: F.relu(x * 1, inplace=True),
    "x.relu_": lambda x: (x * 1).relu_(),
    "F.relu6": lambda x: F.relu6(x),
    "F.hardtanh": lambda x: F.hardtanh(x, -0.5, max_val=0.25),
    "F.hardswish": lambda x: F.hardswish(x),
    "F.hardsigmoid": lambda x: F.hardsigmoid(x),
    "F.gelu": lambda x: F.gelu(x, approximate="tanh"),
    "F.silu": lambda x: F.silu(x, inplace=False),
    "torch.tanh": lambda x: torch.tanh(x),
    "x.tanh": lambda x: x.tanh(),
    "F.softmax": lambda x: F.softmax(x, dim=1),
    "torch.softmax": lambda x: torch.softmax(x, -1),
    "x.softmax": lambda x: x.softmax(1),
    "clamp": lambda x: (2 * x).clamp(-0.5, 0.5),
    "torch.clamp": lambda x: torch.clamp(2 * x, min=0, max=6),
}


class Calls(nn.Module):
    """``forward`` is written here, so that a trace sees the function."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function, self.setting = nn.Linear(4, 4), function, "kept"

    def forward(self, x):
        return 2 * self.function(self.layer(x))


@pytest.mark.parametrize("name", CALLS)
def test_a_function_becomes_a_module_with_the_same_answers(name):
    model = Calls(CALLS[name]).eval()
    made = call_modules(copy.deepcopy(model), NAMES)
    assert torch.equal(made(X), model(X)) and set(made.state_dict()) == set(model.state_dict())
    twin = quantize(model, 8, functional=True, also=["softmax"] if "softmax" in name else [], strict=True)
    assert len(activation_quantizers(twin)) == (2 if "softmax" in name else 1)
    assert {p.bits for p in quantization_report(twin) if p.kind == "activation"} == {8}


class Net(nn.Module):
    """What people write."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.inner, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Calls(F.gelu), nn.Linear(4, 3)
        self.unused, self.act, self.note = nn.Linear(2, 2), F.silu, "a setting"

    def forward(self, x, mask=None, scale=2.0):
        h = F.relu(self.bn(self.conv(x))).mean((2, 3))
        h = F.dropout(h, 0.5, training=self.training)
        h = F.dropout(self.inner(h), p=0.9, training=self.training)
        if mask is not None:
            h = h * mask
        return self.fc(self.act(h)) * scale


def net():
    torch.manual_seed(0)
    return Net().eval()


IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_network_keeps_its_weights_settings_hooks_and_modes():
    model, calls = net(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    made = call_modules(copy.deepcopy(model), NAMES)
    assert torch.equal(made(IMAGES), model(IMAGES)) and len(calls) == 2
    assert set(made.state_dict()) == set(model.state_dict()) and made.note == "a setting"
    assert type(made.inner) is Calls and type(made.inner.function) is nn.GELU and type(made.act) is nn.SiLU
    assert not any(m.training for m in made.modules())
    made.train()
    made.bn.eval()
    assert not torch.equal(made(IMAGES), made(IMAGES))  # dropout follows the mode
    quantized = quantize(model, 8, 8, functional=True, strict=True)
    assert [type(q).__name__ for q, _ in activation_quantizers(quantized)].count("QuantReLU") == 1
    assert len(activation_quantizers(quantized)) == 3


def test_it_copies_and_pickles_and_is_the_same_network():
    twin = quantize(net(), 4, functional=True, ranges="mse", calibration=IMAGES)
    for again in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert torch.equal(again(IMAGES), twin(IMAGES)) and fingerprint(again) == fingerprint(twin)
    other = quantize(net(), 4, functional=True)
    assert fingerprint(other) != fingerprint(twin)


def test_arguments_that_it_was_not_traced_with_are_refused():
    twin = quantize(net(), 8, functional=True)
    assert torch.equal(twin(IMAGES, mask=None, scale=2.0), twin(IMAGES))
    for given in ({"mask": torch.ones(4)}, {"scale": 3.0}):
        with pytest.raises(InputError, match=r": the quantized network was traced with (None|2\.0); leave \w+ out$"):
            twin(IMAGES, **given)


class InPlace(nn.Module):
    def forward(self, x):
        h = x * 2
        F.relu(h, inplace=True)
        return h - 1


def test_whoever_reads_what_was_changed_in_place_sees_the_activation():
    x = torch.tensor([[-1.0, 1.0]])
    made = call_modules(InPlace(), NAMES)
    assert made(x).tolist() == InPlace()(x).tolist() == [[-1.0, 1.0]]


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return F.relu(self.fc(x)) if x.mean() > 0 else self.fc(x)


class ByMode(ByValue):
    def forward(self, x):
        return F.relu(self.fc(x)) if self.training else F.gelu(self.fc(x))


@pytest.mark.parametrize(("network", "calls"), [(ByValue, "relu"), (ByMode, "relu")])
def test_a_forward_that_cannot_be_traced_is_named_with_what_to_change(network, calls):
    message = rf"^functional: the forward of 'a\.b' cannot be traced[^\n]*nn\.ReLU\(\)[^\n]*{calls}\(\) \({network.__name__}\.forward"
    model = nn.Sequential()
    model.add_module("a", nn.Sequential())
    model.a.add_module("b", network())
    with pytest.raises(InputError, match=message):
        quantize(model, 4, functional=True)


def test_pixels_that_are_clipped_are_no_activation():
    class Clips(nn.Module):
        def forward(self, x):
            return x.clamp(0, 1) - 0.5

    assert type(call_modules(Clips(), NAMES)) is Clips


def test_attributes_that_are_functions_become_modules():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation=F.gelu, batch_first=True).eval()
    twin = quantize(layer, 8, 8, functional=True, strict=True)
    assert [p.name for p in quantization_report(twin) if p.kind == "activation" and p.bits] == ["activation.quantizer"]
