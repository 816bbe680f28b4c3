"""A deployed model as a module: its values are the deployed model's, its gradient is the twin's."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifier
from art.estimators.classification.blackbox import BlackBoxClassifierNeuralNetwork
from deployed_nets import ANSWERS, CLASSES, SHAPE, function_of, images, linear
from torch import nn

from art_qplugins import DeployedClassifier, InputError, QuantizedClassifier, quantize
from art_qplugins.deployment.module import Answering
from art_qplugins.fingerprint import fingerprint


def gradient(module, x, weights):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((module(x) * weights).sum(), x)[0]


def twin_and_model(answer="logits"):
    """A twin, and another model close to it that is deployed."""
    twin, model = linear(), linear()
    with torch.no_grad():
        model[1].bias += 0.1
    return twin, model, function_of(model, ANSWERS[answer])


def test_values_are_the_deployed_models_and_the_gradient_is_the_twins():
    twin, model, predict = twin_and_model()
    module, x, weights = Answering(predict, SHAPE, CLASSES, twin=twin), images(), torch.randn(64, CLASSES)
    assert torch.equal(module(x), model(x)) and torch.equal(module(x.requires_grad_()), model(x))
    torch.testing.assert_close(gradient(module, x.detach(), weights), gradient(twin, x.detach(), weights))


@pytest.mark.parametrize("answer", ["probabilities", "rounded probabilities", "one-hot"])
def test_probabilities_become_logarithms_with_the_gradient_of_those_of_the_twin(answer):
    twin, model, predict = twin_and_model(answer)
    module, x, weights = Answering(predict, SHAPE, CLASSES, twin=twin), images(), torch.randn(64, CLASSES)
    shares = ANSWERS[answer](model(x)).detach()
    assert torch.equal(module(x), (shares + module.floor).log())
    assert module(x).isfinite().all() and torch.equal(module(x).argmax(1), shares.argmax(1))
    expected = gradient(lambda pixels: twin(pixels).log_softmax(1), x, weights)
    torch.testing.assert_close(gradient(module, x, weights), expected)


def test_a_twin_with_probabilities_has_the_gradient_of_their_logarithm():
    twin, _, predict = twin_and_model()
    soft = nn.Sequential(twin, nn.Softmax(1)).eval()
    module, x, weights = Answering(predict, SHAPE, CLASSES, twin=soft), images(), torch.randn(64, CLASSES)
    expected = gradient(lambda pixels: twin(pixels).log_softmax(1), x, weights)
    torch.testing.assert_close(gradient(module, x, weights), expected, rtol=1e-3, atol=1e-4)


def test_what_is_said_of_probabilities_counts():
    _, model, predict = twin_and_model("probabilities")
    x = images()
    assert torch.equal(Answering(predict, SHAPE, CLASSES, probabilities=False)(x), model(x).softmax(1))
    assert Answering(function_of(model), SHAPE, CLASSES, probabilities=True).floor is not None


@pytest.mark.parametrize("kind", ["labels", "columns", "scores"])
def test_labels_alone_without_a_twin_have_one_gap(kind):
    _, model, _ = twin_and_model()
    answers = {"labels": lambda z: z.argmax(1), "columns": lambda z: z.argmax(1)[:, None], "scores": lambda z: z}[kind]
    module, x = Answering(function_of(model, answers), SHAPE, CLASSES, labels_only=True), images()
    expected = torch.full((64, CLASSES), 0.05).scatter(1, model(x).argmax(1, keepdim=True), 0.9).log()
    torch.testing.assert_close(module(x), expected)


def test_labels_alone_have_the_scores_of_the_twin_with_the_label_ahead():
    twin, model, _ = twin_and_model()
    with torch.no_grad():
        model[1].bias[0] += 2  # so that they often differ
    predict = function_of(model, lambda z: z.argmax(1))
    module, x = Answering(predict, SHAPE, CLASSES, twin=twin, labels_only=True), images()
    labels, scores = model(x).argmax(1), twin(x)
    assert torch.equal(module(x).argmax(1), labels)
    same = scores.argmax(1) == labels
    assert 0 < int(same.sum()) < 64 and torch.equal(module(x)[same], scores[same])
    others = torch.ones_like(scores, dtype=torch.bool).scatter(1, labels[:, None], False)
    assert torch.equal(module(x)[others], scores[others])
    weights = torch.randn(64, CLASSES)
    torch.testing.assert_close(gradient(module, x, weights), gradient(twin, x, weights))


def test_points_outside_are_answered_as_the_nearest_inside_and_nan_as_nan():
    twin, model, predict = twin_and_model()
    module = Answering(predict, SHAPE, CLASSES, twin=twin)
    x = images() * 3 - 1
    assert torch.equal(module(x), model(x.clamp(0, 1)))
    x[5, 0, 0, 0] = torch.nan
    found = module(x)
    assert found[5].isnan().all() and torch.equal(found[:5], model(x[:5].clamp(0, 1)))
    assert module(torch.full((2, *SHAPE), torch.nan)).isnan().all()


def test_whoever_answers_cannot_change_the_images():
    def predict(x):
        x[:] = 0
        return np.zeros((len(x), CLASSES))

    x = images()
    Answering(predict, SHAPE, CLASSES)(x)
    assert torch.equal(x, images())


# --- What may be asked


def test_a_torch_module_without_a_gradient_is_asked_on_its_own():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            return self.inner(torch.from_numpy(x.numpy()))  # which raises for what requires a gradient

    twin, opaque = linear(seed=3), Opaque()
    module, x, weights = Answering(opaque, SHAPE, CLASSES, twin=twin), images(), torch.randn(64, CLASSES)
    assert torch.equal(module(x.requires_grad_()), opaque.inner(x))
    torch.testing.assert_close(gradient(module, x.detach(), weights), gradient(twin, x.detach(), weights))
    assert not any("inner" in name for name in module.state_dict())


def test_a_black_box_classifier_gets_its_own_range_of_pixels():
    _, model, _ = twin_and_model()
    seen = []

    def predict(x):
        seen.append((x.shape, float(x.min()), float(x.max())))
        return function_of(model, ANSWERS["one-hot"])((x / 255).astype(np.float32))

    module, x = Answering(BlackBoxClassifier(predict, SHAPE, CLASSES, clip_values=(0, 255)), SHAPE, CLASSES), images()
    assert torch.equal(module(x).argmax(1), model(x).argmax(1))
    assert all(shape[1:] == SHAPE and low >= 0 and 1 < high <= 255 for shape, low, high in seen)


def test_a_black_box_network_with_channels_last_gets_them_last():
    model = linear((3, 4, 5))

    def predict(x):
        assert x.shape[1:] == (4, 5, 3)
        return function_of(model)(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

    box = BlackBoxClassifierNeuralNetwork(predict, (4, 5, 3), CLASSES, channels_first=False)
    x = images(8, (3, 4, 5))
    torch.testing.assert_close(Answering(box, (3, 4, 5), CLASSES)(x), model(x))


WRONG = {
    "fewer classes": (lambda x: np.zeros((len(x), 2)), "it must answer (8, 3) numbers"),
    "fewer images": (lambda x: np.zeros((1, CLASSES)), "it answered an array (1, 3)"),
    "labels": (lambda x: np.zeros(len(x)), "say labels_only"),
    "NaN": (lambda x: np.full((len(x), CLASSES), np.nan), "nan for 8 of 8 images"),
    "HTML": (lambda x: "<html><body>502 Bad Gateway</body></html>", "502 Bad Gateway"),
    "strings": (lambda x: [["cat", "dog", "bird"]] * len(x), "it must answer"),
    "ragged": (lambda x: [[0.1] * (i % 2 + 1) for i in range(len(x))], "it must answer"),
    "nothing": (lambda x: None, "it must answer"),
    "objects": (lambda x: np.array([object()] * len(x)), "it must answer"),
    "raises": (lambda x: 1 / 0, "ZeroDivisionError"),
    "exits": (lambda x: exit(3), "SystemExit"),
}


@pytest.mark.parametrize("which", WRONG)
def test_answers_that_are_no_scores_are_one_line(which):
    predict, message = WRONG[which]
    with pytest.raises(InputError, match=r"^predict") as error:
        Answering(predict, SHAPE, CLASSES)
    assert message in str(error.value)


@pytest.mark.parametrize("label", [-1, CLASSES, 0.5, np.nan])
def test_labels_that_are_none_are_one_line(label):
    with pytest.raises(InputError, match="it must answer labels from 0 to 2"):
        Answering(lambda x: np.full(len(x), label), SHAPE, CLASSES, labels_only=True)


def test_answers_that_become_nan_later_are_refused_then():
    module = Answering(
        lambda x: np.where(x.mean((1, 2, 3))[:, None] > 0.9, np.nan, np.ones((1, CLASSES))), SHAPE, CLASSES
    )
    with pytest.raises(InputError, match="nan for 2 of 2"):
        module(torch.ones(2, *SHAPE))


TWINS = {
    "other classes": (linear(classes=4), "it must give logits"),
    "other images": (linear((1, 5, 5)), "^twin"),
    "noise": (
        quantize(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()), activation_bits=2, alpha=2.0),
        "noise",
    ),
}


@pytest.mark.parametrize("which", TWINS)
def test_a_twin_that_does_not_fit_is_refused(which):
    twin, message = TWINS[which]
    with pytest.raises(InputError, match=message):
        Answering(function_of(linear()), SHAPE, CLASSES, twin=twin)


@pytest.mark.parametrize("given", [None, 3, "net.onnx", b"x"])
def test_what_does_not_answer_is_refused(given):
    with pytest.raises(InputError, match=r"^predict: it is .*; give a function"):
        Answering(given, SHAPE, CLASSES)


# --- As a part of the suite


class Picklable:
    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return function_of(self.model)(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_it_is_copied_and_pickled(copied):
    estimator = DeployedClassifier(Picklable(linear()), SHAPE, CLASSES, twin=linear(seed=3), labels_only=True)
    again, x = copied(estimator), images()
    assert np.array_equal(again.predict(x.numpy()), estimator.predict(x.numpy()))
    assert again.labels_only and fingerprint(again.model) == fingerprint(estimator.model)


def test_a_fingerprint_tells_answers_twins_and_modes_apart():
    def of(seed, twin=7, **more):
        predict = function_of(linear(seed=seed))
        return fingerprint(DeployedClassifier(predict, SHAPE, CLASSES, twin=linear(seed=twin), **more).model)

    assert of(0) == of(0)
    assert len({of(0), of(1), of(0, twin=8), of(0, labels_only=True), of(1, labels_only=True)}) == 5


def test_another_twin_has_hooks_of_its_own():
    bare, calls = Answering(function_of(linear()), SHAPE, CLASSES), []
    other = bare.with_twin(linear())
    hook = bare.register_forward_hook(lambda *_: calls.append(1))
    other(images())
    assert not calls
    hook.remove()


def test_a_predictor_may_say_what_it_is():
    predict = Picklable(linear())
    predict.identity = "version 3"
    assert Answering(predict, SHAPE, CLASSES).identity == "version 3"


def test_a_twin_may_be_an_art_classifier_and_comes_later_too():
    twin, _, predict = twin_and_model()
    wrapped = QuantizedClassifier(twin, nn.CrossEntropyLoss(), SHAPE, CLASSES)
    one = DeployedClassifier(predict, SHAPE, CLASSES, twin=wrapped).model
    bare = DeployedClassifier(predict, SHAPE, CLASSES).model
    other = bare.with_twin(twin)
    x, weights = images(), torch.randn(64, CLASSES)
    assert torch.equal(gradient(one, x, weights), gradient(other, x, weights))
    assert bare.twin is None and not bare(x.requires_grad_()).requires_grad
    assert other.without_twin().twin is None and other.twin is not None


def test_it_is_not_trained():
    estimator = DeployedClassifier(function_of(linear()), SHAPE, CLASSES, twin=linear())
    with pytest.raises(InputError, match="fit: a deployed model is not trained"):
        estimator.fit(images().numpy(), np.zeros(64))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ["no gradient of its own"]),
        ({"twin": linear()}, ["no gradient of its own", "a given twin"]),
        ({"labels_only": True}, ["no gradient of its own", "gives labels alone, so attacks see no scores"]),
    ],
)
def test_it_says_how_it_answers(options, told):
    facts = Answering(function_of(linear()), SHAPE, CLASSES, **options).facts
    assert len(facts) == len(told) and all(part in fact for part, fact in zip(told, facts, strict=True))


def test_answers_in_bfloat16_are_numbers_too():
    model = linear()
    x = images(4)
    found = Answering(lambda x: model(torch.from_numpy(x)).bfloat16(), SHAPE, CLASSES)(x)
    assert torch.equal(found, model(x).bfloat16().float())
