"""Noise before convolutions: its moments and keys, and a network with it is random wherever a stochastic one is."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from art_qplugins import InputError, SQEnsembleClassifier, quantize, train
from art_qplugins.checkpoint import load_checkpoint, save_checkpoint
from art_qplugins.defences.random_self_ensemble import RandomSelfEnsemble
from art_qplugins.evaluation.score import score
from art_qplugins.fingerprint import fingerprint
from art_qplugins.gradients.counting import passes
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.noisy import NoiseLayer, with_noise
from art_qplugins.models.resnet import ResNet8
from art_qplugins.quantizers import draws_from, is_stochastic
from art_qplugins.quantizers.noise import stochastic_layers
from art_qplugins.recipes.build import build_estimators, build_models
from art_qplugins.recipes.describe import describe
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.rehearse import rehearse


def network(**options):
    torch.manual_seed(0)
    return ConvNet((1, 8, 8), 10, width=4, **options).eval()


def images(n=5):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


# --- The layer


def test_the_noise_is_normal_and_the_gradient_passes():
    x = torch.full((200, 1, 16, 16), 0.5, requires_grad=True)
    y = NoiseLayer(0.3)(x)
    noise, spread = (y - x).detach(), 0.3 / math.sqrt(x.numel())
    assert float(noise.mean()) == pytest.approx(0, abs=5 * spread)
    assert float(noise.std()) == pytest.approx(0.3, abs=4 * spread)
    assert float((noise.abs() < 0.3).float().mean()) == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)
    assert len(noise.unique()) > 0.9 * noise.numel()
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_its_noise_is_keyed_and_mirrored():
    x = torch.zeros(3, 2, 4, 4)
    before = torch.random.get_rng_state()
    first = NoiseLayer(1.0, seed=1)(x)
    torch.manual_seed(5)
    assert torch.equal(NoiseLayer(1.0, seed=1)(x), first)
    torch.random.set_rng_state(before)
    others = [NoiseLayer(1.0, seed=2)(x), NoiseLayer(1.0, seed=1, layer=1)(x)]
    assert not any(torch.equal(other, first) for other in others)
    layer = NoiseLayer(1.0, seed=1)
    layer.fold, layer.antithetic = 2, True
    one, two = layer(torch.zeros(6, 2, 4, 4)).chunk(2)
    assert torch.equal(one, first) and torch.equal(two, -first)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- The network


def test_each_convolution_gets_noise_and_weights_keep_their_names():
    plain = network()
    noisy = with_noise(plain, first=0.2, inner=0.1)
    assert [m.sigma for m in noisy.modules() if isinstance(m, NoiseLayer)] == [0.2, 0.1]
    assert not is_stochastic(plain) and is_stochastic(noisy)
    assert list(noisy.state_dict()) == list(plain.state_dict())
    still = with_noise(plain, first=0.0, inner=0.0)
    torch.testing.assert_close(still(images()), plain(images()))


def test_the_noise_is_added_to_what_a_convolution_reads():
    noisy, x = with_noise(network(), first=0.2, inner=0.1), images()
    read, answers = [], []
    for layer in stochastic_layers(noisy):
        layer.register_forward_hook(lambda layer, inputs, y: read.append((y - inputs[0]).std().item()))
    with draws_from(noisy, 1):
        answers.append(noisy(x))
    with draws_from(noisy, 1):
        shifted = NoiseLayer(0.2, seed=1)(x)
        noisy.conv1.noise.sigma = 0.0
        answers.append(noisy(shifted))
    torch.testing.assert_close(answers[0], answers[1])
    assert read[:2] == [pytest.approx(0.2, rel=0.2), pytest.approx(0.1, rel=0.2)]


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("make", [network, lambda: ResNet8((1, 8, 8), 10, width=4).eval()], ids=["convnet", "resnet8"])
def test_an_ensemble_of_its_draws_is_the_mean_probability(make, chunk):
    noisy, x = with_noise(make(), first=0.5, inner=0.5).double(), images().double()
    single = StochasticEnsemble(noisy, 1, rule="mean-logits")
    with draws_from(single, 3):
        members = torch.stack([single(x) for _ in range(6)])
    assert members.std(0).min() > 0
    ensemble = StochasticEnsemble(noisy, 6, eot_chunk=chunk)
    with draws_from(ensemble, 3):
        torch.testing.assert_close(ensemble(x), members.softmax(-1).mean(0).log())
    assert passes(ensemble, requires_grad=True) == 6


def test_a_frozen_ensemble_of_it_is_one_network():
    frozen, x = StochasticEnsemble(with_noise(network(), first=0.5, inner=0.5), 4, frozen=True), images()
    assert not is_stochastic(frozen) and torch.equal(frozen(x), frozen(x))
    torch.testing.assert_close(frozen(x.flip(0)).flip(0), frozen(x))


def test_it_is_scored_by_draws_that_no_attack_saw():
    noisy, x = StochasticEnsemble(with_noise(network(), first=3.0, inner=3.0), 1), images(200)
    found = score(noisy, x, torch.zeros(200, dtype=torch.int64), seed=0)
    assert (found["correct"] * (1 - found["correct"])).mean() > 0  # shares of draws
    assert not (found["correct"] == found["selection"]).all()


def test_copies_pickles_and_checkpoints_are_the_same(tmp_path):
    noisy = with_noise(network(), first=0.2, inner=0.1)
    for same in (copy.deepcopy(noisy), pickle.loads(pickle.dumps(noisy))):
        assert fingerprint(same) == fingerprint(noisy)
        with draws_from(noisy, 1), draws_from(same, 1):
            assert torch.equal(noisy(images()), same(images()))
    assert fingerprint(with_noise(network(), first=0.3, inner=0.1)) != fingerprint(noisy)
    save_checkpoint(tmp_path / "a.safetensors", noisy, {})
    load_checkpoint(tmp_path / "a.safetensors", with_noise(network(), first=0.2, inner=0.1))


def test_it_stands_beside_quantizers():
    noisy = RandomSelfEnsemble().network(quantize(network(), activation_bits=2, alpha=2.0))
    keys = [layer.layer for layer in stochastic_layers(noisy)]
    assert len(keys) == len(set(keys)) == 5
    mapped = quantize(RandomSelfEnsemble().network(network()), weight_bits=4)
    assert is_stochastic(mapped) and not torch.equal(mapped(images()), mapped(images()))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: with_noise(nn.Linear(2, 2), first=0.1, inner=0.1), "Linear has no convolution"),
        (lambda: with_noise(with_noise(network(), first=0.1, inner=0), first=0.1, inner=0), "has noise layers already"),
        (lambda: RandomSelfEnsemble().start(network()), "'random-self-ensemble' is a part of the network"),
        (
            lambda: RandomSelfEnsemble(first=0.3).start(RandomSelfEnsemble().network(network())),
            "with_noise\\(model, first=0.3, inner=0.1\\)",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, expected):
    with pytest.raises(InputError, match=expected):
        make()


def test_an_estimator_fits_it(digits):
    few = digits[0].take(16, seed=0)
    model = RandomSelfEnsemble().network(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    estimator = SQEnsembleClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer, draws=2)
    before = fingerprint(estimator.model)
    estimator.fit(few.x().numpy(), few.y().numpy(), batch_size=8, nb_epochs=1)
    assert fingerprint(estimator.model) != before


# --- In a recipe


def recipe(**more):
    model = {
        "name": "rse",
        "architecture": {"name": "convnet", "options": {"width": 2}},
        "defences": ["random-self-ensemble"],
        "train": {"epochs": 1},
        "draws": 3,
    }
    return parse_recipe(
        {
            "name": "rse",
            "data": {"name": "digits"},
            "threat": {"eps": [0.1]},
            "models": [model | more],
            "attacks": [{"id": "art:fgsm"}],
        }
    )


def test_a_recipe_trains_and_judges_it_as_random(digits, tmp_path):
    (model,) = recipe().models
    assert model.stochastic is True
    noise = "random-self-ensemble (first = 0.2, inner = 0.1)"
    assert describe(model) == f"convnet; {noise}; mean-probability of 3 draws"
    assert rehearse(recipe(), digits[1], {}) == []  # draws have an effect
    few = digits[0].take(64, seed=0)
    first, again = (build_estimators(recipe(), few, tmp_path, device=torch.device("cpu"))["rse"] for _ in range(2))
    assert isinstance(first, SQEnsembleClassifier) and first.draws == 3 and is_stochastic(first.model)
    assert fingerprint(first.model) == fingerprint(again.model)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    "quantized", [{"activation_bits": 2}, {"activation_bits": 2, "alpha": 1.5}, {"weight_bits": 4}]
)
def test_a_quantized_network_with_noise_is_an_ensemble_too(quantized, digits, tmp_path):
    few = digits[0].take(32, seed=0)
    made = build_estimators(recipe(quantize=quantized), few, tmp_path, device=torch.device("cpu"))["rse"]
    assert isinstance(made, SQEnsembleClassifier) and made.draws == 3
    assert recipe(quantize=quantized, frozen=True).models[0].stochastic is False


def test_a_seed_chooses_the_frozen_member(digits, tmp_path):
    few = digits[0].take(32, seed=0)
    for seed in (3, 4):
        made = build_models(recipe(seed=seed), few, tmp_path, device=torch.device("cpu"))["rse"]
        assert {layer.seed for layer in stochastic_layers(made)} == {seed}


def test_attacks_of_deterministic_models_are_refused_for_it():
    tables = recipe().model_dump(exclude_unset=True) | {"attacks": [{"id": "autoattack:standard"}]}
    with pytest.raises(InputError, match="'rse' is stochastic"):
        parse_recipe(tables)


def test_training_with_noise_learns(digits):
    few = digits[0].take(60, seed=0)
    model = RandomSelfEnsemble(0.05, 0.05).network(network())
    train(model, (few.x(), few.y()), [RandomSelfEnsemble(0.05, 0.05)], epochs=30, batch_size=20, learning_rate=0.05)
    ensemble = StochasticEnsemble(model, 8).eval()
    assert (ensemble(few.x()).argmax(1) == few.y()).float().mean() > 0.5
