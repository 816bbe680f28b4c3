"""What ART's own classifier takes, ours takes: probabilities under cross-entropy, one logit, labels of any form."""

from __future__ import annotations

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from art.attacks.evasion import DeepFool, FastGradientMethod, ProjectedGradientDescent
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import DetectorClassifier, PyTorchClassifier
from torch import nn

from art_qplugins import InputError, QuantizedClassifier
from art_qplugins.evaluation.score import score

N = 7
SAYS = "^model: Softmaxed gives probabilities, of which CrossEntropyLoss takes a second softmax"


class Softmaxed(nn.Module):
    """As the networks of ART's own tests end. Logits are divided by 10, so that gradients are far above rounding."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return (self.network(x) / 10).softmax(1)


@pytest.fixture
def batch(digits):
    """(x, y) as arrays."""
    return digits[1].x()[:N].numpy(), digits[1].y()[:N].numpy()


@pytest.fixture
def module(fp32):
    return Softmaxed(copy.deepcopy(fp32))


def made(cls, module, loss=None, **options):
    module = copy.deepcopy(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loss = loss or nn.CrossEntropyLoss()
    return cls(module, loss, (1, 8, 8), 10, optimizer, clip_values=(0.0, 1.0), device_type="cpu", **options)


def both(module):
    """Our classifier and ART's."""
    return made(QuantizedClassifier, module), made(PyTorchClassifier, module)


@pytest.fixture
def _probabilities_are_known():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", SAYS)
        yield


def test_of_probabilities_it_warns_once_and_goes_on(module, batch):
    estimator = made(QuantizedClassifier, module)
    with pytest.warns(UserWarning, match=SAYS) as said:
        first = estimator.predict(batch[0])
    assert len(said) == 1
    np.testing.assert_array_equal(estimator.predict(batch[0]), first)  # warnings are errors here
    assert estimator.loss_gradient(*batch).any()
    estimator.set_params(model=copy.deepcopy(estimator.model))
    with pytest.warns(UserWarning, match=SAYS):
        estimator.predict(batch[0])


