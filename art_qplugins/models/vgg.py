"""VGG-16 with batch norm (Simonyan & Zisserman 2015, configuration D) in its form for 32x32: one linear layer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from art_qplugins.domains import check
from art_qplugins.models.common import WIDTH, check_sizes, he_init, lay_out_for_pooling

__all__ = ["VGG16"]

#: Channels of each convolution divided by ``width``. Each group ends in max-pooling.
_GROUPS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions with batch norm, ``conv1_1`` to ``conv5_3``, global average pooling, a linear layer.

    :param input_shape: (C, H, W), H and W at least 32; at 32x32 there is nothing to average.
    :param nb_classes: number of logits.
    :param width: channels of the first convolution; the last has eight times as many.
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
        channels = [check_sizes(input_shape, nb_classes, activation, side=32)[0]]
        channels += [check("width", width, WIDTH) * factor for group in _GROUPS for factor in group]
        for name, (before, after) in zip(_names(), pairwise(channels), strict=True):
            conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
            self.add_module(name, nn.Sequential(conv, nn.BatchNorm2d(after), activation()))
        self.fc = nn.Linear(channels[-1], nb_classes)
        he_init(self)
        lay_out_for_pooling(self)

    def forward(self, x: Tensor) -> Tensor:
        for name in _names():
            if name.endswith("_1") and name != "conv1_1":
                x = F.max_pool2d(x, 2)
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(F.max_pool2d(x, 2).mean((2, 3)))
        return logits


def _names() -> list[str]:
    return [f"conv{i}_{j}" for i, group in enumerate(_GROUPS, 1) for j in range(1, len(group) + 1)]
