"""`GradientRepair` carries the gradient past what takes it away, and changes no answer and no other gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from graphs import BLOCKING, FunctionLayer, Nothing, images, linear, slope
from torch import nn

from art_qplugins.gradients.ledger import ledger
from art_qplugins.gradients.repair import GradientRepair
from art_qplugins.models.ensemble import StochasticEnsemble


@pytest.mark.parametrize("name", BLOCKING)
def test_what_takes_the_gradient_away_is_passed_straight_through(name):
    function, _, gain = BLOCKING[name]
    model, (x, y) = linear(FunctionLayer(function)), images()
    assert not slope(model, x, y).any()
    repaired = GradientRepair(model)
    assert torch.equal(repaired(x.requires_grad_()), model(x))
    z = model(x.detach())
    rival = z.scatter(1, y[:, None], -torch.inf).argmax(1)
    expected = gain * (model.head.weight[y] - model.head.weight[rival])
    torch.testing.assert_close(slope(repaired, x.detach(), y).flatten(1), expected)


def test_a_healthy_network_keeps_its_gradient_to_the_bit(fp32, digits):
    x, y = digits[1].x()[:64], digits[1].y()[:64]
    assert torch.equal(slope(GradientRepair(fp32), x, y), slope(fp32, x, y))


def test_relu_and_masks_keep_their_zeros_unless_nothing_is_left():
    x, y = images()
    for sparse in (
        nn.ReLU(),
        FunctionLayer(lambda x: x * (x > 0)),
        FunctionLayer(lambda x: torch.where(x > 0, x, 0 * x)),
    ):
        model = linear(
            nn.Sequential(
                FunctionLayer(lambda x: x - x.detach().flatten(1).amax(1)[:, None, None, None] + 1e-6), sparse
            )
        )
        expected = slope(model, x, y)
        assert 0 < int((expected != 0).flatten(1).sum(1).max()) <= 2
        assert torch.equal(slope(GradientRepair(model), x, y), expected)
    dead = linear(nn.Sequential(FunctionLayer(lambda x: x - 2), nn.ReLU()))
    assert not slope(dead, x, y).any()
    assert slope(GradientRepair(dead), x, y).any()


@pytest.mark.parametrize(("steep", "repaired"), [(8, True), (7, False), (0, False)])
def test_an_operation_is_repaired_by_its_share_of_the_gradient_that_is_alive(steep, repaired):
    """Of 16 elements the head passes back 8. The tanh makes ``steep`` of them zero, and half of the others."""
    x, y = images()
    factor = torch.ones(16)
    factor[:steep] = factor[8:12] = 1e6
    model = linear(FunctionLayer(lambda x: torch.tanh((x + 1) * factor.view(1, 1, 4, 4))))
    with torch.no_grad():
        model.head.weight[:, 8:] = 0
    plain, found = slope(model, x, y).flatten(1), slope(GradientRepair(model), x, y).flatten(1)
    assert ((plain != 0).sum(1) == 8 - steep).all()
    if repaired:
        assert ((found != 0).sum(1) == 8).all()
    else:
        assert torch.equal(found, plain)


@pytest.mark.parametrize(("steep", "repaired"), [(9, True), (8, False)])
def test_nine_of_ten_elements_are_enough(steep, repaired):
    x, y = torch.rand(4, 1, 2, 5), torch.arange(4) % 3
    factor = torch.ones(10)
    factor[:steep] = 1e6
    model = nn.Sequential(
        FunctionLayer(lambda x: torch.tanh((x + 1) * factor.view(1, 1, 2, 5))), nn.Flatten(), nn.Linear(10, 3)
    )
    found = slope(GradientRepair(model), x, y).flatten(1)
    assert ((found != 0).sum(1) == (10 if repaired else 10 - steep)).all()


def test_an_image_whose_gradient_lives_is_left_alone():
    x, y = images(2)
    x[0], x[1] = 0.5, 0.5 + 1e-3
    model = linear(FunctionLayer(lambda x: torch.tanh((x - 0.5) * 1e6)))
    torch.testing.assert_close(slope(GradientRepair(model), x, y)[0], slope(model, x, y)[0])
    assert slope(GradientRepair(model), x, y)[1].any() and not slope(model, x, y)[1].any()


def test_a_graph_that_ends_and_a_backward_of_none_stay_as_they_are():
    x, y = images()
    whole = FunctionLayer(lambda x: linear()(x.detach())).eval()
    assert GradientRepair(whole)(x.clone().requires_grad_()).isfinite().all()
    assert not slope(GradientRepair(linear(FunctionLayer(Nothing.apply))), x, y).any()


def test_several_outputs_shared_tensors_and_in_place_operations():
    class Knot(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x.mul_(2)
            a, b = x.flatten(1).chunk(2, 1)
            a = a.round() + a.max(1, keepdim=True).values * b
            a[:, 0] = b[:, 0].round()
            return self.head(a)

    x, y = images()
    model = Knot().eval()
    before = x.clone()
    assert ledger(model, x, y).zero == 0
    found = slope(GradientRepair(model), x, y)
    assert torch.equal(x, before) and found.isfinite().all() and found.any()


def test_an_ensemble_also_in_checkpointed_chunks_keeps_its_gradient(stochastic, digits):
    x, y = digits[1].x()[:8].double(), digits[1].y()[:8]
    network = copy.deepcopy(stochastic.network).double()  # chunks of another size round to the same bins
    expected = slope(StochasticEnsemble(network, draws=4).eval(), x, y)
    for chunk in (None, 2):
        model = StochasticEnsemble(network, draws=4, eot_chunk=chunk).eval()
        torch.testing.assert_close(slope(GradientRepair(model), x, y), expected)
