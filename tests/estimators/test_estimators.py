"""The estimators against ART's own on the same module, and what they leave behind: nothing."""

from __future__ import annotations

import copy
import inspect
import random

import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, FastGradientMethod, ProjectedGradientDescent
from art.estimators import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin
from art.estimators.classification import ClassGradientsMixin, ClassifierMixin, PyTorchClassifier
from torch import nn

from art_qplugins import (
    DQClassifier,
    InputError,
    MuLawClassifier,
    QuantizedClassifier,
    QuantReLU,
    SQEnsembleClassifier,
    quantize,
)
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import draws_from
from art_qplugins.quantizers.noise import stochastic_layers

CONTRACT = (nn.CrossEntropyLoss(), (1, 8, 8), 10)


@pytest.fixture
def network(fp32):
    return copy.deepcopy(fp32)


@pytest.fixture
def batch(digits):
    """(x, y) as arrays, 7 images."""
    return digits[1].x()[:7].numpy(), digits[1].y()[:7].numpy()


def on_cpu(cls, model, loss=None, **options):
    return cls(model, loss or CONTRACT[0], *CONTRACT[1:], device_type="cpu", **options)


def art(model, loss=None, **options):
    return on_cpu(PyTorchClassifier, copy.deepcopy(model), loss, clip_values=(0.0, 1.0), **options)


FAMILIES = {
    "plain": (QuantizedClassifier, {}),
    "dq": (DQClassifier, {"activation_bits": 3, "clip": 2.0}),
    # With mu = 255 and two layers the gradient on digits is exactly zero: there would be nothing to compare.
    "mu-law": (MuLawClassifier, {"weight_bits": 3, "mu": 5.0, "mu_layers": 1}),
    "sq": (SQEnsembleClassifier, {"activation_bits": 2, "draws": 3}),
}


@pytest.fixture(params=FAMILIES)
def estimator(request, network):
    cls, options = FAMILIES[request.param]
    return on_cpu(cls, network, **options)


DETERMINISTIC = pytest.mark.parametrize("estimator", ["plain", "dq", "mu-law"], indirect=True)


# --- the contract with ART


def test_they_are_arts_classifiers_by_inheritance(estimator):
    assert isinstance(estimator, PyTorchClassifier)
    mixins = (BaseEstimator, LossGradientsMixin, ClassGradientsMixin, ClassifierMixin, NeuralNetworkMixin)
    assert all(mixin in type(estimator).__mro__ for mixin in mixins)  # how ART's attacks ask
    for attack in (ProjectedGradientDescent, AutoProjectedGradientDescent):
        attack(estimator, verbose=False)


def test_the_parameters_are_arts_position_by_position():
    ours, arts = (list(inspect.signature(c.__init__).parameters) for c in (QuantizedClassifier, PyTorchClassifier))
    assert ours[: len(arts)] == arts


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_arts_positional_arguments(family, network):
    cls, options = FAMILIES[family]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    values = [network, *CONTRACT, optimizer, False, "O1", "dynamic", True, (0.0, 0.5), None, None, None, "cpu"]
    estimator = cls(*values, **options)
    assert estimator.optimizer is optimizer
    assert (estimator.input_shape, estimator.nb_classes) == ((1, 8, 8), 10)
    assert tuple(estimator.clip_values) == (0.0, 0.5)
    assert estimator.device.type == "cpu"


def test_the_two_defaults_that_differ(network):
    estimator = on_cpu(QuantizedClassifier, network)
    assert tuple(estimator.clip_values) == (0.0, 1.0)
    assert not estimator.preprocessing_operations
    assert estimator.model is network


@DETERMINISTIC
@pytest.mark.parametrize("batch_size", [128, 3, 1])
def test_predict_is_arts(estimator, batch, batch_size):
    x, _ = batch
    ours = estimator.predict(x, batch_size=batch_size)
    assert ours.dtype == np.float32 and ours.shape == (7, 10)
    theirs = art(estimator.model).predict(x, batch_size=batch_size)  # batches of one size round to the same levels
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-6)


LOSSES = {"mean": nn.CrossEntropyLoss(), "sum": nn.CrossEntropyLoss(reduction="sum")}


