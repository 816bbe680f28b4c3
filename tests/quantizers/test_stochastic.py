"""The stochastic quantizer: its distribution, its draws and its gradient.

The draws are keyed, so these tests give the same answer at every run. The statistical tests treat the key as random. By
chance, a z-score above 5 would come once in 1.7 million comparisons. All tests here make about a thousand.
"""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from art_qplugins import InputError, StochasticQuantizer
from art_qplugins.quantizers import is_stochastic
from art_qplugins.quantizers.entmax import entmax
from art_qplugins.quantizers.noise import stochastic_layers

ALPHAS = [1.0, 1.3, 1.5, 2.0, 3.0]


def quantizer(num_bits=2, *, offset=None, spacing=None, **options):
    """A StochasticQuantizer with this offset and spacing, as if they had been learned."""
    module = StochasticQuantizer(num_bits, **options)
    with torch.no_grad():
        if offset is not None:
            module.offset.fill_(offset)
        if spacing is not None:
            module.raw_spacing.fill_(math.log(math.expm1(spacing)))
    return module


def bins(module):
    return module.offset + module.spacing * torch.arange(module.num_bins, dtype=module.offset.dtype)


def definition(module, x):
    """p(k | x) from the definition: alpha-entmax on a grid without ends, and what is beyond the ends counts as the ends."""
    u = ((x.double() - module.offset.double()) / module.spacing.double()).clamp(-50, module.num_bins + 50)
    far = torch.arange(-70, module.num_bins + 70, dtype=torch.float64)
    p = entmax(-((u.unsqueeze(-1) - far) ** 2), module.alpha)
    inner = p[..., 70 : 70 + module.num_bins].clone()
    inner[..., 0] += p[..., :70].sum(-1)
    inner[..., -1] += p[..., 70 + module.num_bins :].sum(-1)
    return inner


def mean(module, x):
    return (module.probabilities(x) * bins(module)).sum(-1)


# --- the distribution


@pytest.mark.parametrize("num_bits", [1, 2, 3])
def test_at_alpha_2_the_closed_form_is_the_general_one(num_bits):
    module = quantizer(num_bits, offset=-0.4, spacing=0.7).double()
    x = torch.linspace(-3, 8, 701, dtype=torch.float64)
    general = entmax(-(((x[:, None] - bins(module)) / module.spacing) ** 2), 2.0)
    torch.testing.assert_close(module.probabilities(x), general, rtol=0, atol=1e-10)


@given(st.integers(1, 6), st.floats(-2, 2), st.floats(0.05, 3), st.floats(-0.5, 1.5), st.sampled_from([2.0, 3.0, 8.0]))
def test_from_alpha_2_at_most_the_two_bins_around_x_have_mass(num_bits, offset, spacing, where, alpha):
    module = quantizer(num_bits, offset=offset, spacing=spacing, alpha=alpha).double()
    levels = bins(module).detach()
    x = levels[0] + where * (levels[-1] - levels[0])
    p = module.probabilities(x).detach()
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    mass = p > 1e-9
    nearest = (levels - x).abs().topk(2, largest=False).indices
    assert mass.sum() <= 2
    assert set(mass.nonzero().flatten().tolist()) <= set(nearest.tolist())


def test_at_alpha_2_the_mean_is_x_and_the_variance_the_least_of_two_bins():
    module = quantizer(3, offset=0.2, spacing=0.5).double()
    levels = bins(module).detach()
    x = torch.linspace(float(levels[0]), float(levels[-1]), 501, dtype=torch.float64)
    p = module.probabilities(x).detach()
    t = ((x - levels[0]) / 0.5) % 1
    torch.testing.assert_close((p * levels).sum(-1), x)
    torch.testing.assert_close((p * (levels - x[:, None]) ** 2).sum(-1), 0.25 * t * (1 - t), rtol=0, atol=1e-7)


