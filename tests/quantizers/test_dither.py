"""Draws as dithering: the noise has the distribution that the probabilities ask for."""

from __future__ import annotations

import math

import pytest
import torch

from art_qplugins.quantizers import dither
from art_qplugins.quantizers.entmax import entmax

ALPHAS = [1.0, 1.1, 1.5, 1.9, 2.0, 2.5, 3.0, 8.0]
EVERY = torch.arange(-(2**15), 2**15, dtype=torch.int16)


def mean(u, alpha, top):
    """E[code] in double precision."""
    p, k = dither.window(u, alpha)
    return (p * k.clamp(0, top)).sum(-1)


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0, 2.5, 3.0])
def test_the_window_has_the_definition(alpha):
    u = torch.linspace(-3, 3, 601, dtype=torch.float64)
    everywhere = torch.arange(-30, 31, dtype=torch.float64)
    expected = entmax(-((u[:, None] - everywhere) ** 2), alpha)
    p, k = dither.window(u, alpha)
    found = torch.zeros_like(expected).scatter_add(-1, k.long() + 30, p)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("alpha", [2.0, 2.5, 3.0, 4.0, 8.0, 50.0])
def test_from_alpha_2_the_upper_bin_solves_its_equation(alpha):
    f = torch.linspace(0, 1, 1001, dtype=torch.float64)
    p = dither.window(f[:-1], alpha)[0][:, 1]
    target = ((alpha - 1) * (2 * f[:-1] - 1)).clamp(-1, 1)
    torch.testing.assert_close(p ** (alpha - 1) - (1 - p) ** (alpha - 1), target, rtol=0, atol=1e-12)
    if alpha == 3:
        torch.testing.assert_close(p, (2 * f[:-1] - 0.5).clamp(0, 1))
    if alpha <= 8:  # beyond, the slope is too great for finite differences
        inside = f[:-1][(p > 0.01) & (p < 0.99)][::25].requires_grad_()
        assert torch.autograd.gradcheck(lambda u: dither.window(u, alpha)[0][:, 1], inside, atol=1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("u", [0.0, 0.01, 0.3, 0.5, 0.77, 5.25])
def test_all_words_together_draw_bins_as_often_as_their_probabilities_say(alpha, u):
    code = (dither.noise(EVERY, alpha, torch.empty(EVERY.shape, dtype=torch.float64)) + u).floor()
    p, k = dither.window(torch.tensor(u, dtype=torch.float64), alpha)
    share = (code[:, None] == k).double().mean(0)
    torch.testing.assert_close(share, p, rtol=0, atol=2 / dither.WORDS)


def test_at_alpha_2_the_noise_is_uniform_and_the_table_agrees():
    closed = dither.noise(EVERY, 2.0, torch.empty(EVERY.shape))
    assert closed.min() == 0.5 / 2**16 and closed.max() == 1 - 0.5 / 2**16
    table = dither._quantiles(2.0, torch.device("cpu"))
    torch.testing.assert_close(table.flip(0), closed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_no_bin_beyond_reach_has_mass(alpha):
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    k = torch.arange(-40, 40, dtype=torch.float64)
    p = entmax(-((u[:, None] - k) ** 2), min(alpha, 2.0))  # the sparser, the nearer
    assert float(p[(u[:, None] - k).abs() >= dither.reach(alpha)].max()) < 1e-8


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("top", [1, 3, 255])
def test_the_slopes_add_up_to_the_mean_code(alpha, top):
    table = dither.slopes(alpha, top, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(500, generator=generator, dtype=torch.float64) * (top + 20) - 10
    cell, skipped = table.cells(u, 1.0, top)
    middle = mean(u, alpha, top)
    torch.testing.assert_close(
        table.mean.double()[cell.long()] + (0 if skipped is None else skipped),
        middle,
        rtol=0,
        atol=math.ldexp(2 ** max(alpha - 2, 1), -11),
    )
    whole = table.slope.double().sum() / table.parts
    assert float(whole) == pytest.approx(table.ends, abs=1e-3)  # m rises from 0 to the last bin


@pytest.mark.parametrize("alpha", [1.0, 1.5, 3.0])
def test_the_ends_are_found_however_many_bins_lie_between(alpha):
    """One table serves every number of bins: near an end all are alike, between them the slope has period 1."""
    table, device = dither.slopes(alpha, 255, torch.device("cpu")), torch.device("cpu")
    u = torch.linspace(-9, 9, 333, dtype=torch.float64)
    for top in (31, 255):
        assert dither.slopes(alpha, top, device) is table
        low, high = table.cells(u, 1.0, top)[0], table.cells(u + top, 1.0, top)[0]
        assert torch.equal(low[u < 3], table.cells(u, 1.0, 255)[0][u < 3])
        assert torch.equal(high, table.cells(u + 255, 1.0, 255)[0])
    inside = table.cells(u[u.abs() < 5] + 100, 1.0, 255)[0]
    torch.testing.assert_close(inside, table.cells(u[u.abs() < 5] + 101, 1.0, 255)[0], rtol=0, atol=1)
