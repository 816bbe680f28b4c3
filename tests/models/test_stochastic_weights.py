"""Weights drawn by stochastic rounding: BinaryConnect's probabilities, and a network with them is random as one with noise is."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from art_qplugins import InputError, SQEnsembleClassifier, quantize, train
from art_qplugins.defences.stochastic_weights import StochasticWeights
from art_qplugins.fingerprint import fingerprint
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.resnet import ResNet8
from art_qplugins.models.stochastic_weights import StochasticRounding, with_stochastic_weights
from art_qplugins.quantizers import draws_from, is_stochastic
from art_qplugins.quantizers.noise import stochastic_layers
from art_qplugins.recipes.build import build_estimators
from art_qplugins.recipes.describe import describe
from art_qplugins.recipes.load import parse_recipe

_DRAWS = 20_000


def network(make=ConvNet):
    torch.manual_seed(0)
    return make((1, 8, 8), 10, width=4).eval()


def images(n=5):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def drawn(weight, draws=_DRAWS, **options):
    """So many draws of a weight, (draws, *weight.shape)."""
    rounding = StochasticRounding(**options)
    rounding.fold = draws
    return rounding(weight)


# --- The draw


def test_two_levels_are_binary_connect():
    weight = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0])
    found = drawn(weight, num_bits=1, limit=1.0)
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    hard_sigmoid = ((weight + 1) / 2).clamp(0, 1)
    torch.testing.assert_close((found > 0).float().mean(0), hard_sigmoid, rtol=0, atol=5 * 0.5 / math.sqrt(_DRAWS))
    assert (found[:, [0, 1]] == -1).all() and (found[:, [5, 6]] == 1).all()  # certain at the ends and beyond


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_the_mean_is_the_weight_and_a_draw_is_one_of_the_levels_around_it(bits):
    weight = torch.tensor([[0.3, -0.7], [0.11, 0.0]])
    found, spacing = drawn(weight, num_bits=bits, limit=None), 1.4 / (2**bits - 1)
    torch.testing.assert_close(found.mean(0), weight, rtol=0, atol=5 * spacing / 2 / math.sqrt(_DRAWS))
    assert (found - weight).abs().max() <= spacing * (1 + 1e-5)
    levels = (found + 0.7) / spacing
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_the_gradient_passes_to_the_weight_also_at_the_ends():
    weight = torch.tensor([-1.0, 0.2, 1.0, 2.0], requires_grad=True)
    drawn(weight, draws=3, num_bits=1, limit=1.0).sum().backward()
    assert weight.grad.tolist() == [3.0, 3.0, 3.0, 3.0]


# --- The network


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("make", [ConvNet, ResNet8], ids=["convnet", "resnet8"])
def test_an_ensemble_of_its_draws_is_the_mean_probability(make, chunk):
    drawing, x = with_stochastic_weights(network(make), 3, None).double(), images().double()
    single = StochasticEnsemble(drawing, 1, rule="mean-logits")
    with draws_from(single, 3):
        members = torch.stack([single(x) for _ in range(6)])
    assert members.std(0).min() > 0
    ensemble = StochasticEnsemble(drawing, 6, eot_chunk=chunk)
    with draws_from(ensemble, 3):
        torch.testing.assert_close(ensemble(x), members.softmax(-1).mean(0).log())


def test_it_leaves_names_of_weights_and_the_network_as_they_are():
    plain = network()
    before = fingerprint(plain)
    drawing = with_stochastic_weights(plain)
    assert fingerprint(plain) == before and not is_stochastic(plain) and is_stochastic(drawing)
    assert list(drawing.state_dict()) == list(plain.state_dict())
    assert [type(m.rounding) for m in drawing.modules() if hasattr(m, "rounding")] == [StochasticRounding] * 4
    keys = [layer.layer for layer in stochastic_layers(drawing)]
    assert len(set(keys)) == len(keys) == 4


def test_at_many_bits_it_is_the_network():
    plain, x = network().double(), images().double()
    error = (with_stochastic_weights(plain, 8, None)(x) - plain(x)).abs().max()
    coarse = (with_stochastic_weights(plain, 1, None)(x) - plain(x)).abs().max()
    assert 0 < error < 0.2 * coarse


def test_a_frozen_ensemble_of_it_is_one_network():
    frozen, x = StochasticEnsemble(with_stochastic_weights(network()), 4, frozen=True), images()
    assert not is_stochastic(frozen) and torch.equal(frozen(x), frozen(x))
    torch.testing.assert_close(frozen(x.flip(0)).flip(0), frozen(x))


def test_copies_and_pickles_are_the_same():
    drawing = with_stochastic_weights(network())
    for same in (copy.deepcopy(drawing), pickle.loads(pickle.dumps(drawing))):
        assert fingerprint(same) == fingerprint(drawing)
        with draws_from(drawing, 1), draws_from(same, 1):
            assert torch.equal(drawing(images()), same(images()))
    assert fingerprint(with_stochastic_weights(network(), limit=2.0)) != fingerprint(drawing)


def test_it_stands_beside_stochastic_activations():
    both = StochasticWeights().network(quantize(network(), activation_bits=2, alpha=2.0))
    keys = [layer.layer for layer in stochastic_layers(both)]
    assert len(set(keys)) == len(keys) == 7


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: with_stochastic_weights(nn.ReLU()), "ReLU has no linear or convolutional layer"),
        (
            lambda: with_stochastic_weights(with_stochastic_weights(network())),
            "layer 'conv1' draws its weights already",
        ),
        (
            lambda: with_stochastic_weights(quantize(network(), weight_bits=4, trainable=True)),
            "the weight of 'conv1', a ParametrizedConv2d, is computed at every call",
        ),
        (lambda: StochasticWeights().start(network()), "'stochastic-weights' is a part of the network"),
        (lambda: StochasticRounding(0), "num_bits"),
        (lambda: StochasticRounding(limit=0.0), "limit"),
    ],
)
def test_what_makes_no_sense_is_refused(make, expected):
    with pytest.raises(InputError, match=expected):
        make()


# --- Training


def test_binary_connect_clips_its_weights_and_learns(digits):
    few, defence = digits[0].take(60, seed=0), StochasticWeights()
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10), nn.BatchNorm1d(10)
    )
    model = defence.network(plain)
    assert not (StochasticEnsemble(model.eval(), 32)(few.x()).argmax(1) == few.y()).float().mean() > 0.5
    train(model, (few.x(), few.y()), [defence], epochs=30, batch_size=20, learning_rate=5.0, weight_decay=0.0)
    assert max(p.abs().max() for p in (model[1].weight, model[4].weight)) <= 1
    assert (StochasticEnsemble(model.eval(), 32)(few.x()).argmax(1) == few.y()).float().mean() > 0.5


def test_a_step_beyond_the_ends_is_clipped():
    defence = StochasticWeights(limit=0.5)
    model = defence.network(nn.Linear(2, 2))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.1], [-0.7, 0.5]]))
        model.bias.fill_(3.0)
    defence.after_step(model)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.5, 0.1], [-0.5, 0.5]]))
    assert model.bias.tolist() == [3.0, 3.0]


def test_a_recipe_trains_and_judges_it_as_random(digits, tmp_path):
    model = {
        "name": "binary-connect",
        "architecture": {"name": "convnet", "options": {"width": 2}},
        "defences": [{"name": "stochastic-weights", "options": {"limit": 1.0}}],
        "train": {"epochs": 1},
        "draws": 3,
    }
    recipe = parse_recipe(
        {
            "name": "w",
            "data": {"name": "digits"},
            "threat": {"eps": [0.1]},
            "models": [model],
            "attacks": [{"id": "art:fgsm"}],
        }
    )
    assert recipe.models[0].stochastic is True
    assert "stochastic-weights (num_bits = 1, limit = 1" in describe(recipe.models[0])
    few = digits[0].take(64, seed=0)
    first, again = (
        build_estimators(recipe, few, tmp_path, device=torch.device("cpu"))["binary-connect"] for _ in range(2)
    )
    assert isinstance(first, SQEnsembleClassifier) and first.draws == 3 and is_stochastic(first.model)
    assert fingerprint(first.model) == fingerprint(again.model)
