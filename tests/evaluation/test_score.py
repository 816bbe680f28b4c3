"""Judging adversarial images: legality to the last pixel, independent draws, and what the probe measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import Threat, metrics
from art_qplugins.errors import InputError
from art_qplugins.evaluation.score import IllegalImage, check_legal, on_grid, over_images, score
from art_qplugins.gradients.measure import measure
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import StochasticQuantizer, quantize
from art_qplugins.recipes.schema import SCORE_DRAWS
from art_qplugins.seeds import derive_seed

# --- Legal images

X = torch.full((3, 2, 4, 4), 0.5)


def moved(norm, amount):
    """X with its second image moved by exactly ``amount`` in ``norm``."""
    x_adv = X.clone()
    if norm == "Linf":
        x_adv[1, 0, 0, 0] += amount
    elif norm == "L2":
        x_adv[1, 0, 0, :3] += amount / 3**0.5
    elif norm == "L1":
        x_adv[1, 0, 0, :2] += amount / 2
    else:
        x_adv[1, :, 0, : int(amount)] += 0.1  # both channels of a pixel count once
    return x_adv


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.3), ("L1", 0.4), ("L0", 3.0)])
def test_an_image_on_the_edge_is_legal_and_its_distance_is_returned(norm, eps):
    distance = check_legal(X, moved(norm, eps), Threat(norm, eps))
    torch.testing.assert_close(distance, torch.tensor([0, eps, 0], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("norm", "eps", "excess"), [("Linf", 0.1, 1e-5), ("L2", 0.3, 1e-5), ("L1", 0.4, 1e-5), ("L0", 3.0, 1)]
)
def test_an_image_just_outside_is_refused_with_its_place_and_distance(norm, eps, excess):
    with pytest.raises(IllegalImage, match=rf"^image 1 is .* away in {norm}, more than eps = {eps:g}$"):
        check_legal(X, moved(norm, eps + excess), Threat(norm, eps))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1", "L0"])
@pytest.mark.parametrize("all_of_it", [True, False])
def test_no_distance_from_odd_clean_images_is_small_enough(norm, value, all_of_it):
    x = torch.full_like(X, value) if all_of_it else X.clone()
    x[1, 0, 0, 0] = value
    for clean, adversarial in ((x, X), (X, x), (x, x)):
        with pytest.raises(IllegalImage, match=r"not finite|outside"):
            check_legal(clean, adversarial, Threat(norm, 30.0))


def test_no_images_are_not_legal():
    with pytest.raises(IllegalImage):
        check_legal(X[:0], X[:0], Threat("Linf", 0.1))


@pytest.mark.parametrize("label", [-1, 2, 100])
def test_a_label_without_an_output_is_refused_and_not_counted_as_broken(label):
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(InputError, match=f"label {label} is none of the 2 classes of Sequential"):
        score(module, X, torch.tensor([0, label, 1]), seed=0)


def test_rounding_of_float32_is_no_violation():
    """x + eps and x - eps, rounded, are up to half an ulp of 1 further than eps."""
    x = torch.rand(200, 1, 8, 8) * 0.8 + 0.1
    for eps in (8 / 255, 0.05, 0.1):
        x_adv = x + eps * (torch.rand_like(x) < 0.5).float().mul(2).sub(1)
        assert ((x_adv.double() - x.double()).abs() > eps).any()
        check_legal(x, x_adv, Threat("Linf", eps))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:2], "shape (2, 2, 4, 4) for images (3, 2, 4, 4)"),
        (lambda x: x[:, :1], "shape (3, 1, 4, 4)"),
        (lambda x: x.index_fill(0, torch.tensor([0, 2]), torch.nan), "2 images are not finite"),
        (lambda x: x.index_fill(0, torch.tensor([1]), torch.inf), "1 images are not finite"),
        (lambda x: x.index_fill(0, torch.tensor([1]), 1 + 1e-5), "[0.5, 1.00001], outside [0, 1]"),
        (lambda x: x.index_fill(0, torch.tensor([1]), -1e-5), "[-1e-05, 0.5], outside [0, 1]"),
    ],
)
def test_what_is_no_image_is_refused(spoil, message):
    with pytest.raises(IllegalImage) as caught:
        check_legal(X, spoil(X.clone()), Threat("Linf", 1.0))
    assert message in str(caught.value)


# --- Judgement


class Linear(nn.Sequential):
    def __init__(self, scale=1.0, nb_classes=2):
        super().__init__(nn.Flatten(), nn.Linear(16, nb_classes))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            self[1].weight.copy_(torch.randn(nb_classes, 16, generator=generator) * scale)
            self[1].bias.zero_()


def images(n=40, seed=0):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_deterministic_model_is_asked_once_and_selects_by_the_same_answer():
    model, x = Linear().eval(), images()
    y = torch.arange(40) % 2
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    verdict = score(model, x, y, seed=0, batch_size=16)
    assert len(calls) == 4  # batches of 16, and the first again, to see whether it answers the same
    with torch.no_grad():
        logits = model(x)
    np.testing.assert_array_equal(verdict["prediction"], logits.argmax(1))
    np.testing.assert_array_equal(verdict["correct"], (logits.argmax(1) == y).double())
    np.testing.assert_array_equal(verdict["selection"], verdict["correct"])
    own, other = logits[range(40), y], logits[range(40), 1 - y]
    np.testing.assert_allclose(verdict["margin"], own - other, rtol=1e-6)
    np.testing.assert_allclose(verdict["loss"], torch.log1p(torch.exp(other - own)), rtol=1e-5)


class Coin(nn.Module):
    """Answers 1 with probability x, 0 otherwise: a stochastic quantizer with one bit, so the truth is known."""

    def __init__(self):
        super().__init__()
        self.coin = StochasticQuantizer(1, alpha=2.0, clip=1.0)

    def forward(self, x):
        answer = self.coin(x.flatten(1)[:, 0])
        return torch.stack([0.5 - answer, answer - 0.5], 1)


def test_a_stochastic_model_is_scored_on_two_independent_sets_of_draws():
    x = torch.full((4000, 1, 4, 4), 0.3)
    y = torch.ones(4000, dtype=torch.int64)
    verdict = score(Coin(), x, y, seed=0, batch_size=5000)
    for fraction in (verdict["correct"], verdict["selection"]):
        np.testing.assert_array_equal(np.round(fraction * SCORE_DRAWS), fraction * SCORE_DRAWS)
        assert abs(fraction.mean() - 0.3) < 4 * (0.21 / 4000 / SCORE_DRAWS) ** 0.5
        assert (
            abs(fraction.var() - 0.21 / SCORE_DRAWS) < 0.15 * 0.21 / SCORE_DRAWS
        )  # binomial: the draws are independent
    assert abs(np.corrcoef(verdict["correct"], verdict["selection"])[0, 1]) < 4 / 4000**0.5
    again = score(Coin(), x, y, seed=0, batch_size=5000)
    np.testing.assert_array_equal(again["correct"], verdict["correct"])
    other = score(Coin(), x, y, seed=1, batch_size=5000)
    assert abs(np.corrcoef(verdict["correct"], other["correct"])[0, 1]) < 4 / 4000**0.5


def test_score_draws_are_as_many_as_asked_and_known_to_the_record():
    x = torch.tensor([0.1, 0.5, 0.9]).repeat(500)[:, None, None, None].expand(-1, 1, 4, 4)
    y = torch.ones(1500, dtype=torch.int64)
    verdict = score(Coin(), x, y, seed=0, batch_size=400, draws=7)
    assert set(verdict["draws"]) == {7}
    np.testing.assert_array_equal(np.round(verdict["correct"] * 7) / 7, verdict["correct"])
    for i, p in enumerate((0.1, 0.5, 0.9)):
        for tries in (1, 2, 5):
            found = metrics.after_tries(verdict["correct"], verdict["draws"], tries)[i::3]
            assert abs(found.mean() - p**tries) < 5 * (p**tries * (1 - p**tries) / 500) ** 0.5
    assert "draws" not in score(Linear().eval(), images(), torch.arange(40) % 2, seed=0, draws=7)


def test_the_scores_of_several_images_have_the_draws_of_all():
    x, y = torch.full((50, 1, 4, 4), 0.5), torch.ones(50, dtype=torch.int64)
    tried = [score(Coin(), x, y, seed=seed, draws=5) for seed in (0, 1, 2)]
    one = over_images(tried)
    assert set(one["draws"]) == {15}
    np.testing.assert_allclose(one["correct"] * 15, sum(part["correct"] for part in tried) * 5)


def frozen_ensemble():
    torch.manual_seed(0)
    network = quantize(ConvNet((1, 8, 8), 3, width=4), activation_bits=2, alpha=2.0).double()
    return StochasticEnsemble(network, 2, frozen=True).eval()


def test_a_frozen_ensemble_is_judged_as_itself(digits):
    """Asked once, with its own noise, whatever the seed of the judge and the order of the images."""
    model, x, y = frozen_ensemble(), digits[1].x()[:40].double(), digits[1].y()[:40] % 3
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    verdict = score(model, x, y, seed=0, batch_size=16)
    assert len(calls) == 4  # as of a network that draws nothing
    assert set(verdict["correct"]) == {0.0, 1.0}
    np.testing.assert_array_equal(verdict["prediction"], model(x).argmax(1))
    order = torch.randperm(40)
    shuffled = score(model, x[order], y[order], seed=1, batch_size=7)
    np.testing.assert_allclose(shuffled["margin"], verdict["margin"][order], rtol=1e-4, atol=1e-5)


def test_a_frozen_ensemble_with_a_layer_that_draws_is_judged_as_random(digits):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn(x.shape)

    verdict = score(
        nn.Sequential(Noisy(), frozen_ensemble()), digits[1].x()[:40].double(), digits[1].y()[:40] % 3, seed=0
    )
    assert not set(verdict["correct"]) <= {0.0, 1.0}


def test_judging_leaves_the_models_own_draws_and_modes_alone():
    model = nn.Sequential(Coin(), nn.Dropout()).train()
    model[0].coin.draw, model[0].coin.call = 5, 2
    before = torch.get_rng_state()
    score(model, images(6), torch.zeros(6, dtype=torch.int64), seed=0)
    assert (model[0].coin.seed, model[0].coin.draw, model[0].coin.call) == (0, 5, 2)
    assert model.training and model[1].training
    assert torch.equal(torch.get_rng_state(), before)


def test_no_two_purposes_share_a_stream():
    seeds = [derive_seed(s, p) for s in range(5) for p in ("attack", "judge", "select", "probe", "directions")]
    assert len(set(seeds)) == 25
    assert all(0 <= s < 2**48 for s in seeds)
    assert derive_seed(0, "attack") == derive_seed(0, "attack")


# --- The probe


class Staircase(torch.autograd.Function):
    """Steps so fine that small moves are unrelated to the slope that is passed back."""

    @staticmethod
    def forward(ctx, z):
        return 5 * torch.sin(1e5 * z)

    @staticmethod
    def backward(ctx, grad):
        return grad


class Shattered(Linear):
    def forward(self, x):
        return Staircase.apply(super().forward(x))


class Smooth(Linear):
    def forward(self, x):
        return super().forward(x).tanh()


def measured(model, step=0.01, n=30):
    model.eval()
    x = images(n)
    with torch.no_grad():
        y = model(x).argmax(1)
    return measure(model, x, y, threat=Threat("Linf", 4 * step), directions=40, seed=0).samples


def test_fidelity_is_one_where_the_gradient_is_the_slope():
    assert (measured(Linear())["fidelity"] > 0.9999).all()
    assert (measured(Smooth(scale=0.3))["fidelity"] > 0.99).all()


def test_fidelity_is_near_zero_where_the_gradient_means_nothing():
    fidelity = measured(Shattered())["fidelity"]
    assert abs(fidelity.mean()) < 0.15
    assert np.quantile(fidelity, 0.9) < 0.5


def test_fidelity_does_not_depend_on_the_scale_of_the_logits_and_the_gradient_of_the_loss_does():
    small, large = measured(Linear()), measured(Linear(scale=1e5))
    np.testing.assert_allclose(large["fidelity"], small["fidelity"], atol=1e-3)
    assert (small["gradient"] > 0).all()
    assert (large["gradient"] == 0).mean() > 0.9


def test_the_gradient_is_that_of_cross_entropy_in_each_image():
    model, x = Linear(nb_classes=3).eval(), images(8)
    y = torch.arange(8) % 3
    gradient = measure(model, x, y, threat=Threat("Linf", 0.1), seed=0).samples
    probability = model(x).softmax(1)
    expected = (probability - nn.functional.one_hot(y, 3)) @ model[1].weight
    np.testing.assert_allclose(gradient["gradient"], expected.abs().amax(1).detach(), rtol=1e-5)


class DetachedInput(Linear):
    def forward(self, x):
        return super().forward(x.detach())  # its parameters still have gradients


class DetachedOutput(Linear):
    def forward(self, x):
        return super().forward(x).detach()


@pytest.mark.parametrize("model", [DetachedInput, DetachedOutput])
def test_a_model_without_a_gradient_measures_zero(model):
    result = measured(model())
    assert (result["gradient"] == 0).all() and (result["fidelity"] == 0).all()


def test_the_probe_takes_the_same_draws_of_a_stochastic_model_at_every_point():
    """With common draws a linear model times a random gain is still linear in x."""

    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.noise = Linear(), StochasticQuantizer(1, clip=1.0)

        def forward(self, x):
            return self.linear(x) * (1 + 3 * self.noise(torch.full((len(x), 1), 0.5)))

    assert (measured(Gain())["fidelity"] > 0.999).all()


class Noisy(nn.Module):
    """Random by the global generator, as somebody's own defence may be: right half of the time."""

    def forward(self, x):
        z = torch.rand(len(x), device=x.device) - 0.5
        return torch.stack([z, -z], 1)


