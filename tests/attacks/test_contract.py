"""Every attack of the libraries: the same contract for all, the worst point that none can pass, and what it costs."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from catalogue_nets import (
    COLOUR,
    EPS,
    LIBRARY_WARNINGS,
    SLOW,
    USABLE,
    bent,
    cases,
    example,
    fast,
    linear,
    margin,
    worst_margin,
)
from torch import nn

from art_qplugins import ATTACKS, Threat
from art_qplugins.attacks.adapters.options import within
from art_qplugins.attacks.craft import craft
from art_qplugins.evaluation.score import check_legal

pytestmark = LIBRARY_WARNINGS

# --- The contract


@pytest.mark.parametrize(("name", "norm"), cases(USABLE))
def test_images_are_legal_and_repeatable_and_all_else_is_as_before(name, norm):
    estimator, x, y = example(name)
    threat, model = Threat(norm, EPS[norm]), estimator.model
    dropout = next(m for m in model.modules() if isinstance(m, nn.Dropout))
    dropout.train()  # Monte-Carlo dropout: train mode inside an eval root
    next(model.parameters()).requires_grad_(False)
    images, labels = x.clone(), y.clone()
    found = []
    for noise in (41, 99):  # only the seed that is passed counts
        torch.manual_seed(noise)
        np.random.seed(noise)
        random.seed(noise)
        before = state(model)
        found.append(craft(estimator, name, x, y, threat=threat, options=fast(name), seed=7, batch_size=3))
        assert state(model) == before
        assert dropout.training
    first, again = found
    assert first.x_adv.dtype == torch.float32 and not first.x_adv.requires_grad
    check_legal(x, first.x_adv, threat)
    assert torch.equal(first.x_adv, again.x_adv)
    assert torch.equal(x, images) and torch.equal(y, labels)
    asked = first.forward_samples, first.backward_samples
    assert asked == (again.forward_samples, again.backward_samples)
    needs = ATTACKS[name].needs
    assert (asked[1] > 0) == (needs == "gradients")
    assert asked[0] > 0 or needs == "nothing"


def state(model):
    """What others change and do not put back."""
    return {
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad is None for p in model.parameters()],
        "weights": [p.sum().item() for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "trace": sys.gettrace(),
        "grad_enabled": torch.is_grad_enabled(),
    }


# --- Oracle: z = W x + b on grey images, whose worst point within a budget is known in closed form

PLAIN = [
    name
    for name, row in USABLE.items()
    if row.models == "any" and not row.quantized and name not in COLOUR and name != "artq:unsaturated"
]


@pytest.mark.parametrize(("name", "norm"), cases(PLAIN))
def test_no_attack_gets_below_the_worst_point(name, norm):
    estimator, x, y = linear()
    threat = Threat(norm, {"Linf": 0.02, "L2": 0.08, "L1": 0.25, "L0": 2}[norm])
    crafted = craft(estimator, name, x, y, threat=threat, options=fast(name))
    worst = worst_margin(estimator.model, x, y, norm, threat.eps)
    assert (margin(estimator.model, crafted.x_adv, y) >= worst - 1e-4).all()


#: Those that find the nearest adversarial image beyond a plane, at their defaults, up to this factor.
NEAREST = [
    ("art:deepfool", "L2", 1.02),
    ("art:cw-l2", "L2", 1.5),
    pytest.param("art:cw-linf", "Linf", 1.5, marks=pytest.mark.slow),
    ("torchattacks:deepfool", "L2", 1.05),
    ("torchattacks:fab", "Linf", 1.1),
    ("torchattacks:fab", "L2", 1.1),
    ("torchattacks:cw", "L2", 2.0),
    ("autoattack:fab", "L2", 1.05),
    ("autoattack:fab", "L1", 1.1),
    ("foolbox:deepfool", "Linf", 1.05),
    ("foolbox:deepfool", "L2", 1.05),
    ("foolbox:fmn", "Linf", 1.1),
    ("foolbox:fmn", "L1", 1.2),
    ("foolbox:ddn", "L2", 1.1),
    ("art:hop-skip-jump", "L2", 2.0),
]


@pytest.mark.parametrize(("name", "norm", "factor"), NEAREST)
def test_a_minimum_norm_attack_is_found_within_the_budget_or_not_at_all(name, norm, factor):
    """Just above the distance of the boundary every image is found, just below it none, and those come back clean."""
    estimator, x, y = bent()
    distances = torch.stack([boundary(estimator.model, x, y, norm, i) for i in range(len(x))])
    above, below = Threat(norm, float(distances.max()) * factor), Threat(norm, float(distances.min()) * 0.98)
    broken = craft(estimator, name, x, y, threat=above)
    assert (margin(estimator.model, broken.x_adv, y) < 0).all()
    left = craft(estimator, name, x, y, threat=below)
    assert (margin(estimator.model, left.x_adv, y) > 0).all()
    if ATTACKS[name].minimum_norm:
        assert torch.equal(left.x_adv, x)


def boundary(model, x, y, norm, i):
    """The distance of image i from the nearest other class, by bisection of the closed form."""
    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        stands = float(worst_margin(model, x[i : i + 1], y[i : i + 1], norm, middle)) > 0
        low, high = (middle, high) if stands else (low, middle)
    return torch.tensor(high)


# --- Costs


FIXED = [
    name
    for name in PLAIN
    if ATTACKS[name].needs == "gradients"
    and not ATTACKS[name].minimum_norm
    and name
    not in (
        *("art:uap", "artq:surrogates", "artq:worst-case"),
        *("autoattack:standard", "autoattack:plus", "autoattack:fab"),
    )
]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW or ATTACKS[n].cost[0] > 400 else ()) for n in FIXED],
)
def test_the_cost_of_an_image_that_stands_is_what_the_row_says(name):
    estimator, x, _ = linear(bias=5.0)
    y = torch.zeros(len(x), dtype=torch.int64)
    norm = ATTACKS[name].norms[0]
    crafted = craft(estimator, name, x, y, threat=Threat(norm, {"Linf": 0.01, "L2": 0.05, "L1": 0.1}[norm]))
    assert (margin(estimator.model, crafted.x_adv, y) > 0).all()
    gradients, forwards = ATTACKS[name].cost
    assert crafted.backward_samples / len(x) == gradients
    assert crafted.forward_samples / len(x) == pytest.approx(forwards, abs=1)  # its last check is of the first image


# --- What counts as found


def test_within_keeps_what_is_within_the_budget_and_nothing_else():
    x = torch.full((7, 1, 2, 2), 0.5)
    moved = x.clone()
    moved[0] += 0.1  # at the budget in Linf
    moved[1] += 0.2  # beyond it
    moved[2, 0, 0, 0] = torch.nan
    moved[3, 0, 0, 0] = 1.01
    moved[4] += 5e-7  # rounding
    moved[5, 0, 0, 0] = torch.inf
    kept = within(x, moved, Threat("Linf", 0.11))
    assert torch.equal(kept[0], moved[0])
    for i in range(1, 7):
        assert torch.equal(kept[i], x[i]), i


def test_within_counts_pixels_in_l0_whatever_their_channels_and_not_what_rounding_moved():
    x = torch.full((2, 3, 2, 2), 0.5)
    moved = x + 5e-7
    moved[0, :, 0, 0] = 1.0  # one pixel, three values
    moved[1, 0, 0, 0] = moved[1, 1, 1, 1] = 1.0  # two pixels
    kept = within(x, moved, Threat("L0", 1))
    assert int((kept[0] != x[0]).sum()) == 3
    assert torch.equal(kept[1], x[1])


def test_a_network_of_children_is_seen_and_counted_where_art_rebuilds_the_classifier():
    """ART's wrapper runs the children of a Sequential one by one."""
    estimator, x, y = linear()
    assert isinstance(estimator.model, nn.Sequential)
    for name in ("art:apgd-ce", "art:acg-dlr", "art:reacg-ce"):
        crafted = craft(
            estimator, name, x, y, threat=Threat("Linf", 1e-3), options={"max_iter": 3, "num_random_init": 1}
        )
        assert crafted.backward_samples == 3 * len(x), name
        assert np.isfinite(crafted.path["path_best"]).all()