@pytest.mark.parametrize("after", [lambda z: z, lambda z: z.log_softmax(1)], ids=["logits", "logarithms"])
def test_of_logits_it_says_nothing(after, fp32, batch):
    class Ends(nn.Module):
        def forward(self, x):
            return after(fp32(x))

    QuantizedClassifier(Ends(), nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu").predict(batch[0])


def test_another_loss_may_take_probabilities(module, batch):
    made(QuantizedClassifier, module, nn.MultiMarginLoss()).predict(batch[0])


CALLS = {
    "predict": lambda e, x, y: e.predict(x),
    "class_gradient": lambda e, x, y: e.class_gradient(x),
    "loss_gradient": lambda e, x, y: e.loss_gradient(x, np.eye(10, dtype=np.float32)[y]),
}


@pytest.mark.usefixtures("_probabilities_are_known")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_answers_and_gradients_are_arts(call, module, batch):
    ours, theirs = (call(estimator, *batch) for estimator in both(module))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


ATTACKS = {
    "FGSM": lambda e: FastGradientMethod(e, eps=0.1),
    "PGD": lambda e: ProjectedGradientDescent(e, eps=0.1, max_iter=3, verbose=False),
    "DeepFool": lambda e: DeepFool(e, max_iter=3, verbose=False),
}


@pytest.mark.usefixtures("_probabilities_are_known")
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("cls", [QuantizedClassifier, PyTorchClassifier])
def test_arts_attacks_take_it(cls, attack, module, batch):
    x_adv = attack(made(cls, module)).generate(batch[0])
    assert x_adv.shape == batch[0].shape and (x_adv != batch[0]).any(axis=(1, 2, 3)).all()


@pytest.mark.usefixtures("_probabilities_are_known")
@pytest.mark.parametrize("cls", [QuantizedClassifier, PyTorchClassifier])
def test_arts_trainer_and_detector_take_it(cls, module, batch):
    x, y = batch
    estimator = made(cls, module)
    trainer = AdversarialTrainer(estimator, FastGradientMethod(estimator, eps=0.1), ratio=0.5)
    before = estimator.predict(x)
    trainer.fit(x, np.eye(10, dtype=np.float32)[y], nb_epochs=1, batch_size=N)
    assert np.abs(estimator.predict(x) - before).max() > 0
    report, found = BinaryInputDetector(estimator).detect(x)
    assert found.shape == (N,) and len(report["predictions"]) == N


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.L1Loss(), nn.MultiLabelSoftMarginLoss()], ids=lambda e: type(e).__name__
)
def test_losses_that_take_no_classes_get_one_hot_labels(loss, fp32, batch):
    x, y = np.concatenate([batch[0], batch[0][:3]]), np.concatenate([batch[1], batch[1][:3]])
    assert len(x) == 10, "as many images as classes: class numbers would broadcast"
    one_hot = np.eye(10, dtype=np.float32)[y]
    ours, theirs = made(QuantizedClassifier, fp32, loss), made(PyTorchClassifier, fp32, loss)
    gradient = theirs.loss_gradient(x, one_hot)
    for labels in (y, y[:, None], one_hot):
        np.testing.assert_allclose(ours.compute_loss(x, labels), theirs.compute_loss(x, labels), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(ours.loss_gradient(x, labels), gradient, rtol=1e-3, atol=1e-4 * gradient.max())
    before = ours.compute_loss(x, y, reduction="mean")
    ours.fit(x, y, nb_epochs=5)
    assert ours.compute_loss(x, y, reduction="mean") < before


def as_objects(values):
    found = np.empty(len(values), dtype=object)
    found[:] = list(values)
    return found


def test_labels_that_are_python_objects_have_the_class_gradient_of_arts(fp32, batch):
    x, y = batch
    ours, theirs = both(fp32)
    for labels in (as_objects(y.tolist()), as_objects(y), np.array(y, dtype=object)):
        expected = theirs.class_gradient(x, label=labels)
        np.testing.assert_allclose(ours.class_gradient(x, label=labels), expected, atol=1e-5, rtol=1e-4)


def test_labels_that_are_python_objects_have_losses_and_train(fp32, batch):
    x, y = batch
    estimator = made(QuantizedClassifier, fp32)
    one_hot = np.eye(10, dtype=np.float32)[y]
    for labels in (as_objects(y), as_objects(one_hot), one_hot.astype(object)):
        np.testing.assert_array_equal(estimator.compute_loss(x, labels), estimator.compute_loss(x, y))
        np.testing.assert_array_equal(estimator.loss_gradient(x, labels), estimator.loss_gradient(x, y))
        estimator.fit(x, labels, nb_epochs=1)


def test_labels_in_a_column_are_the_labels(fp32, batch):
    x, y = batch
    ours, theirs = both(fp32)
    for column in (y[:, None], as_objects(y)[:, None]):
        np.testing.assert_array_equal(ours.compute_loss(x, column), ours.compute_loss(x, y))
        np.testing.assert_array_equal(ours.loss_gradient(x, column), ours.loss_gradient(x, y))
    np.testing.assert_allclose(ours.compute_loss(x, y), theirs.compute_loss(x, y[:, None]), rtol=1e-5)
    again = both(fp32)[0]
    ours.fit(x, y[:, None], nb_epochs=2)
    again.fit(x, y, nb_epochs=2)
    np.testing.assert_array_equal(ours.predict(x), again.predict(x))


def of_two(cls, fp32, loss):
    """A classifier of two classes with one output: a logit, or its probability."""
    torch.manual_seed(0)
    layers = [copy.deepcopy(fp32), nn.Linear(10, 1), *([nn.Sigmoid()] if isinstance(loss, nn.BCELoss) else [])]
    module = nn.Sequential(*layers).eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return cls(module, loss, (1, 8, 8), 2, optimizer, clip_values=(0.0, 1.0), device_type="cpu")


@pytest.mark.parametrize("loss", [nn.BCELoss(), nn.BCEWithLogitsLoss()], ids=["BCE", "BCEWithLogits"])
def test_one_output_for_two_classes(loss, fp32, batch):
    x, y = batch[0], batch[1] % 2
    ours, theirs = (of_two(cls, fp32, loss) for cls in (QuantizedClassifier, PyTorchClassifier))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    close(ours.predict(x), theirs.predict(x))
    close(ours.class_gradient(x), theirs.class_gradient(x))
    gradient = theirs.loss_gradient(x, y[:, None])  # the one form that ART's takes here
    for labels in (y, y[:, None], np.eye(2, dtype=np.float32)[y]):
        close(ours.compute_loss(x, labels), theirs.compute_loss(x, labels))
        close(ours.loss_gradient(x, labels), gradient)
        close(ours.loss_gradient(torch.tensor(x), torch.tensor(labels)), gradient)
    close(FastGradientMethod(ours).generate(x), FastGradientMethod(theirs).generate(x))
    before = ours.compute_loss(x, y, reduction="mean")
    ours.fit(x, y, nb_epochs=20)
    assert ours.compute_loss(x, y, reduction="mean") < before


def test_arts_detector_of_one_logit(fp32, batch):
    detectors = [
        DetectorClassifier(made(cls, fp32), of_two(cls, fp32, nn.CrossEntropyLoss()))
        for cls in (QuantizedClassifier, PyTorchClassifier)
    ]
    for call in (lambda d: d.predict(batch[0]), lambda d: d.class_gradient(batch[0], label=10)):
        ours, theirs = map(call, detectors)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_one_output_for_more_classes_and_its_scores_are_refused(fp32, batch):
    estimator = of_two(QuantizedClassifier, fp32, nn.BCEWithLogitsLoss())
    with pytest.raises(InputError, match=r"^model: Sequential gives one logit z, [^\n]+$"):
        score(estimator.model, torch.tensor(batch[0]), torch.zeros(N, dtype=torch.int64), seed=0)
    estimator = made(QuantizedClassifier, estimator.model)
    with pytest.raises(InputError, match=rf"^model: Sequential gives \({N}, 1\) [^\n]+ must give \({N}, 10\) logits$"):
        estimator.predict(batch[0])


@pytest.mark.parametrize("label", [["seven"] * N, as_objects([None] * N)], ids=["words", "nothing"])
def test_labels_that_are_no_numbers_are_refused_in_one_line(label, fp32, batch):
    for call in (lambda e: e.class_gradient(batch[0], label=label), lambda e: e.loss_gradient(batch[0], label)):
        with pytest.raises(InputError, match=r"^(y|label): labels are [^\n]+; give integers[^\n]+$"):
            call(made(QuantizedClassifier, fp32))
