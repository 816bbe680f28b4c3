"""ART's pre- and postprocessors inside one module: it answers as ``predict`` does, and has a gradient.

Networks are linear, so that the gradient of each defence is known.
"""

from __future__ import annotations

import copy
import pickle

import art.defences.postprocessor as after
import art.defences.preprocessor as before
import cloudpickle
import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_qplugins.attacks.craft import craft
from art_qplugins.errors import InputError
from art_qplugins.estimators import Deployed, QuantizedClassifier, deployed
from art_qplugins.fingerprint import fingerprint
from art_qplugins.gradients.counting import passes
from art_qplugins.guard import isolated
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize
from art_qplugins.threat import Threat

SHAPE, K = (1, 8, 8), 4
X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
X[0, 0, 0] = 0.0  # black pixels, for which ART's estimate through a thermometer is 0
Y = torch.arange(6) % K


def linear(inputs=64, softmax=False):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(inputs, K))
    return nn.Sequential(*network, *([nn.Softmax(1)] if softmax else [])).eval()


def classifier(network=None, cls=QuantizedClassifier, **around):
    return cls(network or linear(), nn.CrossEntropyLoss(), SHAPE, K, device_type="cpu", **around)


class Negative(before.preprocessor.Preprocessor):
    """1 - x, with its exact derivative."""

    def __call__(self, x, y=None):
        return 1 - x, y

    def estimate_gradient(self, x, grad):
        return -grad


class Flat(Negative):
    """The same with an estimate that is 0, as if there were no way back."""

    def estimate_gradient(self, x, grad):
        return np.zeros_like(grad)


class InPlace(before.preprocessor.Preprocessor):
    def __call__(self, x, y=None):
        x *= 0.5
        return x, y


class Rounding(before.preprocessor.PreprocessorPyTorch):
    """Two levels, with the identity as its estimate."""

    def forward(self, x, y=None):
        return x.round(), y

    def estimate_forward(self, x, y=None):
        return x


class Cut(Rounding):
    """It leaves the graph."""

    def forward(self, x, y=None):
        return x.detach().round(), y

    estimate_forward = before.preprocessor.PreprocessorPyTorch.estimate_forward


class Twice(before.preprocessor.Preprocessor):
    """Each image beside itself: another shape, and no estimate."""

    def __call__(self, x, y=None):
        return np.concatenate([x, x], axis=1), y


CLIP = (0.0, 1.0)
PREPROCESSORS = {
    "jpeg": before.JpegCompression(CLIP, quality=50, channels_first=True),
    "squeezing": before.FeatureSqueezing(CLIP, bit_depth=2),
    "smoothing": before.SpatialSmoothing(3, channels_first=True),
    "smoothing-even": before.SpatialSmoothing(4, channels_first=True, clip_values=(0.2, 0.6)),
    "smoothing-last": before.SpatialSmoothing(2),
    "smoothing-torch": before.SpatialSmoothingPyTorch(3, channels_first=True, device_type="cpu"),
    "thermometer": before.ThermometerEncoding(CLIP, num_space=5, channels_first=True),
    "thermometer-last": before.ThermometerEncoding(CLIP, num_space=3),
    "variance": before.TotalVarMin(clip_values=CLIP),
    "augmentation": before.GaussianAugmentation(sigma=0.5),
    "noise": before.GaussianAugmentation(0.1, augmentation=False, apply_predict=True),
    "own": Negative(),
    "in-place": InPlace(),
    "torch": Rounding(device_type="cpu"),
}
INPUTS = {"thermometer": 320, "thermometer-last": 192}


def both(estimator, x=X, seed=3):
    """What ``predict`` answers, and what the module does, with the same draws."""
    whole = deployed(estimator)
    with isolated(whole.model, seed), torch.no_grad():
        module = whole.model(x)
    with isolated(whole.model, seed):
        predicted = estimator.predict(x.numpy().copy(), batch_size=len(x))
    return torch.from_numpy(predicted), module


@pytest.mark.parametrize("standard", [None, (0.25, 0.5)], ids=["", "standardised"])
@pytest.mark.parametrize("name", PREPROCESSORS)
def test_the_module_answers_as_predict_does(name, standard):
    network = linear(INPUTS.get(name, 64))
    predicted, module = both(classifier(network, preprocessing_defences=PREPROCESSORS[name], preprocessing=standard))
    torch.testing.assert_close(module, predicted, rtol=0, atol=1e-6)


def test_art_s_own_classifier_is_judged_as_its_predict_answers_too():
    around = {"preprocessing_defences": PREPROCESSORS["jpeg"], "postprocessing_defences": after.Rounded(2)}
    predicted, module = both(classifier(cls=PyTorchClassifier, preprocessing=(0.25, 0.5), **around))
    assert torch.equal(module, predicted)


