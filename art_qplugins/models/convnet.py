"""A small convolutional network for small images. The digits benchmark and the tests use it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from art_qplugins.domains import check
from art_qplugins.models.common import WIDTH, check_sizes

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """Two 3x3 convolutions with batch norm, the second with stride 2, then two fully connected layers.

    :param input_shape: (C, H, W), H and W at least 4.
    :param nb_classes: number of logits.
    :param width: channels of the first convolution; the second has twice as many.
    :param activation: makes each activation, as modules that :func:`~art_qplugins.quantize` can replace.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        nb_classes: int,
        *,
        width: int = 16,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        channels, height, breadth = check_sizes(input_shape, nb_classes, activation, side=4)
        width = check("width", width, WIDTH)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation()
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.act2 = activation()
        self.fc1 = nn.Linear(2 * width * ((height + 1) // 2) * ((breadth + 1) // 2), 64)
        self.act3 = activation()
        self.fc2 = nn.Linear(64, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc2(self.act3(self.fc1(x.flatten(1))))
        return logits
