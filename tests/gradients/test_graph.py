"""The ledger names the operation that loses the gradient; `GradientRepair` brings it back and changes no answer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from art_qplugins.gradients.ledger import blocking_operation, ledger
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.probe import gradient
from art_qplugins.gradients.repair import GradientRepair
from art_qplugins.gradients.replaceable import replaceable_operations
from art_qplugins.models.ensemble import StochasticEnsemble


class Through(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


class Wrong(torch.autograd.Function):
    """Sign, with a backward that points the other way."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def linear(before=None, after=None):
    parts = {"flat": nn.Flatten(), "head": nn.Linear(16, 3)}
    if before is not None:
        parts = {"before": before, **parts}
    if after is not None:
        parts["after"] = after
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    return model.eval()


def images(n=6):
    return torch.rand(n, 1, 4, 4), torch.arange(n) % 3


def slope(model, x, y):
    return gradient(model, x, lambda z: logit_margin(z, y))


KILLERS = {
    "round": (lambda x: (x * 4).round() / 4, "RoundBackward0", 1.0),
    "round in place": (lambda x: (x * 4).round_() / 4, "RoundBackward0", 1.0),
    "sign": (lambda x: (x - 0.5).sign(), "SignBackward0", 1.0),
    "floor": (lambda x: (x * 4).floor(), "FloorBackward0", 4.0),
    "floored division": (lambda x: torch.div(x, 0.25, rounding_mode="floor"), "DivBackward2", 1.0),
    "custom": (Zero.apply, "ZeroBackward", 1.0),
    "tanh": (lambda x: torch.tanh((x - 10) * 100), "TanhBackward0", 100.0),
    "sigmoid": (lambda x: torch.sigmoid((x - 10) * 100), "SigmoidBackward0", 100.0),
    "clamp": (lambda x: (x - 2).clamp(0, 1), "ClampBackward1", 1.0),
}


@pytest.mark.parametrize("name", KILLERS)
def test_what_kills_the_gradient_is_named_and_passed_straight_through(name):
    function, op, gain = KILLERS[name]
    model, (x, y) = linear(Through(function)), images()
    found = ledger(model, x, y)
    assert found.reaches_pixels and found.zero == 1
    assert (blocking_operation(found).op, blocking_operation(found).layer) == (op, "before")
    assert (
        blocking_operation(found).zeroed == 1
        and blocking_operation(found).elements == 1
        and blocking_operation(found).ratio == 0
    )
    assert not slope(model, x, y).any()
    revived = GradientRepair(model)
    assert torch.equal(revived(x.requires_grad_()), model(x))
    z = model(x.detach())
    rival = z.scatter(1, y[:, None], -torch.inf).argmax(1)
    expected = gain * (model.head.weight[y] - model.head.weight[rival])
    torch.testing.assert_close(slope(revived, x.detach(), y).flatten(1), expected)


def test_a_healthy_network_has_no_guilty_layer_and_keeps_its_gradient_to_the_bit(fp32, digits):
    x, y = digits[1].x()[:64], digits[1].y()[:64]
    found = ledger(fp32, x, y)
    assert found.reaches_pixels and found.zero == 0 and blocking_operation(found) is None
    assert {row.op for row in found.rows} >= {"ReluBackward0"}
    assert all(row.layer in dict(fp32.named_modules()) or row.layer == "ConvNet" for row in found.rows)
    assert torch.equal(slope(GradientRepair(fp32), x, y), slope(fp32, x, y))


def test_ratios_are_those_of_the_operation():
    x, y = images()
    rows = {row.op: row for row in ledger(linear(Through(lambda x: x * 3)), x, y).rows}
    assert rows["MulBackward0"].ratio == pytest.approx(3) and rows["MulBackward0"].layer == "before"
    assert rows["MulBackward0"].elements == 0


def test_one_dead_branch_of_two_is_not_guilty():
    x, y = images()
    assert blocking_operation(ledger(linear(Through(lambda x: x + x.round())), x, y)) is None


def test_relu_and_masks_keep_their_zeros_unless_nothing_is_left():
    x, y = images()
    for sparse in (nn.ReLU(), Through(lambda x: x * (x > 0)), Through(lambda x: torch.where(x > 0, x, 0 * x))):
        model = linear(
            nn.Sequential(Through(lambda x: x - x.detach().flatten(1).amax(1)[:, None, None, None] + 1e-6), sparse)
        )
        expected = slope(model, x, y)
        assert 0 < int((expected != 0).flatten(1).sum(1).max()) <= 2
        assert torch.equal(slope(GradientRepair(model), x, y), expected)
    dead = linear(nn.Sequential(Through(lambda x: x - 2), nn.ReLU()))
    assert not slope(dead, x, y).any()
    assert slope(GradientRepair(dead), x, y).any()


