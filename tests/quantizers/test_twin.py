"""TwinGradient: the answers of one network, the gradient of another."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from art_qplugins import InputError, quantize
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers import TwinGradient


def gradient(module, x):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(module(x).sum(), x)[0]


def networks():
    twin = ConvNet((1, 8, 8), 10, width=4).eval()
    return quantize(twin, activation_bits=1, weight_bits=2).eval(), twin, torch.rand(5, 1, 8, 8)


def test_the_value_is_the_networks_and_the_gradient_the_twins():
    network, twin, x = networks()
    module = TwinGradient(network, twin)
    assert torch.equal(module(x), network(x))
    weights = torch.randn(5, 10)
    point = x.clone().requires_grad_()
    ours, twins = (torch.autograd.grad((m(point) * weights).sum(), point)[0] for m in (module, twin))
    assert torch.equal(ours, twins) and ours.any()
    module(x).sum().backward()
    assert all(p.grad is None for p in network.parameters()) and any(p.grad is not None for p in twin.parameters())


def test_without_gradients_the_twin_is_not_asked():
    network, twin, x = networks()
    asked = []
    twin.register_forward_hook(lambda *_: asked.append(1))
    with torch.no_grad():
        assert torch.equal(TwinGradient(network, twin)(x), network(x))
    assert not asked


def test_a_twin_copies_and_pickles():
    network, twin, x = networks()
    module = TwinGradient(network, twin)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(x), network(x))
        assert torch.equal(gradient(again, x), gradient(twin, x))


def test_a_twin_with_other_classes_is_refused():
    network, _, x = networks()
    with pytest.raises(InputError, match=r"gives \(5, 10\) and its twin \(5, 3\)"):
        TwinGradient(network, ConvNet((1, 8, 8), 3, width=4).eval())(x)
