"""Auto-PGD step by step, against algorithm 1 of Croce & Hein 2020 written down for one image.

The losses of a script rise, fall and stay as no network's would, so that each condition of section 3.1 holds alone.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import Threat
from art_qplugins.attacks.adaptive.auto_pgd import auto_pgd, checkpoints, project, steepest
from art_qplugins.attacks.adaptive.objectives import Answer, direct, margin_loss

NORMS = ["Linf", "L2"]
STEPS = 50
SHAPE = (1, 2, 3)


# --- Algorithm 1


def papers_checkpoints(max_iter):
    """w_j = ceil(p_j N): p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    return [math.ceil(share * max_iter) for share in p if 0 < share <= 1]


def projected(point, x, threat):
    change = point - x
    if threat.norm == "Linf":
        change = np.clip(change, -threat.eps, threat.eps)
    elif np.linalg.norm(change) > threat.eps:
        change = change / np.linalg.norm(change) * threat.eps
    return np.clip(x + change, 0, 1)


def direction(gradient, norm):
    return np.sign(gradient) if norm == "Linf" else gradient / np.linalg.norm(gradient)


def algorithm_1(ask, x, start, threat, max_iter):
    """All points that it asks, the point of highest loss, and which conditions held at each checkpoint.

    As in the authors' code, condition 2 cannot hold at the first checkpoint, and x_{k-1} and f(x_k) are not changed by a
    restart from the best point.
    """
    loss, gradient = ask(start, 0)
    points, losses, asked, held = [start], [loss], [start], []
    best = (loss, start, gradient)
    size, halved, best_before = 2 * threat.eps, True, loss
    w = [0, *papers_checkpoints(max_iter)]
    for k in range(1, max_iter + 1):
        target = projected(points[-1] + size * direction(gradient, threat.norm), x, threat)
        moved = target
        if k > 1:
            moved = points[-1] + 0.75 * (target - points[-1]) + 0.25 * (points[-1] - points[-2])
        points.append(projected(moved, x, threat))
        asked.append(points[-1])
        loss, gradient = ask(points[-1], k)
        losses.append(loss)
        if loss > best[0]:
            best = (loss, points[-1], gradient)
        if k in w[1:]:
            since = w[w.index(k) - 1]
            rises = sum(losses[i + 1] > losses[i] for i in range(since, k))
            first, second = rises < 0.75 * (k - since), not halved and best[0] == best_before
            held.append((first, second))
            halved, best_before = first or second, best[0]
            if halved:
                size = size / 2
                points[-1], gradient = best[1], best[2]
    return asked, best[1], held


# --- What is asked of an objective


class Script:
    """An objective with given losses (steps + 1, n) and gradients (steps + 1, n, C, H, W). It records what it is asked."""

    def __init__(self, losses, gradients):
        self.losses, self.gradients = losses, gradients
        self.margins = 100.0 * torch.arange(len(losses))[:, None] + torch.arange(losses.shape[1])
        self.asked = [[] for _ in range(losses.shape[1])]
        self.backward = []

    def __call__(self, points, rows, *, step, backward=True):
        for row, point in zip(rows.tolist(), points, strict=True):
            self.asked[row].append(point.numpy().copy())
        self.backward.append(backward)
        gradient = self.gradients[step, rows] if backward else torch.zeros_like(points)
        return Answer(self.losses[step, rows], gradient, self.margins[step, rows])

    def of(self, row):
        return lambda point, step: (float(self.losses[step, row]), self.gradients[step, row].numpy())


def script(n, steps=STEPS, seed=0):
    """Walks on the whole numbers: half of them mostly rise, so that the step is kept at a checkpoint now and then."""
    generator = torch.Generator().manual_seed(seed)
    rise = torch.linspace(0.3, 0.95, n)
    up = torch.rand(steps, n, generator=generator) < rise
    stride = torch.where(up, 1, torch.randint(-9, 1, (steps, n), generator=generator))
    losses = torch.cat([torch.zeros(1, n), stride.cumsum(0)]).double()
    return Script(losses, torch.randn((steps + 1, n, *SHAPE), generator=generator, dtype=torch.float64))


def images(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, *SHAPE), generator=generator, dtype=torch.float64)


