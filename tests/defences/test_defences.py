"""The training loop, and the penalties with their closed forms."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import InputError, quantize, train
from art_qplugins.defences import DEFENCES
from art_qplugins.defences.base import Defence
from art_qplugins.defences.information import BinSpacing, MutualInformation
from art_qplugins.defences.lipschitz import Orthogonality, orthogonality_penalty
from art_qplugins.defences.parseval import Parseval, retracted
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.mixture import Mixture
from art_qplugins.models.wide_resnet import WideResNet
from art_qplugins.quantizers import weight_layers


def network(*, stochastic=False):
    torch.manual_seed(1)
    model = ConvNet((1, 8, 8), 10, width=4)
    return quantize(model, activation_bits=2, alpha=2.0, clip=2.0) if stochastic else model


@pytest.fixture(scope="session")
def few(digits):
    """(x, y) of 200 images."""
    data = digits[0].take(200, seed=0)
    return data.x(), data.y()


# --- orthogonality


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (4, 3, 2, 2), (20, 2, 3, 3)])
def test_the_penalty_has_the_gradient_of_both_sides_of_equation_8(shape):
    weight = (torch.randn(shape) * 0.5).requires_grad_()
    (ours,) = torch.autograd.grad(orthogonality_penalty(weight), weight)
    m = weight.flatten(1)
    for gram in (m @ m.T, m.T @ m):
        (expected,) = torch.autograd.grad((gram - torch.eye(len(gram))).square().sum(), weight, retain_graph=True)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    # ... which is 4 (W W^T - I) W in closed form.
    closed = 4 * (m @ m.T - torch.eye(len(m))) @ m
    torch.testing.assert_close(ours.flatten(1), closed.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (4, 3, 2, 2)])
def test_the_penalty_is_zero_where_all_singular_values_are_one_and_grows_with_them(shape):
    matrix = nn.init.orthogonal_(torch.empty(shape))
    k = min(shape[0], math.prod(shape[1:]))
    for scale in (1.0, 0.5, 2.0, 0.0):
        # sum over singular values of (sigma^2 - 1)^2
        assert float(orthogonality_penalty(scale * matrix)) == pytest.approx(k * (scale**2 - 1) ** 2, abs=1e-4)


def block_diagonal(weight, groups):
    """The matrix of a grouped convolution: each group's rows have columns of their own."""
    return torch.block_diag(*weight.flatten(1).unflatten(0, (groups, -1)))


@pytest.mark.parametrize(("shape", "groups"), [((4, 3, 3, 3), 2), ((6, 1, 3, 3), 6), ((12, 1, 2, 2), 2), ((4, 5), 1)])
def test_of_a_grouped_convolution_the_matrix_is_block_diagonal(shape, groups):
    weight = torch.randn(shape, requires_grad=True)
    w = block_diagonal(weight, groups)
    rows, columns = w.shape
    # The smaller Gram matrix of each group: the others differ by a constant.
    gram = w @ w.T if rows <= columns else w.T @ w
    expected = (gram - torch.eye(len(gram))).square().sum()
    found = orthogonality_penalty(weight, groups)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(value, weight, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)
    step = weight.detach() - 0.1 / 4 * slopes[0]
    torch.testing.assert_close(retracted(weight.detach(), 0.1, groups), step, rtol=1e-4, atol=1e-5)


def test_both_defences_see_the_groups_of_a_layer():
    layer = nn.Conv2d(4, 8, 3, groups=4)
    assert float(Orthogonality(beta=1.0).penalty(layer).detach()) == pytest.approx(
        float(orthogonality_penalty(layer.weight.detach(), 4)) / 2
    )
    expected = retracted(layer.weight.detach(), 0.1, 4)
    Parseval(beta=0.1).after_step(layer)
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_orthogonality_sums_over_all_layers_with_half_of_beta():
    model = network()
    expected = 0.15 * sum(float(orthogonality_penalty(m.weight.detach())) for _, m in weight_layers(model))
    assert Orthogonality(beta=0.3).penalty(model).item() == pytest.approx(expected, rel=1e-5)


def test_training_with_the_penalty_brings_the_weights_nearer_to_orthonormal_rows(few):
    distance = []
    for defences in ([], [Orthogonality(beta=0.05)]):
        model = train(network(), few, defences, epochs=8, batch_size=20, learning_rate=0.05, weight_decay=0.0)
        distance.append(sum(orthogonality_penalty(m.weight.detach()).item() for _, m in weight_layers(model)))
    assert distance[1] < 0.5 * distance[0]


# --- the loop


