"""Surrogate gradients: no value changes, slopes are those of the stated functions, and everything is put back."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from art_qplugins import InputError, quantize
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers import QuantReLU, surrogate
from art_qplugins.quantizers.functional import quant_relu
from art_qplugins.quantizers.surrogates import SURROGATES, Surrogate

KINDS = list(SURROGATES)
OPTIONS = [
    ("straight-through", {}),
    ("identity", {}),
    ("leaky", {}),
    ("leaky", {"slope": 0.02}),
    ("tanh", {}),
    ("tanh", {"k": 3.0}),
    ("soft-staircase", {}),
    ("soft-staircase", {"k": 10.0}),
]


def gradient(module, x):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(module(x).sum(), x)[0]


def settings(module):
    return [m.surrogate for m in module.modules() if isinstance(m, QuantReLU)]


# --- The smooth functions, as the module's docstring states them


def straight_through(x, num_bits, clip):
    return x.clamp(0, clip)


def identity(x, num_bits, clip):
    return x


def leaky(x, num_bits, clip, slope=0.1):
    return x.clamp(0, clip) + slope * (x - x.clamp(0, clip))


def tanh(x, num_bits, clip, k=1.0):
    return clip / 2 * (1 + torch.tanh(k * (2 * x / clip - 1)))


def soft_staircase(x, num_bits, clip, k=2.0):
    step = clip / (2**num_bits - 1)
    u = x.clamp(0, clip) / step
    floor = u.floor().clamp(max=2**num_bits - 2)  # the last step ends at clip
    return step * (floor + (1 + torch.tanh(k * (u - floor - 0.5)) / math.tanh(k / 2)) / 2)


SMOOTH = dict(zip(KINDS, [straight_through, identity, leaky, tanh, soft_staircase], strict=True))


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@pytest.mark.parametrize(("num_bits", "clip"), [(1, 6.0), (2, 1.0), (4, 2.5)])
def test_the_slope_is_that_of_the_stated_function(kind, options, num_bits, clip):
    x = torch.linspace(-0.7 * clip, 1.9 * clip, 1237, dtype=torch.float64)
    kinks = torch.linspace(0, clip, 2**num_bits, dtype=torch.float64)
    h = 1e-6
    x = x[(x[:, None] - kinks).abs().amin(1) > 2 * h]
    smooth = SMOOTH[kind]
    numerical = (smooth(x + h, num_bits, clip, **options) - smooth(x - h, num_bits, clip, **options)) / (2 * h)
    module = QuantReLU(num_bits, clip, surrogate=Surrogate(kind, options))
    torch.testing.assert_close(gradient(module, x), numerical, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(SURROGATES[kind](x, num_bits, clip, **options), numerical, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "num_bits"), [("tanh", 1), ("soft-staircase", 1), ("soft-staircase", 3)])
def test_what_the_slopes_add_up_to_comes_near_the_quantizer_as_k_grows(kind, num_bits):
    """tanh goes over the whole range at once, so only one bit has it for its limit."""
    x = torch.linspace(-1, 7, 80_001, dtype=torch.float64)
    errors = []
    for k in (1.0, 5.0, 100.0):
        climbed = torch.cumulative_trapezoid(SURROGATES[kind](x, num_bits, 6.0, k=k), x)
        climbed = climbed + 6.0 - climbed[-1] if kind == "tanh" else climbed  # its tails are outside of this range
        errors.append(float((climbed - quant_relu(x[1:], num_bits)).abs().mean()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


def test_at_the_edges_the_slope_is_the_one_outside():
    for clip in (6.0, 0.7):
        edges = torch.tensor([0.0, -0.0, clip], dtype=torch.float64)
        outside = {"straight-through": 0, "identity": 1, "leaky": 0.1, "soft-staircase": 0}
        for kind, slope in outside.items():
            assert SURROGATES[kind](edges, 3, clip).tolist() == pytest.approx([slope] * 3), kind
        inside = torch.tensor([math.nextafter(0, 1), math.nextafter(clip, 0)], dtype=torch.float64)
        for kind in ("straight-through", "leaky"):
            assert SURROGATES[kind](inside, 3, clip).tolist() == [1, 1], kind
        least = 1 / math.tanh(1) * (1 - math.tanh(1) ** 2)  # of the soft staircase, at the ends of its steps
        assert SURROGATES["soft-staircase"](inside, 3, clip).tolist() == pytest.approx([least, least])


def test_a_soft_staircase_climbs_the_whole_range_and_becomes_straight_through():
    x = torch.linspace(0, 6, 300_001, dtype=torch.float64)
    for k in (0.5, 2.0, 20.0):
        slope = SURROGATES["soft-staircase"](x, 3, 6.0, k=k)
        assert float(torch.trapezoid(slope, x)) == pytest.approx(6.0, rel=1e-4)
    inside = SURROGATES["soft-staircase"](x[1:-1], 3, 6.0, k=1e-3)
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=1e-6)


@given(st.lists(st.floats(-8, 14, width=32), min_size=1, max_size=20), st.integers(1, 8), st.sampled_from([6.0, 0.1]))
def test_straight_through_by_its_slope_is_the_fused_path(values, num_bits, clip):
    x = torch.tensor([*values, 0.0, clip])
    slope = SURROGATES["straight-through"](x, num_bits, clip)
    assert torch.equal(gradient(QuantReLU(num_bits, clip), x), slope)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_slopes_have_the_shape_and_type_of_x_and_are_finite(kind, dtype):
    x = torch.tensor([[-math.inf, -1e4, -1.0, -0.0], [1e-4, 5.9, 6.0, math.inf]], dtype=dtype)
    slope = SURROGATES[kind](x, 4, 6.0)
    assert slope.dtype == dtype and slope.shape == x.shape
    assert slope.isfinite().all() and (slope >= 0).all()


# --- Values


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@pytest.mark.parametrize("num_bits", [1, 3, 8])
def test_values_are_the_same_bit_for_bit_and_the_input_is_left_alone(kind, options, num_bits):
    x = torch.cat([torch.randn(5000) * 6, torch.tensor([0.0, -0.0, 6.0, math.inf, -math.inf, 3e38, -3e38])])
    before, module = x.clone(), QuantReLU(num_bits)
    expected = module(x)
    with surrogate(module, kind, **options):
        for given_ in (x, x.clone().requires_grad_()):
            value = module(given_)
            assert torch.equal(value, expected) and torch.equal(value.signbit(), expected.signbit())
            assert value.requires_grad == given_.requires_grad
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_network_keeps_its_logits_and_changes_its_gradient(kind):
    network = quantize(ConvNet((1, 8, 8), 10, width=4), activation_bits=2, weight_bits=3, clip=1.0).eval()
    x = torch.rand(6, 1, 8, 8)
    logits, slope = network(x), gradient(network, x)
    state = copy.deepcopy(network.state_dict())
    with surrogate(network, kind):
        assert torch.equal(network(x), logits)
        assert torch.equal(gradient(network, x), slope) == (kind == "straight-through")
    assert torch.equal(gradient(network, x), slope)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])


def test_saturated_units_pass_gradient_where_the_surrogate_says_so():
    x = torch.tensor([-1.0, 7.0])
    found = {}
    for kind in KINDS:
        with surrogate(module := QuantReLU(4), kind):
            found[kind] = gradient(module, x).tolist()
    tail = 1 - math.tanh(4 / 3) ** 2
    assert found.pop("tanh") == pytest.approx([tail, tail], rel=1e-5)
    assert found.pop("leaky") == pytest.approx([0.1, 0.1])
    assert found == {"straight-through": [0, 0], "identity": [1, 1], "soft-staircase": [0, 0]}


# --- The context


def test_everything_is_back_afterwards_also_after_an_exception_and_contexts_nest():
    network = nn.Sequential(QuantReLU(2), nn.Sequential(QuantReLU(3, surrogate="identity")))
    own = [None, Surrogate("identity")]
    assert settings(network) == own
    with surrogate(network, "leaky", slope=0.3):
        assert settings(network) == [Surrogate("leaky", {"slope": 0.3})] * 2
        with surrogate(network[1], "tanh"):
            assert settings(network) == [Surrogate("leaky", {"slope": 0.3}), Surrogate("tanh")]
        with pytest.raises(IndexError), surrogate(network[1], "tanh"):
            network(torch.ones(2))[9]
        assert settings(network) == [Surrogate("leaky", {"slope": 0.3})] * 2
        with surrogate(network):
            assert settings(network) == [None, None]  # straight-through: the fused path itself
    assert settings(network) == own


def test_one_module_in_two_places_is_put_back():
    act = QuantReLU(2)
    with surrogate(nn.Sequential(act, nn.Linear(2, 2), act), "leaky"):
        assert act.surrogate == Surrogate("leaky")
    assert act.surrogate is None


def test_what_counts_is_when_the_forward_pass_ran():
    module, x = QuantReLU(2), torch.tensor([-1.0, 1.0, 9.0], requires_grad=True)
    with surrogate(module, "identity"):
        y = module(x)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1]
    y = module(x)
    with surrogate(module, "identity"):
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 1, 0]


def test_modules_of_ones_own_take_part_by_the_attribute_and_others_do_not():
    class Own(nn.Module):
        def __init__(self, setting):
            super().__init__()
            self.surrogate = setting

    mine, submodule, number = Own(None), Own(nn.ReLU()), Own(3)
    with surrogate(nn.Sequential(mine, submodule, number), "tanh", k=2.0):
        assert mine.surrogate == Surrogate("tanh", {"k": 2.0})
        assert isinstance(submodule.surrogate, nn.ReLU) and number.surrogate == 3
    assert mine.surrogate is None


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_keep_what_they_were_made_with(twin):
    module, x = nn.Sequential(QuantReLU(2)), torch.randn(50) * 6
    plain = twin(module)
    with surrogate(module, "leaky", slope=0.3):
        inside, slope = twin(module), gradient(module, x)
        assert not torch.equal(gradient(plain, x), slope)
    assert torch.equal(gradient(plain, x), gradient(module, x))
    assert torch.equal(gradient(inside, x), slope)
    assert torch.equal(inside(x), module(x))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("leeky", {}, r"surrogate: it is 'leeky'; did you mean 'leaky'\?"),
        ("straight_through", {}, r"did you mean 'straight-through'\?"),
        ("qqq", {}, "nearest are: tanh, straight-through, soft-staircase"),
        (3, {}, "surrogate: it is 3;"),
        ("leaky", {"slop": 0.1}, r"surrogate 'leaky': unknown option 'slop'; did you mean 'slope'\?"),
        ("identity", {"k": 1.0}, "surrogate 'identity': unknown option 'k'; it takes none"),
        ("straight-through", {"k": 1.0}, "surrogate 'straight-through': unknown option 'k'; it takes none"),
        ("tanh", {"k": 0.0}, r"surrogate 'tanh': option k: it is 0.0; give a number in \[0.01, 100\]"),
        ("tanh", {"k": math.nan}, "option k: it is nan"),
        ("soft-staircase", {"k": 1e308}, "option k: it is 1e\\+308"),
        ("leaky", {"slope": True}, "option slope: it is True"),
        ("leaky", {"slope": "much"}, "option slope: it is 'much'"),
    ],
)
def test_what_is_unknown_is_refused_in_one_line_and_changes_nothing(kind, options, message):
    module = QuantReLU(2, surrogate="tanh")
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"), surrogate(module, kind, **options):
        raise AssertionError
    assert module.surrogate == Surrogate("tanh")


def test_a_network_with_nothing_to_choose_is_refused():
    with pytest.raises(InputError, match=r"^Sequential has no QuantReLU"), surrogate(nn.Sequential(nn.ReLU())):
        raise AssertionError


# --- For good


def test_a_permanent_surrogate_is_the_context_for_ever_and_is_in_the_repr():
    x = torch.randn(100) * 6
    with surrogate(module := QuantReLU(3, 2.0), "leaky"):
        slope, inside = gradient(module, x), repr(module)
    permanent = QuantReLU(3, 2.0, surrogate="leaky")
    assert torch.equal(gradient(permanent, x), slope)
    assert repr(permanent) == inside == "QuantReLU(num_bits=3, clip=2, surrogate=leaky(slope=0.1))"
    assert QuantReLU(3, surrogate="straight-through").surrogate is None
    with pytest.raises(InputError, match="did you mean 'tanh'"):
        QuantReLU(3, surrogate="tanhh")


def test_a_kind_of_ones_own_is_one_row(monkeypatch):
    monkeypatch.setitem(SURROGATES, "double", lambda x, num_bits, clip, *, by=2.0: torch.full_like(x, by))
    with surrogate(module := QuantReLU(3), "double", by=4.0):
        assert gradient(module, torch.tensor([-1.0, 1.0])).tolist() == [4, 4]
