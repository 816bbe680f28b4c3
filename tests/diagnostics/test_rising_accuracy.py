"""Accuracy that rises with eps, counted image by image also where a random model is right in some draws only."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import N, cell, clean
from scipy.stats import binomtest

from art_qplugins.diagnostics import assess

PGD = {"max_iter": 20, "rel_eps_step": None}


def rising(small, large, images):
    """The finding where so many images have these shares of right draws at a small and a large eps, and all others none."""
    at = [np.where(np.arange(N) < images, share, 0.0) for share in (small, large)]
    claim = cell("art:pgd", at[1], role="attack", eps=0.1, params=PGD)
    result = assess("m", [clean(), claim, cell("art:pgd", at[0], eps=0.05, params=PGD)], claimed=claim)
    return next(finding for finding in result.findings if finding.id == "accuracy-rises-with-eps")


@pytest.mark.parametrize(("small", "large", "counts"), [(0.45, 0.5, True), (0.5, 0.55, False), (0.45, 0.49, False)])
def test_an_image_counts_that_was_broken_in_most_draws_and_is_right_in_half_of_them(small, large, counts):
    found = rising(small, large, 20)
    expected = binomtest(20 if counts else 0, N, 0.02, alternative="greater").pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert bool(found.fired) is counts