@DETERMINISTIC
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("preprocessing", [None, (0.5, 0.25)])
def test_loss_gradient_is_arts_for_arrays_and_tensors_and_all_labels(estimator, batch, loss, preprocessing):
    x, y = batch
    one_hot = np.eye(10, dtype=np.float32)[y]
    expected = art(estimator.model, loss, preprocessing=preprocessing).loss_gradient(x, one_hot)
    assert expected.any()
    ours = on_cpu(QuantizedClassifier, estimator.model, loss, preprocessing=preprocessing)
    for labels in (one_hot, y, y.astype(np.int32), one_hot.astype(np.int64)):
        gradient = ours.loss_gradient(x, labels)
        assert isinstance(gradient, np.ndarray)
        np.testing.assert_allclose(gradient, expected, atol=1e-6, rtol=1e-4)
        gradient = ours.loss_gradient(torch.from_numpy(x), torch.from_numpy(labels))
        assert isinstance(gradient, torch.Tensor)
        np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-6, rtol=1e-4)


@DETERMINISTIC
def test_a_loss_class_of_ones_own_gets_integer_labels_too(estimator, batch):
    class Margin(nn.Module):
        reduction = "mean"

        def forward(self, logits, labels):
            assert labels.shape == (len(logits),) and labels.dtype == torch.int64
            return nn.functional.multi_margin_loss(logits, labels)

    x, y = batch
    pixels = torch.from_numpy(x).requires_grad_()
    (expected,) = torch.autograd.grad(
        nn.functional.multi_margin_loss(estimator.model(pixels), torch.from_numpy(y)), pixels
    )
    ours = on_cpu(QuantizedClassifier, estimator.model, Margin())
    for labels in (y, np.eye(10, dtype=np.float32)[y]):
        np.testing.assert_allclose(ours.loss_gradient(x, labels), expected.numpy(), atol=1e-6)


@DETERMINISTIC
def test_an_attack_of_arts_gives_what_it_gives_on_arts_classifier(estimator, batch):
    x, y = batch
    for make in (
        lambda e: FastGradientMethod(e, eps=0.1),
        lambda e: ProjectedGradientDescent(e, eps=0.1, eps_step=0.03, max_iter=4, verbose=False),
    ):
        ours, theirs = make(estimator).generate(x, y), make(art(estimator.model)).generate(x, y)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.abs(ours - x).max() > 0.05


def test_postprocessing_is_applied_to_predictions(network, batch):
    from art.defences.postprocessor import Rounded

    defence = Rounded(decimals=1, apply_predict=True)
    estimator = on_cpu(QuantizedClassifier, network, postprocessing_defences=defence)
    plain = on_cpu(QuantizedClassifier, network).predict(batch[0])
    np.testing.assert_array_equal(estimator.predict(batch[0]), plain.round(1))


# --- nothing left behind


def global_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_predict_and_loss_gradient_touch_no_global_generator(estimator, batch):
    x, y = batch
    before = global_states()
    estimator.predict(x), estimator.loss_gradient(x, y)
    assert global_states() == before


@pytest.mark.parametrize("preprocessing", [None, (0.5, 0.25)])
def test_modes_and_parameter_gradients_are_as_they_were(network, batch, preprocessing):
    x, y = batch
    estimator = on_cpu(QuantizedClassifier, network, preprocessing=preprocessing)
    network.eval()
    network.bn2.train()  # deliberately, within a network in eval mode
    network.fc1.weight.grad = torch.ones_like(network.fc1.weight)
    modes = [m.training for m in network.modules()]
    statistics = network.bn2.running_mean.clone()
    for training_mode in (False, True):
        estimator.loss_gradient(x, y, training_mode=training_mode)
        estimator.predict(x, training_mode=training_mode)
        assert [m.training for m in network.modules()] == modes
        assert torch.equal(network.bn2.running_mean, statistics) == (not training_mode)
    assert all((p.grad is None) == (p is not network.fc1.weight) for p in network.parameters())
    assert network.fc1.weight.grad.eq(1).all()
    assert all(p.requires_grad for p in network.parameters())


def test_modes_are_restored_after_an_exception(network, batch):
    x, y = batch
    estimator = on_cpu(QuantizedClassifier, network)
    network.act1.train()
    modes = [m.training for m in network.modules()]
    wrong = np.repeat(x, 3, axis=1)
    for call in (lambda: estimator.predict(wrong), lambda: estimator.loss_gradient(wrong, y)):
        with pytest.raises(RuntimeError, match="channels"):
            call()
        assert [m.training for m in network.modules()] == modes


def test_training_mode_is_arts(network, batch):
    x, y = batch
    one_hot = np.eye(10, dtype=np.float32)[y]
    ours, theirs = on_cpu(QuantizedClassifier, copy.deepcopy(network)), art(network)
    np.testing.assert_allclose(ours.predict(x, training_mode=True), theirs.predict(x, training_mode=True), atol=1e-5)
    np.testing.assert_allclose(
        ours.loss_gradient(x, one_hot, training_mode=True),
        theirs.loss_gradient(x, one_hot, training_mode=True),
        atol=1e-6,
    )


def test_the_arrays_given_stay_as_they_are(estimator, batch):
    x, y = batch
    x_before, y_before = x.copy(), y.copy()
    tensor = torch.from_numpy(x)
    estimator.predict(x), estimator.loss_gradient(x, y), estimator.loss_gradient(tensor, torch.from_numpy(y))
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(y, y_before)
    assert not tensor.requires_grad and tensor.grad is None


def test_a_model_without_a_gradient_is_refused(batch):
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = ConvNet((1, 8, 8), 10, width=2)

        def forward(self, x):
            with torch.no_grad():
                return self.net(x)

    estimator = on_cpu(QuantizedClassifier, Rounded())
    assert estimator.predict(batch[0]).shape == (7, 10)
    with pytest.raises(InputError, match=r"^model: Rounded gives no gradient to its pixels[^\n]+$"):
        estimator.loss_gradient(*batch)


def test_gradients_are_there_also_where_the_caller_switched_them_off(estimator, batch):
    with torch.no_grad():
        assert estimator.loss_gradient(*batch).any()


# --- the families


def test_dq_quantizes_a_copy_or_takes_what_is_quantized(network, batch):
    x, _ = batch
    estimator = on_cpu(DQClassifier, network, activation_bits=2, clip=1.5)
    assert not any(isinstance(m, QuantReLU) for m in network.modules())
    twin = quantize(network, activation_bits=2, clip=1.5)
    with torch.no_grad():
        np.testing.assert_allclose(estimator.predict(x), twin(torch.from_numpy(x)).numpy(), atol=1e-6)
    assert on_cpu(DQClassifier, twin).model is twin
    with pytest.raises(InputError, match=r"^DQClassifier: ConvNet has no quantized activation; [^\n]+$"):
        on_cpu(DQClassifier, network)


def test_mu_law_quantizes_a_copy_or_takes_the_network_as_it_is(network, mu_law, batch):
    x, _ = batch
    estimator = on_cpu(MuLawClassifier, network, weight_bits=3, mu=255.0, mu_layers=2)
    with torch.no_grad():
        np.testing.assert_allclose(estimator.predict(x), mu_law(torch.from_numpy(x)).numpy(), atol=1e-5)
    assert on_cpu(MuLawClassifier, network).model is network


def test_sq_makes_an_ensemble_of_what_it_is_given(network, stochastic):
    on_bits = on_cpu(SQEnsembleClassifier, network, activation_bits=3, alpha=1.5, seed=9)
    assert on_bits.draws == 8
    assert {(m.num_bits, m.alpha, m.seed) for m in stochastic_layers(on_bits.model)} == {(3, 1.5, 9)}
    assert not stochastic_layers(network)
    assert on_cpu(SQEnsembleClassifier, stochastic).model is stochastic
    assert on_cpu(SQEnsembleClassifier, stochastic).draws == 4
    other = on_cpu(SQEnsembleClassifier, stochastic, draws=2)
    assert (other.draws, stochastic.draws) == (2, 4)
    assert on_cpu(SQEnsembleClassifier, stochastic.network, draws=3).draws == 3


def test_sqs_draws_can_be_set(stochastic, batch):
    estimator = on_cpu(SQEnsembleClassifier, copy.deepcopy(stochastic))
    rows = []
    estimator.model.prepare(torch.from_numpy(batch[0]))
    estimator.model.network.register_forward_hook(lambda m, inputs, output: rows.append(len(output)))
    estimator.draws = 6
    estimator.predict(batch[0])
    assert sum(rows) == 6 * 7
    for bad in (0, -2, 1.5, True):
        with pytest.raises(InputError, match=f"^draws: it is {bad!r}; "):
            estimator.draws = bad
    assert estimator.draws == 6


