"""Wide residual networks, WRN-d-w (Zagoruyko & Komodakis 2016), pre-activated as in He et al. 2016.

With ``aggregation=True`` every block ends in :class:`~art_qplugins.models.aggregation.Aggregation`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from art_qplugins.domains import FLAG, Number, check
from art_qplugins.errors import InputError
from art_qplugins.models.aggregation import Aggregation
from art_qplugins.models.common import check_sizes, he_init

__all__ = ["Block", "WideResNet"]

_DEPTH, _WIDEN = Number(1, 1000, whole=True), Number(1, 64, whole=True)


class Block(nn.Module):
    """Two 3x3 convolutions, each behind batch norm and activation, beside a shortcut.

    The shortcut is the input. Where the shape changes, it is a 1x1 convolution of the *activated* input.
    """

    def __init__(
        self, channels: int, width: int, stride: int, *, aggregation: bool, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation()
        same = channels == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride=stride, bias=False)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = activation()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.add = Aggregation() if aggregation else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        residual = self.conv2(self.act2(self.bn2(self.conv1(out))))
        total: Tensor = skip + residual if self.add is None else self.add(skip, residual)
        return total


class WideResNet(nn.Module):
    """WRN-``depth``-``widen_factor``: a convolution, three groups of blocks, global average pooling, a linear layer.

    :param input_shape: (C, H, W), H and W at least 4.
    :param nb_classes: number of logits.
    :param depth: 6n + 4, for n blocks in each group.
    :param widen_factor: the groups have 16, 32 and 64 times as many channels.
    :param aggregation: end blocks in a learned convex sum in place of the plain one.
    :param activation: makes each activation, as modules that :func:`~art_qplugins.quantize` can replace.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        nb_classes: int,
        *,
        depth: int = 28,
        widen_factor: int = 10,
        aggregation: bool = False,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        channels, *_ = check_sizes(input_shape, nb_classes, activation, side=4)
        blocks, rest = divmod(check("depth", depth, _DEPTH) - 4, 6)
        if blocks < 1 or rest:
            raise InputError(f"depth: it is {depth}; a wide residual network has 6n + 4 layers: 10, 16, 22, 28, ...")
        widen_factor = check("widen_factor", widen_factor, _WIDEN)
        check("aggregation", aggregation, FLAG)

        def group(channels: int, width: int, stride: int) -> nn.Sequential:
            block = partial(Block, aggregation=aggregation, activation=activation)
            return nn.Sequential(block(channels, width, stride), *(block(width, width, 1) for _ in range(blocks - 1)))

        width = 16 * widen_factor
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.group1 = group(16, width, 1)
        self.group2 = group(width, 2 * width, 2)
        self.group3 = group(2 * width, 4 * width, 2)
        self.bn = nn.BatchNorm2d(4 * width)
        self.act = activation()
        self.fc = nn.Linear(4 * width, nb_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.conv(x))))
        logits: Tensor = self.fc(self.act(self.bn(x)).mean((2, 3)))
        return logits
