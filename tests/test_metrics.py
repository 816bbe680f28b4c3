"""Numbers from per-image results, against SciPy and against simulations."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from art_qplugins.metrics import (
    accuracy,
    after_tries,
    auroc,
    auroc_interval,
    gap_lower_bound,
    resampled_means,
    true_positive_rate,
    wilson_interval,
    worst_case,
)


@given(
    st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95, 0.99])
)
def test_wilson_is_scipys(counts, confidence):
    successes, n = counts
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, n, confidence=confidence) == pytest.approx(tuple(expected), abs=1e-12)


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_wilson_holds_the_proportion_also_where_it_is_a_fraction(share, n):
    low, high = wilson_interval(share * n, n)
    assert 0 <= low <= share + 1e-15 and share <= high + 1e-15 and high <= 1


def test_wilson_is_never_empty_at_the_ends():
    assert wilson_interval(0, 100)[0] == 0 and wilson_interval(0, 100)[1] > 0.03
    assert wilson_interval(100, 100)[1] == 1 and wilson_interval(100, 100)[0] < 0.97
    with pytest.raises(ValueError, match="n: it is 0"):
        wilson_interval(0, 0)


def test_wilson_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for p in (0.1, 0.5, 0.95):
        hits = [low <= p <= high for low, high in (wilson_interval(k, 100) for k in rng.binomial(100, p, 2000))]
        assert 0.92 < np.mean(hits) < 0.98


def test_accuracy_is_the_mean_with_its_interval():
    value, interval = accuracy([True, False, True, True])
    assert value == 0.75
    assert interval == pytest.approx(tuple(binomtest(3, 4).proportion_ci(method="wilson")))
    assert accuracy([0.5, 1.0])[0] == 0.75


# --- worst_case


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_of_a_deterministic_model_it_is_the_minimum_over_attacks(rows):
    correct = np.array(rows)
    np.testing.assert_array_equal(worst_case(correct, correct), correct.min(0))


def test_it_is_chosen_by_the_selection_and_read_from_the_result():
    correct = [[0.9, 0.2, 0.5], [0.1, 0.8, 0.7]]
    selection = [[0.3, 0.1, 0.6], [0.5, 0.9, 0.6]]
    np.testing.assert_allclose(worst_case(correct, selection), [0.9, 0.2, 0.6])  # equally bad attacks: their mean


def test_an_image_that_an_attack_was_not_run_on_counts_for_the_others_alone():
    none = np.nan
    np.testing.assert_allclose(
        worst_case([[0.9, none, 0.3], [none, 0.8, 0.4]], [[0.2, none, 0.5], [none, 0.1, 0.4]]), [0.9, 0.8, 0.4]
    )


def test_attacks_that_are_equal_up_to_rounding_are_averaged_and_others_are_not():
    np.testing.assert_allclose(worst_case([[0.0], [1.0]], [[0.3], [0.1 + 0.2]]), [0.5])
    np.testing.assert_allclose(worst_case([[0.0], [1.0]], [[0.3 + 1e-9], [0.3]]), [1.0])


def test_the_result_is_unbiased_where_the_minimum_over_the_same_draws_is_not():
    """Images of which each attack leaves half right by luck alone: no attack can do better than 0.5."""
    rng = np.random.default_rng(0)
    attacks, images = 5, 40_000
    correct, selection = (rng.random((attacks, images)) < 0.5 for _ in range(2))
    spread = 0.5 / np.sqrt(images)
    assert abs(worst_case(correct, selection).mean() - 0.5) < 5 * spread
    assert worst_case(correct, correct).mean() < 0.5**attacks + 5 * spread
    # ... and with an attack that really is stronger, it finds that one.
    p = np.array([0.8, 0.2])[:, None]
    correct, selection = ((rng.random((2, images, 16)) < p[..., None]).mean(-1) for _ in range(2))
    assert abs(worst_case(correct, selection).mean() - 0.2) < 0.01


# --- gap_lower_bound


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.95, 0.99]))
def test_the_bound_is_clopper_and_pearsons_as_scipy_has_it(counts, confidence):
    broken, n = counts
    weaker = np.ones(n)
    stronger = np.arange(n) >= broken
    expected = binomtest(broken, n, alternative="greater").proportion_ci(confidence, method="exact").low
    gap, bound = gap_lower_bound(weaker, stronger, confidence=confidence)
    assert gap == pytest.approx(broken / n)
    assert bound == pytest.approx(expected, abs=1e-12)


def test_the_bound_at_the_edges():
    assert gap_lower_bound([1, 0, 1], [1, 0, 1]) == (0.0, 0.0)  # the same everywhere
    gap, bound = gap_lower_bound(np.ones(100), np.zeros(100))  # all broken
    assert gap == 1 and bound == pytest.approx(0.05 ** (1 / 100))
    assert gap_lower_bound([1.0], [0.0])[1] == pytest.approx(0.05)  # one image proves little
    gap, bound = gap_lower_bound(np.zeros(50), np.ones(50))  # the "stronger" attack is the weaker one
    assert gap == -1 and bound == -1
    gap, bound = gap_lower_bound([1, 0] * 100, [0, 1] * 100)  # as many mended as broken
    assert gap == 0 and bound < 0


def test_the_bound_is_below_the_gap_and_exceeds_the_truth_about_one_time_in_twenty():
    rng = np.random.default_rng(0)
    # Fractions, and images both ways: the bootstrap. The true gap is 0.7 - 0.6.
    above = []
    for _ in range(100):
        gap, bound = gap_lower_bound(rng.binomial(4, 0.7, 100) / 4, rng.binomial(4, 0.6, 100) / 4)
        assert bound < gap
        above.append(bound > 0.1)
    assert np.mean(above) < 0.12
    above = [gap_lower_bound(np.ones(100), rng.random(100) > 0.1)[1] > 0.1 for _ in range(500)]
    assert np.mean(above) < 0.08


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_bootstraps_bound_is_the_quantile_of_its_confidence(confidence):
    """Of many images the mean is normal. 4000 resamples move the quantile by 0.06 standard errors at most."""
    rng = np.random.default_rng(5)
    weaker, stronger = rng.random((2, 2000))
    gap, bound = gap_lower_bound(weaker, stronger, confidence=confidence)
    error = (weaker - stronger).std() / np.sqrt(2000)
    assert gap == pytest.approx((weaker - stronger).mean())
    assert (gap - bound) / error == pytest.approx(norm.ppf(confidence), abs=0.2)


def test_resampled_means_have_the_mean_and_the_spread_of_a_mean():
    values = np.random.default_rng(6).random(500) ** 3
    means = resampled_means(values, resamples=2000)
    error = values.std() / np.sqrt(500)
    assert means.shape == (2000,)
    assert abs(means.mean() - values.mean()) < 5 * error / np.sqrt(2000)
    assert means.std() == pytest.approx(error, rel=5 / np.sqrt(2 * 2000))


def test_the_bound_is_the_same_at_every_call_and_leaves_numpys_generator_alone():
    weaker, stronger = np.random.default_rng(1).random((2, 50))
    state = np.random.get_state()[1].tolist()
    assert gap_lower_bound(weaker, stronger) == gap_lower_bound(weaker, stronger)
    assert np.random.get_state()[1].tolist() == state


def test_the_bootstrap_takes_no_more_memory_than_it_needs():
    weaker, stronger = np.random.default_rng(0).random((2, 20_000))
    tracemalloc.start()
    gap_lower_bound(weaker, stronger)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


# --- NaN


@pytest.mark.parametrize("odd", [np.nan, np.inf, -0.1, 1.1])
def test_what_is_no_share_has_no_mean_no_interval_and_no_gap(odd):
    """An interval of NaN would be [0, 1], and a gap of NaN is above no threshold."""
    for call in (
        lambda: accuracy([1.0, odd]),
        lambda: gap_lower_bound([1.0, odd], [0.0, 0.0]),
        lambda: gap_lower_bound([1.0, 1.0], [0.0, odd]),
    ):
        with pytest.raises(ValueError, match="1 of 2 values are not in"):
            call()
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(odd, 1)


@pytest.mark.parametrize("n", [0, np.nan])
def test_an_interval_needs_images(n):
    with pytest.raises(ValueError, match=r"^n: it is "):
        wilson_interval(0, n)


def test_an_image_that_no_attack_was_run_on_has_no_worst_case():
    nan = float("nan")
    with pytest.raises(ValueError, match="no attack was run on 1 images"):
        worst_case([[1.0, nan], [0.0, nan]], [[1.0, nan], [0.0, nan]])


# --- Several tries


@given(st.integers(1, 40).flatmap(lambda S: st.tuples(st.just(S), st.integers(0, S), st.integers(1, 40))))
def test_right_at_every_try_is_the_share_of_subsets_of_draws_that_are_right(numbers):
    draws, right, tries = numbers
    tries = min(tries, draws)
    expected = math.comb(right, tries) / math.comb(draws, tries)
    assert after_tries(right / draws, draws, tries) == pytest.approx(expected, abs=1e-12)


@given(st.floats(0, 1), st.integers(1, 60), st.integers(1, 120))
def test_the_mean_over_all_draws_is_the_power_and_beyond_them_a_tighter_bound_than_the_power_of_the_share(
    p, draws, tries
):
    """Over every number of right draws, weighed by its probability: no simulation."""
    right = np.arange(draws + 1)
    weights = np.array([math.comb(draws, k) * p**k * (1 - p) ** (draws - k) for k in right.tolist()])
    mean = float(weights @ after_tries(right / draws, draws, tries))
    plug_in = float(weights @ (right / draws) ** tries)
    assert mean == pytest.approx(p ** min(tries, draws), abs=1e-9)
    assert p**tries - 1e-9 <= mean <= plug_in + 1e-9


def test_tries_keep_the_shape_and_what_is_not_known():
    share = np.array([[1.0, 0.5, np.nan], [0.0, 0.75, 1.0]])
    draws = np.array([[4, 4, np.nan], [4, 4, 1]])
    expected = [[1, 1 / 6, np.nan], [0, 1 / 2, 1]]
    np.testing.assert_allclose(after_tries(share, draws, 2), expected)
    assert math.isnan(after_tries(np.nan, np.nan, 3))
    np.testing.assert_array_equal(after_tries(share[:, :2], 4, 1), share[:, :2])


def test_many_images_with_known_probabilities_fall_as_often_as_the_closed_form_says():
    """1 - (1 - q)^k for each image, within five standard errors of the mean over images."""
    p, generator = np.random.default_rng(0).random(20_000), np.random.default_rng(1)
    share = generator.binomial(30, p) / 30
    for tries in (1, 3, 10, 30):
        found = after_tries(share, 30, tries)
        assert abs(found.mean() - (p**tries).mean()) < 5 * (found - p**tries).std() / math.sqrt(len(p))


@pytest.mark.parametrize(("share", "draws"), [(0.33, 4), (1.5, 4), (-0.5, 2), (0.5, 2.5), (0.0, 0), (1.0, np.nan)])
def test_what_is_no_share_of_draws_is_refused(share, draws):
    with pytest.raises(ValueError, match=r"^correct: a value is"):
        after_tries([1.0, share], [1.0, draws], 2)


def test_each_image_has_its_draws():
    with pytest.raises(ValueError, match=r"^correct is \(3,\) and draws \(2,\)"):
        after_tries([1, 1, 1], [2, 2], 2)


# --- Detection

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_auroc_is_the_share_of_ordered_pairs(negative, positive):
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auroc(negative, positive) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(negative, positive) + auroc(positive, negative) == pytest.approx(1, abs=1e-12)
    assert auroc(negative, negative) == 0.5


def test_the_interval_of_auroc_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = norm.cdf(1 / np.sqrt(2))  # of normal scores one standard deviation apart
    hits = []
    for _ in range(120):
        image = rng.normal(size=60) * 0.5  # which both scores of an image have in common
        own = rng.normal(size=(2, 60)) * np.sqrt(0.75)
        low, high = auroc_interval(image + own[0], image + own[1] + 1, resamples=200)
        hits.append(low <= truth <= high)
    assert np.mean(hits) > 0.85
    assert auroc_interval([0, 1], [2, 3]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="negative has 1 scores and positive 2"):
        auroc_interval([0], [1, 2])


@given(SCORES, st.floats(0, 1))
def test_no_more_negatives_are_detected_than_allowed(negative, rate):
    assert true_positive_rate(negative, negative, false_positive_rate=rate) <= rate + 1e-9


def test_the_rate_of_detection_is_that_at_the_lowest_threshold():
    clean = np.arange(100.0)
    assert true_positive_rate(clean, [94.0, 94.5, 95.0, 200.0]) == 0.75  # five of the clean ones are above 94
    assert true_positive_rate(clean, clean, false_positive_rate=0) == 0
    assert true_positive_rate(clean, [-1.0], false_positive_rate=1) == 1
    for negative, positive in ([[], [1.0]], [[0.0], [np.nan]], [[[0.0]], [1.0]]):
        with pytest.raises(ValueError, match="give a list of scores"):
            true_positive_rate(negative, positive)
