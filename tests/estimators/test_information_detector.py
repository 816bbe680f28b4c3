"""The detector by information: its score in closed form, its promise on clean images, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing
from torch import nn

from art_qplugins import InformationDetector, SQEnsembleClassifier, with_detector
from art_qplugins.errors import InputError
from art_qplugins.estimators.information import InformationScore
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers import StochasticQuantizer, draws_from, quantize

SHAPE = (1, 2, 3)


def classifier(network=None, shape=SHAPE, **settings):
    """Of one quantizer with the bins 0 and 1, so that p = (1 - x, x) at pixel x."""
    torch.manual_seed(0)
    if network is None:
        network = nn.Sequential(nn.Flatten(), StochasticQuantizer(1, clip=1.0), nn.Linear(6, 3)).eval()
    return SQEnsembleClassifier(network, nn.CrossEntropyLoss(), shape, 3, device_type="cpu", **settings)


def two_layers():
    torch.manual_seed(0)
    return quantize(ConvNet((1, 8, 8), 3, width=4), activation_bits=2, alpha=2.0, clip=2.0).eval()


def images(n, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).random((n, *shape), dtype=np.float32)


def fitted(n=200, network=None, shape=SHAPE, **settings):
    detector = InformationDetector(classifier(network, shape), **settings)
    detector.fit(images(n, 1, shape), np.zeros(n))
    return detector


def information(x, clean):
    """The closed form for p = (1 - x, x)."""
    n, a = len(clean), x.reshape(len(x), -1).astype(np.float64)
    b = (clean.reshape(n, -1).astype(np.float64).sum(0) + 0.5) / (n + 1)
    return (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))).mean(1) / math.log(2)


@pytest.mark.parametrize(("side", "of"), [("two", np.abs), ("low", np.negative), ("high", np.positive)])
@pytest.mark.parametrize("draws", [1, 5])
def test_the_score_is_its_closed_form(side, of, draws):
    score = InformationScore(classifier(), side=side, draws=draws, seed=0)
    clean, x = images(40), images(7, 2)
    score.fit(torch.tensor(clean), 16)
    expected, own = information(x, clean), information(clean, clean)
    with torch.no_grad():
        np.testing.assert_allclose(score.information(torch.tensor(x)), expected, atol=1e-6)
        np.testing.assert_allclose(score(torch.tensor(x)), of((expected - own.mean()) / own.std()), atol=1e-4)


def test_the_noise_before_the_deepest_quantizer_is_averaged():
    """The first layer draws q = 0 or 1 with probabilities 1 - x and x, and the second then says so of itself for certain."""
    network = nn.Sequential(
        *(nn.Flatten(), StochasticQuantizer(1, clip=1.0), StochasticQuantizer(1, clip=1.0, layer=1), nn.Linear(6, 3))
    ).eval()
    score = InformationScore(classifier(network), side="high", draws=4000, seed=0)
    clean, x = images(8), torch.full((1, *SHAPE), 0.25)
    score.fit(torch.tensor(clean), 8)
    b = (clean.reshape(8, -1).sum(0) + 0.5) / 9
    np.testing.assert_allclose(score.marginal[:, 1], b, atol=6 * 0.5 / math.sqrt(8 * 4000))
    marginal = score.marginal[:, 1].double().numpy()
    expected = -(0.25 * np.log(marginal) + 0.75 * np.log(1 - marginal)).mean() / math.log(2)
    found = float(score.information(x).detach())
    assert abs(found - expected) < 6 * 0.5 * np.ptp(np.log([marginal, 1 - marginal])) / 60


def test_the_gradient_is_that_of_the_score():
    score = InformationScore(classifier(), side="high", draws=2, seed=0).double()
    score.fit(torch.tensor(images(20)).double(), 20)
    x = torch.tensor(images(3, 2)).double() * 0.8 + 0.1
    assert torch.autograd.gradcheck(lambda x: score(x), x.requires_grad_())


def test_a_score_is_a_function_of_one_image():
    score = InformationScore(classifier(two_layers(), (1, 8, 8)), side="two", draws=6, seed=0).double()
    clean, x = (torch.tensor(images(n, n, (1, 8, 8))).double() for n in (50, 9))
    score.fit(clean, 50)
    other = copy.deepcopy(score)
    with torch.no_grad():
        expected = score(x)
        order = torch.randperm(9)
        torch.testing.assert_close(score(x[order]), expected[order])
        torch.testing.assert_close(torch.cat([score(part) for part in x.split(2)]), expected)
        other.fit(clean, 7)
        torch.testing.assert_close(other(x), expected)
        with draws_from(score, 5):
            torch.testing.assert_close(score(x), expected)
    assert expected.unique().numel() == 9


def test_another_seed_draws_other_noise():
    scores = [
        InformationScore(classifier(two_layers(), (1, 8, 8)), side="two", draws=2, seed=seed) for seed in (0, 0, 1)
    ]
    x = torch.tensor(images(20, 0, (1, 8, 8)))
    for score in scores:
        score.fit(x, 20)
    first, same, other = (score.information(x) for score in scores)
    assert torch.equal(first, same) and not torch.allclose(first, other)


def test_it_asks_the_ensemble_as_before():
    """The detector has noise of its own, and the ensemble's stream goes on where it was."""
    estimator = classifier(two_layers(), (1, 8, 8))
    x = images(9, 0, (1, 8, 8))
    detector = InformationDetector(estimator)
    detector.fit(images(50, 0, (1, 8, 8)), np.zeros(50))
    with draws_from(estimator.model, 3):
        expected = [estimator.predict(x) for _ in range(2)]
    with draws_from(estimator.model, 3):
        first = estimator.predict(x)
        detector.detect(x)
        np.testing.assert_array_equal([first, estimator.predict(x)], expected)