def test_a_module_that_draws_from_the_global_generators_is_scored_as_a_random_one():
    x, y = images(), torch.zeros(40, dtype=torch.int64)
    before = torch.get_rng_state()
    verdict, again = (score(Noisy(), x, y, seed=0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(verdict["correct"], again["correct"])
    assert ((verdict["correct"] > 0) & (verdict["correct"] < 1)).mean() > 0.9
    assert not np.array_equal(verdict["correct"], verdict["selection"])


def test_the_judge_never_sees_more_than_a_batch():
    seen = []
    model = Linear().eval()
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    x, y = images(), torch.zeros(40, dtype=torch.int64)
    score(model, x, y, seed=0, batch_size=16)
    assert max(seen) == 16


def test_rounding_is_relative_to_a_large_budget():
    x = torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64)
    x_adv = x + 20 * (1 + 2e-7) / (3 * 64 * 64) ** 0.5
    check_legal(x, x_adv, Threat("L2", 20.0))
    with pytest.raises(IllegalImage, match="more than eps"):
        check_legal(x, x + 20 * (1 + 2e-6) / (3 * 64 * 64) ** 0.5, Threat("L2", 20.0))


# --- The pixel grid


def _moved(norm, eps, generator, *, grid_images):
    """Clean images and images at up to ``eps`` from them, in float32 as attacks leave them."""
    x = torch.rand((16, 3, 5, 5), generator=generator)
    if grid_images:
        x = (x * 255).round() / 255
    delta = torch.randn(x.shape, generator=generator)
    if norm == "Linf":
        delta = delta.sign() * eps * torch.where(torch.rand(x.shape, generator=generator) < 0.5, 1.0, 0.37)
    else:
        order = {"L2": 2, "L1": 1}[norm]
        delta *= eps / torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)[:, None, None, None]
    return x, (x + delta).clamp(0, 1)