def test_with_two_bins_it_is_binaryconnects_hard_sigmoid():
    module = quantizer(1, offset=-1.0, spacing=2.0).double()
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    hard_sigmoid = ((x + 1) / 2).clamp(0, 1)  # Courbariaux, Bengio & David 2015, equation 3
    torch.testing.assert_close(module.probabilities(x)[:, 1], hard_sigmoid, rtol=0, atol=1e-7)
    n = 20_000
    share = (module(x.expand(n, -1)) > 0).double().mean(0)
    spread = (hard_sigmoid * (1 - hard_sigmoid) / n).sqrt()
    assert ((share - hard_sigmoid).abs() <= 5 * spread + 1e-7).all()


def test_at_alpha_1_it_is_softmax_of_the_squared_distances():
    module = quantizer(2, offset=0.1, spacing=0.8, alpha=1.0).double()
    x = torch.linspace(-1, 4, 101, dtype=torch.float64)
    scores = torch.exp(-(((x[:, None] - 0.1) / 0.8 - torch.arange(-30, 34)) ** 2))
    p = scores / scores.sum(-1, keepdim=True)
    folded = torch.stack([p[:, :31].sum(-1), p[:, 31], p[:, 32], p[:, 33:].sum(-1)], -1)
    torch.testing.assert_close(module.probabilities(x), folded, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("num_bits", [2, 8])
def test_the_distribution_is_the_definition_in_float32_too_however_far_x_is_outside(alpha, num_bits):
    module = quantizer(num_bits, alpha=alpha)
    near = torch.linspace(-2, 8, 501)
    expected = definition(module, near).detach()
    torch.testing.assert_close(module.probabilities(near).detach().double(), expected, rtol=0, atol=1e-3)
    exact = copy.deepcopy(module).double()
    torch.testing.assert_close(exact.probabilities(near.double()), definition(exact, near), rtol=0, atol=1e-6)
    far = torch.tensor([-1e9, -1e4, -300.0, 300.0, 1e4, 1e9])
    ends = torch.eye(module.num_bins)[[0] * 3 + [-1] * 3]
    torch.testing.assert_close(module.probabilities(far).detach(), ends)


def test_the_noise_falls_as_alpha_grows():
    x = torch.linspace(0, 6, 301, dtype=torch.float64)
    spread = []
    for alpha in (1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 8.0):
        module = quantizer(3, alpha=alpha).double()
        p = module.probabilities(x).detach()
        centre = (p * bins(module).detach()).sum(-1, keepdim=True)
        spread.append(float(((p * (bins(module).detach() - centre) ** 2).sum(-1)).mean()))
    assert spread == sorted(spread, reverse=True)


@given(st.integers(1, 8), st.sampled_from([0.01, 1.0, 6.0, 100.0]))
def test_the_bins_start_evenly_on_zero_to_clip(num_bits, clip):
    module = StochasticQuantizer(num_bits, clip=clip)
    torch.testing.assert_close(bins(module).detach(), torch.linspace(0, clip, 2**num_bits), rtol=1e-4, atol=1e-6 * clip)


@pytest.mark.parametrize(("low", "clip"), [(1.0, 1.0), (2.0, 1.0), (0.0, math.nan), (-math.inf, 1.0), (0.0, math.inf)])
def test_a_range_that_is_none_is_refused(low, clip):
    with pytest.raises(InputError, match=rf"^(low: it is {low!r}|clip: it is {clip!r})[^\n]+$"):
        StochasticQuantizer(2, low=low, clip=clip)


# --- the draws


@given(st.integers(1, 5), st.sampled_from(ALPHAS), st.integers(0, 1000))
def test_every_draw_is_a_bin_and_at_alpha_2_one_next_to_x(num_bits, alpha, seed):
    module = quantizer(num_bits, offset=-0.3, spacing=0.4, alpha=alpha, seed=seed)
    x = torch.linspace(-2, 14, 997)
    code = (module(x).detach() + 0.3) / 0.4
    torch.testing.assert_close(code, code.round(), rtol=0, atol=1e-4)
    assert code.min() > -0.5 and code.max() < 2**num_bits - 0.5
    if alpha >= 2:
        inside = x.clamp(-0.3, -0.3 + 0.4 * (2**num_bits - 1))
        assert ((0.4 * code - 0.3 - inside).abs() < 0.4 * (1 + 1e-4)).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_bins_are_drawn_as_often_as_their_probability_says(alpha):
    module = quantizer(2, offset=0.1, spacing=0.5, alpha=alpha)
    x, n = torch.linspace(-0.3, 2, 24), 40_000
    code = ((module(x.expand(n, -1)).detach() - 0.1) / 0.5).round().long()
    share = torch.stack([(code == k).double().mean(0) for k in range(4)], -1)
    p = module.probabilities(x).detach().double()
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 2 / n).all()


