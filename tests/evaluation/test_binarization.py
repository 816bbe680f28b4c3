"""The binarization test passes a strong attack on a plain network, and no attack that cannot find what is there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import InputError, QuantizedClassifier
from art_qplugins.evaluation.binarization import binarization_test
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize
from art_qplugins.threat import Threat

LINF = Threat("Linf", 0.15)


def classifier(model):
    return QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")


def descent(estimator, x, y, *, steps=20):
    """PGD on cross-entropy that keeps the best."""
    point, best = x.clone(), x.clone()
    for k in range(steps):
        step = estimator.loss_gradient(point, y).sign() * 0.06 * (1 - k / steps)
        point = torch.minimum(torch.maximum(point + step, x - LINF.eps), x + LINF.eps).clamp(0, 1)
        if estimator.model(point).argmax(1) != y:
            best = point
    return best


def nothing(estimator, x, y):
    return x.clone()


class Wrapped(nn.Module):
    def __init__(self, network, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x):
        return self.after(self.network(self.before(x)))


@pytest.fixture(scope="module")
def wide(digits):
    """A network with more features than points, so that a readout separates them."""
    from art_qplugins.defences.training import train

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ConvNet((1, 8, 8), 10, width=16)
    return train(network, digits[0], epochs=3)


def test_a_strong_attack_passes_and_one_that_does_nothing_fails(wide, digits):
    x, y = digits[1].x()[:16], digits[1].y()[:16]
    strong = binarization_test(classifier(wide), descent, x, y, threat=LINF)
    assert strong.used + strong.dropped == 16 and strong.used >= 12
    assert strong.success >= 0.9 and strong.random <= 0.2
    assert strong.success == np.nanmean(strong.each) and np.isnan(strong.each).sum() == strong.dropped
    none = binarization_test(classifier(wide), nothing, x, y, threat=LINF)
    assert none.success == 0 and none.used == strong.used
    easy = binarization_test(classifier(wide), nothing, x, y, threat=LINF, boundary=10)
    assert easy.success == 0 and easy.random > 0.3  # luck would do


@pytest.mark.parametrize("how", ["scale", "rounding"])
def test_the_same_attack_fails_on_a_network_that_masks(how, wide, digits):
    x, y = digits[1].x()[:12], digits[1].y()[:12]
    masks = {
        "scale": Wrapped(wide, after=lambda z: 1e4 * z),
        "rounding": Wrapped(wide, before=lambda x: (x * 8).round() / 8),
    }
    found = binarization_test(classifier(masks[how].eval()), descent, x, y, threat=LINF)
    assert found.used >= 6 and found.success <= 0.2


def test_a_random_network_is_fitted_on_its_mean_features(wide, digits):
    x, y = digits[1].x()[:4], digits[1].y()[:4]
    network = quantize(wide, activation_bits=4, alpha=2.0, clip=6.0)
    for chunk in (None, 2):
        model = StochasticEnsemble(network, draws=4, eot_chunk=chunk).eval()
        found = binarization_test(classifier(model), descent, x, y, threat=LINF)
        assert found.used + found.dropped == 4


def test_an_image_that_no_readout_separates_is_dropped(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 10)).eval()
    with torch.no_grad():
        model[1].weight.zero_()  # every point has the same features
        model[1].bias.fill_(1.0)
    x, y = digits[1].x()[:4], digits[1].y()[:4]
    found = binarization_test(classifier(model), descent, x, y, threat=LINF)
    assert (found.used, found.dropped) == (0, 4) and np.isnan(found.success) and np.isnan(found.each).all()


@pytest.mark.parametrize("threat", [Threat("L2", 0.5), Threat("L1", 2.0)])
def test_other_norms(threat, wide, digits):
    x, y = digits[1].x()[:4], digits[1].y()[:4]
    found = binarization_test(classifier(wide), nothing, x, y, threat=threat)
    assert found.used + found.dropped == 4 and (found.used == 0 or found.success == 0)


def test_what_it_cannot_do_is_said(wide, digits):
    x, y = digits[1].x()[:2], digits[1].y()[:2]
    with pytest.raises(InputError, match="L0"):
        binarization_test(classifier(wide), nothing, x, y, threat=Threat("L0", 3))
    pooled = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(InputError, match=r"no nn\.Linear"):
        binarization_test(classifier(pooled), nothing, x, y, threat=LINF)


def test_it_is_the_same_again_and_leaves_nothing_behind(wide, digits):
    x, y = digits[1].x()[:3], digits[1].y()[:3]
    model = copy.deepcopy(wide).train()
    estimator, state = classifier(model), torch.get_rng_state()
    hooks = [len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.modules()]

    def failing(estimator, x, y):
        raise RuntimeError("attack")

    with pytest.raises(RuntimeError, match="attack"):
        binarization_test(estimator, failing, x, y, threat=LINF)
    first, second = (binarization_test(estimator, descent, x, y, threat=LINF, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.each, second.each)
    assert all(part.training for part in model.modules()) and torch.equal(torch.get_rng_state(), state)
    assert [len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.modules()] == hooks
