"""ART's NumPy preprocessors in PyTorch, where ART's estimate of the gradient is poor or its loop over pixels slow.

Their answers are those of ART's, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor import SpatialSmoothing, ThermometerEncoding
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std
from torch import Tensor, nn

from art_qplugins.quantizers.functional import straight_through

__all__ = ["TWINS", "Median", "Standardised", "Thermometer"]


class Standardised(nn.Module):
    """Pixels minus a mean, divided by a deviation; each is a number, or one for each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, defence: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(defence.mean))
        self.register_buffer("std", torch.tensor(defence.std))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = broadcastable_mean_std(x, self.mean, self.std)
        standard: Tensor = (x - mean) / std
        return standard


class Thermometer(nn.Module):
    """Level k of a pixel u in [0, 1] is 1 above k / K, else 0; level 0 is always 1 (Buckman et al. 2018).

    ART encodes one pixel at a time. This gives the same for the whole batch. The gradient of a step is that of
    arctan(2 K (u - k / K)) / pi, which is nowhere 0.
    """

    def __init__(self, defence: ThermometerEncoding) -> None:
        super().__init__()
        self.levels = int(defence.num_space)
        self.low, self.high = (float(value) for value in defence.clip_values)
        self.channels_first = bool(defence.channels_first)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C K, H, W), or with channels last to (N, C, H, W K)."""
        axis = 1 if self.channels_first else x.dim() - 1
        unit = (straight_through(x.clamp(self.low, self.high), x) - self.low) / x.new_tensor(self.high - self.low)
        pixels = unit.unsqueeze(axis + 1)
        steps = x.new_tensor([k / self.levels for k in range(1, self.levels)])
        steps = steps.view(-1, *[1] * (x.dim() - 1 - axis))
        smooth = torch.atan(2 * self.levels * (pixels - steps)) / math.pi
        hard = straight_through((pixels > steps).to(x.dtype), smooth)
        return torch.cat([torch.ones_like(pixels), hard], axis + 1).flatten(axis, axis + 1)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, low={self.low}, high={self.high}, channels_first={self.channels_first}"


class Median(nn.Module):
    """The median of a window of pixels, of an even number the larger one (Xu et al. 2018). Beyond its edge an image is
    mirrored.

    The gradient goes to the pixel that is the median.
    """

    def __init__(self, defence: SpatialSmoothing) -> None:
        super().__init__()
        self.size = int(defence.window_size)
        self.clip = None if defence.clip_values is None else tuple(float(value) for value in defence.clip_values)
        self.channels_first = bool(defence.channels_first)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same. With channels last, windows are over the two axes after the first."""
        images = x if self.channels_first else x.movedim(3, 1)
        height, width = images.shape[2:]
        windows = torch.from_numpy(_windows(height, width, self.size)).to(x.device)
        ranked = images.flatten(2)[..., windows].sort(-1).values
        median: Tensor = ranked[..., self.size**2 // 2].unflatten(2, (height, width))
        if self.clip is not None:
            median = straight_through(median.clamp(*self.clip), median)
        return median if self.channels_first else median.movedim(1, 3)

    def extra_repr(self) -> str:
        return f"size={self.size}, clip={self.clip}, channels_first={self.channels_first}"


def _windows(height: int, width: int, size: int) -> np.ndarray:
    """Positions (H * W, size * size) of the pixels around each pixel."""
    places = np.arange(height * width).reshape(height, width)
    around = np.pad(places, (size // 2, size - 1 - size // 2), mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(around, (size, size)).reshape(height * width, size**2).copy()


TWINS: Mapping[type, Callable[[Any], nn.Module]] = {
    StandardisationMeanStd: Standardised,
    StandardisationMeanStdPyTorch: Standardised,
    ThermometerEncoding: Thermometer,
    SpatialSmoothing: Median,
}
