"""Steps that follow eps, as Kurakin's, and the PGD that begins along random signs, as Defensive Quantization's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import ATTACKS, InputError, Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.cell import cell_id
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.runner.plan import plan

STEPPED = [n for n, row in ATTACKS.items() if {"max_iter", "rel_eps_step"} <= row.options.keys()]


class Slope(nn.Module):
    """Logits (s, -s) of s = the sum of the pixels: the gradient of cross-entropy for label 0 points down everywhere."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.full((1,), 0.01))
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        over = self.slope * x.flatten(1).sum(1, keepdim=True)
        return torch.cat([over, -over], 1)


def crafted(name, eps, x=None, **options):
    x = torch.full((3, 1, 8, 8), 0.5) if x is None else x
    model = Slope()
    estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 2, device_type="cpu")
    y = torch.zeros(len(x), dtype=torch.int64)
    return craft(estimator, name, x, y, threat=Threat("Linf", eps), options=options, seed=3), x, model


@pytest.mark.parametrize(("eps", "steps"), [(0.1, 1), (1, 1), (2, 2), (4, 5), (8, 10), (12, 15), (16, 20), (64, 68)])
def test_the_numbers_of_the_paper(eps, steps):
    """floor(min(eps + 4, 1.25 eps)) steps of 1/255, at least one, and none longer than eps."""
    threat = Threat("Linf", eps / 255)
    found = ATTACKS["art:bim"].at({"steps": "kurakin"}, threat)
    assert found == {"max_iter": steps, "rel_eps_step": pytest.approx(min(1, 1 / eps))}
    assert ATTACKS["art:bim"].check({"steps": "kurakin"}, threat) == found


@pytest.mark.parametrize("name", STEPPED)
def test_every_attack_with_a_number_and_a_size_of_steps_takes_them(name):
    threat = Threat("Linf", 8 / 255)
    if "Linf" in ATTACKS[name].norms:
        resolved = ATTACKS[name].check({"steps": "kurakin"}, threat)
        assert (resolved["max_iter"], resolved["rel_eps_step"]) == (10, pytest.approx(1 / 8))
        assert "steps" not in resolved


