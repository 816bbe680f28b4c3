"""QuantReLU as a module: what it takes, what it refuses, and that it is its function."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from art_qplugins import InputError, QuantReLU
from art_qplugins.quantizers.functional import quant_relu


@pytest.mark.parametrize(("num_bits", "clip"), [(1, 6.0), (4, 1.0), (8, 2.5), (16, 6)])
def test_the_module_is_the_function(num_bits, clip):
    x = torch.randn(3, 4, 5) * 4
    module = QuantReLU(num_bits, clip)
    for mode in (True, False):
        assert torch.equal(module.train(mode)(x), quant_relu(x, num_bits, clip))
    assert not list(module.parameters()) and not module.state_dict()


def test_the_default_clip_is_relu6s():
    x = torch.linspace(-3, 9, 1001)
    torch.testing.assert_close(QuantReLU(16)(x), torch.nn.functional.relu6(x), rtol=0, atol=6 / (2**16 - 1) / 2 + 1e-6)


@pytest.mark.parametrize("num_bits", [0, -1, 17, 2.0, 1.5, True, "4", None])
def test_a_number_of_bits_that_is_none_is_refused(num_bits):
    with pytest.raises(InputError, match=rf"^num_bits is {num_bits!r}; [^\n]+$"):
        QuantReLU(num_bits)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("inf"), float("nan")])
def test_a_clip_that_is_none_is_refused(clip):
    with pytest.raises(InputError, match=rf"^clip is {clip!r}; [^\n]+$"):
        QuantReLU(4, clip)


def test_it_copies_pickles_and_says_what_it_is():
    x = torch.randn(10)
    module = QuantReLU(3, 1.5)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
    assert repr(module) == "QuantReLU(num_bits=3, clip=1.5)"