def close(found, expected):
    assert len(found) == len(expected)
    np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("norm", NORMS)
def test_each_step_is_that_of_algorithm_1(norm):
    n, threat = 60, Threat(norm, 0.3)
    asked, x = script(n), images(n)
    start = project(images(n, seed=2), x, threat)
    rows, best = auto_pgd(asked, x, start, torch.arange(n), threat=threat, max_iter=STEPS, record=None)
    assert rows.tolist() == list(range(n))
    assert asked.backward == [True] * STEPS + [False]  # no gradient of the last point
    seen = set()
    for row in range(n):
        points, highest, held = algorithm_1(asked.of(row), x[row].numpy(), start[row].numpy(), threat, STEPS)
        close(asked.asked[row], points)
        close([best[row].numpy()], [highest])
        seen |= set(held)
    assert seen == {(False, False), (True, False), (False, True), (True, True)}


@pytest.mark.parametrize("norm", NORMS)
def test_each_step_on_a_network_is_that_of_algorithm_1(norm):
    """Gradients of a network with a sine turn from step to step, unlike those of a linear model."""
    torch.manual_seed(0)
    first, last = nn.Linear(6, 5, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64)
    with torch.no_grad():
        first.weight *= 8
    n, threat, asked = 8, Threat(norm, 0.3), []

    class Sine(nn.Module):
        def forward(self, x):
            asked.append(x.detach().numpy().copy())
            return last(torch.sin(first(x.flatten(1))))

    def ask(label, point, step):
        """max_{j != y} z_j - z_y and its gradient by the chain rule."""
        w, v = first.weight.detach().numpy(), last.weight.detach().numpy()
        hidden = w @ point.ravel() + first.bias.detach().numpy()
        z = v @ np.sin(hidden) + last.bias.detach().numpy()
        rival = max((j for j in range(3) if j != label), key=lambda j: z[j])
        slope = (v[rival] - v[label]) * np.cos(hidden)
        return z[rival] - z[label], (w.T @ slope).reshape(SHAPE)

    x, y = images(n), torch.arange(n) % 3
    start = project(images(n, seed=2), x, threat)
    objective = direct(Sine(), y, margin_loss(y))
    _, best = auto_pgd(objective, x, start, torch.arange(n), threat=threat, max_iter=20, record=None)
    for row, label in enumerate(y.tolist()):
        points, highest, _ = algorithm_1(partial(ask, label), x[row].numpy(), start[row].numpy(), threat, 20)
        close([batch[row] for batch in asked], points)
        close([best[row].numpy()], [highest])


def test_two_steps_by_hand():
    """One pixel at 0.5, eps 0.2: the first step of 0.4 ends at the edge, the second of 0.75 of the way back plus momentum."""
    gradients = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64).view(3, 1, 1, 1, 1)
    asked = Script(torch.tensor([[0.0], [2.0], [1.0]], dtype=torch.float64), gradients)
    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    _, best = auto_pgd(asked, x, x, torch.arange(1), threat=Threat("Linf", 0.2), max_iter=2, record=None)
    # Step 1: 0.5 + 0.4 is cut to 0.7. It is a checkpoint, and the loss rose. Step 2 aims at 0.7 - 0.4 = 0.3:
    # 0.7 + 0.75 (0.3 - 0.7) + 0.25 (0.7 - 0.5) = 0.45.
    close(asked.asked[0], [np.full((1, 1, 1), v) for v in (0.5, 0.7, 0.45)])
    assert best.item() == pytest.approx(0.7)


@pytest.mark.parametrize("max_iter", [1, 2, 3, 5, 10, 20, 50, 99, 100, 150, 1000])
def test_checkpoints_are_those_of_section_3_1(max_iter):
    assert sorted(checkpoints(max_iter)) == sorted(set(papers_checkpoints(max_iter)))


def conditions(losses, max_iter):
    """Which conditions held at each checkpoint, (first, second), where the loop took the steps of algorithm 1."""
    gradients = script(1, max_iter).gradients
    asked, x, threat = (
        Script(torch.tensor(losses, dtype=torch.float64)[:, None], gradients),
        images(1),
        Threat("L2", 0.2),
    )
    auto_pgd(asked, x, x, torch.arange(1), threat=threat, max_iter=max_iter, record=None)
    expected, _, held = algorithm_1(asked.of(0), x[0].numpy(), x[0].numpy(), threat, max_iter)
    close(asked.asked[0], expected)
    return held


