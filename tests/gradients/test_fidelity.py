"""Fidelity: one where the gradient is the slope, zero where it is not, and the choice of a surrogate by it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from art_qplugins import InputError, quantize
from art_qplugins.gradients.fidelity import best_surrogate, fidelity
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.probe import gradient
from art_qplugins.quantizers import QuantReLU, StochasticQuantizer, TwinGradient, surrogate
from art_qplugins.quantizers.functional import straight_through
from art_qplugins.quantizers.surrogates import SURROGATES, Surrogate


def linear(nb_classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, nb_classes)).eval()


def images(n=30):
    return torch.rand(n, 1, 4, 4), torch.arange(n) % 2


class RandomGradient(nn.Module):
    """Answers as ``network``; its gradient is that of a random linear map."""

    def __init__(self, network):
        super().__init__()
        self.network, self.other = network, linear()

    def forward(self, x):
        return straight_through(self.network(x), self.other(torch.rand_like(x) * x))


def test_it_is_one_for_a_linear_model_and_minus_one_for_its_opposite():
    model, (x, y) = linear(), images()
    found = fidelity(model, x, y, step=0.01)
    assert found.shape == (30,) and found.dtype == torch.float64
    assert (found > 0.9999).all()
    opposite = copy.deepcopy(model)
    with torch.no_grad():
        opposite[1].weight.neg_()
    assert (fidelity(TwinGradient(model, opposite), x, y, step=0.01) < -0.9999).all()


def test_it_is_near_zero_for_a_random_gradient():
    x, y = images(60)
    found = torch.stack([fidelity(RandomGradient(linear()), x, y, step=0.01, seed=s) for s in range(100)])
    assert abs(float(found.mean())) < 0.15  # 100 maps in 16 dimensions, each a cosine of 0 +- 0.25: 0 +- 0.025
    assert (found.abs() <= 1 + 1e-9).all()


def test_it_is_zero_where_there_is_no_gradient_or_no_change():
    x, y = images()
    flat = nn.Sequential(nn.Flatten(), QuantReLU(1, 100.0), nn.Linear(16, 2)).eval()
    assert (fidelity(flat, x, y, step=0.01) == 0).all()
    assert (gradient(flat, x, lambda z: logit_margin(z, y)) != 0).any()
    detached = nn.Sequential(linear(), nn.Identity())
    detached.register_forward_hook(lambda module, args, output: output.detach())
    assert (fidelity(detached, x, y, step=0.01) == 0).all()


def test_it_depends_on_the_seed_and_on_nothing_else():
    model, (x, y) = nn.Sequential(linear(), nn.Tanh()), images()
    first = fidelity(model, x, y, step=0.3)
    torch.rand(7)
    state = torch.get_rng_state()
    assert torch.equal(fidelity(model, x, y, step=0.3), first)
    assert not torch.equal(fidelity(model, x, y, step=0.3, seed=1), first)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(fidelity(model, x[:5], y[:5], step=0.3), first[:5])


def test_modes_draws_and_gradients_are_left_as_they_were():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), StochasticQuantizer(2), nn.Dropout(), nn.Linear(8, 2)).train()
    model[2].draw, model[2].call = 5, 2
    x, y = images()
    first = fidelity(model, x, y, step=0.1, calls=2)
    assert all(m.training for m in model.modules())
    assert (model[2].draw, model[2].call) == (5, 2)
    assert all(p.grad is None for p in model.parameters()) and x.grad is None
    assert torch.equal(fidelity(model, x, y, step=0.1, calls=2), first)


def test_more_calls_of_a_stochastic_model_measure_its_mean():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), StochasticQuantizer(1, clip=1.0), nn.Linear(16, 2)).eval()
    x, y = images(40)
    few, many = (float(fidelity(model, x, y, step=0.1, calls=c).mean()) for c in (1, 64))
    assert many > few + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.0}, "step: it is 0.0"),
        ({"step": -0.1}, "step: it is -0.1"),
        ({"step": math.nan}, "step: it is nan"),
        ({"step": 0.1, "directions": 1}, "directions: it is 1"),
    ],
)
def test_what_measures_nothing_is_refused(options, message):
    x, y = images()
    for measure in (fidelity, best_surrogate):
        with pytest.raises(InputError, match=f"^{message}; [^\n]+$"):
            measure(quantize(nn.Sequential(linear(), nn.ReLU()), activation_bits=2), x, y, **options)


# --- The choice of a surrogate


def saturated(bias, num_bits=8, clip=1.0):
    """Every hidden unit at ``bias``, so that the true slope is that of Q at ``bias``."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), QuantReLU(num_bits, clip), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[1].weight.mul_(0.1)
        model[1].bias.fill_(bias)
    return model


