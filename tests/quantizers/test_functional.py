"""The fixed quantizers as functions: each property by name, values against NumPy, gradients against their formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from art_qplugins.quantizers.functional import mu_law, mu_law_inverse, quant_relu, quantize_weight, straight_through

BITS = st.integers(1, 8)
CLIP = st.sampled_from([6.0, 1.0, 2.0, 0.1, 3.3])


def arrays(low=-10.0, high=10.0, *, min_dims=1, max_dims=3, dtype=np.float32):
    shapes = hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, max_side=9)
    width = np.dtype(dtype).itemsize * 8
    low, high = float(dtype(low)), float(dtype(high))
    return hnp.arrays(dtype, shapes, elements=st.floats(low, high, width=width, allow_subnormal=False))


def numpy_quant_relu(x, num_bits, clip):
    """The definition again, in float32 NumPy: rint is half to even, and the scale is divided by, not multiplied."""
    scale = np.float32(clip / (2**num_bits - 1))
    return np.rint(np.clip(x, np.float32(0), np.float32(clip)) / scale) * scale


def gradient(function, x, upstream=None):
    x = x.detach().requires_grad_()
    (result,) = torch.autograd.grad(function(x), x, torch.ones_like(x) if upstream is None else upstream)
    return result


# --- quant_relu: values


@given(arrays(), BITS, CLIP)
def test_quant_relu_is_numpys_bit_for_bit(x, num_bits, clip):
    ours = quant_relu(torch.from_numpy(x), num_bits, clip).numpy()
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, numpy_quant_relu(x, num_bits, clip))


@pytest.mark.parametrize("num_bits", range(1, 17))
def test_quant_relu_is_numpys_on_a_dense_grid_with_every_tie(num_bits):
    scale = 6 / (2**num_bits - 1)
    ties = (np.arange(2**num_bits - 1) + 0.5) * scale
    x = np.concatenate([np.linspace(-2, 8, 20_001), ties, np.nextafter(ties, 9), np.nextafter(ties, -9)])
    x = x.astype(np.float32)
    np.testing.assert_array_equal(quant_relu(torch.from_numpy(x), num_bits).numpy(), numpy_quant_relu(x, num_bits, 6.0))


@given(arrays(), BITS, CLIP)
def test_quant_relu_is_idempotent_and_leaves_its_input_alone(x, num_bits, clip):
    given_ = torch.from_numpy(x)
    before = given_.clone()
    once = quant_relu(given_, num_bits, clip)
    assert torch.equal(quant_relu(once, num_bits, clip), once)
    assert torch.equal(given_, before)


@given(arrays(), BITS, CLIP)
def test_quant_relu_is_monotone(x, num_bits, clip):
    levels = quant_relu(torch.from_numpy(np.sort(x, axis=None)), num_bits, clip)
    assert (levels.diff() >= 0).all()


@given(arrays(), BITS, CLIP)
def test_quant_relu_errs_by_at_most_half_a_step(x, num_bits, clip):
    x = torch.from_numpy(x)
    error = (quant_relu(x, num_bits, clip) - x.clamp(0, clip)).abs().max()
    assert error <= clip / (2**num_bits - 1) / 2 + 1e-6 * clip


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("clip", [6.0, 1.0, 3.3])
def test_quant_relu_has_all_its_levels_and_no_other(num_bits, clip):
    levels = quant_relu(torch.linspace(-1, clip + 1, 100_003), num_bits, clip).unique()
    assert len(levels) == 2**num_bits
    torch.testing.assert_close(levels, torch.linspace(0, clip, 2**num_bits))
    assert levels[0] == 0
    assert levels[-1] == pytest.approx(clip, rel=1e-6)


@pytest.mark.parametrize("num_bits", range(1, 17))
def test_zero_and_six_are_levels_exactly(num_bits):
    ends = quant_relu(torch.tensor([-math.inf, -1.0, 0.0, 6.0, 7.0, math.inf]), num_bits)
    assert ends.tolist() == [0, 0, 0, 6, 6, 6]


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 8])
def test_ties_go_to_the_even_level(num_bits):
    top = 2**num_bits - 1  # a step of exactly 1, so that the ties are exact
    x = torch.arange(top) + 0.5
    assert quant_relu(x, num_bits, float(top)).tolist() == [2 * round((i + 0.5) / 2) for i in range(top)]


def test_a_nan_is_not_hidden():
    assert quant_relu(torch.tensor([math.nan]), 3).isnan().all()


# --- quant_relu: gradient


@given(arrays(-2, 8), st.sampled_from([1, 2, 4, 8]), CLIP, st.booleans())
def test_the_gradient_is_the_upstream_one_between_zero_and_clip_and_nothing_outside(x, num_bits, clip, double):
    x = torch.from_numpy(x).to(torch.float64 if double else torch.float32)
    upstream = torch.linspace(-2, 3, x.numel(), dtype=x.dtype).reshape(x.shape)
    inside = (x > 0) & (x < torch.tensor(clip, dtype=x.dtype))
    expected = torch.where(inside, upstream, torch.zeros_like(upstream))
    assert torch.equal(gradient(lambda t: quant_relu(t, num_bits, clip), x, upstream), expected)


@pytest.mark.parametrize("num_bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_at_the_edges(num_bits, dtype):
    up, down = (lambda v: torch.nextafter(v, v + 1)), (lambda v: torch.nextafter(v, v - 1))
    zero, clip = torch.zeros((), dtype=dtype), torch.full((), 6.0, dtype=dtype)
    x = torch.stack([down(zero), zero, up(zero), down(clip), clip, up(clip), clip * 1e6, -clip * 1e6])
    assert gradient(lambda t: quant_relu(t, num_bits), x).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("num_bits", [1, 2, 4])
def test_no_gradient_leaks_past_the_clip_as_it_does_in_torchs_fake_quantize(num_bits):
    scale = 6 / (2**num_bits - 1)
    beyond = torch.linspace(6, 6 + 0.49 * scale, 11)[1:]
    below = -torch.linspace(0, 0.49 * scale, 11)[1:]

    def fake(t):
        return torch.fake_quantize_per_tensor_affine(t, scale, 0, 0, 2**num_bits - 1)

    for x in (beyond, below):
        torch.testing.assert_close(quant_relu(x, num_bits), fake(x))
        assert gradient(fake, x).all(), "the trap is gone: choose another control"
        assert not gradient(lambda t: quant_relu(t, num_bits), x).any()


def test_layout_and_size_do_not_matter():
    wide = torch.linspace(-2, 8, 6_000_000).reshape(2000, 3000)
    for x in (wide.t(), wide[::3, 1::2], wide[:1].expand(5, -1), wide):
        expected = ((x > 0) & (x < 6)).float()
        assert torch.equal(quant_relu(x, 3), quant_relu(x.contiguous(), 3))
        assert torch.equal(gradient(lambda t: quant_relu(t, 3), x), expected)


# --- straight through


def test_through_is_the_value_bit_for_bit_with_the_gradient_of_the_path():
    path = torch.tensor([1e8, -3.0, 0.1], requires_grad=True)
    value = torch.tensor([0.3, 7e-9, -2.0], requires_grad=True)
    result = straight_through(value, path)
    assert torch.equal(result, value)
    assert not torch.equal(path + (value - path).detach(), value)  # what the usual formula gives
    result.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert path.grad.tolist() == [1, 2, 3]
    assert value.grad is None


# --- quantize_weight

WEIGHTS = arrays(-2, 2, min_dims=2, max_dims=4)
GRANULARITY = st.sampled_from(["per_channel", "per_tensor"])


def scales(w, granularity, quantity):
    """``quantity`` of each channel, or of the whole, in a shape that broadcasts."""
    if granularity == "per_tensor":
        return quantity(w.reshape(1, -1)).reshape([1] * w.dim())
    return quantity(w.reshape(len(w), -1)).reshape([-1] + [1] * (w.dim() - 1))


@given(WEIGHTS, st.integers(2, 8), GRANULARITY, st.booleans())
def test_symmetric_levels_are_whole_multiples_of_a_step_that_covers_the_weights(w, num_bits, granularity, narrow_range):
    w = torch.from_numpy(w).double()
    q = quantize_weight(w, num_bits, granularity=granularity, narrow_range=narrow_range)
    quant_max = 2 ** (num_bits - 1) - 1
    quant_min = -quant_max if narrow_range else -quant_max - 1
    # The smallest step with which the levels reach from the least to the greatest weight.
    high, low = (scales(w, granularity, lambda m, s=s: (s * m).amax(1).clamp_min(0)) for s in (1, -1))
    step = torch.maximum(high / quant_max, low / -quant_min)
    codes = q / step.clamp_min(1e-300)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    assert quant_min <= codes.round().min() and codes.round().max() <= quant_max
    assert ((q - w).abs() <= step / 2 * (1 + 1e-9)).all()
    assert not q[w == 0].any()
    assert len(codes.round().unique()) <= quant_max - quant_min + 1 <= 2**num_bits


@pytest.mark.parametrize("num_bits", [1, 2, 3, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_levels_are_exact_so_no_weight_is_a_rounding_error_away_from_one(num_bits, symmetric):
    q = quantize_weight(torch.rand(4, 20_000) * 2 - 1, num_bits, symmetric=symmetric)
    levels = 2 if num_bits == 1 else 2**num_bits - symmetric
    assert [len(row.unique()) for row in q] == [levels] * 4


def test_the_lowest_level_is_used_where_the_range_is_not_narrow():
    w = torch.tensor([[-1.0, -0.6, 0.0, 0.2, 0.8]])
    full = quantize_weight(w, 3, narrow_range=False)
    torch.testing.assert_close(full, torch.tensor([[-4.0, -2.0, 0.0, 1.0, 3.0]]) * 0.8 / 3, rtol=0, atol=0.15)
    w = torch.linspace(-1, 0.7, 200)[None]
    assert len(quantize_weight(w, 3, narrow_range=False).unique()) == 8
    assert len(quantize_weight(torch.linspace(-1, 1, 200)[None], 3).unique()) == 7


@given(WEIGHTS, BITS, GRANULARITY)
def test_the_narrow_quantizer_is_odd_and_keeps_the_greatest_weight(w, num_bits, granularity):
    w = torch.from_numpy(w)
    assume((w != 0).all())  # one bit has no zero: its zero has the sign of +0
    q = quantize_weight(w, num_bits, granularity=granularity)
    assert torch.equal(quantize_weight(-w, num_bits, granularity=granularity), -q)
    if num_bits > 1:
        greatest = [scales(t, granularity, lambda m: m.abs().amax(1)) for t in (q, w)]
        torch.testing.assert_close(*greatest, rtol=1e-6, atol=1e-30)


@given(WEIGHTS, BITS, st.booleans(), st.booleans())
def test_per_channel_is_per_tensor_on_each_channel(w, num_bits, symmetric, narrow_range):
    w = torch.from_numpy(w)
    options = {"symmetric": symmetric, "narrow_range": narrow_range}
    alone = [quantize_weight(row, num_bits, granularity="per_tensor", **options) for row in w]
    together = quantize_weight(w, num_bits, granularity="per_channel", **options)
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-6)


@given(WEIGHTS, GRANULARITY)
def test_one_bit_is_the_sign_times_the_mean_magnitude(w, granularity):
    w = torch.from_numpy(w)
    level = scales(w, granularity, lambda m: m.abs().mean(1))
    torch.testing.assert_close(quantize_weight(w, 1, granularity=granularity), torch.where(w >= 0, level, -level))


def test_the_one_bit_level_is_the_best_one():
    w = torch.randn(40, 30, dtype=torch.float64)
    q = quantize_weight(w, 1)
    error = (q - w).square().sum(1)
    for factor in (0.99, 1.01):
        assert ((q * factor - w).square().sum(1) > error).all()


@given(WEIGHTS, BITS, GRANULARITY)
def test_asymmetric_keeps_the_least_and_the_greatest_weight_on_an_even_grid(w, num_bits, granularity):
    w = torch.from_numpy(w).double()
    q = quantize_weight(w, num_bits, symmetric=False, granularity=granularity)
    low, high = (scales(w, granularity, lambda m, f=f: f(m, 1)) for f in (torch.amin, torch.amax))
    for ours, f in ((low, torch.amin), (high, torch.amax)):
        torch.testing.assert_close(scales(q, granularity, lambda m, f=f: f(m, 1)), ours, rtol=1e-12, atol=1e-12)
    step = (high - low) / (2**num_bits - 1)
    assert ((q - w).abs() <= step / 2 * (1 + 1e-9) + 1e-15).all()
    codes = torch.where(step > 0, (q - low) / step.clamp_min(1e-300), 0)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-6)
    assert codes.round().min() >= 0 and codes.round().max() <= 2**num_bits - 1


AFFINE = {"symmetric": False, "zero_point": True}


@given(WEIGHTS, BITS, GRANULARITY)
def test_a_zero_point_is_a_whole_number_within_the_levels(w, num_bits, granularity):
    w = torch.from_numpy(w).double()
    q = quantize_weight(w, num_bits, symmetric=False, granularity=granularity, zero_point=True)
    low, high = (scales(w, granularity, lambda m, f=f: f(m, 1)) for f in (torch.amin, torch.amax))
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = ((high - low) / (2**num_bits - 1)).clamp_min(1e-300)
    codes = q / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-6)  # so 0 is a level
    spread = scales(codes.round(), granularity, lambda m: m.clamp(min=0).amax(1) - m.clamp(max=0).amin(1))
    assert (spread <= 2**num_bits - 1).all()
    assert not q[w == 0].any()
    assert ((q - w).abs() <= step * (1 + 1e-9)).all()  # half a step of rounding, and half a step of moving
    inner = (w >= low + step / 2) & (w <= high - step / 2)
    assert ((q - w).abs() <= step / 2 * (1 + 1e-6) + 1e-15)[inner].all()


@pytest.mark.parametrize("steps", [2.5, 3.5])
def test_a_zero_point_between_two_levels_leaves_all_levels_in_use(steps):
    w = torch.tensor([[-steps, 0.0, 7 - steps]])
    q = quantize_weight(w, 3, symmetric=False, zero_point=True)
    assert q.amax() - q.amin() == 7
    torch.testing.assert_close(quantize_weight(q, 3, symmetric=False, zero_point=True), q)


def test_an_affine_weight_is_what_torchs_kernel_makes_of_it():
    w = torch.randn(5, 40) + 0.3
    q = quantize_weight(w, 4, symmetric=False, zero_point=True)
    low, high = w.amin(1).clamp(max=0), w.amax(1).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round().int()
    expected = torch.fake_quantize_per_channel_affine(w, scale, zero, 0, 0, 15)
    torch.testing.assert_close(q, expected)


@given(WEIGHTS, st.integers(2, 8), GRANULARITY, st.sampled_from([{"symmetric": True}, {"symmetric": False}, AFFINE]))
def test_a_quantized_weight_stays_as_it_is(w, num_bits, granularity, form):
    options = {"granularity": granularity, **form}
    if (
        form is AFFINE
    ):  # both ends may be rounded inward where 0 lies in the middle between two levels, up to float rounding
        whole = torch.from_numpy(w).double()
        low = scales(whole, granularity, lambda m: m.amin(1).clamp_max(0))
        high = scales(whole, granularity, lambda m: m.amax(1).clamp_min(0))
        zero = -low * (2**num_bits - 1) / (high - low).clamp_min(1e-30)
        assume(((zero % 1 - 0.5).abs() > 1e-4).all())
    once = quantize_weight(torch.from_numpy(w), num_bits, **options)
    torch.testing.assert_close(quantize_weight(once, num_bits, **options), once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 1e-42, 1e-30, 1e30])
@pytest.mark.parametrize("num_bits", [1, 2, 3, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("narrow_range", [True, False])
def test_a_constant_weight_stays_finite_and_where_it_is(value, num_bits, symmetric, narrow_range):
    w = torch.full((3, 4), value)
    q = quantize_weight(w, num_bits, symmetric=symmetric, narrow_range=narrow_range)
    assert q.isfinite().all()
    torch.testing.assert_close(q, w, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("num_bits", [1, 3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_the_gradient_of_a_weight_passes_straight_through(num_bits, symmetric, granularity):
    w, upstream = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    options = {"symmetric": symmetric, "granularity": granularity}
    assert torch.equal(gradient(lambda t: quantize_weight(t, num_bits, **options), w, upstream), upstream)


# --- mu-law

MU = st.sampled_from([0.01, 1.0, 10.0, 255.0, 1000.0])
UNIT = arrays(-1, 1, dtype=np.float64)


@given(UNIT, MU)
def test_mu_law_is_odd_and_maps_the_unit_interval_onto_itself(w, mu):
    w = torch.from_numpy(w)
    mapped = mu_law(w, mu)
    assert torch.equal(mu_law(-w, mu), -mapped)
    assert mapped.abs().max() <= 1 + 1e-15
    assert (mapped.abs() >= w.abs() - 1e-12).all()  # it is concave on [0, 1] with both ends fixed
    torch.testing.assert_close(mu_law_inverse(mapped, mu), w, rtol=1e-9, atol=1e-12)  # so every point is reached
    torch.testing.assert_close(mu_law(mu_law_inverse(w, mu), mu), w, rtol=1e-9, atol=1e-12)


@given(UNIT, MU)
def test_mu_law_is_strictly_monotone(w, mu):
    w = torch.from_numpy(w).flatten().sort().values
    apart = w.diff() > 1e-9
    assert (mu_law(w, mu).diff()[apart] > 0).all()


@given(UNIT, MU)
def test_mu_law_is_the_textbook_formula(w, mu):
    expected = np.sign(w) * np.log(1 + mu * np.abs(w)) / np.log(1 + mu)
    np.testing.assert_allclose(mu_law(torch.from_numpy(w), mu).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mu", [0.01, 1.0, 255.0, 1000.0])
def test_mu_law_has_its_three_fixed_points_and_its_slope_at_zero(mu):
    fixed = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(mu_law(fixed, mu), fixed, rtol=0, atol=1e-15)
    near_zero = torch.tensor([1e-12, -1e-12], dtype=torch.float64)
    slope = mu / math.log1p(mu)
    torch.testing.assert_close(gradient(lambda w: mu_law(w, mu), near_zero), torch.full_like(near_zero, slope))
    torch.testing.assert_close(mu_law(near_zero, mu) / near_zero, torch.full_like(near_zero, slope))


def test_the_slope_that_the_documentation_names():
    near_zero = torch.full((1,), 1e-12, dtype=torch.float64)
    assert round(float(mu_law(near_zero, 255.0) / near_zero)) == 46


@pytest.mark.parametrize("mu", [1.0, 255.0])
def test_mu_law_has_its_own_slope_everywhere_also_at_zero(mu: float) -> None:
    w = torch.tensor([-1.0, -0.3, 0.0, 1e-9, 0.7], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mu_law(w, mu).sum(), w)
    expected = mu / ((1 + mu * w.detach().abs()) * np.log1p(mu))
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=0)
