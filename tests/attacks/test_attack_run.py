"""The run of an adaptive attack: where its passes start, which images they see, which points it keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from art_qplugins import Threat
from art_qplugins.attacks.adaptive.attacks import ADAPTIVE
from art_qplugins.attacks.adaptive.objectives import direct, margin_loss
from art_qplugins.attacks.adaptive.run import AttackRun, answers_at_random
from art_qplugins.geometry import distances
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.quantizers import QuantReLU

CLASSES = 5


class Net(nn.Module):
    """A bend between two layers. It records its inputs."""

    def __init__(self, noise=0.0, bits=0):
        super().__init__()
        torch.manual_seed(4)
        bend = QuantReLU(bits, 1.0) if bits else nn.Softplus()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), bend, nn.Linear(9, CLASSES)).eval()
        self.noise, self.asked, self.drawn = noise, [], []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        if self.noise:
            self.drawn.append(torch.randn(x.shape[1:]))
            x = x + self.noise * self.drawn[-1]
        return self.layers(x)


def images(n, seed=0, low=0.0, high=1.0):
    return low + (high - low) * torch.rand((n, 1, 3, 4), generator=torch.Generator().manual_seed(seed))


def made(net, x, *, y=None, norm="Linf", eps=0.05, kind=AttackRun, **settings):
    if y is None:
        with torch.no_grad():
            y = net.layers(x).argmax(1)
    settings = {"batch_size": 50, "seed": 0, "max_iter": 3, **settings}
    return kind(name="artq:test", module=net, x=x, y=y, threat=Threat(norm, eps), **settings)


# --- Starts


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_starts_differ_between_purposes_seeds_and_images(norm):
    x = images(1).expand(6, -1, -1, -1)
    net = Net()
    run, other = made(net, x, norm=norm), made(net, x, norm=norm, seed=1)
    found = torch.cat([run.starts("one"), run.starts("two"), other.starts("one")])
    assert len(found.unique(dim=0)) == 18
    assert torch.equal(run.starts("one"), found[:6])
    given = images(6, seed=3)
    assert made(net, x, norm=norm, start=given).starts("one") is given


def test_linf_starts_are_uniform_in_the_cube_and_l2_starts_are_on_the_sphere():
    x = images(400, low=0.3, high=0.7)
    change = (made(Net(), x, eps=0.2).starts("s") - x) / 0.2
    assert -1 <= change.min() < -0.99 and 0.99 < change.max() <= 1.0001
    # 4800 numbers, each of variance 1 / 3; the bounds are five standard errors
    assert abs(float(change.mean())) < 5 / math.sqrt(3 * 4800)
    assert abs(float((change**2).mean()) - 1 / 3) < 5 * math.sqrt(4 / 45 / 4800)
    start = made(Net(), x, norm="L2", eps=0.2).starts("s")
    torch.testing.assert_close(
        distances(x, start, "L2"), torch.full((400,), 0.2, dtype=torch.float64), rtol=1e-5, atol=0
    )
    means = (start - x).mean(0)  # no pixel has a preferred sign
    assert means.abs().max() < 5 * 0.2 / math.sqrt(12 * 400)
    assert float(made(Net(), images(50).round(), eps=0.2).starts("s").amin()) == 0  # cut at the edge of [0, 1]


def test_a_multi_targeted_attack_starts_anew_for_each_of_the_nearest_classes():
    net, x = Net(), images(8)
    run = made(net, x, eps=1e-4, max_iter=1)
    ADAPTIVE["multi_targeted"](run, {"targets": 3})
    assert [len(a) for a in net.asked] == [8] * 7  # the clean images; for each class its start and one step
    starts = [net.asked[1], net.asked[3], net.asked[5]]
    assert len(torch.cat(starts).unique(dim=0)) == 24
    with torch.no_grad():
        logits = net.layers(x)
    order = logits.argsort(1, descending=True)[:, 1:]  # the label comes first
    for k, (start, step) in enumerate(zip(starts, net.asked[2::2], strict=True)):
        leaf = start.clone().requires_grad_()
        z = net.layers(leaf)
        (z.gather(1, order[:, k : k + 1]) - z.gather(1, run.y[:, None])).sum().backward()
        expected = (start + 2e-4 * leaf.grad.sign()).clamp(x - 1e-4, x + 1e-4).clamp(0, 1)
        torch.testing.assert_close(step, expected, rtol=0, atol=1e-6)


def test_a_targeted_attack_knows_the_margins_of_the_clean_images_unless_the_network_is_random():
    for random in (False, True):
        run = made(Net(), images(4), kind=Passes, random=random)
        ADAPTIVE["multi_targeted"](run, {"targets": 1, "eot_iter": 1})
        torch.testing.assert_close(run.margin.isinf(), torch.full((4,), random))


@pytest.mark.parametrize(("targets", "passes"), [(1, 1), (4, 4), (9, 4)])
def test_there_are_no_more_targets_than_other_classes(targets, passes):
    net = Net()
    ADAPTIVE["multi_targeted"](made(net, images(2), eps=1e-4, max_iter=1), {"targets": targets})
    assert len(net.asked) == 1 + 2 * passes


class Passes(AttackRun):
    """It takes no steps. It notes each pass with its loss and margin at the clean images, and moves the images a little."""

    def maximize(self, objective, start, *, deployed=True):
        answer = objective(self.x, self.all_rows(), step=0)
        self.passes = [*getattr(self, "passes", []), (start.clone(), deployed, answer)]
        self.image = self.image + 1e-3
        return start + 1e-2 * len(self.passes)


def losses(run, bits):
    """Minus the margin of the network at the clean images, with activations of ``bits``, or of none."""
    first, _, last = run.module.layers[1:]
    with torch.no_grad():
        hidden = first(run.x.flatten(1)).clamp(0, 1)
        levels = 2**bits - 1 if bits else 1
        return -logit_margin(last((hidden * levels).round() / levels if bits else hidden), run.y)


@pytest.mark.parametrize(("name", "options"), [("full_precision", {}), ("bits", {"bits": [1, 2, 4]})])
def test_after_a_pass_on_another_network_comes_one_on_the_deployed_network_from_there(name, options):
    run = made(Net(bits=3), images(4), kind=Passes)
    ADAPTIVE[name](run, options)
    (start, first, other), (again, second, own) = run.passes
    assert (first, second) == (False, True)
    torch.testing.assert_close(again, start + 1e-2)
    assert not torch.equal(start, run.x)
    mean = torch.stack([losses(run, bits) for bits in options.get("bits", [0])]).mean(0)
    torch.testing.assert_close(other.loss, mean)
    torch.testing.assert_close(own.loss, losses(run, 3))
    assert other.margin is None
    torch.testing.assert_close(own.margin, -own.loss)


def test_joint_passes_weigh_the_network_against_its_twin_and_start_from_the_best_images_so_far():
    run = made(Net(bits=3), images(4), kind=Passes)
    ADAPTIVE["joint"](run, {"weights": [0.2, 0.5, 0.9]})
    expected = [run.starts("joint"), run.x + 1e-3, run.x + 2e-3]
    for (start, deployed, answer), wanted, weight in zip(run.passes, expected, [0.2, 0.5, 0.9], strict=True):
        torch.testing.assert_close(start, wanted)
        torch.testing.assert_close(answer.loss, weight * losses(run, 3) + (1 - weight) * losses(run, 0))
        torch.testing.assert_close(answer.margin, -losses(run, 3))
        assert deployed


def test_surrogate_passes_start_from_the_best_images_so_far_and_targeted_ones_at_random():
    run = made(Net(bits=3), images(4), kind=Passes)
    ADAPTIVE["surrogates"](run, {"kinds": ["as-is", "identity"], "targets": 2})
    targeted = [f"{fresh}target {index}" for fresh in ("", "fresh ") for _ in range(2) for index in range(2)]
    expected = [run.starts("surrogates"), run.x + 1e-3, *map(run.starts, targeted)]
    assert [deployed for _, deployed, _ in run.passes] == [True] * len(expected)
    for (start, *_), wanted in zip(run.passes, expected, strict=True):
        torch.testing.assert_close(start, wanted)


# --- What is kept


def test_the_point_of_the_lowest_margin_is_kept_for_each_image():
    run = made(Net(), images(4))
    points = [images(3, seed=s) for s in (1, 2, 3)]
    rows = torch.tensor([3, 0, 2])
    assert run.record(rows, points[0], torch.tensor([0.5, -0.1, 0.0])).tolist() == [True, False, True]
    assert run.robust_rows().tolist() == [1, 2, 3]  # a tie of two logits breaks nothing
    # Whether an image is broken is about these points and not about the best ones. The first of two equal margins stays.
    assert run.record(rows, points[1], torch.tensor([0.4, 0.3, 0.0])).tolist() == [True, True, True]
    assert torch.equal(run.image[2], points[0][2])
    run.record(rows, points[2], torch.tensor([0.45, torch.nan, -0.2]))
    assert torch.equal(run.image, torch.stack([points[0][1], run.x[1], points[2][2], points[1][0]]))
    torch.testing.assert_close(run.margin, torch.tensor([-0.1, torch.inf, -0.2, 0.4]))
    assert run.robust_rows().tolist() == [1, 3]


@pytest.mark.parametrize(("noise", "finished"), [(1e-3, True), (30.0, False)])
def test_an_image_of_a_random_network_is_finished_once_its_draws_are_clearly_wrong(noise, finished):
    net, x = Net(noise=noise), images(6)
    with torch.no_grad():
        wrong = (net.layers(x).argmax(1) + 1) % CLASSES
    run = made(net, x, y=wrong, random=True, eps=1e-4)
    run.maximize(direct(net, run.y, margin_loss(run.y)), x)
    assert (len(run.robust_rows()) == 0) is finished
    asked = len(net.asked)
    run.maximize(direct(net, run.y, margin_loss(run.y)), x)
    assert (len(net.asked) == asked) is finished
    assert made(net, x, random=True, eps=1e-4).robust_rows().tolist() == list(range(6))


def test_an_image_that_one_draw_in_many_gets_right_is_not_finished():
    run = made(Net(), images(3), random=True)
    few = iter([1.0, *[-1.0] * 15])

    class Draws(nn.Module):
        def forward(self, x):
            margin = torch.tensor([[-5.0], [-5.0 if len(x) else 0.0], [next(few)]])  # the last is right once
            return torch.cat([margin, torch.zeros(3, CLASSES - 1)], 1)

    run.module, run.y = Draws(), torch.zeros(3, dtype=torch.long)
    run.maximize(lambda points, rows, **_: direct(Net(), run.y, margin_loss(run.y))(points, rows, step=0), run.x)
    assert run.robust_rows().tolist() == [2]


def test_a_point_at_which_every_draw_is_wrong_is_kept_though_another_has_a_lower_mean():
    run = made(Net(), images(1), random=True)
    draws = iter([1.0, *[-10.0] * 15, *[-1.0] * 16])

    class Draws(nn.Module):
        def forward(self, x):
            return torch.tensor([[next(draws), *[0.0] * (CLASSES - 1)]])

    run.module, run.y = Draws(), torch.zeros(1, dtype=torch.long)
    for point, finished in ((run.x + 0.01, False), (run.x + 0.02, True)):
        run.judge(run.all_rows(), point)
        assert torch.equal(run.image, point)
        assert bool(run.broken.all()) is finished


def test_a_pass_sees_robust_images_in_batches_and_leaves_the_others_at_their_start():
    net, x = Net(), images(7)
    run = made(net, x, batch_size=2, max_iter=4, eps=1e-4)
    broken = torch.tensor([1, 4])
    run.record(broken, x[broken], torch.tensor([-1.0, -1.0]))
    start = run.starts("s")
    reached = run.maximize(direct(net, run.y, margin_loss(run.y)), start)
    assert [len(a) for a in net.asked] == [2] * 5 + [2] * 5 + [1] * 5
    assert torch.equal(reached[[1, 4]], start[[1, 4]])
    left = [0, 2, 3, 5, 6]
    assert torch.equal(torch.cat([net.asked[0], net.asked[5], net.asked[10]]), start[left])
    assert torch.equal(run.image[[1, 4]], x[[1, 4]])
    margins = logit_margin(net.layers(run.image), run.y).detach()
    torch.testing.assert_close(run.margin[left], margins[left])
    assert (distances(x, reached, "Linf") > 0).all()


@pytest.mark.parametrize("knows", [True, False])
def test_a_pass_on_another_network_keeps_no_point(knows):
    net, x = Net(), images(4)
    run = made(net, x, eps=1e-3)
    objective = direct(net, run.y, margin_loss(run.y), deployed=knows)
    reached = run.maximize(objective, run.starts("s"), deployed=False)
    assert torch.equal(run.image, x) and run.margin.isinf().all()
    with torch.no_grad():
        before, after = (logit_margin(net.layers(p), run.y) for p in (run.starts("s"), reached))
    assert (after < before).all()


def test_points_of_a_random_network_are_chosen_on_16_draws_that_no_step_used():
    net, x = Net(noise=0.3), images(6)
    run = made(net, x, random=True, max_iter=2, eps=0.02, batch_size=3)
    ADAPTIVE["eot"](run, {"eot_iter": 2})
    steps = 2 * (2 + 8) + 8  # two gradients of two draws and three losses
    assert len(net.drawn) == 2 * (steps + 16)
    used = {str(d.tolist()) for d in net.drawn[:steps]}
    chosen = net.drawn[steps : steps + 16]
    assert len({str(d.tolist()) for d in chosen}) == 16 and used.isdisjoint(str(d.tolist()) for d in chosen)
    assert all(torch.equal(a, b) for a, b in zip(chosen, net.drawn[-16:], strict=True))  # the same for all candidates
    with torch.no_grad():
        mean = torch.stack([logit_margin(net.layers(run.image + 0.3 * d), run.y) for d in chosen]).mean(0)
    torch.testing.assert_close(run.margin, mean)


def test_an_attack_on_a_random_network_never_ends_worse_than_its_given_start():
    net, x = Net(noise=0.3), images(6)
    with torch.no_grad():
        y = net.layers(x).argmax(1)
    start = made(net, x, y=y).starts("elsewhere")
    run = made(net, x, y=y, random=True, start=start)
    before = run.margin.clone()
    assert before.isfinite().all() and torch.equal(run.image, start)
    run.record(run.all_rows(), x, before + 1)
    assert torch.equal(run.image, start) and torch.equal(run.margin, before)
    assert made(net, x, y=y, random=True).margin.isinf().all()
    assert made(net, x, y=y, start=start).margin.isinf().all()  # a deterministic network is asked by the first pass


def test_a_step_of_a_quarter_of_eps_in_a_pixel():
    x = images(2)
    assert made(Net(), x, eps=0.2).pixel_step() == pytest.approx(0.05)
    change = torch.full((1, 1, 3, 4), made(Net(), x, norm="L2", eps=0.2).pixel_step())
    assert float(distances(torch.zeros(1, 1, 3, 4), change, "L2")) == pytest.approx(0.05)


@pytest.mark.parametrize(("noise", "expected"), [(0.0, False), (1e-6, False), (1e-2, True)])
def test_a_network_is_random_if_two_seeds_give_other_answers(noise, expected):
    net = Net(noise=noise)
    assert answers_at_random(net, images(20), 0) is expected
    assert [len(a) for a in net.asked] == [8, 8]
