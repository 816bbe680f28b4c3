"""Objectives of the adaptive attacks: losses and gradients by hand, which draws they see, and how many passes they cost."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from art_qplugins.attacks.adaptive.backward_views import Smoothed
from art_qplugins.attacks.adaptive.objectives import (
    averaged,
    direct,
    evaluate,
    margin_loss,
    mixed,
    other_alone,
    own_alone,
    rescaled,
    targeted_loss,
)

N, CLASSES = 5, 4


class Recorded(nn.Module):
    """tanh between two layers, in float64. It records its inputs, and whether each needed a gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(6, 7, dtype=torch.float64), nn.Linear(7, CLASSES, dtype=torch.float64)
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        return self.logits(x)

    def logits(self, x):
        return self.last(torch.tanh(4 * self.first(x.flatten(1))))


class Noisy(Recorded):
    """Adds noise from the global generator to the pixels. It records the noise instead of its inputs."""

    def forward(self, x):
        noise = torch.randn(x.shape[1:], dtype=torch.float64) * 0.3
        self.asked.append(noise)
        return self.logits(x + noise)


def batch():
    generator = torch.Generator().manual_seed(2)
    points = torch.rand((N, 1, 2, 3), generator=generator, dtype=torch.float64)
    rows = torch.tensor([7, 2, 9, 0, 4])  # of a run of 10 images
    return points, rows, torch.arange(10) % CLASSES


def by_hand(net, points, value):
    """value(logits) for each image, and its gradient, one image at a time."""
    values, gradients = [], []
    for i in range(len(points)):
        leaf = points[i : i + 1].clone().requires_grad_()
        found = value(net.logits(leaf)[0], i)
        values.append(found.detach())
        gradients.append(torch.autograd.grad(found, leaf)[0][0])
    return torch.stack(values), torch.stack(gradients)


def minus_margin(labels):
    return lambda z, i: max(z[j] for j in range(CLASSES) if j != labels[i]) - z[labels[i]]


def test_the_loss_of_apgd_margin_is_minus_the_margin():
    net, (points, rows, y) = Recorded(), batch()
    answer = direct(net, y, margin_loss(y))(points, rows, step=3)
    loss, gradient = by_hand(net, points, minus_margin(y[rows]))
    torch.testing.assert_close(answer.loss, loss)
    torch.testing.assert_close(answer.gradient, gradient)
    torch.testing.assert_close(answer.margin, -loss)
    assert len(net.asked) == 1
    assert direct(net, y, margin_loss(y), deployed=False)(points, rows, step=3).margin is None


def test_a_targeted_loss_compares_the_target_of_each_image_with_its_label():
    net, (points, rows, y) = Recorded(), batch()
    target = (y + 1 + torch.arange(10) % 3) % CLASSES
    answer = direct(net, y, targeted_loss(y, target))(points, rows, step=0)
    t, own = target[rows], y[rows]
    loss, gradient = by_hand(net, points, lambda z, i: z[t[i]] - z[own[i]])
    torch.testing.assert_close(answer.loss, loss)
    torch.testing.assert_close(answer.gradient, gradient)
    torch.testing.assert_close(answer.margin, -by_hand(net, points, minus_margin(own))[0])


@pytest.mark.parametrize("targeted", [False, True])
def test_the_two_parts_of_the_margin_are_climbed_apart(targeted):
    net, (points, rows, y) = Recorded(), batch()
    target = (y + 1 + torch.arange(10) % 3) % CLASSES if targeted else None
    own = y[rows]

    def other(z, i):
        return z[target[rows][i]] if targeted else max(z[j] for j in range(CLASSES) if j != own[i])

    for part, wanted in ((own_alone(y), lambda z, i: -z[own[i]]), (other_alone(y, target), other)):
        answer = direct(net, y, part)(points, rows, step=0)
        loss, gradient = by_hand(net, points, wanted)
        torch.testing.assert_close(answer.loss, loss)
        torch.testing.assert_close(answer.gradient, gradient)
        torch.testing.assert_close(answer.margin, -by_hand(net, points, minus_margin(own))[0])


def test_the_rescaled_loss_is_the_margin_along_the_gradient_of_cross_entropy():
    net, (points, rows, y) = Recorded(), batch()
    scales = torch.arange(1.0, 11.0, dtype=torch.float64)
    # The scale depends on the logits, and the gradient takes it as a constant.
    answer = rescaled(net, y, lambda z, r: scales[r] * z.abs().amax(1))(points, rows, step=0)
    tops = net.logits(points).detach().abs().amax(1)

    def cross_entropy(z, i):
        return -(z * scales[rows[i]] * tops[i]).log_softmax(0)[y[rows[i]]]

    torch.testing.assert_close(answer.gradient, by_hand(net, points, cross_entropy)[1])
    loss, _ = by_hand(net, points, minus_margin(y[rows]))
    torch.testing.assert_close(answer.loss, loss)
    torch.testing.assert_close(answer.margin, -loss)


