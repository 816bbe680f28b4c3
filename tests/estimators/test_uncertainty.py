"""How far the members of an ensemble disagree, against the definition."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing
from torch import nn

from art_qplugins import SQEnsembleClassifier
from art_qplugins.errors import InputError
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import draws_from, quantize

X = np.random.default_rng(0).random((10, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def _network():
    torch.manual_seed(0)
    return quantize(ConvNet((1, 8, 8), 10, width=4), activation_bits=2, alpha=2.0, clip=2.0).eval()


@pytest.fixture
def network(_network):
    return copy.deepcopy(_network)


def estimator(network, **settings):
    return SQEnsembleClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu", **settings)


def entropy(p):
    return -(p * np.log(p)).sum(-1)


@pytest.mark.parametrize("rule", ["mean-probability", "majority-vote"])
@pytest.mark.parametrize("draws", [None, 1, 20])
def test_it_is_its_definition(network, rule, draws):
    made = estimator(network, draws=5, options={"rule": rule})
    with draws_from(made.model, 3):
        found = made.predict_uncertainty(X, draws=draws)
    with draws_from(made.model, 3), torch.no_grad():
        p = made.model.members(torch.tensor(X), draws or 5).double().softmax(-1).numpy()
    assert len(p) == (draws or 5)
    modal = np.array([np.bincount(votes).max() for votes in p.argmax(-1).T]) / len(p)
    np.testing.assert_allclose(found.entropy, entropy(p.mean(0)), atol=1e-5)
    np.testing.assert_allclose(found.mutual_information, entropy(p.mean(0)) - entropy(p).mean(0), atol=1e-5)
    np.testing.assert_allclose(found.variation_ratio, 1 - modal, atol=1e-6)


def test_the_networks_memory_does_not_grow_with_the_draws(network):
    made = estimator(network)
    made.predict(X)
    rows = {}
    for draws in (64, 128):
        seen = []
        hook = network.fc1.register_forward_hook(lambda layer, inputs, output, seen=seen: seen.append(len(output)))
        made.predict_uncertainty(X, draws=draws)
        hook.remove()
        rows[draws] = max(seen)
        assert sum(seen) == draws * len(X)
    assert rows[64] == rows[128]


def test_the_preprocessors_are_applied(network):
    squeezing = FeatureSqueezing(clip_values=(0, 1), bit_depth=1)
    plain, squeezed = estimator(network), estimator(network, preprocessing_defences=squeezing)
    with draws_from(network, 0):
        plain.model.next_draw = 0
        expected = plain.predict_uncertainty(squeezing(X)[0])
    with draws_from(network, 0):
        squeezed.model.next_draw = 0
        np.testing.assert_array_equal(squeezed.predict_uncertainty(X), expected)


def test_members_are_drawn_afresh_and_those_of_a_frozen_ensemble_are_not(network):
    fresh, frozen = estimator(network), estimator(network, options={"frozen": True})
    assert not np.array_equal(fresh.predict_uncertainty(X).entropy, fresh.predict_uncertainty(X).entropy)
    np.testing.assert_array_equal(frozen.predict_uncertainty(X), frozen.predict_uncertainty(X, draws=8))
    assert frozen.predict_uncertainty(X).mutual_information.max() > 0


def test_other_members_of_a_frozen_ensemble_are_refused(network):
    frozen = estimator(network, draws=4, options={"frozen": True})
    with pytest.raises(InputError, match=r"^draws: the ensemble is frozen to 4 draws, and 128 were asked of it"):
        frozen.predict_uncertainty(X, draws=128)
    late = StochasticEnsemble(network, 4, eot_draws=16)
    late.frozen = True  # after it was told to take other draws for its gradient
    late(torch.tensor(X))
    with pytest.raises(InputError, match=r"^draws: the ensemble is frozen to 4 draws, and 16 were asked of it"):
        late(torch.tensor(X).requires_grad_())


@pytest.mark.parametrize("frozen", [False, True])
def test_an_ensemble_around_an_ensemble_is_refused(network, frozen):
    """Its members would not differ, or not by its own noise."""
    inner = nn.Sequential(nn.Identity(), StochasticEnsemble(network, 2, frozen=frozen))
    with pytest.raises(InputError, match=r"^network: Sequential holds an ensemble"):
        StochasticEnsemble(inner, 8)