def test_it_is_of_one_call_in_twenty_directions_unless_told_otherwise():
    model, (x, y), sizes = nn.Sequential(nn.Flatten(), QuantReLU(2), nn.Linear(16, 2)).eval(), images(), []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    fidelity(model, x, y, step=0.01)
    assert sizes == [30] * (1 + 20 + 1)  # the margins at the images and after each move, and the gradient
    sizes.clear()
    best_surrogate(model, x, y, step=0.01, kinds=("identity",))
    assert sizes == [30] * (1 + 20 + 1)


def test_it_picks_a_planted_better_surrogate(monkeypatch):
    x, y = images()
    model = saturated(0.5, num_bits=12)
    monkeypatch.setitem(SURROGATES, "noise", lambda x, num_bits, clip: torch.randn(x.shape).to(x))
    monkeypatch.setitem(SURROGATES, "backwards", lambda x, num_bits, clip: -torch.ones_like(x))
    kind, scores = best_surrogate(model, x, y, step=0.05, kinds=["noise", "backwards", "identity"])
    assert kind == "identity"
    assert scores["identity"] > 0.99 and scores["backwards"] < -0.99 and abs(scores["noise"]) < 0.5
    assert list(scores) == ["noise", "backwards", "identity"]


def test_it_prefers_a_gradient_through_saturated_units_where_straight_through_has_none():
    """Every unit is below 0 at every image, and the answer changes where a step brings it above."""
    x, y = 0.5 + 0.01 * torch.rand(30, 1, 4, 4), torch.arange(30) % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), QuantReLU(1, 0.5), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[1].weight.fill_(1.0)
        model[1].bias.fill_(-8.5)  # the pixels' sum is between 8 and 8.2
        model[3].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[3].bias.zero_()
    kind, scores = best_surrogate(model, x, y, step=0.5, kinds=["straight-through", "leaky"], directions=100)
    assert kind == "leaky"
    # The unit comes above 0 where the 16 signs have a positive sum: a normal variable and its sign correlate with 0.8.
    assert scores["straight-through"] == 0 and scores["leaky"] > 0.5


def test_its_scores_are_the_medians_of_fidelity_under_each_kind():
    x, y = images()
    model = saturated(0.3, num_bits=3)
    model[2].surrogate = Surrogate("identity")
    kind, scores = best_surrogate(model, x, y, step=0.3, directions=10, seed=3)
    assert list(scores) == list(SURROGATES) and scores[kind] == max(scores.values())
    for name, score in scores.items():
        with surrogate(model, name):
            found = fidelity(model, x, y, step=0.3, directions=10, seed=3)
        assert score == float(found.quantile(0.5))
    assert model[2].surrogate == Surrogate("identity")


def test_of_equals_the_first_wins_and_not_a_number_never_does(monkeypatch):
    x, y = images()
    monkeypatch.setitem(SURROGATES, "broken", lambda x, num_bits, clip: torch.full_like(x, math.nan))
    model = saturated(0.5, num_bits=12)
    assert best_surrogate(model, x, y, step=0.05, kinds=["broken", "straight-through", "identity"])[0] == (
        "straight-through"
    )


def test_a_choice_that_is_none_is_refused():
    x, y = images()
    with pytest.raises(InputError, match=r"^Sequential has no QuantReLU"):
        best_surrogate(linear(), x, y, step=0.1)
    with pytest.raises(InputError, match="did you mean 'leaky'"):
        best_surrogate(saturated(0.5), x, y, step=0.1, kinds=["leakyy"])
    with pytest.raises(InputError, match=r"^kinds: it is \[\]; give"):
        best_surrogate(saturated(0.5), x, y, step=0.1, kinds=[])


def test_a_twin_is_judged_by_what_it_says_about_the_network():
    model, (x, y) = linear(), images()
    other = linear()
    with torch.no_grad():
        other[1].weight.copy_(-model[1].weight)
    assert (fidelity(other, x, y, step=0.01) > 0.99).all()
    assert (fidelity(other, x, y, step=0.01, network=model) < -0.99).all()