@pytest.mark.parametrize("grid_images", [True, False])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 8 / 255), ("Linf", 0.003), ("Linf", 0.3), ("L2", 0.5), ("L1", 4.0)])
def test_rounded_images_are_legal_and_on_the_grid(norm, eps, grid_images):
    x, x_adv = _moved(norm, eps, torch.Generator().manual_seed(0), grid_images=grid_images)
    threat = Threat(norm, eps)
    rounded = on_grid(x, x_adv, threat, 256)
    check_legal(x, rounded, threat)
    steps = rounded.double() * 255
    off = (steps - steps.round()).abs() > 1e-4
    assert (rounded[off] == x[off]).all()  # only what the data set itself has off the grid
    assert not (off.any() and grid_images)
    assert (rounded - x_adv).abs().max() <= 1 / 255 + 1e-6


def test_rounding_goes_to_the_nearest_level_unless_that_leaves_the_ball():
    x = torch.full((1, 1, 1, 4), 100 / 255)
    x_adv = x + torch.tensor([0.6, 1.6, -1.6, 0.0]) / 255
    assert (on_grid(x, x_adv, Threat("Linf", 2 / 255), 256) * 255).flatten().round().tolist() == [101, 102, 98, 100]
    assert (on_grid(x, x_adv, Threat("Linf", 1.7 / 255), 256) * 255).flatten().round().tolist() == [101, 101, 99, 100]


