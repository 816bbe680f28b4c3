"""Linear networks, and what the strongest attack within eps leaves of them, in closed form.

The answers of the networks are their labels, so every clean image is correct. Pixels stay in [0, 1] within eps 0.1, so no
clipping binds.
"""

from __future__ import annotations

import torch
from torch import nn

from art_qplugins import QuantizedClassifier

CLASSES = 4


def linear(scale=1.0):
    """64 pixels to 4 classes, with fixed weights."""
    layer = nn.Linear(64, CLASSES)
    weight = torch.randn(CLASSES, 64, generator=torch.Generator().manual_seed(0))
    layer.load_state_dict({"weight": weight, "bias": -torch.ones(CLASSES)})
    layer.weight.data -= layer.weight.data.mean(1, keepdim=True)
    layer.weight.data *= scale
    return nn.Sequential(nn.Flatten(), layer).eval()


def images(model, n=200):
    """(x, y): x (n, 1, 8, 8) in [0.1, 0.9], and what the model answers."""
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    with torch.no_grad():
        return x, model(x).argmax(1)


def robust(layer, x, y, eps, levels=None):
    """(n,) whether no image within Linf eps is adversarial.

    The margin to class j falls by at most eps times the L1 norm of w_y - w_j. Behind a rounding of the pixels to ``levels``
    each pixel takes the level that it can reach and that is worst.

    :raises AssertionError: where an image is so close that rounding would decide.
    """
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    apart = weight[y][:, None] - weight[None]  # (n, classes, pixels)
    pixels = x.flatten(1).double()[:, None]
    low, high = pixels - eps, pixels + eps
    if levels is not None:
        low, high = ((p * levels).round() / levels for p in (low, high))
    margin = torch.where(apart > 0, apart * low, apart * high).sum(2) + (bias[y][:, None] - bias)
    margin.scatter_(1, y[:, None], torch.inf)
    assert margin.amin(1).abs().min() > 1e-5
    return margin.amin(1) > 0


def robust_accuracy(layer, x, y, eps, levels=None):
    return float(robust(layer, x, y, eps, levels).double().mean())


def classifier(model, classes=CLASSES):
    return QuantizedClassifier(model.eval(), nn.CrossEntropyLoss(), (1, 8, 8), classes, device_type="cpu")