def test_a_mixed_objective_is_the_weighted_sum_with_each_part_in_its_own_state():
    net, other, (points, rows, y) = Recorded(), Recorded(), batch()
    with torch.no_grad():
        other.first.weight *= -1.5
    entered = []

    @contextmanager
    def state(name):
        entered.append(name)
        yield
        entered.append(f"left {name}")

    def part(module, name, deployed):
        inner = direct(module, y, margin_loss(y), deployed=deployed)

        def objective(points, rows, **kwargs):
            assert entered[-1] == name and kwargs == {"step": 6, "backward": True}
            return inner(points, rows, **kwargs)

        return objective

    parts = [(0.3, lambda: state("a"), part(net, "a", False)), (0.7, lambda: state("b"), part(other, "b", True))]
    answer = mixed(parts)(points, rows, step=6)
    assert entered == ["a", "left a", "b", "left b"]
    (one, slope), (two, incline) = (by_hand(m, points, minus_margin(y[rows])) for m in (net, other))
    torch.testing.assert_close(answer.loss, 0.3 * one + 0.7 * two)
    torch.testing.assert_close(answer.gradient, 0.3 * slope + 0.7 * incline)
    torch.testing.assert_close(answer.margin, -two)  # of the only part that is deployed
    both = mixed([(1.0, lambda: state("x"), direct(m, y, margin_loss(y))) for m in (net, other)])
    torch.testing.assert_close(both(points, rows, step=0).margin, -one)  # of the first of two


def test_without_a_backward_pass_the_gradient_is_zero_and_no_graph_is_made():
    net, (points, *_) = Recorded(), batch()
    seen = []
    net.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    logits, value, gradient = evaluate(net, points, lambda z: z.sum(1), backward=False)
    assert seen == [False] and not gradient.any()
    torch.testing.assert_close(value, logits.sum(1))
    logits, value, gradient = evaluate(net, points, lambda z: z.sum(1))
    assert seen[1] and gradient.all() and not (logits.requires_grad or value.requires_grad)


def test_a_gradient_that_is_missing_or_not_a_number_is_zero():
    points = torch.tensor([0.0, 0.5]).view(2, 1, 1, 1)
    # The slope of the root at 0 is infinite; times 0 it is not a number.
    _, _, gradient = evaluate(nn.Flatten(), points, lambda z: (z * 0).sqrt().sum(1) + z.sum(1))
    assert gradient.flatten().tolist() == [0.0, 0.0]
    _, value, gradient = evaluate(nn.Flatten(), points, lambda z: z.detach().sum(1))
    assert gradient.flatten().tolist() == [0.0, 0.0] and value.tolist() == [0.0, 0.5]


# --- EOT


@pytest.mark.parametrize(("draws", "bank"), [(1, 8), (3, 8), (8, 8), (11, 11)])
def test_eot_costs_its_draws_and_at_least_eight_passes_for_the_loss(draws, bank):
    net, (points, rows, y) = Noisy(), batch()
    objective = averaged(net, margin_loss(y), draws=draws, seed=0)
    objective(points, rows, step=0)
    assert len(net.asked) == draws + bank
    net.asked.clear()
    objective(points, rows, step=1, backward=False)
    assert len(net.asked) == bank


def test_eot_averages_over_fresh_draws_at_each_step_and_scores_on_the_same_ones():
    net, (points, rows, y) = Noisy(), batch()
    objective, draws = averaged(net, margin_loss(y), draws=3, seed=0), {}
    answers = {}
    for step in (0, 1, 2):
        net.asked.clear()
        answers[step] = objective(points, rows, step=step)
        draws[step] = net.asked[:3], net.asked[3:]
    flat = [str(noise.tolist()) for step in draws for noise in draws[step][0]]
    assert len(set(flat)) == 9  # no draw of a gradient is used twice
    for step in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(draws[0][1], draws[step][1], strict=True))
    assert len({str(noise.tolist()) for noise in draws[0][1]} | {*flat}) == 8 + 9  # nor for a loss

    for step, (gradients, losses) in draws.items():
        each = [by_hand(net, points + noise, minus_margin(y[rows])) for noise in (*gradients, *losses)]
        torch.testing.assert_close(answers[step].gradient, torch.stack([g for _, g in each[:3]]).mean(0))
        torch.testing.assert_close(answers[step].loss, torch.stack([loss for loss, _ in each[3:]]).mean(0))
        assert answers[step].margin is None

    net.asked.clear()
    averaged(net, margin_loss(y), draws=3, seed=1)(points, rows, step=0)
    assert {str(noise.tolist()) for noise in net.asked}.isdisjoint({*flat})


# --- A gradient averaged over a cube


def test_a_smoothed_gradient_is_the_mean_over_the_image_and_pairs_around_it():
    net, (points, _, _) = Recorded(), batch()
    points[0], points[1], points[2] = 0.0, 1.0, 0.5  # half of what is around the first two is outside [0, 1]
    weight = torch.randn(CLASSES, dtype=torch.float64)
    view, leaf = Smoothed(net, 0.4, pairs=3, seed=5), points.clone().requires_grad_()
    value = view(leaf)
    torch.testing.assert_close(value, net.logits(points))
    (gradient,) = torch.autograd.grad((value @ weight).sum(), leaf)
    asked, moved = net.asked, [a[2] - 0.5 for a in net.asked]  # nothing is cut around the third
    assert len(asked) == 7 and torch.equal(asked[0], points)
    for plus, minus in zip(moved[1:4], moved[4:], strict=True):
        torch.testing.assert_close(plus, -minus)
    cube = torch.stack(moved[1:4])
    assert 0.3 < cube.max() <= 0.4 and -0.4 <= cube.min() < -0.3
    for u, a in zip(moved, asked, strict=True):
        torch.testing.assert_close(a, (points + u).clamp(0, 1))
    expected = torch.stack([by_hand(net, a, lambda z, i: z @ weight)[1] for a in asked]).mean(0)
    torch.testing.assert_close(gradient, expected)
    net.asked.clear()
    with torch.no_grad():
        view(points)
    assert len(net.asked) == 1  # nothing to average without a gradient
