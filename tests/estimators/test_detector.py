"""A classifier and a detector as one estimator: it rejects exactly what the detector finds."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from art.defences.detector.evasion import BinaryActivationDetector, BinaryInputDetector
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_qplugins import QuantizedClassifier, Threat, WithDetector, diagnose, with_detector
from art_qplugins.errors import InputError

X = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def net(outputs, inputs=16, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs)).eval()


def art(module, classes, shape=(1, 4, 4), **settings):
    settings = {"clip_values": (0, 1), "device_type": "cpu", **settings}
    return PyTorchClassifier(module, nn.CrossEntropyLoss(), shape, classes, **settings)


@pytest.mark.parametrize("shift", [-50.0, 0.0, 50.0])
def test_the_last_class_wins_where_the_score_is_above_the_threshold_whatever_the_sign_of_the_logits(shift):
    classifier, detector = net(3), net(1, seed=1)
    with torch.no_grad():
        classifier[1].bias += shift
        scores = detector(X)[:, 0]
        threshold = float(scores.median())
        logits = WithDetector(classifier, detector, threshold)(X)
        torch.testing.assert_close(logits[:, :3], classifier(X))
    assert ((logits.argmax(1) == 3) == (scores > threshold)).all() and 0 < (scores > threshold).sum() < 16


@pytest.mark.parametrize("plain", [PyTorchClassifier, QuantizedClassifier])
def test_it_rejects_what_arts_detector_of_images_detects(plain):
    settings = {"clip_values": (0, 1), "device_type": "cpu"}
    classifier = plain(net(3), nn.CrossEntropyLoss(), (1, 4, 4), 3, **settings)
    detector = BinaryInputDetector(art(net(2, seed=2), 2))
    made = with_detector(classifier, detector)
    assert (made.nb_classes, made.abstain) == (4, 3)
    detected = detector.detect(X.numpy())[1]
    np.testing.assert_array_equal(made.predict(X.numpy()).argmax(1) == 3, detected)
    assert 0 < detected.sum() < 16
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.predict(X.numpy()), made.predict(X.numpy()))


def test_it_rejects_what_arts_detector_of_activations_detects():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    classifier = art(network, 3)
    detector = BinaryActivationDetector(classifier, art(net(2, inputs=8, seed=3), 2, shape=(8,), clip_values=None), 2)
    scores = detector.detector.predict(network[:3](X).detach().numpy())
    detector.detector.model[1].bias.data[0] += float(np.median(scores[:, 1] - scores[:, 0]))
    made = with_detector(classifier, detector)
    detected = detector.detect(X.numpy())[1]
    np.testing.assert_array_equal(made.predict(X.numpy()).argmax(1) == 3, detected)
    assert 0 < detected.sum() < 16
    gradient = made.class_gradient(X.numpy(), 3)
    assert np.abs(gradient).max() > 0


def test_it_is_diagnosed_as_any_other_estimator(tmp_path):
    made = with_detector(art(net(3), 3), net(1, seed=1), threshold=10.0)  # it rejects nothing
    y = made.predict(X.numpy())[:, :3].argmax(1)
    found = diagnose(made, X, y, Threat("Linf", 0.01), level=0)
    (result,) = found.run.models
    assert (result.clean_accuracy, result.clean_rejected) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("detector", "threshold", "says"),
    [
        (lambda: net(1), None, "give the threshold above which it rejects"),
        (lambda: BinaryInputDetector(art(net(1), 2)), None, "give the threshold above which it rejects"),
        (lambda: net(3), 0.0, "it must give one score for each, or two"),
        (lambda: net(1, inputs=5), 0.0, "detector: its forward"),
        (lambda: net(1), float("nan"), "threshold: it is nan"),
        (lambda: net(1), True, "threshold: it is True"),
        (lambda: "detector", 0.0, "detector: it is 'detector'"),
        (lambda: None, 0.0, "detector: it is None"),
        (lambda: BinaryActivationDetector(art(net(3), 3), art(net(2), 2), 1), None, "of another classifier"),
    ],
)
def test_a_detector_that_cannot_be_asked_is_one_line(detector, threshold, says):
    with pytest.raises(InputError) as error:
        with_detector(art(net(3), 3), detector(), threshold=threshold)
    assert says in str(error.value) and "\n" not in str(error.value)