class Diary(Defence):
    """Writes down what is called."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = [], fail_at

    def _note(self, what):
        self.calls.append(what)
        if what == self.fail_at:
            raise ZeroDivisionError(what)

    def start(self, model):
        self._note("start")

    def penalty(self, model):
        self._note("penalty")
        return 0.0

    def after_step(self, model):
        self._note("after_step")

    def finish(self, model):
        self._note("finish")


def parameters(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_same_seed_trains_the_same_network_for_any_global_state(few, stochastic):
    runs = []
    for seed, global_seed in ((3, 10), (3, 11), (4, 10)):
        model = network(stochastic=stochastic)
        torch.manual_seed(global_seed)
        runs.append(parameters(train(model, few, epochs=2, seed=seed)))
    for name in runs[0]:
        assert torch.equal(runs[0][name], runs[1][name]), name
    assert not torch.equal(runs[0]["fc2.weight"], runs[2]["fc2.weight"])


def test_training_touches_no_global_generator_and_leaves_eval_mode(few):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    model = network(stochastic=True)
    before = states()
    assert train(model, few, [MutualInformation(), BinSpacing(), Orthogonality()], epochs=1) is model
    assert states() == before
    assert not any(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_training_learns(digits, fp32):
    with torch.no_grad():
        accuracy = (fp32(digits[1].x()).argmax(1) == digits[1].y()).float().mean()
    assert accuracy > 0.95


def test_a_step_is_sgds_on_the_loss_plus_the_penalties(few):
    class Norm(Defence):
        def penalty(self, model):
            return 0.25 * model.fc2.weight.square().sum()

    x, y = few[0][:50], few[1][:50]
    model = network()
    by_hand = copy.deepcopy(model).train()
    train(model, (x, y), [Norm(), Norm()], epochs=1, batch_size=50, learning_rate=0.1, weight_decay=0.01)
    loss = nn.functional.cross_entropy(by_hand(x), y) + 0.5 * by_hand.fc2.weight.square().sum()
    loss.backward()
    for (name, p), trained in zip(by_hand.named_parameters(), model.parameters(), strict=True):
        gradient = p.grad + 0.01 * p
        expected = p - 0.1 * (gradient + 0.9 * gradient)  # Nesterov's first step
        torch.testing.assert_close(trained, expected.detach(), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_every_image_is_seen_once_an_epoch_in_another_order(few):
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.rows = nn.Linear(1, 10), []

        def forward(self, x):
            self.rows.append(x[:, 0].int().tolist())
            return self.fc(x / 200)

    model = Seen()
    train(model, (torch.arange(50.0)[:, None], few[1][:50]), epochs=2, batch_size=16)
    assert [len(rows) for rows in model.rows] == [16, 16, 16, 2] * 2
    epochs = [[row for batch in model.rows[part] for row in batch] for part in (slice(4), slice(4, None))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0] != epochs[1]


def test_hooks_are_called_in_order_and_progress_is_reported(few):
    diary, reported = Diary(), []
    train(network(), few, [diary], epochs=2, batch_size=100, progress=reported.append)
    assert diary.calls == ["start", *["penalty", "after_step"] * 4, "finish"]
    assert [(told.epoch, told.epochs, told.step, told.steps) for told in reported] == [(1, 2, 2, 4), (2, 2, 4, 4)]
    assert reported[1].loss < reported[0].loss
    assert all(told.ends_epoch and told.validation_accuracy is None for told in reported)


@pytest.mark.parametrize("fail_at", ["start", "penalty", "after_step", "finish"])
def test_an_exception_leaves_eval_mode_no_hook_and_every_started_defence_finished(few, fail_at):
    model, first, second = network(stochastic=True), Diary(), Diary(fail_at)
    with pytest.raises(ZeroDivisionError, match=fail_at):
        train(model, few, [MutualInformation(), first, second], epochs=1)
    assert not any(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert first.calls[-1] == "finish"
    assert ("finish" in second.calls) == (fail_at != "start")


@pytest.mark.parametrize("defence", [MutualInformation, BinSpacing])
def test_a_defence_that_needs_stochastic_layers_says_so(few, defence):
    with pytest.raises(InputError, match=r"^defence '[a-z-]+' needs stochastic layers[^\n]*alpha"):
        train(network(), few, [Diary(), defence()], epochs=1)


def test_a_loss_that_diverges_is_refused(few):
    with pytest.raises(InputError, match=r"^training diverged: [^\n]*epoch 1[^\n]*learning_rate \(1e\+30\)$"):
        train(network(), few, epochs=3, learning_rate=1e30)


def test_no_epochs_is_no_training(few):
    model = network()
    before = parameters(model)
    train(model, few, epochs=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 10**400, 1e308, True, "0.1", None, [0.1]])
@pytest.mark.parametrize(
    ("name", "option"), [("orthogonality", "beta"), ("mutual-information", "beta"), ("bin-spacing", "weight")]
)
def test_the_weight_of_a_penalty_is_a_number_from_0_to_10(name, option, value):
    assert DEFENCES[name].resolve({option: 0})[option] == 0.0
    with pytest.raises(InputError, match=rf"^{name}: option {option}: it is [^\n]+; give a number in \[0, 10\]$"):
        DEFENCES[name].resolve({option: value})


@pytest.mark.parametrize("name", DEFENCES)
def test_every_registered_defence_trains_a_stochastic_network(name, few):
    entry = DEFENCES[name]
    blanks = [WideResNet((1, 8, 8), 10, depth=10, widen_factor=1, aggregation=True) for _ in range(2)]
    blank = Mixture(blanks) if name == "adaptive-diversity" else blanks[0]  # it has what the defence needs
    defence = entry.load()(**entry.resolve({}))
    model = defence.network(quantize(blank, activation_bits=2, alpha=2.0, clip=2.0))
    train(model, few, [defence], epochs=1, weight_decay=0.0)
    assert model(few[0]).isfinite().all()
