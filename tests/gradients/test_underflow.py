"""Backward passes whose numbers leave the range of float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins.gradients.probe import gradient
from art_qplugins.gradients.underflow import gradient_scale


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *factors):
        ctx.factors = factors
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        for factor in ctx.factors:
            grad = grad * factor
        return grad, *(None for _ in ctx.factors)


class Times(nn.Module):
    """The same answers as a linear network, with a gradient times these factors, one after the other."""

    def __init__(self, *factors):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 3)
        self.factors = factors

    def forward(self, x):
        return self.layer(_Times.apply(x, *self.factors).flatten(1))


X, Y = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3


@pytest.mark.parametrize("factor", [1.0, 1e-4, 1e-20, 1e20, -1.0])
def test_a_gradient_that_keeps_its_direction_needs_no_factor(factor):
    assert gradient_scale(Times(factor), X, Y, seed=0) is None


@pytest.mark.parametrize("factors", [(1e-44,), (1e-30, 1e-20, 1e10), (1e38, 1e8)])
def test_a_factor_gives_the_gradient_its_direction_back(factors):
    found = gradient_scale(Times(*factors), X, Y, seed=0)
    assert found is not None
    assert np.log2(found) == int(np.log2(found)) and (found < 1) == (factors[0] > 1)

    def loss(logits):
        return nn.functional.cross_entropy(logits, Y, reduction="none") * found

    scaled, honest = (gradient(m, X, loss).flatten(1).double() for m in (Times(*factors), Times()))
    assert (torch.cosine_similarity(scaled, honest, eps=1e-300) > 0.999).all()


def test_half_precision_bounds_the_factor():
    class Half(Times):
        def forward(self, x):
            return self.layer(_Times.apply(x.half(), 1e-7).float().flatten(1))

    found = gradient_scale(Half(), X, Y, seed=0)
    assert found is not None and 2**8 <= found <= 2**17


def test_a_network_that_answers_otherwise_at_each_call_is_not_one_that_underflows():
    class Unseeded(Times):
        def forward(self, x):
            noise = np.random.default_rng().normal(size=x.shape)
            return super().forward(x * torch.from_numpy(noise).to(x))

    assert gradient_scale(Unseeded(), X, Y, seed=0) is None


def test_a_gradient_of_zero_stays_zero_with_any_factor():
    assert gradient_scale(Times(0.0), X, Y, seed=0) is None
