"""The gradient ledger names the operation that takes a gradient away, or the layer where the graph ends."""

from __future__ import annotations

import math

import pytest
import torch
from graphs import BLOCKING, FunctionLayer, Nothing, images, linear

from art_qplugins.gradients.ledger import Ledger, LedgerRow, blocking_operation, ledger
from art_qplugins.models.convnet import ConvNet


@pytest.mark.parametrize("name", BLOCKING)
def test_what_takes_the_gradient_away_is_named(name):
    function, op, _ = BLOCKING[name]
    x, y = images()
    found = ledger(linear(FunctionLayer(function)), x, y)
    assert found.reaches_pixels and found.zero == 1
    worst = blocking_operation(found)
    assert (worst.op, worst.layer) == (op, "before")
    assert (worst.zeroed, worst.elements, worst.ratio) == (1, 1, 0)


def test_a_healthy_network_has_no_blocking_operation(fp32, digits):
    x, y = digits[1].x()[:64], digits[1].y()[:64]
    found = ledger(fp32, x, y)
    assert found.reaches_pixels and found.zero == 0 and blocking_operation(found) is None
    assert {row.op for row in found.rows} >= {"ReluBackward0"}
    assert all(row.layer in dict(fp32.named_modules()) or row.layer == "ConvNet" for row in found.rows)


def test_an_operation_blocks_if_it_zeroes_more_than_nine_images_in_ten():
    def found(*zeroed):
        return blocking_operation(
            Ledger(rows=[LedgerRow(op=str(z), layer="a", ratio=0, zeroed=z, elements=0) for z in zeroed])
        )

    assert found() is found(0.0) is found(0.5) is found(0.2, 0.9) is None
    assert found(0.91).op == "0.91" and found(0.92, 1.0, 0.95).op == "1.0"


def test_ratios_are_those_of_the_operation():
    x, y = images()
    rows = {row.op: row for row in ledger(linear(FunctionLayer(lambda x: x * 3)), x, y).rows}
    assert rows["MulBackward0"].ratio == pytest.approx(3) and rows["MulBackward0"].layer == "before"
    assert rows["MulBackward0"].elements == 0


def test_a_ratio_is_the_median_over_images_each_by_itself():
    x, y = images(5)
    scales = torch.tensor([1.0, 2.0, 3.0, 50.0, 1000.0]).view(5, 1, 1, 1)
    rows = {row.op: row for row in ledger(linear(FunctionLayer(lambda x: x * scales)), x, y).rows}
    assert rows["MulBackward0"].ratio == pytest.approx(3)


def test_elements_are_compared_where_the_shape_stays():
    """One input element, one output element; of a sum there is no such pair."""
    x, y = images()
    reduce = FunctionLayer(lambda x: x * x.flatten(1).sum(1)[:, None, None, None])
    rows = {row.op: row for row in ledger(linear(reduce), x, y).rows}
    assert math.isnan(rows["SumBackward1"].elements) and isinstance(rows["SumBackward1"].elements, float)


def test_a_zero_gradient_in_one_of_two_branches_blocks_nothing():
    x, y = images()
    assert blocking_operation(ledger(linear(FunctionLayer(lambda x: x + x.round())), x, y)) is None


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda x: (x > 0.5).float(), lambda x: x // 0.25])
def test_the_layer_where_the_graph_ends_is_named(cut):
    x, y = images()
    found = ledger(linear(FunctionLayer(cut)), x, y)
    assert (found.reaches_pixels, found.ends_at, found.rows, found.zero) == (False, "before", [], 1.0)
    assert blocking_operation(found) is None
    whole = FunctionLayer(lambda x: linear()(x.detach()))
    assert ledger(whole, x, y).ends_at == "FunctionLayer"


def test_a_backward_of_none_is_named():
    x, y = images()
    found = ledger(linear(FunctionLayer(Nothing.apply)), x, y)
    assert found.zero == 1 and blocking_operation(found).op == "NothingBackward"


def test_layers_inside_an_ensemble_have_their_paths(stochastic, digits):
    x, y = digits[1].x()[:8], digits[1].y()[:8]
    assert any(row.layer.startswith("network.") for row in ledger(stochastic, x, y).rows)


def test_nothing_is_left_behind_also_after_an_exception():
    model = ConvNet((1, 8, 8), 10, width=2).train()
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
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