def test_at_alpha_2_draws_are_unbiased_with_variance_spacing_squared_t_one_minus_t():
    spacing, n = 0.5, 40_000
    module = quantizer(3, offset=-0.2, spacing=spacing)
    x = -0.2 + spacing * torch.linspace(0, 7, 71, dtype=torch.float64)
    draws = module(x.float().expand(n, -1)).detach().double()
    t = ((x + 0.2) / spacing) % 1
    variance = spacing**2 * t * (1 - t)
    assert ((draws.mean(0) - x).abs() <= 5 * (variance / n).sqrt() + 1e-4 * spacing).all()
    # The fourth moment of a Bernoulli variable gives the spread of its estimated variance.
    fourth = spacing**4 * t * (1 - t) * (1 - 3 * t * (1 - t))
    estimate = (draws - x).square().mean(0)
    assert ((estimate - variance).abs() <= 5 * ((fourth - variance**2) / n).sqrt() + 1e-4 * spacing**2).all()


def test_outside_the_bins_it_saturates():
    x = torch.tensor([-1e6, -0.01, 6.01, 1e6])
    assert StochasticQuantizer(2)(x).tolist() == pytest.approx([0, 0, 6, 6], abs=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("word", [-(2**15), 2**15 - 1])
def test_the_least_and_the_greatest_noise_draw_bins_that_exist_and_have_mass(alpha, word, monkeypatch):
    module = quantizer(3, offset=-0.3, spacing=0.4, alpha=alpha)
    monkeypatch.setattr(module, "sample", lambda shape, *_: torch.full(shape, word, dtype=torch.int16))
    x = torch.linspace(-1, 4, 20_011)
    code = ((module(x).detach() + 0.3) / 0.4).round().long()
    assert code.min() >= 0 and code.max() <= 7
    near = torch.stack([module.probabilities(x + shift) for shift in (-1e-5, 0, 1e-5)]).amax(0)  # up to rounding
    assert (near.gather(-1, code[:, None]) > 0).all()


# --- the gradient


@pytest.mark.parametrize("alpha", [*ALPHAS, 8.0])
@pytest.mark.parametrize("num_bits", [1, 3, 8])
def test_the_gradient_is_that_of_the_mean_in_x_offset_and_spacing(alpha, num_bits):
    module = quantizer(num_bits, offset=-0.3, spacing=0.6, alpha=alpha).double()
    # Inside and outside the bins, and on none of them, where the mean has a kink at alpha = 2.
    x = (torch.linspace(-3, 2.4 + 0.6 * 2**num_bits, 4000, dtype=torch.float64) + 1e-5).requires_grad_()
    upstream = torch.randn_like(x)
    variables = [x, module.offset, module.raw_spacing]
    ours = torch.autograd.grad(module(x), variables, upstream)
    expected = torch.autograd.grad(mean(module, x), variables, upstream)
    if alpha == 2:
        for name, a, b in zip(("x", "offset", "spacing"), ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")
        return
    # The slope in a table is the mean over a cell. A cell may hold the jump where a bin gains mass.
    steepest = max(1, 2 ** (alpha - 2))
    apart = (ours[0] - expected[0]).abs() / upstream.abs() / steepest
    assert (apart > 0.01).double().mean() < 0.005
    assert apart.mean() < 0.002
    scale = float(upstream.norm()) * 2**num_bits * steepest
    for a, b in zip(ours[1:], expected[1:], strict=True):
        assert abs(float(a - b)) < 0.002 * scale


def test_at_alpha_2_the_mean_is_a_clamp_and_so_is_the_gradient():
    module = quantizer(2, offset=0.5, spacing=1.0)
    x = torch.tensor([-5.0, 0.4, 0.6, 2.0, 3.4, 3.6, 9.0], requires_grad=True)
    module(x).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert float(module.offset.grad) == 4  # every saturated value moves with the offset
    slope = torch.autograd.grad(module.spacing, module.raw_spacing)[0]
    assert float(module.raw_spacing.grad / slope) == pytest.approx(2 * 3)  # the two on top, three spacings up


@pytest.mark.parametrize("num_bits", [1, 3])
def test_exactly_on_the_lowest_and_the_highest_bin_the_gradient_goes_to_the_bins(num_bits):
    """As outside, where the mean moves with the bins and not with x."""
    module = quantizer(num_bits, offset=-0.3, spacing=0.6).double()
    low, top = float(module.offset.detach()), 2**num_bits - 1
    high = low + top * float(module.spacing.detach())
    ends = torch.tensor([math.nextafter(low, 9), low, math.nextafter(high, -9), high], dtype=torch.float64)
    slope = torch.autograd.grad(module.spacing, module.raw_spacing)[0]
    found = []
    for x in ends:
        leaf = x.clone().requires_grad_()
        gradients = torch.autograd.grad(module(leaf[None]).sum(), [leaf, module.offset, module.raw_spacing])
        found.append([*map(float, gradients[:2]), float(gradients[2] / slope)])
    assert found == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, pytest.approx(top)]]


