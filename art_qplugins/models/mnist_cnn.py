"""The four-layer network for MNIST of Madry et al. (2018), without batch norm.

The mu-law paper (Song et al. 2021) says "4-layer CNN" and no more. That it means this network is a RECONSTRUCTION.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from art_qplugins.domains import check
from art_qplugins.models.common import WIDTH, check_sizes, he_init, lay_out_for_pooling

__all__ = ["MnistCNN"]


class MnistCNN(nn.Module):
    """Two 5x5 convolutions, each followed by 2x2 max-pooling, and two linear layers.

    The weights start from He's initialisation; Madry et al. start from a truncated normal of deviation 0.1.

    :param input_shape: (C, H, W), H and W at least 4.
    :param nb_classes: number of logits.
    :param width: channels of the first convolution; the second has 2 and the first linear layer 32 times as many.
    :param activation: makes each activation, as modules that :func:`~art_qplugins.quantize` can replace.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        nb_classes: int,
        *,
        width: int = 32,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        channels, height, breadth = check_sizes(input_shape, nb_classes, activation, side=4)
        width = check("width", width, WIDTH)
        self.conv1 = nn.Conv2d(channels, width, 5, padding=2)
        self.act1 = activation()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        self.act2 = activation()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(2 * width * (height // 4) * (breadth // 4), 32 * width)
        self.act3 = activation()
        self.fc2 = nn.Linear(32 * width, nb_classes)
        he_init(self)
        lay_out_for_pooling(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.act1(self.conv1(x)))
        x = self.pool2(self.act2(self.conv2(x)))
        logits: Tensor = self.fc2(self.act3(self.fc1(x.flatten(1))))
        return logits
