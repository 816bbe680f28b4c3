"""Training defences in ART's ``fit``, and under ART's trainers, also those that step the optimizer themselves."""

from __future__ import annotations

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.data_generators import NumpyDataGenerator
from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing
from art.defences.trainer import (
    AdversarialTrainer,
    AdversarialTrainerFBFPyTorch,
    AdversarialTrainerMadryPGD,
    AdversarialTrainerTRADESPyTorch,
)
from torch import nn
from torch.nn import functional as F

from art_qplugins import DQClassifier, InputError, MuLawClassifier, QuantizedClassifier, SQEnsembleClassifier, quantize
from art_qplugins.defences.adversarial import AdversarialTraining, Trades
from art_qplugins.defences.base import Defence
from art_qplugins.defences.information import BinSpacing, MutualInformation
from art_qplugins.defences.lipschitz import Orthogonality
from art_qplugins.defences.noise import GaussianNoise
from art_qplugins.defences.parseval import Parseval, retracted
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers.noise import stochastic_layers
from art_qplugins.seeds import derive_seed
from art_qplugins.training.batches import loss_of

SHAPE, CLASSES = (1, 8, 8), 10
EPS = 8 / 255


@pytest.fixture
def few(digits):
    """(x, y) as arrays, 20 images."""
    return digits[0].x()[:20].numpy(), digits[0].y()[:20].numpy()


def convnet():
    torch.manual_seed(1)
    return ConvNet(SHAPE, CLASSES, width=4)


def estimator(defences=(), *, network=None, family=QuantizedClassifier, rate=0.1, **options):
    network = convnet() if network is None else network
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    loss = options.pop("loss", None) or nn.CrossEntropyLoss()
    return family(network, loss, SHAPE, CLASSES, optimizer, device_type="cpu", training_defences=defences, **options)


def weights(made):
    return {name: value.clone() for name, value in made.model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# --- fit


def test_fit_trains_on_what_the_defences_make_of_a_batch(few):
    """One step, written again with the public parts."""
    defences = [AdversarialTraining("r+fgsm", eps=EPS), Trades(steps=1), Orthogonality(0.1), Parseval(0.1)]
    made = estimator(defences)
    network = copy.deepcopy(made.model).train()
    made.fit(*few, nb_epochs=1, batch_size=20)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    x, y = (torch.from_numpy(part)[order] for part in few)
    torch.manual_seed(derive_seed(1, "step 0"))
    loss_of(network, F.cross_entropy, defences, (x, y)).backward()
    optimizer.step()
    defences[3].after_step(network)
    for (name, ours), expected in zip(made.model.state_dict().items(), network.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "defence", [AdversarialTraining(steps=2), Trades(steps=2), GaussianNoise()], ids=lambda d: type(d).__name__
)
def test_fit_neither_needs_nor_moves_global_random_states(defence, few):
    found = []
    for seed in (1, 2):
        made = estimator([defence])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        made.fit(*few, nb_epochs=2, batch_size=10)
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        found.append(weights(made))
    assert same(*found)


def test_each_step_draws_afresh(few):
    class Draws(Defence):
        def __init__(self):
            self.drawn = []

        def images(self, model, x, y):
            self.drawn.append(float(torch.rand(())))
            return x

    draws = Draws()
    made = estimator([draws])
    made.fit(*few, nb_epochs=2, batch_size=10)
    made.fit(*few, nb_epochs=1, batch_size=10)  # as ART's trainers, which call it for every batch
    assert len(draws.drawn) == len(set(draws.drawn)) == 6


@pytest.mark.parametrize("labels", ["integers", "one-hot", "MSE"])
def test_labels_of_any_form_are_crafted_with(labels, few):
    x, y = few
    made = estimator([AdversarialTraining("fgsm")], loss=nn.MSELoss() if labels == "MSE" else None)
    before = weights(made)
    made.fit(x, y if labels != "one-hot" else np.eye(CLASSES, dtype=np.float32)[y], nb_epochs=1)
    assert not same(weights(made), before)


def test_one_logit_of_two_classes_is_crafted_with(few):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    seen = []
    network.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    made = QuantizedClassifier(
        network,
        nn.BCEWithLogitsLoss(),
        SHAPE,
        2,
        torch.optim.SGD(network.parameters(), lr=0.1),
        device_type="cpu",
        training_defences=[AdversarialTraining("fgsm", eps=EPS), Trades(steps=1)],
    )
    made.fit(few[0], few[1] % 2, nb_epochs=1)
    assert (seen[1] - seen[0]).abs().max() == pytest.approx(EPS, abs=1e-6)


# --- fit behind preprocessing


def test_behind_a_standardisation_images_are_crafted_in_pixels(few):
    class Standardised(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network((x - 0.5) / 0.25)

    defences = [AdversarialTraining("fgsm", eps=EPS), Orthogonality(0.01)]
    ours, inside = estimator(defences, preprocessing=(0.5, 0.25)), estimator(defences, network=Standardised(convnet()))
    modes = [m.training for m in ours.model.modules()]
    for made in (ours, inside):
        made.fit(*few, nb_epochs=2, batch_size=10)
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, inside.model.network.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert [m.training for m in ours.model.modules()] == modes


def test_behind_a_preprocessor_with_a_known_gradient_they_are_too(few):
    smoothing = SpatialSmoothing(window_size=2, apply_fit=True, clip_values=(0, 1))
    made = estimator([AdversarialTraining("fgsm", eps=EPS)], preprocessing_defences=smoothing)
    before = weights(made)
    made.fit(*few, nb_epochs=1)
    assert not same(weights(made), before)


@pytest.mark.parametrize("defence", [AdversarialTraining(), Trades(), GaussianNoise()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"preprocessing_defences": FeatureSqueezing(clip_values=(0, 1), apply_fit=True)},
            "FeatureSqueezing stands between",
        ),
        ({"clip_values": (0, 255)}, r"give clip_values=\(0, 1\)"),
    ],
)
def test_pixels_that_are_not_the_networks_are_refused_in_one_line(defence, options, says, few):
    made = estimator([Orthogonality(), defence], **options)
    with pytest.raises(InputError, match=rf"^training_defences: {type(defence).__name__} changes pixels[^\n]*{says}"):
        made.fit(*few, nb_epochs=1)
    estimator([Orthogonality()], **options).fit(*few, nb_epochs=1)  # penalties do not mind


def test_a_preprocessor_for_predict_alone_does_not_matter_in_training(few):
    squeezing = FeatureSqueezing(clip_values=(0, 1), apply_fit=False, apply_predict=True)
    defences = [AdversarialTraining("fgsm")]
    made, plain = estimator(defences, preprocessing_defences=squeezing), estimator(defences)
    made.fit(*few, nb_epochs=1)
    plain.fit(*few, nb_epochs=1)
    assert same(weights(made), weights(plain))


# --- ART's trainers


class Diary(Defence):
    """A penalty that writes down what is called."""

    def __init__(self):
        self.calls = []

    def start(self, model):
        self.calls.append("start")

    def penalty(self, model):
        self.calls.append("penalty")
        return 0.1 * model.fc2.weight.square().sum()

    def after_step(self, model):
        self.calls.append("after_step")

    def finish(self, model):
        self.calls.append("finish")


def pgd(made):
    return ProjectedGradientDescent(made, eps=0.05, eps_step=0.02, max_iter=2, verbose=False)


TRAINERS = {
    "AdversarialTrainer": lambda e: AdversarialTrainer(e, FastGradientMethod(e, eps=0.05), ratio=0.5),
    "Madry": lambda e: AdversarialTrainerMadryPGD(
        e, nb_epochs=None, batch_size=None, eps=0.05, eps_step=0.02, max_iter=2, num_random_init=1
    ),
    "TRADES": lambda e: AdversarialTrainerTRADESPyTorch(e, pgd(e), beta=1.0),
    "FBF": lambda e: AdversarialTrainerFBFPyTorch(e, eps=0.05),
}
each_trainer = pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)


@each_trainer
def test_every_step_of_arts_trainers_applies_the_defences_once(trainer, few):
    diary = Diary()
    made = estimator([diary])
    trainer(made).fit(few[0], np.eye(CLASSES, dtype=np.float32)[few[1]], batch_size=10, nb_epochs=2)
    steps = ["".join(word[0] for word in diary.calls[i : i + 4]) for i in range(0, len(diary.calls), 4)]
    assert len(steps) == 4 and {"".join(sorted(step)) for step in steps} == {"afps"}
    assert all(step.startswith("sp") for step in steps)


