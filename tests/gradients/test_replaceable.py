"""Replaceable operations are those whose gradient is a choice of their author, and no others."""

from __future__ import annotations

import pytest
import torch
from graphs import FunctionLayer, Wrong, images, linear
from torch import nn

from art_qplugins.gradients.replaceable import replaceable_operations


def test_custom_functions_and_steps_are_replaceable():
    x, _ = images()
    model = linear(nn.Sequential(FunctionLayer(Wrong.apply), nn.ReLU(), FunctionLayer(torch.round)))
    assert replaceable_operations(model, x) == ("RoundBackward0", "WrongBackward")


def test_stochastic_rounding_is_replaceable(stochastic, digits):
    assert "_StochasticRoundBackward" in replaceable_operations(stochastic, digits[1].x()[:8])


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda x: (x > 0.5).float(), lambda x: x // 0.25])
def test_nothing_is_where_the_graph_ends(cut):
    x, _ = images()
    assert replaceable_operations(linear(FunctionLayer(cut)), x) == ()


class Twin(torch.autograd.Function):
    """Two outputs in the shape of the input."""

    @staticmethod
    def forward(ctx, x):
        return x.clone(), x.clone()

    @staticmethod
    def backward(ctx, first, second):
        return first + second


def test_a_function_has_one_output_in_the_shape_of_an_input_that_is_no_single_number():
    x, _ = images()
    per_image = FunctionLayer(lambda x: x * Wrong.apply(x.mean((1, 2, 3)))[:, None, None, None])
    assert replaceable_operations(linear(per_image), x) == ("WrongBackward",)
    assert replaceable_operations(linear(FunctionLayer(lambda x: sum(Twin.apply(x)))), x) == ()
    assert replaceable_operations(linear(FunctionLayer(lambda x: x * Wrong.apply(x.mean()))), x) == ()
    reduced = FunctionLayer(lambda x: x + Halved.apply(x)[..., None])
    assert replaceable_operations(linear(reduced), x) == ()


class Halved(torch.autograd.Function):
    """The mean of each row of pixels."""

    @staticmethod
    def forward(ctx, x):
        return x.mean(-1)

    @staticmethod
    def backward(ctx, grad):
        return grad[..., None].expand(*grad.shape, 4) / 4


def inside():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sigmoid(), nn.Conv2d(2, 1, 1))


def test_what_squashes_pixels_is_replaceable_and_what_squashes_activations_is_not():
    x, _ = images()
    clamped = nn.Sequential(FunctionLayer(lambda x: (x * 1.5).clamp(0, 1)), inside())
    assert replaceable_operations(linear(clamped), x) == ("ClampBackward1",)
    assert replaceable_operations(linear(nn.Sequential(nn.ReLU(), inside()), nn.ReLU()), x) == ()
    assert replaceable_operations(linear(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 1, 1))), x) == ()


@pytest.mark.parametrize(
    ("squash", "names"),
    [
        (lambda z: 20 * torch.tanh(2 * z), ("TanhBackward0",)),
        (lambda z: z.clamp(-5, 5), ("ClampBackward1",)),
        (lambda z: z.exp().half().float(), ("ExpBackward0",)),
        (lambda z: torch.stack([z.softmax(1), z.softmax(1)]).mean(0), ("SoftmaxBackward0",)),
        (lambda z: (z - z.mean(1, keepdim=True)) / 3, ()),
    ],
)
def test_what_squashes_logits_is_replaceable_and_what_scales_them_is_not(squash, names):
    x, _ = images()
    assert replaceable_operations(linear(inside(), FunctionLayer(squash)), x) == names