@pytest.mark.parametrize(
    ("name", "options", "norm", "expected"),
    [
        ("art:bim", {"steps": "kurakn"}, "Linf", "art:bim: steps: it is 'kurakn'; give"),
        ("art:bim", {"steps": 7}, "Linf", "art:bim: steps: it is 7; a number of steps is called max_iter"),
        ("art:pgd", {"steps": "kurakin"}, "L2", "art:pgd: steps: they count eps in levels of a pixel, in Linf"),
        ("art:fgsm", {"steps": "kurakin"}, "Linf", "art:fgsm: steps: it does not take a number and a size of steps"),
        ("art:bim", {"steps": "kurakin", "max_iter": 3}, "Linf", "art:bim: steps: it sets max_iter too; leave one"),
        ("art:bim", {"steps": "kurakin", "rel_eps_step": 1}, "Linf", "art:bim: steps: it sets rel_eps_step too"),
        ("artq:pgd", {"start": "sign"}, "Linf", "artq:pgd: option start: it is 'sign'"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, norm, expected):
    with pytest.raises(InputError) as caught:
        ATTACKS[name].check(options, Threat(norm, 0.1))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_an_option_that_is_called_steps_keeps_its_meaning():
    assert ATTACKS["artq:substitute"].check({"steps": 3}, Threat("Linf", 0.1))["steps"] == 3


def test_a_recipe_resolves_them_at_each_eps_and_names_the_cells_of_these_numbers():
    def cells(*attacks):
        given = {"name": "r", "data": {"name": "digits"}, "threat": {"eps": ["2/255", "16/255"]}}
        given |= {"models": [{"name": "a"}], "attacks": list(attacks)}
        found = [c for c in plan(parse_recipe(given))[1] if c.role == "attack"]
        return found, {cell_id(c, target="t", source="s", data="d", batch_size=8) for c in found}

    found, ids = cells({"id": "art:pgd", "options": {"steps": "kurakin", "num_random_init": 2}})
    assert [(c.options["max_iter"], c.options["num_random_init"]) for c in found] == [(2, 2), (20, 2)]
    by_hand = (
        {"id": "art:pgd", "eps": [n / 255], "options": {"max_iter": k, "rel_eps_step": 1 / n, "num_random_init": 2}}
        for n, k in ((2, 2), (16, 20))
    )
    assert cells(*by_hand)[1] == ids


# --- artq:pgd


def test_it_starts_at_half_of_eps_along_random_signs():
    """Ten steps of 1/255 down from +-4/255: to -8/255 where it began below, and to -6/255 where it began above."""
    found, x, model = crafted("artq:pgd", 8 / 255, steps="kurakin")
    assert found.options == {
        "max_iter": 10,
        "rel_eps_step": pytest.approx(1 / 8),
        "start": "signs",
        "precision": "float32",
    }
    asked = [255 * (points - x) for points in model.asked[-10:]]
    assert torch.allclose(asked[0].abs(), torch.full_like(x, 4), atol=1e-3)
    assert 0.3 < (asked[0] > 0).float().mean() < 0.7
    ended = 255 * (found.x_adv - x)
    assert torch.allclose(ended, torch.where(asked[0] > 0, -6.0, -8.0), atol=1e-3)
    assert (found.forward_samples, found.backward_samples) == (30, 30)


def test_it_starts_anywhere_in_the_ball_where_nothing_else_is_said():
    found, x, model = crafted("artq:pgd", 0.1, max_iter=1, rel_eps_step=0.5)
    start = model.asked[-1] - x
    assert start.abs().max() <= 0.1 + 1e-6 and len(start.unique()) > 100 and abs(float(start.mean())) < 0.02
    assert torch.allclose(found.x_adv, (x + (start - 0.05).clamp(min=-0.1)).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("start", ["uniform", "signs"])
def test_no_point_leaves_the_images(start):
    _, _, model = crafted("artq:pgd", 0.3, x=torch.rand(3, 1, 8, 8), start=start)
    assert all(points.min() >= 0 and points.max() <= 1 for points in model.asked)


def test_it_returns_its_last_point_and_says_if_an_earlier_one_was_better():
    """Its path is followed, as that of an attack that may return another image than its best."""
    assert crafted("artq:pgd", 0.1)[0].path and not crafted("artq:apgd-margin", 0.1)[0].path


@pytest.mark.parametrize(("gap", "moved"), [(50, (True, True)), (400, (False, True)), (2000, (False, False))])
def test_in_float64_cross_entropy_has_a_gradient_up_to_a_gap_of_745(gap, moved):
    """Logits (0, -g v) with v the mean pixel, about 1: the gradient is g exp(-g v), and 0 where that underflows."""

    class Gap(nn.Module):
        def __init__(self):
            super().__init__()
            self.gap = nn.Parameter(torch.tensor(float(gap)))

        def forward(self, x):
            z = self.gap * x.flatten(1).mean(1)
            return torch.stack([torch.zeros_like(z), -z], 1)

    x, y = torch.ones(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    estimator = QuantizedClassifier(Gap(), nn.CrossEntropyLoss(), (1, 2, 2), 2, device_type="cpu")
    for precision, goes_down in zip(("float32", "float64"), moved, strict=True):
        options = {"precision": precision, "max_iter": 5, "rel_eps_step": 1.0}
        found = craft(estimator, "artq:pgd", x, y, threat=Threat("Linf", 0.01), options=options, seed=0)
        assert found.x_adv.dtype == torch.float32
        # with a gradient all pixels are at the lower end; without one they stay where the random start left them
        assert bool(torch.allclose(found.x_adv, torch.full_like(x, 0.99))) == goes_down
        assert (found.forward_samples, found.backward_samples) == (10, 10)