def test_an_image_whose_gradient_lives_is_left_alone():
    x, y = images(2)
    x[0], x[1] = 0.5, 0.5 + 1e-3
    model = linear(Through(lambda x: torch.tanh((x - 0.5) * 1e6)))
    torch.testing.assert_close(slope(GradientRepair(model), x, y)[0], slope(model, x, y)[0])
    assert slope(GradientRepair(model), x, y)[1].any() and not slope(model, x, y)[1].any()


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda x: (x > 0.5).float(), lambda x: x // 0.25])
def test_where_the_graph_ends_is_told(cut):
    x, y = images()
    found = ledger(linear(Through(cut)), x, y)
    assert (found.reaches_pixels, found.ends_at, found.rows, found.zero) == (False, "before", [], 1.0)
    assert blocking_operation(found) is None
    assert replaceable_operations(linear(Through(cut)), x) == ()
    whole = Through(lambda x: linear()(x.detach()))
    assert ledger(whole, x, y).ends_at == "Through"
    assert torch.equal(GradientRepair(whole.eval())(x.requires_grad_()).isnan().any(), torch.tensor(False))


def test_a_backward_of_none_is_named_and_left_as_it_is():
    x, y = images()
    model = linear(Through(Nothing.apply))
    found = ledger(model, x, y)
    assert found.zero == 1 and blocking_operation(found).op == "NothingBackward"
    assert not slope(GradientRepair(model), x, y).any()


def test_suspects_are_custom_functions_and_steps_and_can_be_passed_straight_through():
    x, y = images()
    model = linear(nn.Sequential(Through(Wrong.apply), nn.ReLU(), Through(torch.round)))
    assert replaceable_operations(model, x) == ("RoundBackward0", "WrongBackward")
    straight = GradientRepair(model, straight=("WrongBackward",))
    torch.testing.assert_close(slope(straight, x, y), -slope(GradientRepair(model), x, y))
    assert replaceable_operations(linear(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 1, 1))), x) == ()
    assert replaceable_operations(linear(Through(torch.Tensor.detach)), x) == ()


def test_what_squashes_logits_or_pixels_is_a_suspect_and_what_squashes_activations_is_not():
    x, _ = images()
    inside = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sigmoid(), nn.Conv2d(2, 1, 1))
    assert replaceable_operations(linear(nn.Sequential(Through(lambda x: (x * 1.5).clamp(0, 1)), inside)), x) == (
        "ClampBackward1",
    )
    assert replaceable_operations(linear(nn.Sequential(nn.ReLU(), inside), nn.ReLU()), x) == ()
    for squash, names in (
        (lambda z: 20 * torch.tanh(2 * z), ("TanhBackward0",)),
        (lambda z: z.clamp(-5, 5), ("ClampBackward1",)),
        (lambda z: z.exp().half().float(), ("ExpBackward0",)),
        (lambda z: torch.stack([z.softmax(1), z.softmax(1)]).mean(0), ("SoftmaxBackward0",)),
        (lambda z: (z - z.mean(1, keepdim=True)) / 3, ()),
    ):
        assert replaceable_operations(linear(inside, Through(squash)), x) == names
    plain = linear(inside)
    clamped = nn.Sequential(plain, Through(lambda z: z.clamp(-0.01, 0.01)))
    straight = GradientRepair(clamped, straight=replaceable_operations(clamped, x))
    slopes = [gradient(network, x, lambda z: z[:, 0]) for network in (plain, straight, clamped)]
    torch.testing.assert_close(slopes[1], slopes[0])
    assert not torch.equal(slopes[2], slopes[0])


def test_it_knows_its_way_through_several_outputs_shared_tensors_and_in_place_work():
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
        assert any(row.layer.startswith("network.") for row in ledger(model, x, y).rows)
        assert "_StochasticRoundBackward" in replaceable_operations(model, x)


def test_nothing_is_left_behind_also_after_an_exception(fp32, digits):
    model = copy.deepcopy(fp32).train()
    x, y = digits[1].x()[:4], digits[1].y()[:4]
    state = torch.get_rng_state()
    ledger(model, x, y)
    with pytest.raises(RuntimeError):
        ledger(model, x, y[:2])
    with pytest.raises(RuntimeError):
        ledger(model, x[:, :, :2], y)
    assert all(part.training for part in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
