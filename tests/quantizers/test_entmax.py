"""entmax against the package of its authors, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from art_qplugins.quantizers.entmax import entmax


@pytest.mark.parametrize("alpha", [1.0, 1.1, 1.5, 1.7, 2.0, 2.5, 4.0])
def test_entmax_is_the_entmax_packages(alpha):
    package = pytest.importorskip("entmax")
    z = torch.randn(200, 6, dtype=torch.float64) * 2
    upstream = torch.randn_like(z)
    exact = {1.0: torch.softmax, 1.5: package.entmax15, 2.0: package.sparsemax}.get(alpha)
    reference = exact or (lambda t, dim: package.entmax_bisect(t, alpha, dim=dim, n_iter=60))
    ours, theirs = (z.clone().requires_grad_() for _ in range(2))
    p, expected = entmax(ours, alpha), reference(theirs, -1)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-8)
    p.backward(upstream), expected.backward(upstream)
    # Where a probability is next to zero the gradient is steep, and 1e-12 in the threshold shows.
    clear = ((p == 0) | (p > 1e-3)).all(-1) & ((expected == 0) == (p == 0)).all(-1)
    assert clear.sum() > 50
    torch.testing.assert_close(ours.grad[clear], theirs.grad[clear], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0])
def test_entmax_passes_gradcheck(alpha):
    z = (torch.randn(6, 5, dtype=torch.float64) * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: entmax(t, alpha), z, atol=1e-4)


@example([29.0, 29.2578125], 4.875)  # (alpha - 1) times the gap is 0.999: next to the threshold
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9), st.floats(1, 8))
def test_entmax_is_a_distribution_in_the_order_of_its_scores(z, alpha):
    z = torch.tensor(z, dtype=torch.float64)
    p = entmax(z, alpha)
    assert (p >= 0).all()
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    assert (p[z.argsort()].diff() >= -1e-9).all()
    # p is the height of a score above the threshold, to the power of 1 / (alpha - 1). The height is known to 1e-11 at least,
    # and a power below 1 is steep at zero: by |a^s - b^s| <= |a - b|^s, p is known to (1e-11)^s, and their sum to K times it.
    known = len(z) * 1e-11 ** min(1, 1 / max(alpha - 1, 1))
    torch.testing.assert_close(entmax(z + 7, alpha), p, rtol=1e-6, atol=max(1e-9, known))
