"""The bare module in other libraries that take a PyTorch module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins.estimators import DQClassifier, MuLawClassifier, SQEnsembleClassifier
from art_qplugins.quantizers import draws_from, quantize

EPS = 0.2


@pytest.fixture(params=["dq", "mu-law", "sq"])
def module(request, fp32, stochastic):
    """What ``estimator.model`` is: nothing in it knows who asks."""
    contract = (nn.CrossEntropyLoss(), (1, 8, 8), 10)
    if request.param == "dq":
        return DQClassifier(quantize(fp32, activation_bits=4), *contract, device_type="cpu").model
    if request.param == "mu-law":  # normalised and of the last layer only, so that PGD on cross-entropy still works
        return MuLawClassifier(fp32, *contract, weight_bits=4, mu=5.0, mu_normalize=True, device_type="cpu").model
    return SQEnsembleClassifier(stochastic, *contract, device_type="cpu").model


@pytest.fixture(scope="module")
def images(digits):
    test = digits[1].take(40, seed=0)
    return test.x(), test.y()


def accuracy(module, x, y):
    with torch.no_grad(), draws_from(module, 99):
        return float((module(x).argmax(1) == y).float().mean())


def check(module, x_adv, images):
    x, y = images
    assert x_adv.shape == x.shape
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (x_adv - x).abs().max() <= EPS + 1e-6
    assert accuracy(module, x_adv, y) < accuracy(module, x, y) - 0.4


def test_torchattacks(module, images):
    import torchattacks

    check(module, torchattacks.PGD(module.eval(), eps=EPS, alpha=EPS / 4, steps=10)(*images), images)


def test_autoattack(module, images):
    from pyautoattack import AutoAttack

    auto = AutoAttack(module.eval(), eps=EPS, version="custom", attacks=["apgd-ce"], seed=0)
    auto.apgd.n_restarts = 1
    check(module, auto.run_standard_evaluation(*images)[0], images)


def test_foolbox(module, images):
    foolbox = pytest.importorskip("foolbox", reason="pip install foolbox")
    client = foolbox.PyTorchModel(module.eval(), bounds=(0, 1))
    _, x_adv, _ = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.25)(client, *images, epsilons=EPS)
    check(module, x_adv, images)


def benchmark(model: nn.Module, images: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """What RobustBench's function of this name does, on images that are here: a module in, two accuracies out."""
    from pyautoattack import AutoAttack

    x, y = images
    with torch.no_grad():
        clean = float((model(x).argmax(1) == y).float().mean())
    auto = AutoAttack(model, norm="Linf", eps=EPS, version="custom", attacks=["apgd-ce"], seed=0)
    auto.apgd.n_restarts = 1
    x_adv, _ = auto.run_standard_evaluation(x, y)
    with torch.no_grad():
        return clean, float((model(x_adv).argmax(1) == y).float().mean())


def test_a_benchmark_in_the_style_of_robustbench(module, images):
    clean, robust = benchmark(module.eval(), images)
    assert clean > 0.9
    assert robust < clean - 0.4