def test_an_image_on_the_grid_stays_as_it_is():
    x = torch.arange(256).view(1, 1, 16, 16) / 255
    x_adv = x.flip(-1)
    for norm, eps in (("Linf", 1.0), ("L2", 16.0), ("L1", 256.0), ("L0", 256.0)):
        assert torch.equal((on_grid(x, x_adv, Threat(norm, eps), 256) * 255).round(), (x_adv * 255).round())


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize(("clean", "levels"), [(0.0, 101), (1.0, 256)])
def test_where_one_pixel_leaves_the_ball_those_on_their_level_stay_there(norm, clean, levels):
    """A level in float32 may be just below or above itself. None of these may be one level nearer to the clean image."""
    scale, order = levels - 1, {"L2": 2, "L1": 1}[norm]
    level = torch.arange(levels)
    inexact = (level / scale).double() * scale - level
    assert (inexact < 0 if clean == 0 else inexact > 0).any()
    # The last pixel is 0.1 of a level from the level furthest away, so that its nearest level is further than eps.
    last = abs(scale - 0.1 - clean * scale)
    x = torch.full((1, 1, 1, levels + 1), clean)
    x_adv = (torch.cat([level, torch.tensor([last])]) / scale).view(x.shape)
    threat = Threat(norm, float(torch.linalg.vector_norm(x_adv.double() - x.double(), ord=order)))
    rounded = (on_grid(x, x_adv, threat, levels) * scale).flatten()
    torch.testing.assert_close(rounded, torch.cat([level, torch.tensor([abs(scale - 1 - clean * scale)])]).float())