def test_half_of_the_gradient_can_be_asked_for():
    module, x = StochasticQuantizer(2), torch.rand(50, requires_grad=True)
    for p in module.parameters():
        p.requires_grad_(False)
    module(x).sum().backward()
    assert x.grad.sum() == 50
    module.offset.requires_grad_()
    module(torch.full((3,), 7.0)).sum().backward()
    assert module.offset.grad == 3 and module.raw_spacing.grad is None


# --- as a module


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_with_the_same_stream_on_its_own(copied):
    x = torch.rand(100) * 6
    module = StochasticQuantizer(2, seed=9)
    module(x)
    twin = copied(module)
    following = module(x), module(x)
    assert torch.equal(twin(x), following[0])
    assert torch.equal(twin(x), following[1])


def test_the_state_dict_holds_what_was_learned():
    x = torch.rand(100) * 6
    learned = quantizer(2, offset=0.3, spacing=0.7, seed=1)
    other = StochasticQuantizer(2, seed=1)
    other.load_state_dict(learned.state_dict())
    assert torch.equal(other(x), learned(x))
    assert set(learned.state_dict()) == {"offset", "raw_spacing"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_bits": 0}, "num_bits"),
        ({"alpha": 0.99}, "alpha"),
        ({"alpha": math.inf}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"clip": 0.0}, "clip"),
        ({"clip": math.nan}, "clip"),
    ],
)
def test_bad_settings_are_refused(options, name):
    with pytest.raises(InputError, match=rf"^{name}: it is [^\n]+$"):
        StochasticQuantizer(**{"num_bits": 2, **options})


def test_it_says_its_settings_and_is_found_in_a_network():
    network = nn.Sequential(nn.Linear(2, 2), StochasticQuantizer(2, alpha=1.5, seed=3, layer=1), nn.ReLU())
    assert repr(network[1]) == "StochasticQuantizer(num_bits=2, alpha=1.5, seed=3, layer=1)"
    assert stochastic_layers(network) == [network[1]]
    assert is_stochastic(network) and not is_stochastic(network[0])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_order_in_memory_changes_nothing_and_stays(alpha):
    x = torch.rand(4, 3, 5, 7) * 6
    upstream = torch.rand(4, 3, 5, 7)
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        module = quantizer(2, alpha=alpha)
        leaf = x.clone(memory_format=order).requires_grad_()
        drawn = module(leaf)
        assert drawn.is_contiguous(memory_format=order)
        found.append([drawn, *torch.autograd.grad(drawn, [leaf, module.offset, module.raw_spacing], upstream)])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-4)
