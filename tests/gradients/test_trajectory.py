"""The iterates of an attack are recognized in any order, and tracking them changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import QuantizedClassifier
from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.trajectory import Path, progress, tracking
from art_qplugins.guard import isolated
from art_qplugins.threat import Threat

LINF = Threat("Linf", 0.1)


def linear():
    """Two classes; the margin of class 0 is 2 (sum of the pixels - 8)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 16))
        model[1].bias.copy_(torch.tensor([-8.0, 8.0]))
    return model


def images(n=20):
    """Sums of about 8.5: within 0.1 a pixel of either answer."""
    x = torch.rand(n, 1, 4, 4) * 0.5 + 0.25
    x += ((8.5 - x.flatten(1).sum(1)) / 16)[:, None, None, None]
    return x, torch.zeros(n, dtype=torch.long)


def noise(x, eps=0.1):
    return (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)


def test_batches_in_any_order_are_assigned_to_their_images():
    model, (x, y) = linear(), images()
    expected = [[] for _ in x]
    orders = [
        torch.arange(0, 8),  # batches in order
        torch.arange(8, 16),
        torch.arange(16, 20),
        torch.arange(0, 8),  # again
        torch.arange(20),  # at once
        torch.tensor([3, 1, 7, 19, 2]),  # shrunk and mixed
        torch.tensor([3, 1, 7, 19]),
        torch.arange(5).repeat_interleave(4),  # repeated, in a length that was another batch before
        torch.randperm(20),
    ]
    with tracking(model, x, y, LINF) as path:
        for rows in orders:
            points = noise(x[rows])
            for row, m in zip(rows.tolist(), logit_margin(model(points), y[rows]).tolist(), strict=True):
                expected[row].append(m)
    for seen, margins in zip(path.margins(), expected, strict=True):
        assert seen.tolist() == margins
    assert path.best_margin.tolist() == [min(m) for m in expected]
    assert path.last.tolist() == [m[-1] for m in expected]
    assert path.calls.tolist() == [len(m) for m in expected]
    torch.testing.assert_close(logit_margin(model(path.best_image), y), path.best_margin)
    assert not path.one_draw and not model._forward_hooks


def test_of_two_calls_with_the_same_margin_the_first_is_kept():
    model, x, y = linear(), torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.long)
    first, second = x.clone(), x.clone()
    first[:, 0, 0, 0] -= 1 / 16  # steps without rounding
    second[:, 0, 3, 3] -= 1 / 16
    with tracking(model, x, y, LINF) as path:
        model(first)
        model(second)
    assert path.best_margin.tolist() == path.last.tolist() == [-1 / 8] * 3
    assert torch.equal(path.best_image, first)


@pytest.mark.parametrize("threat", [LINF, Threat("L2", 0.3), Threat("L1", 1.0), Threat("L0", 2)])
def test_illegal_iterates_do_not_count(threat):
    model, (x, y) = linear(), images()
    with tracking(model, x, y, threat) as path:
        model(x + 0.4)
        model(x - 0.4)
        assert not path.calls.any()
        step = torch.zeros_like(x)
        step[:, 0, 0, 0] = 0.09
        model(x - step)
        far = x.clone()
        far[::2] += 0.4  # half of a batch is legal
        model(far)
    assert path.calls.tolist() == [1, 2] * 10
    torch.testing.assert_close(path.best_margin, logit_margin(model(x - step), y))
    never = Path(x, y, threat, one_draw=False)
    assert torch.equal(never.best_image, x) and all(
        np.isnan(never.measures()[k]).all() for k in ("path_best", "path_last")
    )


def test_an_attack_that_returns_its_last_iterate_and_not_its_best_is_silent():
    model, (x, y) = linear(), images()
    with tracking(model, x, y, LINF) as path:
        for step in (0.02, 0.09, 0.0):
            model((x - step).clamp(0, 1))
        returned = x.clone()
    assert path.silent(logit_margin(model(returned), y)).all()
    assert (logit_margin(model(path.best_image), y) < 0).all()
    assert not path.silent(logit_margin(model(path.best_image), y)).any()
    assert (path.measures()["path_best"] < 0).all() and (path.measures()["path_last"] > 0).all()


def test_progress_is_the_share_of_the_fall_that_the_end_makes():
    assert progress(np.linspace(1, 0, 101)) == pytest.approx(0.1)  # the last ten steps of a hundred
    assert progress(np.r_[np.linspace(1, 0, 50), np.zeros(50)]) == 0
    assert progress(np.r_[np.linspace(1, 0, 50), np.linspace(0, 0.9, 50)]) == 0  # its minimum stays
    assert progress(5 + 1e-7 * np.linspace(1, 0, 100)) == 0  # flat
    assert progress(1e-20 * np.linspace(1, 0, 101)) == pytest.approx(0.1)  # small is not flat
    assert progress(np.array([1.0, 0.5, 0.0, 0.0, 0.0])) == 0
    assert np.isnan(progress(np.array([1.0])))


@pytest.mark.parametrize("attack", ["art:pgd", "torchattacks:pgd", "autoattack:apgd-ce"])
def test_libraries_are_followed_and_give_the_same_images(attack, fp32, digits):
    x, y = digits[1].x()[:50], digits[1].y()[:50]
    estimator = QuantizedClassifier(fp32, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
    threat, row = Threat("Linf", 0.15), ATTACKS[attack]
    options = row.resolve({} if attack.startswith("auto") else {"max_iter": 5})

    def run():
        with isolated(fp32, 3):
            return row.load()(estimator, row, x, y, threat=threat, options=dict(options), batch_size=20, seed=3)

    alone = run()
    with tracking(fp32, x, y, threat) as path:
        seen = run()
    assert torch.equal(seen, alone)
    right = fp32(x).argmax(1) == y  # AutoAttack leaves the others alone
    assert (path.calls[right] >= 5).all() and (path.calls >= 1).all()
    returned = logit_margin(fp32(seen), y)
    if not attack.startswith("torchattacks"):  # which never asks about its last iterate
        assert (path.best_margin <= returned + 1e-4).all()
    torch.testing.assert_close(logit_margin(fp32(path.best_image), y), path.best_margin, rtol=1e-4, atol=1e-4)


def test_margins_of_a_random_module_are_of_one_draw(stochastic, digits):
    x, y = digits[1].x()[:10], digits[1].y()[:10]
    with tracking(stochastic, x, y, LINF) as path:
        stochastic(x)
    assert path.one_draw and (path.calls == 1).all()


def test_the_hook_is_gone_after_an_exception_and_odd_calls_are_passed_over():
    model, (x, y) = linear(), images()
    with tracking(model, x, y, LINF) as path:
        model(x[:, 0])  # no batch of images
        model(x[:0])
        with pytest.raises(RuntimeError):
            model(x[:, :, :3])
    assert not model._forward_hooks and not path.calls.any()

    def failing():
        with tracking(model, x, y, LINF):
            raise KeyError("attack")

    with pytest.raises(KeyError):
        failing()
    assert not model._forward_hooks
