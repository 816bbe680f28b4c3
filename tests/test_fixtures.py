"""What one test does to a shared network, no other test sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import QuantizedClassifier


@pytest.mark.parametrize("name", ["fp32", "mu_law", "stochastic"])
@pytest.mark.parametrize("time", ["once", "again"])
def test_a_network_is_as_it_was_trained_whatever_was_done_to_it_before(name, time, request):
    network = request.getfixturevalue(name)
    assert not any(part.training or part._forward_pre_hooks or part._forward_hooks for part in network.modules())
    assert all(p.requires_grad and p.grad is None and p.any() for p in network.parameters())
    QuantizedClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")  # hooks the module
    network.train().requires_grad_(False)
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