def test_on_further_clean_images_it_keeps_its_promise():
    """Of 19 held-out images the threshold is the largest score, which a further image exceeds with probability 1 / 20."""
    shares = []
    for seed in range(60):
        detector = InformationDetector(classifier(), seed=seed)
        drawn = images(38 + 200, seed)
        detector.fit(drawn[:38], np.zeros(38))
        shares.append(detector.detect(drawn[38:])[1].mean())
    deviation = math.sqrt(19 / (20**2 * 21) / 60 + 0.05 * 0.95 / (60 * 200))
    assert abs(np.mean(shares) - 0.05) < 4 * deviation


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_the_threshold_is_the_promised_order_statistic(share):
    detector = fitted(999, false_positives=share)
    order = torch.randperm(999, generator=torch.Generator().manual_seed(0))
    report, found = detector.detect(images(999, 1)[order[499:]])
    assert found.sum() == 500 - math.ceil(501 * (1 - share))
    assert report["threshold"] == detector.threshold
    np.testing.assert_array_equal(report["score"] > report["threshold"], found)


def test_what_has_unusual_information_is_found():
    detector = fitted()
    for odd in (np.zeros, np.ones):  # every bin is certain, so that the information is far above that of clean images
        report, found = detector.detect(odd((3, *SHAPE), dtype=np.float32))
        assert found.all() and (report["information"] > detector.score.mean.item()).all()
    grey = np.full((3, *SHAPE), 0.5, dtype=np.float32)
    assert not InformationDetector.detect(fitted(side="high"), grey)[1].any()
    assert detector.detect(grey)[0]["information"].max() < 0.01


@pytest.mark.parametrize("network", [None, two_layers()])
def test_with_it_a_classifier_rejects_exactly_what_it_finds(network):
    shape = SHAPE if network is None else (1, 8, 8)
    detector = fitted(100, network, shape, false_positives=0.3)
    x = images(300, 2, shape)
    report, found = detector.detect(x)
    clear = np.abs(report["score"] - report["threshold"]) > 1e-5  # logits in float32 have no finer steps
    made = with_detector(detector.classifier, detector)
    assert (made.nb_classes, made.abstain) == (4, 3)
    rejected = made.predict(x).argmax(1) == 3
    np.testing.assert_array_equal(rejected[clear], found[clear])
    assert clear.mean() > 0.9 and 0 < found.sum() < 300
    again = pickle.loads(pickle.dumps(made)).predict(x).argmax(1) == 3
    np.testing.assert_array_equal(again[clear], rejected[clear])
    assert np.abs(made.class_gradient(x[:4], 3) - made.class_gradient(x[:4], 0)).max() > 0