@pytest.mark.parametrize("draws", [0, -1, 2.0])
def test_bad_draws_are_refused(network, stochastic, draws):
    for model, options in ((network, {"activation_bits": 2}), (stochastic, {})):
        with pytest.raises(InputError, match=f"^draws: it is {draws!r}; "):
            on_cpu(SQEnsembleClassifier, model, draws=draws, **options)


def test_sq_without_a_stochastic_layer_is_refused(network):
    with pytest.raises(InputError, match="no stochastic layer to average over"):
        on_cpu(SQEnsembleClassifier, network)


def test_sqs_gradient_is_that_of_the_mean_probability(stochastic, batch):
    x, y = batch
    estimator = on_cpu(SQEnsembleClassifier, copy.deepcopy(stochastic))
    twin, pixels = copy.deepcopy(stochastic), torch.from_numpy(x).requires_grad_()
    with draws_from(twin, 5):
        probability = twin(pixels).exp()[torch.arange(7), torch.from_numpy(y)]
    (expected,) = torch.autograd.grad(-probability.log().mean(), pixels)
    with draws_from(estimator.model, 5):
        np.testing.assert_allclose(estimator.loss_gradient(x, y), expected.numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:art")
@pytest.mark.parametrize("loss_type", ["cross_entropy", "difference_logits_ratio", None])
def test_attacks_that_rebuild_a_plain_classifier_still_attack_the_average(stochastic, batch, loss_type):
    x, y = batch
    ensemble = copy.deepcopy(stochastic)
    estimator = on_cpu(SQEnsembleClassifier, ensemble)
    rows = {"ensemble": 0, "network": 0}

    def count(name):
        return lambda module, inputs, output: rows.__setitem__(name, rows[name] + len(output))

    ensemble.prepare(torch.from_numpy(x))
    ensemble.register_forward_hook(count("ensemble"))
    ensemble.network.register_forward_hook(count("network"))
    attack = AutoProjectedGradientDescent(
        estimator, eps=0.1, eps_step=0.05, max_iter=3, nb_random_init=1, loss_type=loss_type, verbose=False
    )
    if loss_type is not None:
        assert type(attack.estimator) is PyTorchClassifier, "ART no longer rebuilds: this test has lost its point"
    x_adv = attack.generate(x, y)
    assert rows["ensemble"] >= 3 * len(x)
    assert rows["network"] == ensemble.draws * rows["ensemble"]
    assert 0 < np.abs(x_adv - x).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clone_for_refitting_has_the_same_settings_and_a_network_of_its_own(family, network, batch):
    cls, options = FAMILIES[family]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    estimator = on_cpu(cls, network, optimizer=optimizer, **options)
    before = estimator.model.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    clone = estimator.clone_for_refitting()
    assert type(clone) is cls and clone.model is not estimator.model
    settings = {name: value for name, value in estimator.get_params().items() if name in options}
    assert set(settings) == set(options)
    assert {name: clone.get_params()[name] for name in settings} == settings
    assert clone.predict(batch[0]).shape == (7, 10)
    with torch.no_grad():
        for p in clone.model.parameters():
            p.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in estimator.model.state_dict().items())
    if family == "sq":
        assert isinstance(clone.model, StochasticEnsemble) and clone.model.draws == 3


def test_another_view_of_the_same_network(network, batch):
    class Cooler(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) / 10

    estimator = on_cpu(DQClassifier, network, activation_bits=4, clip_values=(0.0, 0.9))
    view = estimator.with_model(Cooler(estimator.model))
    assert type(view) is QuantizedClassifier and view.input_shape == (1, 8, 8) and view.nb_classes == 10
    assert tuple(view.clip_values) == (0.0, 0.9)
    np.testing.assert_allclose(view.predict(batch[0]) * 10, estimator.predict(batch[0]), rtol=1e-4, atol=1e-5)


def test_an_optimizer_of_another_networks_parameters_is_refused():
    """activation_bits quantizes a copy, and an optimizer of the original would train nothing without a word."""
    network = ConvNet((1, 8, 8), 10, width=2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    estimator = DQClassifier(
        network, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=optimizer, activation_bits=4, device_type="cpu"
    )
    with pytest.raises(InputError, match=r"^optimizer: it holds no parameter of the network that is trained"):
        estimator.fit(np.zeros((4, 1, 8, 8), np.float32), np.arange(4), nb_epochs=1)
