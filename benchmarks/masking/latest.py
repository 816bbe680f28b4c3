"""The newest families of half C: in half precision, in frequencies, of patches, of components, and with pixels at random."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from pixels import OnArrays
from plants import OnPixels, Wrapped
from torch import Tensor, nn

__all__ = [
    "Deflected",
    "Generated",
    "HalfRange",
    "InHalf",
    "LowFrequencies",
    "Patches",
    "Principal",
    "PrincipalOnArrays",
]


class InHalf(Wrapped):
    """A network in half precision, as it runs on a phone. Its range is wide enough for its gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(copy.deepcopy(network).half())  # the other rows share it

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.half()).float()


class HalfRange(OnPixels):
    """Pixels in half precision, at a scale at which the forward pass loses little and the backward pass nearly all."""

    _SCALE = 2.0**15

    def change(self, x: Tensor) -> Tensor:
        return (x.half() * self._SCALE).float() / self._SCALE


class LowFrequencies(OnArrays):
    """The largest ``share`` of the coefficients of a Fourier transform, by NumPy (as sparse front ends: Marzi et al. 2018)."""

    def __init__(self, network: nn.Module, share: float, through: bool = False) -> None:
        super().__init__(network, through)
        self.share = share

    def image(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        found = np.fft.rfft2(x)
        least = np.quantile(np.abs(found), 1 - self.share)
        return np.clip(np.fft.irfft2(np.where(np.abs(found) >= least, found, 0), s=x.shape[1:]), 0, 1)


class Patches(Wrapped):
    """Patches of 2x2 pixels replaced by the nearest of those that were seen in training, as quilting does (Guo et al. 2018)."""

    words: Tensor

    def __init__(self, network: nn.Module, x: Tensor, words: int, through: bool = False) -> None:
        super().__init__(network)
        self.through = through
        seen = nn.functional.unfold(x, 2, stride=2).mT.flatten(0, 1)
        chosen = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:words]
        self.register_buffer("words", seen[chosen])

    def forward(self, x: Tensor) -> Tensor:
        of_channels = self.words.shape[1]
        seen = nn.functional.unfold(x, 2, stride=2).mT.reshape(-1, of_channels)
        nearest = self.words[torch.cdist(seen, self.words).argmin(1)]
        changed = nn.functional.fold(nearest.reshape(len(x), -1, of_channels).mT, x.shape[2:], 2, stride=2)
        return self.logits(x + (changed - x).detach() if self.through else changed)


class Deflected(Wrapped):
    """Pixels replaced by others near them, at random and by NumPy (Prakash et al. 2018, without their wavelets).

    :param bank: so many fixed draws in place of fresh ones, with an identity as backward pass. Their logits are averaged.
    """

    def __init__(self, network: nn.Module, share: float, bank: int = 0) -> None:
        super().__init__(network)
        self.share, self.bank = share, bank

    def forward(self, x: Tensor) -> Tensor:
        if not self.bank:
            return self.logits(self.draw(x.detach(), np.random.default_rng(np.random.randint(2**31))))
        fixed = np.random.default_rng(0)
        draws = [self.draw(x.detach(), fixed) for _ in range(self.bank)]
        return torch.stack([self.logits(x + drawn - x.detach()) for drawn in draws]).mean(0)

    def draw(self, x: Tensor, random: np.random.Generator) -> Tensor:
        side = x.shape[-1]
        rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
        moved = random.random((side, side)) < self.share
        rows, columns = (
            np.where(moved, np.clip(place + random.integers(-2, 3, place.shape), 0, side - 1), place)
            for place in (rows, columns)
        )
        return torch.from_numpy(x.cpu().numpy()[:, :, rows, columns]).to(x)


class Principal(OnPixels):
    """An image's first principal components, those of training (Bhagoji et al. 2018). Its slope is their projection.

    :param x: (N, C, H, W) images of training.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, network: nn.Module, x: Tensor, components: int, through: bool = False) -> None:
        super().__init__(network, through)
        mean = x.flatten(1).mean(0)
        _, _, directions = torch.linalg.svd(x.flatten(1) - mean, full_matrices=False)
        self.register_buffer("mean", mean)
        self.register_buffer("components", directions[:components])

    def change(self, x: Tensor) -> Tensor:
        found = (x.flatten(1) - self.mean) @ self.components.T
        return (self.mean + found @ self.components).view_as(x).clamp(0, 1)


class PrincipalOnArrays(Principal):
    """The same by NumPy: no gradient reaches the pixels."""

    def change(self, x: Tensor) -> Tensor:
        mean, components = self.mean.cpu().numpy(), self.components.cpu().numpy()
        found = (x.detach().cpu().flatten(1).numpy() - mean) @ components.T
        return torch.from_numpy(np.clip(mean + found @ components, 0, 1)).to(x).view_as(x)


class Generated(Wrapped):
    """The image of a generator that is nearest to this one, as Defense-GAN finds it (Samangouei et al. 2018).

    The generator is a sigmoid of principal components. Gradient steps look for its code.

    :param through: differentiate through the steps; else the code is a constant, and no gradient reaches the pixels.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, network: nn.Module, x: Tensor, components: int, steps: int = 12, through: bool = False) -> None:
        super().__init__(network)
        self.steps, self.through = steps, through
        inner = torch.logit(x.flatten(1), eps=0.05)
        mean = inner.mean(0)
        _, _, directions = torch.linalg.svd(inner - mean, full_matrices=False)
        self.register_buffer("mean", mean)
        self.register_buffer("components", directions[:components])

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            wanted = (x if self.through else x.detach()).flatten(1)
            code = (torch.logit(wanted, eps=0.05) - self.mean) @ self.components.T
            code = code if code.requires_grad else code.requires_grad_()
            for _ in range(self.steps):
                far = ((self.generate(code) - wanted) ** 2).sum()
                (slope,) = torch.autograd.grad(far, code, create_graph=self.through)
                code = code - slope
            found = self.generate(code)
        return self.logits((found if self.through else found.detach()).view_as(x))

    def generate(self, code: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + code @ self.components)
