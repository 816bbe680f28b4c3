"""QuantReLU and QuantHardtanh as modules: what they take, what they refuse, and that they are their functions."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from art_qplugins import InputError, QuantHardtanh, QuantReLU, surrogate
from art_qplugins.attacks.adaptive.full_precision import full_precision, other_bits
from art_qplugins.quantizers import quantize
from art_qplugins.quantizers.activation import LearnedClipReLU, uniform_activation
from art_qplugins.quantizers.functional import quant_hardtanh, quant_relu
from art_qplugins.quantizers.surrogates import SURROGATES

RANGES = [(-1.0, 1.0), (-0.3, 2.0), (-3.0, -1.0), (0.5, 0.75)]


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
    with pytest.raises(InputError, match=rf"^num_bits: it is {num_bits!r}[,;] [^\n]+$"):
        QuantReLU(num_bits)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("inf"), float("nan")])
def test_a_clip_that_is_none_is_refused(clip):
    with pytest.raises(InputError, match=rf"^clip: it is {clip!r}[,;] [^\n]+$"):
        QuantReLU(4, clip)


def test_it_copies_pickles_and_says_what_it_is():
    x = torch.randn(10)
    module = QuantReLU(3, 1.5)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
    assert repr(module) == "QuantReLU(num_bits=3, clip=1.5)"


# --- QuantHardtanh


def gradient(module, x):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(module(x).sum(), x)[0]


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("num_bits", [1, 2, 5, 16])
def test_levels_are_even_from_end_to_end_and_every_value_goes_to_the_nearest(low, high, num_bits):
    x = torch.linspace(low - 1, high + 1, 4001, dtype=torch.float64)
    value = quant_hardtanh(x, num_bits, low, high)
    levels = torch.linspace(low, high, 2**num_bits, dtype=torch.float64)
    step = (high - low) / (2**num_bits - 1)
    code = ((value - low) / step).round().long()
    torch.testing.assert_close(value, levels[code], rtol=0, atol=1e-12)
    assert ((value - x.clamp(low, high)).abs() <= step / 2 + 1e-9).all()
    assert value[0] == low and value[-1] == pytest.approx(high, abs=1e-12)
    torch.testing.assert_close(quant_hardtanh(value, num_bits, low, high), value, rtol=0, atol=1e-12)


def test_ties_go_to_the_even_level():
    assert quant_hardtanh(torch.tensor([-0.5, 0.5, 1.5, 2.5]), 2, -1.0, 2.0).tolist() == [-1, 1, 1, 2]


def test_at_one_bit_it_is_the_sign_of_binary_networks():
    x = torch.tensor([-5.0, -0.4, 0.3, 2.0], requires_grad=True)
    value = QuantHardtanh(1)(x)
    assert value.tolist() == [-1, -1, 1, 1]
    value.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_on_zero_to_clip_it_is_quant_relu():
    x = torch.randn(10_000) * 4
    assert torch.equal(quant_hardtanh(x, 3, 0.0, 2.5), quant_relu(x, 3, 2.5))
    assert isinstance(uniform_activation(3, 2.5), QuantReLU)
    signed = uniform_activation(3, 2.5, low=-1)
    assert isinstance(signed, QuantHardtanh) and signed.range == (-1, 2.5)


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_the_gradient_is_that_of_the_clip(low, high):
    x = torch.cat([torch.linspace(low - 1, high + 1, 401), torch.tensor([low, high, math.inf, -math.inf])])
    clip = gradient(lambda t: F.hardtanh(t, low, high), x)
    assert torch.equal(gradient(QuantHardtanh(3, low, high), x), clip)


@pytest.mark.parametrize("kind", SURROGATES)
@given(shift=st.sampled_from([-4.0, -1.0, 2.0]), num_bits=st.integers(1, 4))
def test_a_surrogate_is_moved_to_the_range(kind, shift, num_bits):
    x = torch.linspace(-2, 6, 257, dtype=torch.float64)  # multiples of 1/32: shifting them is exact
    signed, plain = QuantHardtanh(num_bits, shift, 4 + shift), QuantReLU(num_bits, 4.0)
    value = signed(x + shift)
    with surrogate(signed, kind), surrogate(plain, kind):
        assert torch.equal(gradient(signed, x + shift), gradient(plain, x))
        assert torch.equal(signed(x + shift), value)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-math.inf, 1.0), (0.0, math.nan)])
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(InputError, match=rf"^(min_val: it is {low!r}|max_val: it is {high!r}); [^\n]+$"):
        QuantHardtanh(4, low, high)


def test_it_too_copies_pickles_and_says_what_it_is():
    x = torch.randn(10)
    module = QuantHardtanh(3, -2, surrogate="leaky")
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
    assert repr(module) == "QuantHardtanh(num_bits=3, min_val=-2, max_val=1, surrogate=leaky(slope=0.1))"


def test_attacks_undo_it_on_its_own_range():
    network = torch.nn.Sequential(QuantHardtanh(2, -2.0, 1.0))
    x = torch.linspace(-3, 2, 64).view(1, 1, 8, 8)
    with full_precision(network, x):
        assert torch.equal(network(x), x.clamp(-2, 1))
    for num_bits in (1, 4):
        with other_bits(network, num_bits):
            torch.testing.assert_close(network(x), QuantHardtanh(num_bits, -2.0, 1.0)(x))


# --- LearnedClipReLU


@pytest.mark.parametrize(("num_bits", "clip"), [(1, 6.0), (4, 1.0), (8, 2.5)])
def test_with_the_same_clip_it_is_quant_relu_to_the_pixel_and_its_clip_has_the_gradient_of_pact(num_bits, clip):
    x = torch.linspace(-2, 8, 1001)
    learned, fixed = LearnedClipReLU(num_bits, clip), QuantReLU(num_bits, clip)
    assert torch.equal(learned(x), fixed(x))
    assert torch.equal(learned.full_precision(x), fixed.full_precision(x))
    inside = (x > 0) & (x < clip)
    assert torch.equal(gradient(learned, x), inside.float())
    (learned(x) * torch.arange(1001.0)).sum().backward()
    assert learned.clip.grad == torch.arange(1001.0)[x >= clip].sum()
    assert learned.range == (0, clip) and repr(learned) == f"LearnedClipReLU(num_bits={num_bits}, clip={clip:g})"


def test_a_step_moves_the_clip_to_where_the_activations_are():
    learned, x = LearnedClipReLU(4, 1.0), torch.full((10,), 5.0)
    steps = torch.optim.SGD(learned.parameters(), lr=0.1)
    for _ in range(100):
        steps.zero_grad()
        (learned(x) - 3).square().mean().backward()
        steps.step()
    assert learned.range[1] == pytest.approx(3, abs=1e-3)
    assert torch.equal(learned(x), learned.clip.expand(10))


@pytest.mark.parametrize("kind", SURROGATES)
def test_attacks_take_surrogates_and_the_twin_of_a_learned_clip(kind):
    x = torch.linspace(-2, 8, 257)
    learned, fixed = LearnedClipReLU(2, 4.0), QuantReLU(2, 4.0)
    with surrogate(learned, kind), surrogate(fixed, kind):
        assert torch.equal(gradient(learned, x), gradient(fixed, x))
    net = torch.nn.Sequential(learned)
    with full_precision(net, x):
        torch.testing.assert_close(net(x), x.clamp(0, 4))


def test_a_clip_that_falls_below_zero_keeps_its_levels():
    learned = LearnedClipReLU(2, 1.0)
    learned.clip.data.fill_(-1.0)
    value = learned(torch.linspace(-1, 1, 11))
    assert value.isfinite().all() and value.max() <= 1e-3 + 1e-9


def test_a_table_chooses_it_and_its_clips_are_stored():
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    made = quantize(net, activation_bits=3, clip=2.0, activation="learned-clip")
    assert isinstance(made[1], LearnedClipReLU) and made[1].range == (0, 2)
    made[1].clip.data.fill_(1.5)
    other = quantize(net, activation_bits=3, activation="learned-clip")
    other.load_state_dict(made.state_dict())
    assert other[1].range == (0, 1.5)