def test_several_in_a_row_are_applied_in_their_order():
    """ART itself chains only those in PyTorch; others come one by one."""
    chain = [PREPROCESSORS[name] for name in ("own", "jpeg", "smoothing-torch", "augmentation", "squeezing")]
    whole = deployed(classifier(preprocessing_defences=chain, preprocessing=(0.25, 0.5)))
    x = X.numpy()
    for defence in chain:
        x = defence(x)[0] if defence.apply_predict else x
    expected = whole.model.network(torch.from_numpy(((x - 0.25) / 0.5).astype(np.float32)))
    torch.testing.assert_close(whole.model(X), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:model. .* gives probabilities:UserWarning")
@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "probabilities"])
@pytest.mark.parametrize(
    "defence",
    [
        after.ReverseSigmoid(),
        after.Rounded(1),
        after.HighConfidence(0.3),
        after.ClassLabels(),
        after.GaussianNoise(0.1),
    ],
    ids=lambda defence: type(defence).__name__,
)
def test_postprocessors_have_the_last_word_and_let_the_gradient_pass(defence, softmax):
    network = linear(softmax=softmax)
    predicted, module = both(classifier(network, postprocessing_defences=defence))
    assert torch.equal(module, predicted)
    x = X.clone().requires_grad_()
    found = torch.autograd.grad(deployed(classifier(network, postprocessing_defences=defence)).model(x)[:, 0].sum(), x)
    expected = torch.autograd.grad(network(x)[:, 0].sum(), x)
    torch.testing.assert_close(found, expected)


def gradient(defence, inputs=64, **around):
    """The gradient of the first logit, and the weights of the network for it, in the shape of its input."""
    estimator = classifier(linear(inputs), preprocessing_defences=defence, **around)
    found = deployed(estimator).class_gradient(X, 0)[:, 0]
    return found, estimator.model[1].weight[0]


@pytest.mark.parametrize(
    ("defence", "slope"),
    [
        (PREPROCESSORS["jpeg"], 1.0),  # ART's default, the identity
        (PREPROCESSORS["variance"], 1.0),
        (Negative(), -1.0),
        (Flat(), 1.0),  # the identity, where an estimate is 0
        (Rounding(device_type="cpu"), 1.0),
        (Cut(device_type="cpu"), 1.0),
    ],
    ids=["jpeg", "variance", "estimate", "zero", "torch", "cut"],
)
def test_the_gradient_is_the_best_known_of_each_preprocessor(defence, slope):
    found, weight = gradient(defence, preprocessing=(0.5, 0.25))
    torch.testing.assert_close(found, (4 * slope * weight).view(1, *SHAPE).expand_as(found))


def test_a_median_in_pytorch_is_differentiated_through():
    found, _ = gradient(PREPROCESSORS["smoothing-torch"])
    x = X.clone().requires_grad_()
    value = linear()(PREPROCESSORS["smoothing-torch"].forward(x)[0])[:, 0].sum()
    torch.testing.assert_close(found, torch.autograd.grad(value, x)[0])


def test_the_gradient_through_a_median_is_that_of_a_small_step():
    """Where no two pixels are equal, a step that changes no order."""
    whole = copy.deepcopy(deployed(classifier(preprocessing_defences=PREPROCESSORS["smoothing"])).model).double()
    for part in whole.modules():  # no cast of float64 pixels
        part._forward_pre_hooks.clear()
    x = torch.randperm(64).double().view(1, *SHAPE) / 64
    (found,) = torch.autograd.grad(whole(leaf := x.clone().requires_grad_())[0, 0], leaf)
    step = 1e-3 * torch.eye(64, dtype=torch.float64).view(64, *SHAPE)
    inside = (x + step).clamp(0, 1)
    slopes = (whole(inside)[:, 0] - whole(x)[:, 0]) / 1e-3
    torch.testing.assert_close(found.flatten(), slopes, rtol=1e-6, atol=1e-9)


def test_the_gradient_through_a_thermometer_points_where_levels_change_and_is_never_zero():
    """A level that is far counts less than one that is near, and the sum over levels follows their weights."""
    found, weight = gradient(PREPROCESSORS["thermometer"], 320)
    levels = weight.view(5, 8, 8)[1:]
    near = (X - torch.tensor([0.2, 0.4, 0.6, 0.8]).view(1, -1, 1, 1)).abs()
    expected = (levels * (10 / torch.pi) / (1 + (10 * near) ** 2)).sum(1, keepdim=True)
    torch.testing.assert_close(found, expected)
    assert (found != 0).all()


def test_a_new_shape_without_an_estimate_has_no_gradient_and_says_so():
    whole = deployed(classifier(linear(128), preprocessing_defences=Twice()))
    with pytest.raises(InputError, match="gives no gradient to its pixels"):
        whole.loss_gradient(X, Y)


def test_what_is_outside_the_pixels_is_answered_as_the_nearest_point_inside():
    whole = deployed(classifier(preprocessing_defences=PREPROCESSORS["jpeg"]))
    assert torch.equal(whole.model(X * 3 - 1), whole.model((X * 3 - 1).clamp(0, 1)))