def test_another_threshold_may_be_given():
    detector = fitted()
    assert not (with_detector(detector.classifier, detector, threshold=1e4).predict(images(50)).argmax(1) == 3).any()


def test_the_preprocessors_of_the_classifier_are_part_of_it():
    squeezing = FeatureSqueezing(clip_values=(0, 1), bit_depth=2)
    plain = InformationDetector(classifier())
    squeezed = InformationDetector(classifier(preprocessing_defences=squeezing))
    clean, x, zeros = images(60), images(9, 2), np.zeros(60)
    squeezed.fit(clean, zeros)
    plain.fit(squeezing(clean)[0], zeros)
    np.testing.assert_allclose(squeezed.detect(x)[0]["score"], plain.detect(squeezing(x)[0])[0]["score"], atol=1e-4)


def test_with_other_settings_it_must_be_fitted_again():
    detector = fitted()
    assert detector.get_params()["side"] == "two"
    detector.set_params(side="low")
    with pytest.raises(InputError, match="it is not fitted"):
        detector.detect(images(3))
    with pytest.raises(InputError, match="side: it is 'left'"):
        detector.set_params(side="left")


X = images(50)
REFUSED = [
    ({"y": np.ones(50)}, "y: 50 of 50 images are labelled adversarial"),
    ({"y": np.eye(2)[np.arange(50) % 2]}, "y: 25 of 50 images are labelled adversarial"),
    ({"y": torch.arange(50) % 2}, "y: 25 of 50 images are labelled adversarial"),
    ({"y": np.arange(50) % 10}, "and no class"),
    ({"y": np.zeros(49)}, "y: labels are (49,) for 50 images"),
    ({"y": "clean"}, "y: labels are 'clean'"),
    ({"x": X[:36], "y": np.zeros(36)}, "give at least 37"),
    ({"x": X[:1], "y": np.zeros(1)}, "give at least 37"),
    ({"x": 255 * X}, "give clean images in [0, 1]"),
    ({"x": np.full_like(X, np.nan)}, "give clean images in [0, 1]"),
    ({"x": np.full_like(X, 0.5)}, "the same of all images"),
    ({"x": X[0]}, "x: it is"),
    ({"batch_size": 0}, "batch_size: it is 0"),
]


@pytest.mark.parametrize(("changed", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_is_not_clean_is_refused(changed, says):
    detector = InformationDetector(classifier())
    with pytest.raises(InputError) as error:
        detector.fit(**{"x": X, "y": np.zeros(50), **changed})
    assert says in str(error.value) and "\n" not in str(error.value)
    assert detector.threshold is None


def test_a_fit_that_fails_leaves_nothing_of_an_earlier_one():
    detector = fitted()
    with pytest.raises(InputError, match="the same of all images"):
        detector.fit(np.full_like(X, 0.5), np.zeros(50))
    with pytest.raises(InputError, match="it is not fitted"):
        detector.detect(X)


@pytest.mark.parametrize("y", [np.zeros((50, 1)), np.eye(2)[np.zeros(50, dtype=int)], [0] * 50, torch.zeros(50)])
def test_clean_labels_come_in_any_form(y):
    detector = InformationDetector(classifier())
    detector.fit(torch.tensor(X), y)
    assert detector.threshold > 0


def test_before_it_is_fitted_it_answers_nothing():
    detector = InformationDetector(classifier())
    for ask in (
        lambda: detector.detect(X),
        lambda: detector.score(torch.tensor(X)),
        lambda: with_detector(detector.classifier, detector),
    ):
        with pytest.raises(InputError, match=r"^detector: it is not fitted; call fit"):
            ask()