def test_a_rising_loss_never_halves_the_step():
    """Each interval counts its own steps. If steps were counted from the start, late intervals would look stalled."""
    assert conditions(list(range(101)), 100) == [(False, False)] * 8


def test_a_loss_that_stays_halves_the_step_at_each_checkpoint_by_condition_1_alone():
    """Condition 2 asks for a checkpoint without halving first."""
    assert conditions([0.0] * 101, 100) == [(True, False)] * 8


def test_exactly_three_quarters_of_rising_steps_keep_the_step():
    """Of 20 steps, 5 lead to the first checkpoint, 4 to the second: 3 of the 4 rise."""
    losses = [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, *range(8, 19)]
    first, second, *_ = conditions(losses, 20)
    assert papers_checkpoints(20)[:2] == [5, 9]
    assert (first, second) == ((False, False), (False, False))
    fewer = [*losses[:9], losses[8], *losses[10:]]
    assert conditions(fewer, 20)[1][0]


# --- Which images stay


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_that_leaves_changes_nothing_for_the_others(norm):
    n, threat, x = 12, Threat(norm, 0.3), images(12)
    asked, whole = script(n), script(n)
    leaves = {3: 0, 5: 1, 7: 11, 8: 13}  # row: step after which it leaves
    step, seen = -1, []

    def record(rows, points, margin):
        nonlocal step
        step += 1
        seen.append((rows.tolist(), margin.tolist()))
        return torch.tensor([leaves.get(row) != step for row in rows.tolist()])

    settings = {"threat": threat, "max_iter": 20}
    rows, best = auto_pgd(asked, x, x, torch.arange(n), record=record, **settings)
    _, expected = auto_pgd(whole, x, x, torch.arange(n), record=None, **settings)
    stayed = [row for row in range(n) if row not in leaves]
    assert rows.tolist() == stayed
    close(list(best.numpy()), list(expected[stayed].numpy()))
    for row in range(n):
        count = leaves.get(row, 20) + 1
        close(asked.asked[row], whole.asked[row][:count])
    assert [s for s, _ in seen] == [[r for r in range(n) if leaves.get(r, 99) >= k] for k in range(21)]
    assert all(margin == [r + 100.0 * k for r in rows] for k, (rows, margin) in enumerate(seen))


def test_rows_of_a_run_are_passed_on_and_the_loop_ends_with_its_last_image():
    asked, x = script(9), images(2)
    rows, best = auto_pgd(
        asked, x, x, torch.tensor([4, 8]), threat=Threat("Linf", 0.1), max_iter=9, record=lambda r, *_: r < 0
    )
    assert len(rows) == len(best) == 0
    assert [len(points) for points in asked.asked] == [0, 0, 0, 0, 1, 0, 0, 0, 1]


# --- Directions and projections


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_the_steepest_direction_has_length_1_at_any_scale(scale):
    gradient = images(4).float().sub(0.5)
    gradient[1] = 0
    for norm, order in (("Linf", torch.inf), ("L2", 2)):
        found = steepest(gradient * scale, norm)
        lengths = torch.linalg.vector_norm(found.flatten(1), ord=order, dim=1)
        torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0, 1.0, 1.0]))
        rest = [0, 2, 3]  # the direction in which a step of length 1 gains the most: the dual norm
        dual = torch.linalg.vector_norm(gradient.flatten(1), ord=1 if norm == "Linf" else 2, dim=1)
        torch.testing.assert_close((found * gradient).flatten(1).sum(1)[rest], dual[rest])


@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_stays_inside_and_leaves_what_is_inside(norm):
    threat, x = Threat(norm, 0.3), images(200)
    inside = project(images(200, seed=3), x, threat)
    torch.testing.assert_close(project(inside, x, threat), inside, rtol=0, atol=1e-12)
    far = x + torch.randn(x.shape, dtype=torch.float64)
    found = project(far, x, threat)
    assert found.min() == 0 and found.max() == 1
    expected = [projected(f, c, threat) for f, c in zip(far.numpy(), x.numpy(), strict=True)]
    close(list(found.numpy()), expected)
