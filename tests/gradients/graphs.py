"""Small networks with one operation to look at, for the tests of the autograd graph."""

from __future__ import annotations

import torch
from torch import nn

from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.probe import gradient


class FunctionLayer(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Zero(torch.autograd.Function):
    """The identity, with a backward of zeros."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


class Wrong(torch.autograd.Function):
    """Sign, with a backward that points the other way."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Nothing(torch.autograd.Function):
    """The identity, with a backward of ``None``."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


#: An operation of the pixels that blocks their gradient, the name of its node, and the slope that the repair leaves.
BLOCKING = {
    "round": (lambda x: (x * 4).round() / 4, "RoundBackward0", 1.0),
    "round in place": (lambda x: (x * 4).round_() / 4, "RoundBackward0", 1.0),
    "sign": (lambda x: (x - 0.5).sign(), "SignBackward0", 1.0),
    "floor": (lambda x: (x * 4).floor(), "FloorBackward0", 4.0),
    "floored division": (lambda x: torch.div(x, 0.25, rounding_mode="floor"), "DivBackward2", 1.0),
    "custom": (Zero.apply, "ZeroBackward", 1.0),
    "tanh": (lambda x: torch.tanh((x - 10) * 100), "TanhBackward0", 100.0),
    "sigmoid": (lambda x: torch.sigmoid((x - 10) * 100), "SigmoidBackward0", 100.0),
    "clamp": (lambda x: (x - 2).clamp(0, 1), "ClampBackward1", 1.0),
}


def linear(before=None, after=None):
    """A linear network of 4x4 pixels and three classes, with a layer before or behind it."""
    parts = {"flat": nn.Flatten(), "head": nn.Linear(16, 3)}
    if before is not None:
        parts = {"before": before, **parts}
    if after is not None:
        parts["after"] = after
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    return model.eval()


def images(n=6):
    """(x, y)"""
    return torch.rand(n, 1, 4, 4), torch.arange(n) % 3


def slope(model, x, y):
    """The gradient of the logit margin."""
    return gradient(model, x, lambda z: logit_margin(z, y))
