"""The small network, and the ensemble that a stochastic one is."""

from __future__ import annotations

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import InputError, QuantReLU, quantize
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import draws_from
from art_qplugins.quantizers.noise import stochastic_layers


def network(**options):
    """In float64, since a float32 batch of another size may round to other bins."""
    options = {"activation_bits": 2, "alpha": 2.0, "clip": 2.0, **options}
    return quantize(ConvNet((1, 8, 8), 10, width=4), **options).eval().double()


def images(n=6):
    return torch.rand(n, 1, 8, 8, dtype=torch.float64)


# --- the small network; those of the papers are in test_networks.py


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (3, 9, 7), (2, 5, 6)])
def test_the_convnet_takes_odd_sizes(shape):
    assert ConvNet(shape, 3, width=2)(torch.rand(2, *shape)).shape == (2, 3)


def test_the_convnets_activation_is_a_slot():
    model = ConvNet((1, 8, 8), 10, activation=lambda: QuantReLU(2))
    assert sum(isinstance(m, QuantReLU) for m in model.modules()) == 3


# --- StochasticEnsemble


def member(module, x, draw):
    """The logits of one draw, on its own."""
    for layer in stochastic_layers(module):
        layer.draw, layer.call = draw, 0
    return module(x)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_it_is_the_log_of_the_mean_softmax_for_every_chunk(alpha):
    module, x, draws = network(alpha=alpha), images(), 5
    with torch.no_grad():
        probabilities = torch.stack([member(module, x, m).softmax(-1) for m in range(draws)])
        assert not torch.equal(probabilities[0], probabilities[1])
        expected = probabilities.mean(0).log()
        for eot_chunk in range(1, draws + 3):
            ensemble = StochasticEnsemble(module, draws, eot_chunk=eot_chunk)
            torch.testing.assert_close(ensemble(x), expected)
    torch.testing.assert_close(ensemble(x).exp().sum(-1), torch.ones(len(x), dtype=torch.float64))


def test_it_holds_where_the_probabilities_underflow():
    module = network()
    with torch.no_grad():
        module.fc2.weight.mul_(1e4)
        output = StochasticEnsemble(module, 3)(images())
    assert output.isfinite().all() and output.max() <= 1e-5


def test_every_call_draws_afresh_and_members_follow_one_another():
    x = images()
    with torch.no_grad():
        ensemble = StochasticEnsemble(network(), 3, eot_chunk=2)
        twin = copy.deepcopy(ensemble)
        first, second = ensemble(x), ensemble(x)
        assert not torch.equal(first, second)
        # Two calls of three draws are one of six.
        six = StochasticEnsemble(twin.network, 6)(x).exp()
        torch.testing.assert_close((first.exp() + second.exp()) / 2, six)


def test_one_draw_is_the_network_itself():
    module, x = network(), images()
    with torch.no_grad():
        torch.testing.assert_close(StochasticEnsemble(module, 1)(x), member(module, x, 0).log_softmax(-1))


def test_one_draw_is_one_call_of_the_network_on_the_images_themselves():
    ensemble, x, taken, given = StochasticEnsemble(network(), 1), images(), [], []
    ensemble.network.conv1.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    ensemble.network.register_forward_hook(lambda _, args, output: given.append(output))
    members = ensemble.members(x)
    assert len(taken) == 1 and taken[0] is x  # no trial of where to repeat the batch, and no copy of it
    assert members.data_ptr() == given[0].data_ptr()


@pytest.mark.parametrize(("eot_chunk", "calls"), [(None, 1), (4, 1), (5, 1), (3, 4)])
def test_a_chunk_is_computed_again_in_the_backward_pass_if_there_are_several(eot_chunk, calls):
    ensemble, x, taken = StochasticEnsemble(network(), 4, eot_chunk=eot_chunk), images(), []
    ensemble.prepare(x)
    ensemble.network.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    ensemble(x.requires_grad_()).sum().backward()
    assert len(taken) == calls


def test_draws_from_makes_it_reproducible_and_leaves_its_stream_alone():
    x = images()
    ensemble = StochasticEnsemble(network(), 3)
    with torch.no_grad():
        undisturbed = copy.deepcopy(ensemble)
        expected = [undisturbed(x) for _ in range(3)]
        assert torch.equal(ensemble(x), expected[0])
        runs = []
        for seed in (4, 4, 5):
            with draws_from(ensemble, seed):
                runs.append(torch.stack([ensemble(x), ensemble(x)]))
        assert torch.equal(ensemble(x), expected[1])
        with pytest.raises(RuntimeError, match="channels"), draws_from(ensemble, 4):
            ensemble(x.expand(-1, 3, -1, -1))
        assert torch.equal(ensemble(x), expected[2])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][1])


def test_an_exception_inside_the_network_leaves_no_fold_behind():
    ensemble = StochasticEnsemble(network(), 4)
    with pytest.raises(RuntimeError, match="channels"):
        ensemble(images(2).expand(-1, 3, -1, -1))  # where it has one
    assert [layer.fold for layer in stochastic_layers(ensemble)] == [1, 1, 1]
    assert ensemble(images()).isfinite().all()


def test_no_global_generator_is_touched_and_none_has_a_say():
    x = images().requires_grad_()
    ensemble = StochasticEnsemble(network(), 3)

    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before, twin = states(), copy.deepcopy(ensemble)
    first = ensemble(x)
    first.sum().backward()
    assert states() == before
    torch.manual_seed(99)
    assert torch.equal(twin.train(False)(x), first)


def test_the_gradient_of_its_cross_entropy_is_that_of_minus_log_mean_probability():
    module, y, draws = network(), torch.arange(6), 5
    x = images().requires_grad_()
    loss = nn.functional.cross_entropy(StochasticEnsemble(module, draws, eot_chunk=2)(x), y)
    (ours,) = torch.autograd.grad(loss, x)
    mean = sum(member(module, x, m).softmax(-1) for m in range(draws)) / draws
    by_hand = -mean[torch.arange(len(y)), y].log().mean()
    (expected,) = torch.autograd.grad(by_hand, x)
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
    assert expected.any()


def test_copies_and_the_state_dict():
    x = images()
    ensemble = StochasticEnsemble(network(), 3)
    other = StochasticEnsemble(network(), 3)
    other.load_state_dict(ensemble.state_dict())
    pickled = pickle.loads(pickle.dumps(ensemble))
    with torch.no_grad():
        expected = ensemble(x)
        assert torch.equal(other(x), expected)
        assert torch.equal(pickled(x), expected)


@pytest.mark.parametrize("name", ["draws", "eot_draws", "eot_chunk"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_bad_numbers_are_refused(name, value):
    with pytest.raises(InputError, match=rf"^{name}: it is {value!r}; [^\n]+$"):
        StochasticEnsemble(network(), **{name: value})


def test_a_network_without_a_stochastic_layer_is_refused():
    with pytest.raises(InputError, match=r"^ConvNet has no stochastic layer [^\n]*quantize"):
        StochasticEnsemble(ConvNet((1, 8, 8), 10))
