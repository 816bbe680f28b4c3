"""Operator norms of layers, against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from art_qplugins import operator_norms, quantize
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.wide_resnet import WideResNet

LAYERS = {
    "zeros beyond the edge": (nn.Conv2d(3, 5, 3, padding=1), (3, 6, 6)),
    "no padding": (nn.Conv2d(2, 4, 3), (2, 6, 5)),
    "stride": (nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), (3, 7, 7)),
    "1x1": (nn.Conv2d(4, 6, 1), (4, 4, 4)),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5)),
    "dilation": (nn.Conv2d(2, 3, 3, padding=2, dilation=2), (2, 6, 6)),
    "periodic": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 6)),
    "mirrored": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 6, 6)),
    "one pixel out": (nn.Conv2d(2, 2, 4), (2, 4, 4)),
    "one value in": (nn.Conv2d(1, 20, 1), (1, 1, 1)),
}


def dense(layer, shape):
    """The matrix of a layer, by its answers to unit images."""
    layer = layer.double()
    units = torch.eye(math.prod(shape), dtype=torch.float64).unflatten(1, shape)
    with torch.no_grad():
        return (layer(units) - layer(torch.zeros_like(units))).flatten(1).T


def reinitialised(layer, seed):
    torch.manual_seed(seed)
    layer.float().reset_parameters()
    return layer


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LAYERS)
def test_the_norm_of_a_layer_is_the_largest_singular_value_of_its_matrix(name, seed):
    layer, shape = LAYERS[name]
    (found,) = operator_norms(reinitialised(layer, seed), torch.rand(1, *shape))
    assert found.operator == pytest.approx(float(torch.linalg.matrix_norm(dense(layer, shape), 2)), rel=1e-4)
    assert (found.layer, found.gain, found.scaled) == ("", None, None)


def test_of_a_linear_layer_both_norms_are_one():
    layer = nn.Linear(12, 5)
    (found,) = operator_norms(nn.Sequential(nn.Flatten(), layer), torch.rand(1, 3, 2, 2))
    assert found.matrix == found.operator == pytest.approx(float(torch.linalg.matrix_norm(layer.weight.detach(), 2)))


def test_the_matrix_norm_of_groups_is_that_of_the_block_diagonal_matrix():
    layer = reinitialised(nn.Conv2d(4, 6, 3, groups=2), 0)
    blocks = torch.block_diag(*layer.weight.detach().flatten(1).unflatten(0, (2, 3)))
    (found,) = operator_norms(layer, torch.rand(1, 4, 5, 5))
    assert found.matrix == pytest.approx(float(torch.linalg.matrix_norm(blocks, 2)), rel=1e-6)


@pytest.mark.parametrize("affine", [True, False])
def test_the_batch_norm_behind_a_convolution_scales_its_channels(affine):
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, affine=affine)
    norm.running_var.uniform_(0.01, 4)
    norm.running_mean.normal_()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    (found,) = operator_norms(nn.Sequential(layer, norm), torch.rand(1, 3, 5, 5))
    both = dense(nn.Sequential(layer, norm).eval(), (3, 5, 5))
    assert found.scaled == pytest.approx(float(torch.linalg.matrix_norm(both, 2)), rel=1e-4)
    assert found.scaled <= found.operator * found.gain * (1 + 1e-4)
    gamma = norm.weight.detach().abs() if affine else torch.ones(4)
    assert found.gain == pytest.approx(float((gamma / (norm.running_var + norm.eps).sqrt()).max()), rel=1e-5)


def test_a_batch_norm_that_reads_a_sum_is_a_row_of_its_own():
    found = operator_norms(WideResNet((1, 8, 8), 10, depth=10, widen_factor=1), torch.rand(1, 1, 8, 8))
    rows = {row.layer: row for row in found}
    assert next(iter(rows)) == "conv" and list(rows)[-1] == "fc"
    assert rows["group2.0.conv1"].scaled is not None  # bn2 follows at once
    assert rows["group2.0.conv2"].scaled is None
    assert "group2.0.bn2" not in rows and rows["group2.0.bn1"].matrix is None and rows["bn"].gain == rows["bn"].operator


def test_orthonormal_rows_do_not_make_a_convolution_non_expansive():
    layer = nn.Conv2d(16, 16, 3, padding=1)
    nn.init.orthogonal_(layer.weight)
    (found,) = operator_norms(layer, torch.rand(1, 16, 8, 8))
    assert found.matrix == pytest.approx(1, abs=1e-5)
    assert 1.2 < found.operator <= 3  # sqrt(3 * 3) at most


def test_a_constant_image_is_as_long_as_the_sum_of_a_periodic_filter_allows():
    """In closed form: a filter without negative weights lengthens a constant image most."""
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    nn.init.uniform_(layer.weight, 0, 1)
    (found,) = operator_norms(layer, torch.rand(1, 1, 16, 16))
    assert found.operator == pytest.approx(float(layer.weight.detach().sum()), rel=1e-4)


def test_it_asks_for_quantized_weights_and_leaves_the_network_as_it_was():
    network = quantize(ConvNet((1, 8, 8), 10, width=4), weight_bits=2, trainable=True).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = operator_norms(network, torch.rand(2, 1, 8, 8))
    assert [row.layer for row in found] == ["conv1", "conv2", "fc1", "fc2"]
    assert found[2].operator == pytest.approx(float(torch.linalg.matrix_norm(network.fc1.weight.detach(), 2)), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training and not any(m._forward_hooks for m in network.modules())


def test_what_is_not_called_is_left_out_and_the_order_is_that_of_the_calls():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.idle = nn.Linear(4, 2), nn.Linear(3, 4), nn.Linear(1, 1)

        def forward(self, x):
            return self.last(self.first(x.flatten(1)))

    assert [row.layer for row in operator_norms(Turned(), torch.rand(1, 3, 1, 1))] == ["first", "last"]
