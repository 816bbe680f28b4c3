"""What the guard puts back, also after an exception."""

from __future__ import annotations

import copy
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins.guard import evaluating, isolated, restoring, takes_modes


@pytest.fixture
def network(fp32):
    return copy.deepcopy(fp32)


def global_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_evaluating_restores_every_modules_own_mode(network):
    network.train()
    network.bn1.eval()
    modes = [m.training for m in network.modules()]
    with evaluating(network):
        assert not any(m.training for m in network.modules())
    assert [m.training for m in network.modules()] == modes
    with pytest.raises(AssertionError), evaluating(network, training=True):
        assert not all(m.training for m in network.modules())
    assert [m.training for m in network.modules()] == modes


def vandal(network):
    """What attack libraries do to the state around them."""
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    torch.rand(3), np.random.rand(3), random.random()
    sys.settrace(None)
    network.train()
    for p in network.parameters():
        p.requires_grad_(True)


@pytest.mark.parametrize("fails", [False, True])
def test_isolated_puts_everything_back(network, fails):
    def trace(frame, event, argument):
        return None

    network.fc1.weight.requires_grad_(False)
    network.bn1.train()
    modes, states = [m.training for m in network.modules()], global_states()
    flags, outer = [p.requires_grad for p in network.parameters()], sys.gettrace()
    sys.settrace(trace)
    try:
        try:
            with isolated(network, 3):
                assert not any(p.requires_grad for p in network.parameters())
                assert not any(m.training for m in network.modules())
                vandal(network)
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        restored = sys.gettrace()
    finally:
        sys.settrace(outer)
    assert restored is trace
    assert global_states() == states
    assert [p.requires_grad for p in network.parameters()] == flags
    assert [m.training for m in network.modules()] == modes


def test_within_isolated_every_generator_is_seeded(network):
    drawn = []
    for seed, before in ((7, 0), (7, 1), (8, 0), (2**40, 0)):
        torch.manual_seed(before), np.random.seed(before), random.seed(before)
        with isolated(network, seed):
            drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()))
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_restoring_puts_back_values_replaced_and_added_tensors(network, fails):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weight = network.fc2.weight
    try:
        with restoring(network) as changed:
            assert changed() == []
            with torch.no_grad():
                network.fc1.bias.add_(1)
            network.fc2.weight = nn.Parameter(torch.zeros_like(weight))
            network.bn1.register_buffer("extra", torch.zeros(3))
            assert changed() == ["bn1.extra", "fc1.bias", "fc2.weight"]
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert network.fc2.weight is weight
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


class Codes(torch.Tensor):
    """Of a class that holds another tensor and refuses operations, as quantized weights do."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    def __tensor_flatten__(self):
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes)
        raise NotImplementedError(func)


def test_restoring_puts_back_what_a_tensor_of_another_class_holds():
    layer = nn.Module()
    layer.weight = nn.Parameter(Codes(torch.ones(3)), requires_grad=False)
    with restoring(layer) as changed:
        assert changed() == []
        layer.weight.codes.zero_()
        assert changed() == ["weight"]
    assert layer.weight.codes.tolist() == [1.0, 1.0, 1.0]


def test_a_weight_that_was_packed_at_its_first_use_stays_packed(network):
    weight = network.fc1.weight
    with restoring(network):
        weight.data = weight.data.flatten()
        network.fc2.bias.data.add_(1)
    assert weight.dim() == 1 and network.fc1.weight is weight


def test_an_exported_module_takes_no_mode(network):
    network.fc1.train()
    modes = [part.training for part in network.modules()]
    assert takes_modes(network) and [part.training for part in network.modules()] == modes
    assert not takes_modes(torch.export.export(network, (torch.zeros(2, 1, 8, 8),)).module())


def test_operations_without_a_backward_pass_end_the_graph_within_isolated(network):
    with torch.library._scoped_library("artq_guard", "DEF") as library:
        library.define("same(Tensor x) -> Tensor")
        library.impl("same", lambda x: torch.from_numpy(x.detach().numpy().copy()), "CPU")
        x = torch.ones(2, requires_grad=True)
        with isolated(network, 0):
            assert not torch.ops.artq_guard.same(x).requires_grad
        assert torch.ops.artq_guard.same(x).requires_grad


def test_a_nan_that_stays_is_no_change(network):
    with torch.no_grad():
        network.fc1.bias[0] = torch.nan
    with restoring(network) as changed:
        network(torch.rand(2, 1, 8, 8))
        assert changed() == []
