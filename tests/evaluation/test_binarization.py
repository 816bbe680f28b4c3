"""The binarization test passes a strong attack on a plain network, and no attack that cannot find what is there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import InputError, QuantizedClassifier
from art_qplugins.evaluation.binarization import _around, _features, _head, binarization_test
from art_qplugins.geometry import distances
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize
from art_qplugins.quantizers.noise import draws_from, stochastic_layers
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
    from art_qplugins.training.engine import train

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


def random_features(seed=0):
    """A network whose many random features separate any few points, with nothing trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 10)).eval()


def grey(n, spread=0.2):
    """Images so far from 0 and 1 that only eps limits what is around them."""
    generator = torch.Generator().manual_seed(3)
    return 0.5 + spread * (torch.rand((n, 1, 8, 8), generator=generator) - 0.5), torch.arange(n) % 10


@pytest.mark.parametrize("order", ["abc", "cab", "bca", "ca", "b"])
def test_the_layer_that_is_replaced_is_the_linear_one_that_runs_last(order):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in "abc")

        def forward(self, x):
            for name in order:
                x = getattr(self, name)(x).relu()
            return x

    assert _head(Network(), torch.rand(1, 4), 0) == order[-1]


@pytest.mark.parametrize("chunk", [None, 2])
def test_the_features_of_a_random_network_are_the_mean_over_its_draws(chunk):
    network = quantize(random_features(), activation_bits=2, alpha=2.0, clip=1.0).double()
    model, x = StochasticEnsemble(network, draws=4, eot_chunk=chunk).eval(), grey(3)[0].double()
    with torch.no_grad():
        with draws_from(model, 7):
            expected = model(x)
        with draws_from(model, 7):
            found, logits = _features(model, "network.3", x)
        (layer,) = stochastic_layers(network)
        draws = []
        for draw in range(4):
            with draws_from(model, 7):
                layer.draw = draw
                draws.append(network[:3](x))
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(found, torch.stack(draws).mean(0))
    torch.testing.assert_close(logits, expected)


def test_a_random_network_is_tested_like_any_other():
    x, y = grey(4)
    network = quantize(random_features(), activation_bits=4, alpha=2.0, clip=2.0)
    model = StochasticEnsemble(network, draws=4).eval()
    found = binarization_test(classifier(model), nothing, x, y, threat=LINF)
    assert (found.used, found.dropped, found.success) == (4, 0, 0)


def test_an_image_that_no_readout_separates_is_dropped(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 10)).eval()
    with torch.no_grad():
        model[1].weight.zero_()  # every point has the same features
        model[1].bias.fill_(1.0)
    x, y = digits[1].x()[:4], digits[1].y()[:4]
    found = binarization_test(classifier(model), descent, x, y, threat=LINF)
    assert (found.used, found.dropped) == (0, 4) and np.isnan(found.success) and np.isnan(found.each).all()


THREATS = [Threat("Linf", 0.15), Threat("L2", 0.9), Threat("L1", 3.0)]


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_points_are_planted_at_eps_and_the_others_well_inside(threat):
    x = grey(1)[0]
    points = _around(x, threat, 200, 30, 5)
    length = distances(x.expand_as(points), points, threat.norm)
    assert len(points) == 230 and len(points.unique(dim=0)) == 230
    torch.testing.assert_close(length[200:], torch.full((30,), threat.eps, dtype=torch.float64), rtol=1e-5, atol=0)
    assert 0.9 * threat.eps < length[:200].max() <= 0.95 * threat.eps * (1 + 1e-5)
    assert not torch.equal(points, _around(x, threat, 200, 30, 6))
    corner = _around(torch.zeros_like(x), threat, 5, 5, 5)
    assert corner.min() == 0 and corner.max() <= threat.eps + 1e-6


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("boundary", [1, 3])
def test_in_every_norm_the_planted_images_and_no_others_are_adversarial(threat, boundary):
    """Attacks that know the points: they return one of them."""
    x, y = grey(4)

    def planted(which):
        def attack(estimator, image, label):
            """The point is among those of some image; the readout is above 0 on the outer ones alone."""
            answers = estimator.model(points).argmax(1)
            seen.append(answers.tolist())
            return points[which][None]

        return attack

    seen = []
    network = random_features()
    for which, success in ((0, 0), (1, 0), (-1, 1)):
        with pytest.MonkeyPatch.context() as patch:

            def around(*args):
                nonlocal points
                made = _around(*args)
                points = torch.cat([args[0], made])
                return made

            points = None
            patch.setattr("art_qplugins.evaluation.binarization._around", around)
            found = binarization_test(
                classifier(network), planted(which), x, y, threat=threat, inner=20, boundary=boundary
            )
        assert (found.used, found.success) == (4, success)
    assert seen == [[0] * 21 + [1] * boundary] * 12


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
