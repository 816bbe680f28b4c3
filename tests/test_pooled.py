"""The accuracy of several trainings on the same images, with an interval that covers both."""

from __future__ import annotations

import numpy as np
import pytest

from art_qplugins.metrics import accuracy, pooled_accuracy


def test_of_one_training_it_is_wilsons_interval():
    correct = np.array([1, 0, 1, 1, 0])
    assert pooled_accuracy(correct) == accuracy(correct) == pooled_accuracy(correct[None])


def test_trainings_that_agree_on_every_image_are_no_further_images():
    correct = (np.arange(200) % 3 > 0).astype(float)
    mean, (low, high) = pooled_accuracy(np.stack([correct] * 3))
    one, (lower, higher) = accuracy(correct)
    assert mean == pytest.approx(one)
    assert low <= lower and high >= higher and high - low < 1.1 * (higher - lower)


def test_trainings_that_differ_widen_it():
    rng = np.random.default_rng(0)
    means = []
    for spread in (0.0, 0.1):
        correct = np.stack([rng.random(500) < 0.5 + shift * spread for shift in (-1, 0, 1)])
        _, (low, high) = pooled_accuracy(correct)
        means.append(high - low)
    assert means[1] > 2 * means[0]


def test_it_is_within_0_and_1_and_not_empty_where_all_are_wrong():
    mean, (low, high) = pooled_accuracy(np.zeros((3, 100)))
    assert (mean, low) == (0, 0) and 0.03 < high < 0.05
    mean, (low, high) = pooled_accuracy(np.stack([np.zeros(50), np.ones(50)]))
    assert (mean, low, high) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("trainings", [2, 3, 5])
def test_it_covers_the_truth_at_least_as_often_as_it_says(trainings):
    """Trainings have a normal effect, images another one, and what remains is a coin."""
    rng, held, rounds, truth = np.random.default_rng(1), 0, 300, 0.5
    for _ in range(rounds):
        logits = rng.normal(0, 0.4, (trainings, 1)) + rng.normal(0, 1.5, (1, 200))
        correct = rng.random((trainings, 200)) < 1 / (1 + np.exp(-logits))
        _, (low, high) = pooled_accuracy(correct)
        held += low <= truth <= high
    assert held / rounds > 0.93  # 0.95 would be below it in one of 13 series at most


@pytest.mark.parametrize("wrong", [[[0, np.nan]], [[2.0, 0.0]], []])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(ValueError, match="correct: "):
        pooled_accuracy(wrong)
