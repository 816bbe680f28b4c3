"""What ART and Python expect of an estimator: copies, parameters, devices, defences, labels, dtypes, training.

Where ART's own ``PyTorchClassifier`` is right on the same module, it is the oracle; where it is not, autograd is.
"""

from __future__ import annotations

import copy
import pickle
import random

import art.config
import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.detector.poison import ActivationDefence
from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothingPyTorch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.defences.trainer import (
    AdversarialTrainer,
    AdversarialTrainerAWPPyTorch,
    AdversarialTrainerFBFPyTorch,
    AdversarialTrainerMadryPGD,
    AdversarialTrainerTRADESPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_qplugins import DQClassifier, InputError, MuLawClassifier, QuantizedClassifier, SQEnsembleClassifier
from art_qplugins.quantizers import draws_from

SHAPE, CLASSES, N = (1, 8, 8), 10, 7

FAMILIES = {
    "plain": (QuantizedClassifier, {}),
    "dq": (DQClassifier, {"activation_bits": 3, "clip": 2.0}),
    # With mu = 255 and two layers the gradient on digits is exactly zero: there would be nothing to compare.
    "mu-law": (MuLawClassifier, {"weight_bits": 3, "mu": 5.0, "mu_layers": 1}),
    "sq": (SQEnsembleClassifier, {"activation_bits": 2, "draws": 3}),
}
DETERMINISTIC = pytest.mark.parametrize("make", ["plain", "dq", "mu-law"], indirect=True)


@pytest.fixture(params=FAMILIES)
def make(request, fp32):
    """Makes an estimator of the family around a copy of the network."""

    def build(network=fp32, loss=None, optimizer=None, **options):
        family, own = FAMILIES[request.param]
        options = {"device_type": "cpu", **own, **options}
        estimator = family(copy.deepcopy(network), loss or nn.CrossEntropyLoss(), SHAPE, CLASSES, **options)
        if optimizer is not None:
            estimator.set_params(optimizer=optimizer(estimator.model.parameters()))
        return estimator

    return build


@pytest.fixture
def estimator(make):
    return make()


@pytest.fixture
def batch(digits):
    """(x, y, one-hot) as arrays."""
    y = digits[1].y()[:N].numpy()
    return digits[1].x()[:N].numpy(), y, np.eye(CLASSES, dtype=np.float32)[y]


def arts(estimator, loss=None, **options):
    """ART's own classifier on a copy of the same module."""
    options = {"clip_values": (0.0, 1.0), "device_type": "cpu", **options}
    return PyTorchClassifier(copy.deepcopy(estimator.model), loss or nn.CrossEntropyLoss(), SHAPE, CLASSES, **options)


def predictions(estimator, x):
    """With the same draws each time, if the network draws."""
    with draws_from(estimator.model, 5):
        return estimator.predict(x)


def same(ours, theirs):
    assert theirs.any()
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-5)


def hooks(module):
    return [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in module.named_modules()
    ]


# --- nothing left behind


class Unplugged(Exception):
    pass


def difference(features, p):
    return features.norm(p)


CALLS = {
    "predict": lambda e, x, y: e.predict(x),
    "predict in parts": lambda e, x, y: e.predict(x, batch_size=2),
    "predict in training mode": lambda e, x, y: e.predict(x, training_mode=True),
    "loss_gradient": lambda e, x, y: e.loss_gradient(x, y),
    "class_gradient of all": lambda e, x, y: e.class_gradient(x),
    "class_gradient of one": lambda e, x, y: e.class_gradient(x, label=3),
    "class_gradient of each": lambda e, x, y: e.class_gradient(x, label=y),
    "compute_loss": lambda e, x, y: e.compute_loss(x, y, reduction="none"),
    "get_activations": lambda e, x, y: e.get_activations(x, 0),
    "get_activations as tensors": lambda e, x, y: e.get_activations(x, "act2", framework=True),
    "custom_loss_gradient": lambda e, x, y: e.custom_loss_gradient(difference, x, x[::-1].copy(), "act2"),
    "_predict_framework": lambda e, x, y: e._predict_framework(torch.from_numpy(x), torch.from_numpy(y)),
}