def test_in_l0_no_further_pixel_is_changed_by_rounding():
    x, x_adv = torch.rand(2, 1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    x_adv[..., 1:, :] = x[..., 1:, :]
    check_legal(x, on_grid(x, x_adv, Threat("L0", 6), 256), Threat("L0", 6))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("levels", "below"), [(2, 1e-5), (5, 1e-5), (5, 2e-6), (17, 5e-6), (256, 3e-6)])
def test_a_pixel_just_below_a_level_is_not_rounded_out_of_the_ball(levels, below, sign):
    """It is as far away as eps allows, and the level is further."""
    step = 1 / (levels - 1)
    x = torch.full((1, 1, 1, 2), 0.5 - sign * 0.2 * step, dtype=torch.float64)
    level = step * ((levels // 2) if sign > 0 else (levels - 1) // 2)
    x_adv = x.clone()
    x_adv[..., 0] = level - sign * below
    threat = Threat("Linf", float((x_adv - x).abs().max()))
    check_legal(x, x_adv, threat)
    rounded = on_grid(x, x_adv, threat, levels)
    check_legal(x, rounded, threat)
    assert torch.equal(rounded[..., 1], x[..., 1])


@pytest.mark.parametrize("levels", [256, 4096, 65536])
def test_pixels_on_a_fine_grid_stay_on_their_levels(levels):
    """In float32, whose rounding is a good part of a level at 65,536 of them."""
    level = torch.arange(3, levels - 1, 37, dtype=torch.float64)
    x_adv = (level / (levels - 1)).float().view(1, 1, 1, -1)
    x = x_adv - 2.3 / (levels - 1)
    x_adv[..., -1] += 0.6 / (levels - 1)  # rounded up, this one takes the image out of the ball
    threat = Threat("L1", float((x_adv.double() - x.double()).abs().sum()))
    found = (on_grid(x, x_adv, threat, levels).double() * (levels - 1)).round().flatten()
    assert torch.equal(found[:-1], level[:-1])


def test_the_confidence_is_the_probability_of_the_prediction(mu_law, digits):
    from art_qplugins.evaluation.score import score

    x, y = digits[1].take(20, seed=0).x(), digits[1].take(20, seed=0).y()
    found = score(mu_law, x, y, seed=0)
    with torch.no_grad():
        probabilities = mu_law(x).double().softmax(1)
    assert found["confidence"] == pytest.approx(probabilities.max(1).values.numpy())