def test_nothing_that_it_is_given_changes():
    x, grad = X.clone(), X.clone().requires_grad_()
    whole = deployed(classifier(preprocessing_defences=[InPlace(), Negative()]))
    whole.model(x), whole.model(grad).sum().backward()
    assert torch.equal(x, X) and torch.equal(grad.detach(), X)
    network = linear().train()
    deployed(classifier(network, preprocessing_defences=Negative()))
    assert all(part.training for part in network.modules())


def test_an_estimator_without_pre_and_postprocessing_stays_as_it_is():
    bare = classifier()
    assert deployed(bare) is bare
    same = deployed(classifier(bare.model, preprocessing=(0, 1), preprocessing_defences=PREPROCESSORS["augmentation"]))
    assert same.model is bare.model and not same.preprocessing_operations
    assert deployed(classifier(bare.model, cls=PyTorchClassifier)).model is bare.model


def test_settings_are_part_of_the_hash_and_calls_are_not():
    def key(defence, **around):
        return fingerprint(deployed(classifier(preprocessing_defences=defence, **around)).model)

    jpeg = [before.JpegCompression(CLIP, quality=q, channels_first=True) for q in (50, 51)]
    own = [copy.deepcopy(Negative()) for _ in range(2)]
    own[0].table, own[1].table = np.zeros(3), np.array([0.0, 0.0, 1.0])
    keys = [key(d) for d in [*jpeg, *own, *PREPROCESSORS.values()] if not isinstance(d, before.ThermometerEncoding)]
    keys += [key(None, preprocessing=(m, 0.5)) for m in (0.0, 0.1)]
    keys += [key(None, postprocessing_defences=after.Rounded(d)) for d in (1, 2)]
    assert len(set(keys)) == len(keys) - 1  # jpeg is there twice
    estimator = classifier(preprocessing_defences=PREPROCESSORS["smoothing-torch"], preprocessing=(0.1, 0.5))
    first = fingerprint(deployed(estimator).model)
    estimator.predict(X.numpy())
    assert fingerprint(deployed(estimator).model) == first


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_it_can_be_sent_to_another_process(name):
    around = {"preprocessing_defences": PREPROCESSORS[name], "postprocessing_defences": after.Rounded(3)}
    whole = deployed(classifier(linear(INPUTS.get(name, 64)), preprocessing=(0.1, 0.5), **around))
    library = cloudpickle if name == "smoothing-torch" or name in ("own", "in-place", "torch") else pickle
    there = pickle.loads(library.dumps(whole))
    for module in (there.model, copy.deepcopy(whole.model)):
        assert fingerprint(module) == fingerprint(whole.model)
        with isolated(module, 5):
            answers = module(X)
        with isolated(whole.model, 5):
            assert torch.equal(answers, whole.model(X))


def test_the_draws_of_an_ensemble_inside_are_counted():
    ensemble = StochasticEnsemble(quantize(nn.Sequential(*linear(), nn.ReLU()), activation_bits=2, alpha=2.0), draws=3)
    assert passes(deployed(classifier(ensemble, preprocessing=(0.1, 0.5))).model, requires_grad=True) == 3


def test_a_view_of_an_estimator_keeps_what_is_around_it():
    around = {"preprocessing_defences": PREPROCESSORS["jpeg"], "postprocessing_defences": after.Rounded(2)}
    estimator = classifier(preprocessing=(0.25, 0.5), **around)
    view = estimator.with_model(linear())
    np.testing.assert_array_equal(view.predict(X.numpy()), estimator.predict(X.numpy()))


@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")  # foolbox
@pytest.mark.parametrize(
    "attack", ["art:pgd", "autoattack:apgd-ce", "torchattacks:pgd", "foolbox:pgd", "artq:pgd-margin"]
)
def test_every_library_attacks_the_whole_of_it(attack):
    """Of 1 - x, the network's own gradient points the wrong way."""
    whole = deployed(classifier(preprocessing_defences=[PREPROCESSORS["squeezing"], Negative()]))
    y = whole.model(X).argmax(1)
    made = craft(whole, attack, X, y, threat=Threat("Linf", 0.3), seed=0)
    assert (whole.model(made.x_adv).argmax(1) != y).all()


def test_the_input_shape_may_be_that_of_the_network_behind():
    module = Deployed(linear(320), [PREPROCESSORS["thermometer"]], [])
    assert module.takes(SHAPE) and not module.takes((5, 8, 8))


def test_an_estimator_that_predicts_otherwise_than_its_module_is_refused_in_one_line():
    class Smoothing(PyTorchClassifier):
        def predict(self, x, **kwargs):
            return super().predict(x, **kwargs).round()

    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    estimator = Smoothing(network, nn.CrossEntropyLoss(), (1, 2, 2), 3, clip_values=(0, 1))
    with pytest.raises(InputError, match="Smoothing has a predict of its own"):
        deployed(estimator)
