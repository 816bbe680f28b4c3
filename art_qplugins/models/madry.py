"""The wide residual network of Madry et al. (2018) for CIFAR-10, "w32-10".

The mu-law paper (Song et al. 2021) says "wide ResNet-32" and no more. That it means this network is a RECONSTRUCTION: two of its
clean accuracies are those that Madry et al. publish.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from art_qplugins.domains import Number, check
from art_qplugins.models.common import check_sizes, he_init

__all__ = ["MadryWideResNet"]

_UNITS, _WIDEN = Number(1, 100, whole=True), Number(1, 64, whole=True)


class _Unit(nn.Module):
    """Two 3x3 convolutions, each behind batch norm and activation, beside a shortcut without weights.

    Where the shape changes, the shortcut is averaged over strides and padded with channels of zeros, half on each side.

    :param activated: the shortcut starts behind the first activation.
    """

    def __init__(
        self, channels: int, width: int, stride: int, *, activated: bool, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.activated, self.before = activated, (width - channels) // 2
        self.after = width - channels - self.before
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = activation()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(x))
        skip = out if self.activated else x
        if self.pool is not None:
            skip = self.pool(skip)
        skip = nn.functional.pad(skip, (0, 0, 0, 0, self.before, self.after))
        residual: Tensor = self.conv2(self.act2(self.bn2(self.conv1(out))))
        return skip + residual


class MadryWideResNet(nn.Module):
    """A convolution, three groups of residual units, global average pooling, a linear layer.

    Each image is first standardized by its own mean and standard deviation, inside the network, as
    ``tf.image.per_image_standardization`` does.

    :param input_shape: (C, H, W), H and W at least 4.
    :param nb_classes: number of logits.
    :param units: of each group. 5 are the 32 layers of the name, by the count of Madry et al.
    :param widen_factor: the groups have 16, 32 and 64 times as many channels.
    :param activation: makes each activation; leaky ReLU of slope 0.1 by default.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        nb_classes: int,
        *,
        units: int = 5,
        widen_factor: int = 10,
        activation: Callable[[], nn.Module] = partial(nn.LeakyReLU, 0.1),
    ) -> None:
        super().__init__()
        channels, *_ = check_sizes(input_shape, nb_classes, activation, side=4)
        units, widen_factor = check("units", units, _UNITS), check("widen_factor", widen_factor, _WIDEN)

        def group(channels: int, width: int, stride: int, *, activated: bool) -> nn.Sequential:
            first = _Unit(channels, width, stride, activated=activated, activation=activation)
            others = (_Unit(width, width, 1, activated=False, activation=activation) for _ in range(units - 1))
            return nn.Sequential(first, *others)

        width = 16 * widen_factor
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.group1 = group(16, width, 1, activated=True)
        self.group2 = group(width, 2 * width, 2, activated=False)
        self.group3 = group(2 * width, 4 * width, 2, activated=False)
        self.bn = nn.BatchNorm2d(4 * width)
        self.act = activation()
        self.fc = nn.Linear(4 * width, nb_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.conv(_standardized(x)))))
        logits: Tensor = self.fc(self.act(self.bn(x)).mean((2, 3)))
        return logits


def _standardized(x: Tensor) -> Tensor:
    """Each image less its mean, by its standard deviation, or by that of one value of 1 among zeros where it has less."""
    deviation, mean = torch.std_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
    standardized: Tensor = (x - mean) / deviation.clamp_min(x[0].numel() ** -0.5)
    return standardized