@pytest.mark.parametrize("generator", [False, True], ids=["arrays", "generator"])
@pytest.mark.parametrize("defences", [[], [Orthogonality(0.5)], [Orthogonality(0.5), Parseval(0.1)]], ids=len)
def test_a_step_of_arts_trades_trainer_is_that_of_the_loss_with_penalties(defences, generator, few):
    x, y = few
    made = estimator(defences)
    network = copy.deepcopy(made.model)
    trainer = TRAINERS["TRADES"](made)
    one_hot = np.eye(CLASSES, dtype=np.float32)[y]
    if generator:
        trainer.fit_generator(NumpyDataGenerator(x, one_hot, batch_size=20), nb_epochs=1)
    else:
        trainer.fit(x, one_hot, batch_size=20, nb_epochs=1)

    network.eval()
    theirs = QuantizedClassifier(network, nn.CrossEntropyLoss(), SHAPE, CLASSES, device_type="cpu")
    x_adv = torch.from_numpy(pgd(theirs).generate(x, y=one_hot))
    network.train()
    logits, answers = network(torch.from_numpy(x)), network(x_adv)
    divergence = F.kl_div(answers.log_softmax(1), logits.softmax(1).clamp(min=1e-8), reduction="sum") / len(x)
    loss = F.cross_entropy(logits, torch.from_numpy(y)) + divergence
    loss = loss + sum(defence.penalty(network) for defence in defences)
    loss.backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    for defence in defences:
        defence.after_step(network)
    for (name, ours), expected in zip(made.model.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_what_arts_trades_trainer_says_of_its_loss_has_no_penalty(few):
    x, one_hot = few[0], np.eye(CLASSES, dtype=np.float32)[few[1]]
    said = []
    for defences in ([], [Orthogonality(5.0)]):
        trainer = TRAINERS["TRADES"](estimator(defences))
        said.append(trainer._batch_process(x, one_hot)[0])
    assert said[0] == pytest.approx(said[1], rel=1e-4)


def of_family(family, defences):
    """:param defences: ``None`` for those of the family."""
    bare = convnet()
    if family == "dq":
        network = quantize(bare, activation_bits=3, clip=2.0)
        return estimator(defences, network=network, family=DQClassifier)
    if family == "sq":
        network = quantize(bare, activation_bits=2, alpha=2.0, clip=2.0)
        return estimator(defences, network=network, family=SQEnsembleClassifier, draws=2)
    if family == "mu-law":
        network = quantize(bare, weight_bits=3, mu=5.0)
        return estimator(defences or (), network=network, family=MuLawClassifier)
    return estimator(defences or ())


@each_trainer
@pytest.mark.parametrize(("family", "has"), [("dq", True), ("sq", True), ("mu-law", False), ("plain", False)])
def test_the_defences_of_a_family_act_under_arts_trainers(trainer, family, has, few):
    """The same training without them ends with other weights."""
    found = []
    for defences in (None, ()):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        made = of_family(family, defences)
        trainer(made).fit(few[0], np.eye(CLASSES, dtype=np.float32)[few[1]], batch_size=10, nb_epochs=1)
        found.append(weights(made))
        assert not any(layer._forward_pre_hooks for layer in stochastic_layers(made.model))
    assert same(*found) != has


def test_a_pass_that_no_step_follows_leaves_the_next_step_whole(few):
    diary = Diary()
    made = estimator([diary])
    x = torch.from_numpy(few[0])
    made._model(x)  # somebody looks at the answers, and drops them
    made._model(x)
    assert diary.calls == ["start", "penalty", "finish"] * 2
    diary.calls.clear()
    TRAINERS["TRADES"](made).fit(few[0], np.eye(CLASSES, dtype=np.float32)[few[1]], batch_size=20, nb_epochs=1)
    assert diary.calls == ["start", "penalty", "finish", "after_step"]
    made._optimizer.step()
    assert diary.calls.count("after_step") == 1


def test_attacks_and_predictions_call_no_defence(few):
    diary = Diary()
    made = estimator([diary])
    made.predict(few[0])
    pgd(made).generate(few[0], y=few[1])
    made.class_gradient(few[0])
    with torch.no_grad():
        made._model(torch.from_numpy(few[0]))
    made._model(torch.from_numpy(few[0]).requires_grad_())
    assert diary.calls == []


def test_estimators_are_still_copied_and_pickled(few):
    made = estimator([Orthogonality()], network=quantize(convnet(), activation_bits=3))
    TRAINERS["TRADES"](made).fit(few[0], np.eye(CLASSES, dtype=np.float32)[few[1]], batch_size=20, nb_epochs=1)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), made.clone_for_refitting()):
        np.testing.assert_array_equal(twin.predict(few[0]).shape, (20, CLASSES))
        twin.set_params(optimizer=torch.optim.SGD(twin.model.parameters(), lr=0.1))
        before = weights(made)
        TRAINERS["TRADES"](twin).fit(few[0], np.eye(CLASSES, dtype=np.float32)[few[1]], batch_size=20, nb_epochs=1)
        assert same(weights(made), before)


def test_a_pass_that_fails_finishes_the_defences(few):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc2 = nn.Linear(64, CLASSES)

        def forward(self, x):
            raise ZeroDivisionError

    diary = Diary()
    made = estimator([diary], network=Fails())
    with pytest.raises(ZeroDivisionError):
        made._model(torch.from_numpy(few[0]))
    assert diary.calls == ["start", "finish"]


def test_penalties_that_remember_layers_act_too(few):
    network = quantize(convnet(), activation_bits=2, alpha=2.0, clip=2.0)
    made = estimator([MutualInformation(5.0), BinSpacing(1.0)], network=network, family=SQEnsembleClassifier, draws=2)
    spacing = stochastic_layers(network)[0].spacing.item()
    TRAINERS["TRADES"](made).fit(few[0], np.eye(CLASSES, dtype=np.float32)[few[1]], batch_size=10, nb_epochs=2)
    assert stochastic_layers(network)[0].spacing.item() < spacing
    assert not any(layer._forward_pre_hooks for layer in stochastic_layers(network))


def test_projections_follow_the_steps_of_arts_trades_trainer(few):
    made = estimator([Parseval(0.1)], rate=0.0)
    expected = retracted(made.model.fc2.weight.detach().clone(), 0.1)
    TRAINERS["TRADES"](made).fit(few[0], np.eye(CLASSES, dtype=np.float32)[few[1]], batch_size=20, nb_epochs=1)
    torch.testing.assert_close(made.model.fc2.weight.detach(), expected)
