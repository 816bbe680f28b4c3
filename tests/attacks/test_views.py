"""Views of a network, and a loss that no scale of the logits saturates."""

from __future__ import annotations

import pytest
import torch
from core_nets import classifier, linear, margin, network, worst_margin
from torch import nn

from art_qplugins import InputError, Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.attacks.views import LogitScale, MarginLoss, median_gap
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.quantizers.functional import straight_through


def test_a_temperature_changes_no_answer_and_divides_the_logits():
    model = network()
    x = torch.rand(50, 1, 8, 8)
    with torch.no_grad():
        logits, scaled = model(x), LogitScale(model, 1e4)(x)
    assert torch.equal(logits.argmax(1), scaled.argmax(1))
    torch.testing.assert_close(scaled * 1e4, logits)


def test_the_attack_sees_the_logits_divided_and_the_model_stays_as_it_was():
    """On a model with logits x 1e4 cross-entropy has no gradient; divided to a gap of 1 it has."""
    estimator, x, y = linear(2)
    with torch.no_grad():
        estimator.model[1].weight *= 1e4
        estimator.model[1].bias *= 1e4
    threat = Threat("Linf", 0.1)
    stuck = craft(estimator, "art:fgsm", x, y, threat=threat)
    freed = craft(estimator, "art:fgsm", x, y, threat=threat, gap=1.0)
    assert (stuck.x_adv == x).flatten(1).all(1).float().mean() > 0.5
    torch.testing.assert_close(
        margin(estimator.model, freed.x_adv, y) / 1e4,
        worst_margin(estimator.model, x, y, "Linf", 0.1) / 1e4,
        atol=2e-5,
        rtol=0,
    )
    assert freed.options["temperature"] == pytest.approx(median_gap(estimator.model, x))
    fixed = craft(estimator, "art:fgsm", x, y, threat=threat, temperature=freed.options["temperature"])
    assert torch.equal(fixed.x_adv, freed.x_adv)


def test_an_attack_on_a_gradient_that_underflows_gets_it_times_a_factor():
    estimator, x, y = linear(3)
    network = estimator.model
    tiny = classifier(nn.Sequential(_Tiny(), network).eval(), nb_classes=3)
    settings = {"threat": Threat("L2", 0.5)}
    stuck, freed, honest = (
        craft(seen, "art:fgsm", x, y, **settings, **scale)
        for seen, scale in ((tiny, {}), (tiny, {"gradient_scale": 2.0**120}), (estimator, {}))
    )
    assert torch.equal(stuck.x_adv, x)
    torch.testing.assert_close(freed.x_adv, honest.x_adv, atol=1e-4, rtol=0)
    assert freed.options["gradient_scale"] == 2.0**120 and "gradient_scale" not in stuck.options


class _Tiny(nn.Module):
    """The images. Their gradient is multiplied by 1e-40."""

    def forward(self, x):
        return straight_through(x, x * 1e-40)


def test_small_logits_are_multiplied_so_that_cross_entropy_follows_the_nearest_class():
    """On a flat softmax cross-entropy goes away from the label towards the mean of all classes."""
    large, x, y = linear(10)
    network = large.model
    small = classifier(LogitScale(network, 1e4).eval())
    settings = {"threat": Threat("Linf", 0.05)}
    flat = craft(small, "art:fgsm", x, y, **settings)
    sharp = craft(small, "art:fgsm", x, y, **settings, gap=5.0)
    assert sharp.options["temperature"] == pytest.approx(median_gap(network, x) / 1e4 / 5)
    broken = [(margin(network, c.x_adv, y) < 0).sum() for c in (flat, sharp)]
    assert broken[1] > broken[0] + 5
    assert (worst_margin(network, x, y, "Linf", 0.05) < 0).sum() >= broken[1]


def test_a_network_whose_top_two_logits_are_equal_has_no_gap_to_change():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    x = torch.rand(4, 1, 8, 8)
    with pytest.raises(InputError, match=r"^gap: the median gap of the top two logits is 0, .*leave gap out"):
        craft(classifier(model), "art:fgsm", x, torch.zeros(4, dtype=torch.long), threat=Threat("Linf", 0.1), gap=5)


def test_median_gap_is_the_median_distance_of_the_top_two():
    class Table(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 1.0, 5.0], [7.0, 7.5, 1.0], [-3.0, -1.0, -9.0]])

    assert median_gap(Table(), torch.zeros(3, 1)) == 2.0  # of 4, 0.5 and 2


def test_median_gap_leaves_a_stochastic_models_stream_alone():
    model = network(stochastic=True)
    x = torch.rand(5, 1, 8, 8)
    state = model.next_draw
    assert median_gap(model, x, seed=3) == median_gap(model, x, seed=3)
    assert model.next_draw == state


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_margin_loss_has_a_gradient_that_no_scale_can_saturate(reduction):
    for scale in (1.0, 1e6):
        logits = (torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 9.0]]) * scale).requires_grad_()
        loss = MarginLoss()
        loss.reduction = reduction
        value = loss(logits, torch.tensor([0, 1]))
        assert value.shape == ((2,) if reduction == "none" else ())
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        expected = torch.tensor([[-1.0, 0.0, 1.0], [0.0, -1.0, 1.0]]) / (2 if reduction == "mean" else 1)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(value.sum(), torch.tensor(3.0 * scale / (2 if reduction == "mean" else 1)))


def test_logit_margin_is_negative_exactly_where_the_answer_is_wrong():
    logits = torch.randn(200, 7)
    y = torch.randint(0, 7, (200,))
    assert torch.equal(logit_margin(logits, y) > 0, logits.argmax(1) == y)


def test_the_median_gap_is_measured_in_batches():
    seen, model = [], nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    x = torch.rand(40, 1, 8, 8)
    assert median_gap(model, x, batch_size=16) == pytest.approx(median_gap(model, x))
    assert seen == [16, 16, 8, 40]
