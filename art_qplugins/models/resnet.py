"""ResNet-18 (He et al. 2016) in its form for 32x32: a 3x3 stem with stride 1 and no max-pooling."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from art_qplugins.domains import check
from art_qplugins.models.common import WIDTH, check_sizes, he_init

__all__ = ["BasicBlock", "ResNet18"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut, and an activation of their sum."""

    def __init__(self, channels: int, width: int, stride: int, *, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if channels != width or stride != 1:
            conv = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = activation()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.act2(self.shortcut(x) + residual)
        return out


class ResNet18(nn.Module):
    """A convolution, four groups of two blocks, global average pooling, a linear layer.

    :param input_shape: (C, H, W), H and W at least 8.
    :param nb_classes: number of logits.
    :param width: channels of the first group; the last has eight times as many.
    :param activation: makes each activation, as modules that :func:`~art_qplugins.quantize` can replace.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        nb_classes: int,
        *,
        width: int = 64,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        channels, *_ = check_sizes(input_shape, nb_classes, activation, side=8)
        width = check("width", width, WIDTH)

        def group(channels: int, width: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                BasicBlock(channels, width, stride, activation=activation),
                BasicBlock(width, width, 1, activation=activation),
            )

        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.act = activation()
        self.group1 = group(width, width, 1)
        self.group2 = group(width, 2 * width, 2)
        self.group3 = group(2 * width, 4 * width, 2)
        self.group4 = group(4 * width, 8 * width, 2)
        self.fc = nn.Linear(8 * width, nb_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x)))
        x = self.group4(self.group3(self.group2(self.group1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits
