"""Published defences of the pixels, as people have them: through PIL, NumPy or ``no_grad``, random, or with steep slopes.

With ``through``, each has an honest backward pass (BPDA, Athalye et al. 2018), to attack the model through.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from plants import OnPixels, Wrapped
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BitDepth",
    "Blurred",
    "Inverted",
    "InvertedRounded",
    "Jpeg",
    "RandomResize",
    "Ripples",
    "Staircase",
    "Thermometer",
    "TotalVariation",
    "WrongBackward",
]


class OnArrays(OnPixels):
    """A change of the pixels by NumPy. Where it is not ``through``, no gradient reaches them."""

    def change(self, x: Tensor) -> Tensor:
        images = x.detach().cpu().numpy()
        changed = np.stack([self.image(image) for image in images]) if len(images) else images
        return torch.from_numpy(changed.astype(np.float32)).to(x.device)

    def image(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One image, (C, H, W) in [0, 1]."""
        raise NotImplementedError


class Jpeg(OnArrays):
    """JPEG through PIL (Guo et al. 2018; Das et al. 2018)."""

    def __init__(self, network: nn.Module, quality: int, through: bool = False) -> None:
        super().__init__(network, through)
        self.quality = quality

    def image(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        from PIL import Image

        levels = np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)
        gray, file = len(levels) == 1, io.BytesIO()
        Image.fromarray(levels[0] if gray else levels.transpose(1, 2, 0)).save(file, "JPEG", quality=self.quality)
        back = np.asarray(Image.open(file), np.float32) / 255
        return back[None] if gray else back.transpose(2, 0, 1)


class BitDepth(OnArrays):
    """Feature squeezing to ``levels`` levels (Xu et al. 2018)."""

    def __init__(self, network: nn.Module, levels: int, through: bool = False) -> None:
        super().__init__(network, through)
        self.levels = levels

    def image(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(np.round(x * (self.levels - 1)) / (self.levels - 1))


class TotalVariation(OnArrays):
    """The image of least total variation near this one (Guo et al. 2018), by the dual projection of Chambolle 2004, eq. 9."""

    def __init__(self, network: nn.Module, strength: float, through: bool = False, steps: int = 15) -> None:
        super().__init__(network, through)
        self.strength, self.steps = strength, steps

    def image(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        dual = np.zeros((2, *x.shape), np.float32)
        for _ in range(self.steps):
            slope = _slopes(_divergence(dual) - x / self.strength)
            dual = (dual + slope / 4) / (1 + np.sqrt((slope**2).sum(0)) / 4)
        return np.clip(x - self.strength * _divergence(dual), 0, 1)


def _slopes(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(2, C, H, W): forward differences down and to the right, 0 at the border."""
    down, right = np.zeros_like(x), np.zeros_like(x)
    down[:, :-1], right[:, :, :-1] = x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]
    return np.stack([down, right])


def _divergence(dual: NDArray[np.float32]) -> NDArray[np.float32]:
    """Minus the adjoint of ``_slopes``."""
    (down, right), total = dual, np.zeros_like(dual[0])
    total[:, :-1] += down[:, :-1]
    total[:, 1:] -= down[:, :-1]
    total[:, :, :-1] += right[:, :, :-1]
    total[:, :, 1:] -= right[:, :, :-1]
    return total


class Blurred(OnPixels):
    """Half a mean over 3x3 pixels, under ``no_grad`` as preprocessing often is; with ``through``, with its derivative."""

    def forward(self, x: Tensor) -> Tensor:
        if self.through:
            return self.logits(self.change(x))
        with torch.no_grad():
            changed = self.change(x)
        return self.logits(changed)

    def change(self, x: Tensor) -> Tensor:
        return (x + F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)) / 2


class Ripples(OnPixels):
    """Waves on the pixels, too fine to see: the slope is right and says nothing of a step."""

    def __init__(self, network: nn.Module, height: float, period: float, through: bool = False) -> None:
        super().__init__(network, through)
        self.height, self.period = height, period

    def change(self, x: Tensor) -> Tensor:
        return x + self.height * torch.sin(x * (2 * torch.pi / self.period))


class Staircase(OnPixels):
    """Pixels on ``levels`` levels by steep sigmoids. Between two steps the slope is positive and all but 0."""

    def __init__(self, network: nn.Module, levels: int, steepness: float, through: bool = False) -> None:
        super().__init__(network, through)
        self.levels, self.steepness = levels, steepness

    def change(self, x: Tensor) -> Tensor:
        scaled = x * (self.levels - 1)
        steps = (torch.sigmoid(self.steepness * (scaled - step - 0.5)) for step in range(self.levels - 1))
        return sum(steps, torch.zeros_like(x)) / (self.levels - 1)


class Inverted(Wrapped):
    """A network on the negative of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(1 - x)


class InvertedRounded(Wrapped):
    """A network of negatives, whose negatives are rounded to ``levels`` levels. The way back must keep the sign."""

    def __init__(self, network: Inverted, levels: int, through: bool = False) -> None:
        super().__init__(network.network)
        self.levels, self.through = levels, through

    def forward(self, x: Tensor) -> Tensor:
        negative = 1 - x
        rounded = (negative * (self.levels - 1)).round() / (self.levels - 1)
        return self.logits(negative + (rounded - negative).detach() if self.through else rounded)


class Thermometer(Wrapped):
    """Thermometer encoding (Buckman et al. 2018): a channel for each of ``levels`` levels, 1 where the pixel is above it.

    The first is always 1, as in ART.

    :param through: with the slope of a soft version as backward pass (as Athalye et al. 2018, section 4.1.2), where a level
        counts within 0.2 of the pixel, so that an eps of that size can be seen.
    """

    def __init__(self, network: nn.Module, levels: int, through: bool = False) -> None:
        super().__init__(network)
        self.levels, self.through = levels, through

    def forward(self, x: Tensor) -> Tensor:
        above = torch.cat([x + 1, *(x - level / self.levels for level in range(1, self.levels))], dim=1)
        code = (above > 0).float()
        soft = (above / 0.4 + 0.5).clamp(0, 1)
        return self.logits(soft + (code - soft).detach() if self.through else code)


class RandomResize(Wrapped):
    """The image made smaller and put somewhere on black, anew at every call (Xie et al. 2018).

    :param least: the smallest side.
    :param bank: so many fixed draws in place of fresh ones; the logits are their mean, and nothing is hidden.
    """

    def __init__(self, network: nn.Module, least: int, bank: int = 0, seed: int = 0) -> None:
        super().__init__(network)
        self.least, self.bank, self.seed = least, bank, seed

    def forward(self, x: Tensor) -> Tensor:
        if not self.bank:
            return self.logits(self.draw(x, None))
        random = torch.Generator().manual_seed(self.seed)
        return torch.stack([self.logits(self.draw(x, random)) for _ in range(self.bank)]).mean(0)

    def draw(self, x: Tensor, random: torch.Generator | None) -> Tensor:
        side = x.shape[-1]
        size = int(torch.randint(self.least, side + 1, (), generator=random))
        left, top = (int(v) for v in torch.randint(0, side - size + 1, (2,), generator=random))
        small = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        return F.pad(small, (left, side - size - left, top, side - size - top))


class _Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -grad


class WrongBackward(Wrapped):
    """A custom operation whose author got the sign of the backward pass wrong."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(_Flipped.apply(x))
