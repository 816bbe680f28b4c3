"""Where the noise of stochastic quantizers comes from: keys, draws, and never a global generator."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import StochasticQuantizer
from art_qplugins.quantizers import draws_from


def global_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_no_global_generator_is_touched_and_none_has_a_say(alpha):
    x = torch.rand(100, requires_grad=True) * 6
    module = StochasticQuantizer(2, alpha=alpha)
    before = global_states()
    first = module(x)
    first.sum().backward()
    assert global_states() == before
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        assert torch.equal(StochasticQuantizer(2, alpha=alpha)(x), first)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_train_and_eval_mode_draw_the_same(alpha):
    x = torch.rand(100) * 6
    trained, evaluated = (StochasticQuantizer(2, alpha=alpha).train(mode) for mode in (True, False))
    for _ in range(2):
        assert torch.equal(trained(x), evaluated(x))


def noise(**key):
    module = StochasticQuantizer(2, seed=key.pop("seed", 3), layer=key.pop("layer", 5))
    module.draw, module.call = key.pop("draw", 7), key.pop("call", 1)
    assert not key
    return (module.noise(torch.empty(20_000)).double() + 2**15 + 0.5) / 2**16


def test_the_same_key_gives_the_same_noise_and_any_other_an_independent_one():
    base = noise()
    assert torch.equal(noise(), base)
    others = [
        noise(seed=4),
        noise(layer=6),
        noise(draw=8),
        noise(call=2),
        noise(seed=5, layer=3),
        noise(draw=1, call=7),
    ]
    for other in others:
        correlation = float(torch.corrcoef(torch.stack([base, other]))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(len(base))
    everything = torch.cat([base, *others])
    assert everything.min() > 0 and everything.max() < 1
    assert abs(float(everything.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / len(everything))


def test_keys_that_read_alike_are_different():
    assert not torch.equal(noise(seed=1, layer=11), noise(seed=11, layer=1))
    assert not torch.equal(noise(seed=-1), noise(seed=1))


def test_words_are_evenly_spread():
    """Also their highest and lowest bits, whatever the number of elements is."""
    module = StochasticQuantizer(3)
    words = module.noise(torch.empty(101, 401)).long() + 2**15
    assert words.shape == (101, 401)
    n = words.numel()
    for bit in range(16):
        ones = float((words >> bit & 1).sum())
        assert abs(ones - n / 2) < 5 * math.sqrt(n / 4), bit


def test_a_pair_of_draws_shares_its_key():
    module = StochasticQuantizer(2, seed=3, layer=5)
    module.draw, module.fold, module.antithetic = 6, 4, True
    found = module.noise(torch.empty(4, 1000))
    assert torch.equal(found[0] + found[1], torch.full((1000,), -1, dtype=torch.int16))  # u and 1 - u
    assert torch.equal(found[2] + found[3], torch.full((1000,), -1, dtype=torch.int16))
    single = StochasticQuantizer(2, seed=3, layer=5)
    for draw in (0, 2):
        single.draw, single.call = 6 + draw, 0
        assert torch.equal(single.noise(torch.empty(1, 1000))[0], found[draw])


def test_each_call_draws_afresh():
    module, x = StochasticQuantizer(2), torch.rand(100) * 6
    draws = [module(x) for _ in range(3)]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_folded_draws_are_the_single_ones(alpha):
    x = torch.rand(4, 3, 2) * 6
    folded = StochasticQuantizer(2, alpha=alpha)
    folded.fold, folded.draw = 3, 10
    together = folded(x.repeat(3, 1, 1)).unflatten(0, (3, 4))
    for index in range(3):
        alone = StochasticQuantizer(2, alpha=alpha)
        alone.draw = 10 + index
        assert torch.equal(together[index], alone(x))


# --- draws_from


def chain():
    return nn.Sequential(*[StochasticQuantizer(3, layer=layer) for layer in range(2)])


def test_draws_from_is_a_stream_of_its_own_that_leaves_the_other_where_it_was():
    x = torch.rand(50) * 6
    undisturbed, module = chain(), chain()
    expected = [undisturbed(x) for _ in range(3)]
    assert torch.equal(module(x), expected[0])
    outputs = []
    for seed in (5, 5, 6):
        with draws_from(module, seed):
            outputs.append([module(x), module(x)])
    assert torch.equal(module(x), expected[1])
    with pytest.raises(TypeError), draws_from(module, 5):
        module(x, module(x))
    assert torch.equal(module(x), expected[2])
    assert torch.equal(outputs[0][0], outputs[1][0]) and torch.equal(outputs[0][1], outputs[1][1])
    assert not torch.equal(outputs[0][0], outputs[0][1])
    assert not torch.equal(outputs[0][0], outputs[2][0])
    assert [m.seed for m in module] == [0, 0]


def test_draws_from_nests():
    x = torch.rand(50) * 6
    module = chain()
    with draws_from(module, 1):
        outer = [module(x), module(x)]
    with draws_from(module, 1):
        again = [module(x)]
        with draws_from(module, 2):
            module(x)
        again.append(module(x))
    assert all(torch.equal(a, b) for a, b in zip(outer, again, strict=True))


def test_layers_that_nobody_numbered_draw_apart_under_one_seed():
    network = nn.ModuleList(StochasticQuantizer(1, clip=1.0, seed=seed) for seed in (1, 2, 3))
    x = torch.full((2000,), 0.5)
    with draws_from(network, 5):
        draws = torch.stack([layer(x) for layer in network])
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.1
    with draws_from(network, 5):
        assert torch.equal(torch.stack([layer(x) for layer in network]), draws)
    assert [layer.seed for layer in network] == [1, 2, 3]
