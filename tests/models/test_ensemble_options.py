"""Every option of the ensemble against its formula.

The networks are in float64. In float32 a batch of another size may round otherwise, and a number that is rounded to another
bin differs by far more than the tolerance.
"""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins.errors import InputError
from art_qplugins.estimators import SQEnsembleClassifier
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.rules import RULES
from art_qplugins.models.wide_resnet import WideResNet
from art_qplugins.quantizers import StochasticQuantizer, draws_from, is_stochastic, quantize


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return quantize(ConvNet((1, 8, 8), 10, width=4), activation_bits=2, alpha=2.0).eval().double()


@pytest.fixture(scope="module")
def skipping():
    """Its first stochastic layer lies behind a sum with what came before: it cannot repeat the batch there."""
    torch.manual_seed(0)
    network = WideResNet((3, 16, 16), 10, depth=10, widen_factor=1)
    return quantize(network, activation_bits=2, alpha=2.0).eval().double()


def members(network, x, draws, seed=7):
    """One pass a draw: the definition."""
    single = StochasticEnsemble(network, 1, rule="mean-logits")
    with draws_from(single, seed):
        return torch.stack([single(x) for _ in range(draws)])


def x_for(network, n=5):
    shape = (1, 8, 8) if isinstance(network, ConvNet) else (3, 16, 16)
    return torch.rand((n, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vote(z):
    shares = nn.functional.one_hot(z.argmax(-1), z.shape[-1]).double().mean(0)
    m, c = len(z), z.shape[-1]
    return ((shares * m + 0.5 / c) / (m + 0.5)).log()


FORMULAS = {
    "mean-probability": lambda z: z.softmax(-1).mean(0).log(),
    "mean-logits": lambda z: z.mean(0),
    "majority-vote": vote,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_its_formula(network, rule):
    x = x_for(network)
    ensemble = StochasticEnsemble(network, 6, rule=rule)
    with draws_from(ensemble, 7):
        answer = ensemble(x)
    torch.testing.assert_close(answer, FORMULAS[rule](members(network, x, 6)))


@pytest.mark.parametrize("kind", ["network", "skipping"])
@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 5, 6, 99])
def test_the_same_seed_gives_the_same_numbers_for_every_chunk(kind, chunk, request):
    net = request.getfixturevalue(kind)
    x = x_for(net).requires_grad_()
    ensemble = StochasticEnsemble(net, 6, eot_chunk=chunk)
    with draws_from(ensemble, 7):
        answer = ensemble(x)
        (gradient,) = torch.autograd.grad(answer.logsumexp(1).sum() + answer[:, 0].sum(), x)
    expected_in = x.detach().clone().requires_grad_()
    expected = FORMULAS["mean-probability"](members(net, expected_in, 6))
    (slope,) = torch.autograd.grad(expected.logsumexp(1).sum() + expected[:, 0].sum(), expected_in)
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(gradient, slope)


def test_what_comes_before_the_first_stochastic_layer_is_computed_once(network):
    ensemble, x = StochasticEnsemble(copy.deepcopy(network), 6, eot_chunk=6), x_for(network)
    ensemble.prepare(x)
    rows = []
    ensemble.network.conv1.register_forward_hook(lambda m, i, output: rows.append(len(output)))
    ensemble.network.conv2.register_forward_hook(lambda m, i, output: rows.append(len(output)))
    ensemble(x)
    assert rows == [5, 30]


def test_in_a_residual_network_the_block_around_the_first_stochastic_layer_repeats_the_batch(skipping):
    ensemble = StochasticEnsemble(skipping, 4, eot_chunk=4)
    ensemble.prepare(x_for(skipping))
    first = next(n for n, m in skipping.named_modules() if isinstance(m, StochasticQuantizer))
    assert ensemble._split
    assert first.startswith(ensemble._split + ".")
    assert ensemble(x_for(skipping, 1)).shape == (1, 10)


def test_where_no_part_can_repeat_the_batch_the_input_is_repeated(network):
    class Twice(nn.Module):
        """Joins its pixels with the answer of its network, so that nothing can be repeated later."""

        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(network)

        def forward(self, x):
            return self.inner(x) + x.flatten(1)[:, :10]

    ensemble = StochasticEnsemble(Twice(), 4, eot_chunk=4).eval()
    x = x_for(network)
    ensemble.prepare(x)
    assert ensemble._split == ""
    with draws_from(ensemble, 7):
        answer = ensemble(x)
    torch.testing.assert_close(answer, FORMULAS["mean-probability"](members(ensemble.network, x, 4)))


@pytest.mark.parametrize("kind", ["network", "skipping"])
@pytest.mark.parametrize("options", [{}, {"antithetic": True}, {"eot_chunk": 1}, {"eot_chunk": 2}], ids=str)
def test_a_frozen_ensemble_is_a_function_of_one_image(kind, options, request):
    net = request.getfixturevalue(kind)
    x = x_for(net, 8)
    frozen = StochasticEnsemble(net, 3, frozen=True, **options)
    answer, order = frozen(x), torch.randperm(8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(frozen(x[order]), answer[order])
    torch.testing.assert_close(torch.cat([frozen(part) for part in x.split(3)]), answer)
    torch.testing.assert_close(frozen(x[:1].repeat(8, 1, 1, 1)), answer[:1].repeat(8, 1))


def test_a_frozen_ensemble_is_the_same_in_float32_and_in_float64(network):
    x = x_for(network)
    single = copy.deepcopy(network).float()
    answers = [StochasticEnsemble(net, 2, frozen=True)(x.to(net.fc2.weight.dtype)) for net in (single, network)]
    # Rounding may move an activation to another bin, which other noise does to most of them.
    assert float((answers[0].double() - answers[1]).detach().abs().median()) < 1e-4


def test_a_frozen_ensemble_draws_from_no_stream(network):
    x = x_for(network)
    frozen = StochasticEnsemble(network, 3, frozen=True)
    answer = frozen(x)
    for module in (frozen, nn.Sequential(frozen)):
        for seed in (1, 2):
            with draws_from(module, seed):
                torch.testing.assert_close(module(x), answer)


def test_the_seeds_of_the_layers_choose_the_frozen_member():
    torch.manual_seed(0)
    plain, x = ConvNet((1, 8, 8), 10, width=4).eval(), torch.rand(5, 1, 8, 8)
    one, other = (
        StochasticEnsemble(quantize(plain, activation_bits=2, alpha=2.0, seed=seed), 3, frozen=True) for seed in (1, 2)
    )
    assert not torch.allclose(one(x), other(x))


def test_only_what_draws_afresh_is_stochastic(network):
    frozen, fresh = StochasticEnsemble(network, 3, frozen=True), StochasticEnsemble(network, 3)
    assert not is_stochastic(frozen) and not is_stochastic(nn.Sequential(frozen, nn.Flatten()))
    assert is_stochastic(fresh) and is_stochastic(nn.ModuleList([frozen, fresh]))
    assert is_stochastic(frozen.network)


def test_a_frozen_ensemble_has_no_gradient_of_other_draws(network):
    with pytest.raises(InputError, match=r"^eot_draws: a frozen ensemble"):
        StochasticEnsemble(network, 2, frozen=True, eot_draws=8)


def test_images_of_an_ensemble_that_is_not_frozen_have_noise_of_their_own(network):
    x = x_for(network, 1).repeat(6, 1, 1, 1)
    assert len(StochasticEnsemble(network, 1)(x).unique(dim=0)) == 6


def test_in_train_mode_the_first_call_moves_batch_norm_as_a_later_one_does():
    """The first call also finds out where to repeat the batch. It does that in eval mode."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    net = quantize(plain, activation_bits=2, alpha=2.0).double()
    x = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ensemble = StochasticEnsemble(net, 2).train()
    norm = net[0]
    counts = []
    for _ in range(2):
        before = norm.running_mean.clone()
        ensemble(x)
        counts.append(int(norm.num_batches_tracked))
        torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * x.mean().expand(1))
    assert counts == [1, 2]
    assert all(m.training for m in ensemble.modules())


def test_gradients_may_take_other_draws_than_predictions(network):
    ensemble = StochasticEnsemble(network, 2, eot_draws=7)
    assert len(ensemble.members(x_for(network))) == 2
    assert len(ensemble.members(x_for(network).requires_grad_())) == 7
    with torch.no_grad():
        assert len(ensemble.members(x_for(network).requires_grad_())) == 2


def test_antithetic_pairs_halve_the_variance_of_one_rounding():
    """For a fraction t uniform in [0, 1], the mean of two roundings has variance 1/12 of a step, of a pair 1/24."""
    layer = StochasticQuantizer(3, clip=7.0)
    x = torch.rand(40_000, generator=torch.Generator().manual_seed(0)) * 7

    def spread(antithetic):
        layer.draw, layer.call, layer.fold, layer.antithetic = 0, 0, 2, antithetic
        with torch.no_grad():
            return float((layer(x.repeat(2)).unflatten(0, (2, -1)).mean(0) - x).square().mean())

    assert spread(False) == pytest.approx(1 / 12, rel=0.03)
    assert spread(True) == pytest.approx(1 / 24, rel=0.03)


def test_antithetic_is_handed_to_the_layers(network):
    x = x_for(network)
    one, other = StochasticEnsemble(network, 2, antithetic=True), StochasticEnsemble(network, 2)
    with draws_from(one, 3), draws_from(other, 3):
        pair, independent = one.members(x), other.members(x)
    assert torch.equal(pair[0], independent[0])
    assert not torch.equal(pair[1], independent[1])


def test_the_gradient_of_the_mean_of_losses(network):
    network = copy.deepcopy(network).float()  # as an estimator takes it
    x, y = x_for(network).float(), torch.tensor([1, 2, 3, 4, 5])
    options = {"gradient_of": "losses", "eot_chunk": 1}  # one pass per draw, as the definition has it
    estimator = SQEnsembleClassifier(
        network, nn.CrossEntropyLoss(), (1, 8, 8), 10, draws=6, options=options, device_type="cpu"
    )
    with warnings.catch_warnings(), draws_from(estimator.model, 7):
        warnings.simplefilter("error")
        gradient = estimator.loss_gradient(x.numpy(), y.numpy())
    leaf = x.clone().requires_grad_()
    logits = members(network, leaf, 6)
    loss = torch.stack([nn.functional.cross_entropy(z, y) for z in logits]).mean()
    np.testing.assert_allclose(gradient, torch.autograd.grad(loss, leaf)[0].numpy(), rtol=1e-4, atol=1e-7)
    with pytest.warns(UserWarning, match="not honoured"):
        estimator.model(leaf)


def test_more_memory_than_there_is_names_the_chunk(network):
    class Greedy(nn.Module):
        def forward(self, x):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")

    greedy = copy.deepcopy(network)
    greedy.fc2 = Greedy()
    ensemble = StochasticEnsemble(greedy, 4, eot_chunk=4)
    ensemble._split = ""
    with pytest.raises(InputError, match=r"^eot_chunk: 4 draws"):
        ensemble(x_for(network))


@pytest.mark.parametrize(("option", "value"), [("rule", "mean-probabilty"), ("gradient_of", "loss")])
def test_an_unknown_choice_is_told_the_choices(network, option, value):
    with pytest.raises(InputError, match=rf"^{option}: it is {value!r}; give 'mean"):
        StochasticEnsemble(network, 2, **{option: value})


def test_a_chunk_that_is_computed_again_draws_what_it_drew_the_first_time(network):
    """The backward pass may come after the context that chose the draws."""
    x = x_for(network, 3)
    gradients = []
    for eot_chunk in (None, 2):
        model = StochasticEnsemble(copy.deepcopy(network), 6, eot_chunk=eot_chunk).eval()
        point = x.clone().requires_grad_()
        with draws_from(model, 11):
            total = model(point)[:, 0].sum()
        gradients.append(torch.autograd.grad(total, point)[0])
    torch.testing.assert_close(*gradients)
