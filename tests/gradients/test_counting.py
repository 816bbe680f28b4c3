"""What an attack costs: passes in images, where each draw of an ensemble counts as one."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from art_qplugins.gradients.counting import counting, passes
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def ensemble(draws):
    return StochasticEnsemble(quantize(network(), activation_bits=2, clip=1.0, alpha=2.0), draws).eval()


@pytest.mark.parametrize(("module", "draws"), [(network(), 1), (ensemble(5), 5)])
def test_a_pass_costs_its_images_times_its_draws(module, draws):
    x = torch.rand(6, 1, 2, 2)
    assert passes(module, requires_grad=True) == passes(module, requires_grad=False) == draws
    with counting(module) as counter:
        with torch.no_grad():
            module(x)
        assert (counter.forward, counter.backward) == (6 * draws, 0)
        module(x.requires_grad_())[:, 0].sum().backward()  # one logit costs a whole pass
        assert (counter.forward, counter.backward) == (12 * draws, 6 * draws)
    module(x)
    assert counter.forward == 12 * draws
    assert not module._forward_hooks


def test_an_output_that_is_no_tensor_costs_nothing_and_an_exception_leaves_no_hook():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    module = Pair()
    with contextlib.suppress(KeyError), counting(module) as counter:
        module(torch.rand(2, 1))
        raise KeyError
    assert counter.forward == 0 and not module._forward_hooks
