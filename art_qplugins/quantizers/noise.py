r"""Layers that draw noise, and where their noise comes from.

Noise never comes from the global generator. Each use of a layer is keyed by (seed, layer, draw, call). The same key gives
the same noise, however the draws are divided into batches. Attack libraries that reseed torch change nothing.

========================= ============================================ ==================================================
what draws                noise                                        use
========================= ============================================ ==================================================
a layer by itself         of its own for every image and element,      training, attacks, scores. The same on every
                          new at each call                             processor, another on a GPU
a frozen ensemble         one for all images; every call, batch,       a deployed member that must answer the same
                          order and device has the same                everywhere, and its audit
within draws_from(seed)   as a layer by itself, from the start of      scores that can be computed again: draws of one
                          the stream ``seed``                          bank are independent of those of another
========================= ============================================ ==================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from art_qplugins.domains import MOST, Number, check, check_all
from art_qplugins.torch_domains import MODULE

__all__ = ["NOISE_KEY", "KeyedNoise", "Words", "draws_from", "is_stochastic", "keyed_generator", "stochastic_layers"]


#: Whole numbers that may be the key of noise.
NOISE_KEY = Number(-(2**63), 2**63 - 1, whole=True)


class KeyedNoise(nn.Module, ABC):
    """A layer that draws noise. A subclass says of what distribution.

    :param seed: key of the noise.
    :param layer: which layer of its network this is. Layers of one network draw different noise.
    """

    def __init__(self, *, seed: int = 0, layer: int = 0) -> None:
        super().__init__()
        self.seed = check("seed", seed, NOISE_KEY)
        self.layer = check("layer", layer, Number(0, MOST, whole=True))
        self.draw = 0  # index of the first draw in the batch
        self.fold = 1  # how many draws the batch holds, one after another along dimension 0
        self.call = 0  # how often this layer has drawn since `draw` was set
        self.antithetic = False  # draw 2i + 1 uses the mirrored noise of draw 2i
        self.shared = False  # all images of a batch have the same noise, on every device

    @abstractmethod
    def sample(self, shape: tuple[int, ...], key: int, device: torch.device) -> Tensor:
        """The noise of this key in this shape, on this device."""

    @abstractmethod
    def mirror(self, noise: Tensor) -> Tensor:
        """The noise that is as far above the median as ``noise`` is below, in place."""

    def noise(self, x: Tensor) -> Tensor:
        """The noise of this call, on the device of ``x``.

        :param x: (N, ...), of which the draws in the batch are equal parts.
        :return: (N, ...).
        """
        images, over = divmod(len(x), self.fold)
        if over:
            raise RuntimeError(f"{len(x)} images are no {self.fold} draws of equal size")
        device, rows = (torch.device("cpu"), 1) if self.shared else (x.device, images)
        parts = []
        for draw in range(self.draw, self.draw + self.fold):
            mirrored = self.antithetic and draw % 2 == 1
            part = self.sample((rows, *x.shape[1:]), self._key(draw - mirrored), device)
            parts.append(self.mirror(part) if mirrored else part)
        self.call += 1
        noise = torch.cat(parts) if len(parts) > 1 else parts[0]
        return noise.to(x.device).repeat_interleave(images, dim=0) if self.shared else noise

    def _key(self, draw: int) -> int:
        key = f"{self.seed}/{self.layer}/{draw}/{self.call}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little")


def keyed_generator(key: int, device: torch.device) -> torch.Generator:
    """A generator of its own, in the state that this key stands for."""
    generator = torch.Generator(device)
    generator.manual_seed(key)
    return generator


def _words(count: int, key: int, device: torch.device) -> Tensor:
    """Words of 64 bits, int64."""
    if device.type == "cpu":  # in half the time of torch's generator
        return torch.from_numpy(np.random.SFC64(key).random_raw(count).view(np.int64))
    return _words_of_the_device(count, key, device)


def _words_of_the_device(count: int, key: int, device: torch.device) -> Tensor:
    words = torch.empty(count, dtype=torch.int64, device=device)
    return words.random_(-(2**63), None, generator=keyed_generator(key, device))


class Words(KeyedNoise):
    """A layer whose noise are words of sixteen bits, int16. A generator gives four at once."""

    def sample(self, shape: tuple[int, ...], key: int, device: torch.device) -> Tensor:
        count = math.prod(shape)
        return _words(-(-count // 4), key, device).view(torch.int16)[:count].view(shape)

    def mirror(self, noise: Tensor) -> Tensor:
        return noise.bitwise_not_()


def stochastic_layers(module: nn.Module) -> list[KeyedNoise]:
    """The layers inside ``module`` that draw noise, in order, also those of frozen ensembles."""
    return [m for m in module.modules() if isinstance(m, KeyedNoise)]


def is_stochastic(module: nn.Module) -> bool:
    """Whether a layer inside ``module`` draws afresh: one that no frozen ensemble holds."""
    return any(isinstance(m, KeyedNoise) for m in _not_frozen(check("module", module, MODULE)))


def _not_frozen(module: nn.Module) -> list[nn.Module]:
    """``module`` and the modules inside it, in order, without frozen ensembles and what they hold."""
    if _counts_draws(module) and module.frozen:
        return []
    found = [module, *(m for child in module.children() for m in _not_frozen(child))]
    return list(dict.fromkeys(found))  # a module may be inside two others


class _CountsDraws(Protocol):
    """An ensemble: a module that numbers its draws.

    :ivar next_draw: the number of its next draw.
    :ivar frozen: whether it takes the same draws at every call.
    """

    next_draw: int
    frozen: bool


def _counts_draws(module: nn.Module) -> TypeGuard[_CountsDraws]:
    return hasattr(module, "next_draw")


def _apart(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=7).digest(), "little")


@contextlib.contextmanager
def draws_from(module: nn.Module, seed: int) -> Iterator[None]:
    """Within, ``module`` draws from the start of stream ``seed``. Afterwards its own stream goes on where it was.

    A frozen ensemble does not draw: it answers as ever.
    """
    check_all(locals(), {"module": MODULE, "seed": NOISE_KEY})
    drawing = _not_frozen(module)
    layers = [m for m in drawing if isinstance(m, KeyedNoise)]
    counters = [m for m in drawing if _counts_draws(m)]
    before = [(m, m.seed, m.draw, m.call) for m in layers], [(m, m.next_draw) for m in counters]
    try:
        alike: Counter[int] = Counter()
        for layer in layers:
            # Layers with the same number still draw different noise.
            layer.seed = seed if not alike[layer.layer] else _apart(seed, alike[layer.layer])
            layer.draw = layer.call = 0
            alike[layer.layer] += 1
        for counter in counters:
            counter.next_draw = 0
        yield
    finally:
        for layer, *state in before[0]:
            layer.seed, layer.draw, layer.call = state
        for counter, next_draw in before[1]:
            counter.next_draw = next_draw