def state(estimator):
    network = estimator.model
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "numpy position": np.random.get_state()[2],
        "python": random.getstate(),
        "modes": [(name, m.training) for name, m in network.named_modules()],
        "flags": [p.requires_grad for p in network.parameters()],
        "gradients": [p.grad if p.grad is None else p.grad.tolist() for p in network.parameters()],
        "reduction": estimator._loss.reduction,
        "hooks": hooks(network),
        "gradients are on": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("fails", [False, True], ids=["", "and raises"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("preprocessing", [None, (0.5, 0.25)], ids=["bare", "preprocessed"])
def test_no_call_leaves_anything_changed(make, batch, preprocessing, call, fails):
    x, y, _ = batch
    estimator = make(loss=nn.CrossEntropyLoss(reduction="sum"), preprocessing=preprocessing)
    names = dict(estimator.model.named_modules())
    inner = next(name for name in names if name.endswith("bn2")).removesuffix("bn2")
    names[inner + "bn2"].train()  # each module has a mode of its own
    names[inner + "fc1"].weight.grad = torch.ones_like(names[inner + "fc1"].weight)
    if fails:

        def unplug(module, inputs):
            raise Unplugged

        names[inner + "act3"].register_forward_pre_hook(unplug)
    before = state(estimator)
    if fails:
        with pytest.raises(Unplugged):
            call(estimator, x, y)
    else:
        call(estimator, x, y)
    after = state(estimator)
    assert {key for key in before if before[key] != after[key]} == set()


# --- copies


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty folders where ART might write, and where the test runs."""
    data, here = tmp_path / "data", tmp_path / "here"
    data.mkdir(), here.mkdir()
    monkeypatch.setattr(art.config, "ART_DATA_PATH", str(data))
    monkeypatch.chdir(here)
    return data, here


COPIES = {"deepcopy": copy.deepcopy, "copy by pickle": lambda e: pickle.loads(pickle.dumps(e))}


@pytest.mark.parametrize("twin_of", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "after get_activations"])
def test_copies_are_the_same_and_independent(make, batch, folders, twin_of, used):
    x, y, one_hot = batch
    estimator = make(clip_values=(0.0, 0.9), preprocessing=(0.1, 0.5), optimizer=torch.optim.Adam)
    if used:
        for layer in (0, estimator.layer_names[-1]):
            estimator.get_activations(x, layer)
    twin = twin_of(estimator)
    assert type(twin) is type(estimator) and twin.device == estimator.device
    assert all(not any(folder.iterdir()) for folder in folders)
    expected = predictions(estimator, x)
    np.testing.assert_array_equal(predictions(twin, x), expected)
    for e in (estimator, twin):
        with draws_from(e.model, 5):
            gradient = e.loss_gradient(x, one_hot)
        assert gradient.any()
    assert tuple(twin.clip_values) == tuple(estimator.clip_values)
    assert set(twin.get_params()) == set(estimator.get_params())
    twin.fit(x, y, batch_size=4, nb_epochs=1)
    assert (predictions(twin, x) != expected).any()
    np.testing.assert_array_equal(predictions(estimator, x), expected)


@pytest.mark.parametrize("twin_of", COPIES.values(), ids=COPIES)
def test_a_copy_goes_on_with_the_same_draws(make, batch, twin_of):
    estimator = make()
    estimator.predict(batch[0])
    twin = twin_of(estimator)
    np.testing.assert_array_equal(twin.predict(batch[0]), estimator.predict(batch[0]))


def test_a_clone_for_refitting_has_the_settings_and_trains_alone(make, batch):
    x, y, _ = batch
    estimator = make(
        clip_values=(0.0, 0.9), preprocessing=(0.1, 0.5), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5)
    )
    expected = predictions(estimator, x)
    clone = estimator.clone_for_refitting()
    assert type(clone) is type(estimator) and clone.model is not estimator.model
    assert clone.device == estimator.device
    assert tuple(clone.clip_values) == pytest.approx((0.0, 0.9))
    assert isinstance(clone.optimizer, torch.optim.SGD) and clone.optimizer is not estimator.optimizer
    assert clone.optimizer.defaults["momentum"] == 0.5
    own = {id(p) for p in clone.model.parameters()}
    assert {id(p) for group in clone.optimizer.param_groups for p in group["params"]} <= own
    before = predictions(clone, x)
    clone.fit(x, y, batch_size=4, nb_epochs=1)
    assert (predictions(clone, x) != before).any()
    np.testing.assert_array_equal(predictions(estimator, x), expected)


def test_what_is_saved_is_the_state_of_the_module(make, batch, tmp_path):
    estimator = make(optimizer=torch.optim.Adam)
    estimator.save("weights", path=str(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} == {"weights.model", "weights.optimizer"}
    saved = torch.load(tmp_path / "weights.model", weights_only=True)
    other = make()
    with torch.no_grad():
        for p in other.model.parameters():
            p.add_(0.5)
    assert (predictions(other, batch[0]) != predictions(estimator, batch[0])).any()
    other.model.load_state_dict(saved)
    np.testing.assert_array_equal(predictions(other, batch[0]), predictions(estimator, batch[0]))


# --- parameters


def test_parameters_go_round(make, batch):
    estimator = make(clip_values=(0.0, 0.9), preprocessing=(0.1, 0.5))
    expected = predictions(estimator, batch[0])
    before = estimator.get_params()
    assert set(before) == set(type(estimator).estimator_params)
    assert {"activation_bits", "draws", "mu"} & set(before) or type(estimator) is QuantizedClassifier
    estimator.set_params(**before)
    after = estimator.get_params()
    assert set(after) == set(before)
    for name in before:
        np.testing.assert_equal(after[name], before[name], err_msg=name)
    np.testing.assert_array_equal(predictions(estimator, batch[0]), expected)
    estimator.set_params(clip_values=(0.1, 0.8))
    np.testing.assert_allclose(estimator.clip_values, (0.1, 0.8))
    with pytest.raises(ValueError, match="Unexpected parameter `bits`"):
        estimator.set_params(bits=3)


@pytest.mark.parametrize("device_type", ["cpu", "gpu"])
def test_the_parameters_have_the_values_that_were_given(make, device_type):
    given = {"device_type": device_type, "channels_first": False, "clip_values": (0.25, 0.75)}
    estimator = make(**given)
    params = estimator.get_params()
    params["clip_values"] = tuple(params["clip_values"])
    assert {name: params[name] for name in given} == given


def test_setting_preprocessing_takes_effect(make, batch):
    x, _, one_hot = batch
    estimator, fresh = make(), make(preprocessing=(0.5, 0.25))
    estimator.set_params(preprocessing=(0.5, 0.25))
    np.testing.assert_array_equal(predictions(estimator, x), predictions(fresh, x))
    with draws_from(estimator.model, 5), draws_from(fresh.model, 5):
        np.testing.assert_array_equal(estimator.loss_gradient(x, one_hot), fresh.loss_gradient(x, one_hot))


def test_repr_names_the_class(estimator):
    cls = type(estimator)
    assert repr(estimator).startswith(f"{cls.__module__}.{cls.__name__}(")
    assert "nb_classes=10" in repr(estimator)


# --- ActivationDefence


def test_a_copy_without_its_model_works_as_activation_defence_makes_it(estimator, batch):
    model = estimator._model
    estimator._model = None
    twin = copy.deepcopy(estimator)
    assert twin._model is None
    estimator._model = model
    twin._model = copy.deepcopy(model) if not isinstance(model, nn.Module) else model
    np.testing.assert_array_equal(predictions(twin, batch[0]), predictions(estimator, batch[0]))


def test_activation_defence_detects(estimator, digits):
    x, y = digits[1].x()[:60].numpy(), np.eye(CLASSES, dtype=np.float32)[digits[1].y()[:60].numpy()]
    defence = ActivationDefence(estimator, x, y)
    before = hooks(estimator.model)
    _, is_clean = defence.detect_poison(nb_clusters=2, nb_dims=2, reduce="PCA")
    assert len(is_clean) == 60
    assert hooks(estimator.model) == before


# --- devices


def test_cpu_and_gpu_are_understood(make, batch):
    assert make(device_type="cpu").device == torch.device("cpu")
    accelerated = make(device_type="gpu")
    assert accelerated.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert {p.device.type for p in accelerated.model.parameters()} == {accelerated.device.type}
    assert np.isfinite(predictions(accelerated, batch[0])).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("device_type", ["cuda", "cuda:0", "cuda:7"])
def test_a_device_that_is_not_there_is_refused(make, device_type):
    with pytest.raises(InputError, match=rf"^device_type: '{device_type}' [^\n]+$"):
        make(device_type=device_type)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_by_name(make, batch):
    estimator = make(device_type="cuda:0")
    assert estimator.device == torch.device("cuda", 0)
    assert np.isfinite(predictions(estimator, batch[0])).all()
    assert estimator.loss_gradient(torch.from_numpy(batch[0]).cuda(), batch[1]).device == estimator.device


def test_a_device_that_is_none_is_refused(make):
    with pytest.raises(InputError, match="device_type: 'toaster'"):
        make(device_type="toaster")


# --- defences in front of the network


class Blur(PreprocessorPyTorch):
    """A defence in torch, through which gradients flow."""

    def forward(self, x, y=None):
        return nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False), y


def smoothing():
    pytest.importorskip("kornia", reason="ART's SpatialSmoothingPyTorch imports kornia, not one of our requirements")
    return SpatialSmoothingPyTorch(3, True, device_type="cpu")


PREPROCESSING = {
    "none": lambda: {},
    "standardised": lambda: {"preprocessing": (0.5, 0.25)},
    "numpy": lambda: {"preprocessing_defences": FeatureSqueezing((0.0, 1.0), bit_depth=3, apply_predict=True)},
    "numpy and standardised": lambda: {
        "preprocessing_defences": FeatureSqueezing((0.0, 1.0), bit_depth=3, apply_predict=True),
        "preprocessing": (np.float32(0.5), np.float32(0.25)),
    },
    "torch": lambda: {"preprocessing_defences": Blur()},
    "torch and standardised": lambda: {"preprocessing_defences": Blur(), "preprocessing": (0.5, 0.25)},
    "ART's in torch": lambda: {"preprocessing_defences": smoothing()},
}


@DETERMINISTIC
@pytest.mark.parametrize("options", PREPROCESSING.values(), ids=PREPROCESSING)
def test_predictions_losses_and_gradients_behind_preprocessing_are_arts(make, batch, options):
    x, y, one_hot = batch
    ours = make(**options())
    theirs = arts(ours, **options())
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), atol=1e-5, rtol=1e-5)
    same(ours.loss_gradient(x, one_hot), theirs.loss_gradient(x, one_hot))
    same(ours.compute_loss(x, one_hot, reduction="none"), theirs.compute_loss(x, one_hot, reduction="none"))
    for label in (None, 3, y):
        np.testing.assert_allclose(
            ours.class_gradient(x, label=label), theirs.class_gradient(x, label=label), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("options", PREPROCESSING.values(), ids=PREPROCESSING)
def test_tensors_give_what_arrays_give_behind_preprocessing(make, batch, options):
    x, _, one_hot = batch
    estimator = make(**options())
    with draws_from(estimator.model, 5):
        expected = estimator.loss_gradient(x, one_hot)
    with draws_from(estimator.model, 5):
        ours = estimator.loss_gradient(torch.from_numpy(x), torch.from_numpy(one_hot))
    assert isinstance(ours, torch.Tensor)
    same(ours.numpy(), expected)


# --- gradients of classes


LABELS = {
    "none": lambda y: None,
    "an int": lambda y: 3,
    "NumPy's int": lambda y: np.int64(3),
    "a list": lambda y: y.tolist(),
    "an array": lambda y: y,
    "an array of int32": lambda y: y.astype(np.int32),
    "an array of one class": lambda y: np.full_like(y, 4),
}


@DETERMINISTIC
@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("training_mode", [False, True])
def test_class_gradient_is_arts(make, batch, label, training_mode):
    x, y, _ = batch
    if training_mode and label(y) is not None:
        y = np.full_like(y, 4)  # batch norm joins the images: the answer for one depends on the others' classes
    ours = make()
    theirs = arts(ours)
    expected = theirs.class_gradient(x, label=label(y), training_mode=training_mode)
    gradient = ours.class_gradient(x, label=label(y), training_mode=training_mode)
    assert gradient.shape == expected.shape and gradient.dtype == expected.dtype
    np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max(), rtol=1e-4)


def test_class_gradient_of_a_network_is_autograds(make, batch):
    """Also of one that draws: each class sees the same draws."""
    x, y, _ = batch
    estimator = make()
    pixels = torch.from_numpy(x).requires_grad_()
    with draws_from(estimator.model, 5):
        logits = copy.deepcopy(estimator.model).eval()(pixels)
    expected = np.stack(
        [torch.autograd.grad(logits[:, c].sum(), pixels, retain_graph=True)[0].numpy() for c in range(CLASSES)], axis=1
    )
    with draws_from(estimator.model, 5):
        np.testing.assert_allclose(estimator.class_gradient(x), expected, atol=1e-5)
    with draws_from(estimator.model, 5):
        np.testing.assert_allclose(estimator.class_gradient(x, label=y), expected[np.arange(N), y][:, None], atol=1e-5)


@pytest.mark.parametrize("label", [10, -1, [0, 1, 2, 3, 4, 5, 10], np.array([0, 1])], ids=str)
def test_labels_outside_the_classes_are_refused(estimator, batch, label):
    with pytest.raises(ValueError, match="out of range"):
        estimator.class_gradient(batch[0], label=label)


# --- losses


@DETERMINISTIC
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("own", ["mean", "sum"])
def test_compute_loss_is_arts(make, batch, reduction, own):
    x, y, one_hot = batch
    ours = make(loss=nn.CrossEntropyLoss(reduction=own))
    theirs = arts(ours)
    expected = theirs.compute_loss(x, one_hot, reduction=reduction)
    for labels in (one_hot, y):
        loss = ours.compute_loss(x, labels, reduction=reduction)
        assert isinstance(loss, np.ndarray) and loss.shape == expected.shape
        same(loss, expected)
        assert ours._loss.reduction == own
        loss = ours.compute_loss(torch.from_numpy(x), torch.from_numpy(labels), reduction=reduction)
        assert isinstance(loss, torch.Tensor)
        same(loss.detach().numpy(), expected)


def test_the_reduction_is_what_it_was_also_after_an_exception(estimator, batch):
    x, y, _ = batch
    for bad in ((np.repeat(x, 3, axis=1), y), (x, y + 100)):
        with pytest.raises((RuntimeError, InputError)):
            estimator.compute_loss(*bad, reduction="none")
        assert estimator._loss.reduction == "mean"


# --- activations


def by_hand(network, x):
    """What the layers of a ConvNet give."""
    outputs, h = {}, x
    order = ["conv1", "bn1", "act1", "conv2", "bn2", "act2", "flatten", "fc1", "act3", "fc2"]
    for name in order:
        h = h.flatten(1) if name == "flatten" else getattr(network, name)(h)
        outputs[name] = h
    return outputs


@DETERMINISTIC
def test_activations_are_those_of_the_layer_and_leave_no_hook(make, batch):
    x, _, _ = batch
    estimator = make()
    before = hooks(estimator.model)
    pixels = torch.from_numpy(x)
    for index, name in enumerate(estimator.layer_names):
        for batch_size in (128, 2):  # the oracle has the same batches, which round to the same levels
            with torch.no_grad():
                parts = [by_hand(estimator.model, part)[name] for part in pixels.split(batch_size)]
            for layer in (index, name):
                ours = estimator.get_activations(x, layer, batch_size=batch_size)
                assert isinstance(ours, np.ndarray)
                np.testing.assert_allclose(ours, torch.cat(parts).numpy(), atol=1e-5)
        tensor = estimator.get_activations(pixels, name, framework=True)
        np.testing.assert_allclose(tensor.detach().numpy(), by_hand(estimator.model, pixels)[name].detach(), atol=1e-5)
    assert hooks(estimator.model) == before


@DETERMINISTIC
@pytest.mark.parametrize("preprocessing", [None, (0.5, 0.25)])
def test_activations_are_arts(make, batch, preprocessing):
    ours = make(preprocessing=preprocessing)
    theirs = arts(ours, preprocessing=preprocessing)
    assert ours.layer_names == theirs.layer_names
    for index, name in enumerate(ours.layer_names):
        expected = theirs.get_activations(batch[0], name, 4)
        np.testing.assert_allclose(ours.get_activations(batch[0], index, 4), expected, atol=1e-5)


def test_activations_have_a_row_for_each_image(make, batch):
    """Also of a network that draws, whether or not it has been called before, before and after its first draw."""
    x, _, _ = batch
    for layer in ("conv1", "act1", "conv2", "act3", "fc2"):
        estimator = make()
        for _ in range(2):
            for framework in (False, True):
                outputs = estimator.get_activations(x, layer, framework=framework)
                assert len(outputs) == N and not np.isnan(np.asarray(outputs.detach() if framework else outputs)).any()


def test_activations_as_tensors_are_differentiable(estimator, batch):
    pixels = torch.from_numpy(batch[0]).requires_grad_()
    (gradient,) = torch.autograd.grad(estimator.get_activations(pixels, "act2", framework=True).sum(), pixels)
    assert gradient.any()


@pytest.mark.parametrize(("layer", "error"), [("act9", ValueError), (99, (ValueError, IndexError)), (None, TypeError)])
def test_layers_that_are_not_there_are_refused(estimator, batch, layer, error):
    with pytest.raises(error):
        estimator.get_activations(batch[0], layer)


# --- losses on activations


@DETERMINISTIC
@pytest.mark.parametrize("preprocessing", [None, (0.5, 0.25)])
@pytest.mark.parametrize("layer", ["act2", "fc2"])
@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
def test_custom_loss_gradient_is_autograds(make, batch, preprocessing, layer, tensors):
    """Where ART's own preprocesses twice, and takes no tensors."""
    x, _, _ = batch
    guide = x[::-1].copy()
    estimator = make(preprocessing=preprocessing)
    mean, std = preprocessing or (0.0, 1.0)
    network, pixels = copy.deepcopy(estimator.model).eval(), torch.from_numpy(x).requires_grad_()
    features = (
        by_hand(network, (pixels - mean) / std)[layer] - by_hand(network, (torch.from_numpy(guide) - mean) / std)[layer]
    )
    (expected,) = torch.autograd.grad(difference(features, 2), pixels)
    given = (torch.from_numpy(x), torch.from_numpy(guide)) if tensors else (x, guide)
    name = estimator.layer_names.index(layer) if tensors else layer
    gradient = estimator.custom_loss_gradient(difference, *given, name)
    assert isinstance(gradient, torch.Tensor if tensors else np.ndarray)
    same(np.asarray(gradient), expected.numpy())


def test_custom_loss_gradient_of_every_family(estimator, batch):
    x, _, _ = batch
    gradient = estimator.custom_loss_gradient(difference, x, x[::-1].copy(), "act2")
    assert gradient.shape == x.shape and gradient.any() and np.isfinite(gradient).all()


# --- dtypes


def test_float64_gives_what_float32_gives(make, batch):
    x, y, one_hot = batch
    estimator, double = make(), x.astype(np.float64)
    calls = {
        "predict": lambda x: estimator.predict(x),
        "loss_gradient": lambda x: estimator.loss_gradient(x, one_hot.astype(x.dtype)),
        "class_gradient": lambda x: estimator.class_gradient(x, label=y),
        "compute_loss": lambda x: estimator.compute_loss(x, one_hot.astype(x.dtype)),
        "get_activations": lambda x: estimator.get_activations(x, 0),
        "custom_loss_gradient": lambda x: estimator.custom_loss_gradient(difference, x, x[::-1].copy(), "act2"),
    }
    for name, call in calls.items():
        with draws_from(estimator.model, 5):
            expected = call(x)
        with draws_from(estimator.model, 5):
            ours = call(double)
        np.testing.assert_allclose(ours, expected, atol=1e-6, err_msg=name)


def test_float64_passes_a_plain_classifier_around_the_module(estimator, batch):
    """Which BrendelBethge rebuilds, and then calls so."""
    x, _, one_hot = batch
    plain = PyTorchClassifier(
        estimator.model, nn.CrossEntropyLoss(), SHAPE, CLASSES, clip_values=(0.0, 1.0), device_type="cpu"
    )
    assert plain.predict(x.astype(np.float64)).shape == (N, CLASSES)
    assert plain.loss_gradient(x.astype(np.float64), one_hot).any()


# --- training


@pytest.fixture
def lesson(digits):
    """(x, y) as arrays, 300 images."""
    return digits[0].x()[:300].numpy(), digits[0].y()[:300].numpy()


def untrained(network):
    """Its last layer starts again."""
    network = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network.fc2.reset_parameters()
    return network


def accuracy(estimator, x, y):
    return float((estimator.predict(x).argmax(1) == y).mean())


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("one_hot", [False, True], ids=["integers", "one-hot"])
@pytest.mark.parametrize("preprocessing", [None, (0.5, 0.25)])
def test_fit_trains(make, fp32, lesson, one_hot, preprocessing):
    x, y = lesson
    estimator = make(network=untrained(fp32), optimizer=sgd, preprocessing=preprocessing)
    before = accuracy(estimator, x, y)
    modes = [m.training for m in estimator.model.modules()]
    estimator.fit(x, np.eye(CLASSES, dtype=np.float32)[y] if one_hot else y, batch_size=50, nb_epochs=3)
    assert accuracy(estimator, x, y) > max(before, 0.3) + 0.1
    assert [m.training for m in estimator.model.modules()] == modes


def test_fit_without_an_optimizer_is_refused(make, lesson):
    with pytest.raises((InputError, ValueError), match="optimizer"):
        make().fit(*lesson, nb_epochs=1)


def attack(estimator):
    return ProjectedGradientDescent(estimator, eps=0.05, eps_step=0.02, max_iter=2, verbose=False)


def awp(mode):
    return lambda e: AdversarialTrainerAWPPyTorch(
        e, copy.deepcopy(e), attack(e), mode=mode, gamma=0.01, beta=1.0, warmup=0
    )


TRAINERS = {
    "AdversarialTrainer": lambda e: AdversarialTrainer(e, FastGradientMethod(e, eps=0.05), ratio=0.5),
    "Madry": lambda e: AdversarialTrainerMadryPGD(
        e, nb_epochs=None, batch_size=None, eps=0.05, eps_step=0.02, max_iter=2, num_random_init=1
    ),
    "TRADES": lambda e: AdversarialTrainerTRADESPyTorch(e, attack(e), beta=1.0),
    "FBF": lambda e: AdversarialTrainerFBFPyTorch(e, eps=0.05),
    "AWP": awp("PGD"),
    "AWP of TRADES": awp("TRADES"),
}


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_arts_trainers_train(make, fp32, lesson, trainer):
    x, y = lesson
    estimator = make(network=untrained(fp32), optimizer=sgd)
    before = accuracy(estimator, x, y)
    trainer(estimator).fit(x, np.eye(CLASSES, dtype=np.float32)[y], batch_size=20, nb_epochs=2)
    assert accuracy(estimator, x, y) > max(before, 0.3) + 0.1
