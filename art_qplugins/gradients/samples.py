"""Values of results at images and at points near them, to fit bridges to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from art_qplugins.gradients.bridges import Path, straight_path
from art_qplugins.gradients.learned import fit
from art_qplugins.gradients.operations import Key
from art_qplugins.gradients.trace import Effects, pass_through
from art_qplugins.seeds import derive_seed

__all__ = ["Samples"]

#: Images, and points near each of them.
_IMAGES, _POINTS = 61, 8


class Samples:
    """The changes of a result and of its sources from images to points near them. It takes nine forward passes.

    :param x: (N, C, H, W) in [0, 1].
    """

    def __init__(self, effects: Effects, x: Tensor, key: Key, sources: Sequence[Key]) -> None:
        self._effects, self._key, self._sources = effects, key, sources
        x = x[:_IMAGES] if self._has_all(x[:_IMAGES]) else effects.x  # chunks may depend on the size of the batch
        generator = torch.Generator().manual_seed(derive_seed(effects.seed, "trace/samples"))
        noise = (torch.rand((_POINTS, *x.shape), generator=generator).to(x) * 2 - 1) * effects.radius
        images = self._values(x)
        points = [self._values((x + u).clamp(0, 1)) for u in noise]
        self._pairs = {k: (torch.cat([images[k]] * _POINTS), torch.cat([p[k] for p in points])) for k in images}

    def _values(self, x: Tensor) -> dict[Key, Tensor]:
        found: dict[Key, Tensor] = {}

        def visit(key: Key, tensor: Tensor, _: frozenset[Key]) -> None:
            if key == self._key or key in self._sources:
                found[key] = self._effects.rows(key, tensor.detach().clone())

        with torch.no_grad():
            pass_through(self._effects.module, x, visit, seed=self._effects.seed)
        return found

    def _has_all(self, x: Tensor) -> bool:
        return self._values(x).keys() >= {self._key, *self._sources}

    def line(self) -> Path | None:
        """The identity times the slope of least squares; ``None`` where no source changes."""
        key = self._key
        path = straight_path(1.0, key.shape)
        start, end = (path([self._pairs[s][i] for s in self._sources], key.copies).double() for i in (0, 1))
        before, after = self._pairs[key]
        square = float((end - start).square().sum())
        slope = float(((end - start) * (after - before)).sum()) / square if square > 0 else math.nan
        return straight_path(slope, key.shape) if math.isfinite(slope) else None

    def learned(self, field: int) -> Path:
        """A learned surrogate. Where copies match it is one of single rows, else of the mean over copies.

        :param field: side of the receptive field, see :class:`~art_qplugins.gradients.learned.Learned`.
        """
        key = self._key
        by_row = all(source.copies == key.copies for source in self._sources)

        def flat(values: Tensor) -> Tensor:
            return values.flatten(0, 1) if by_row else values.mean(1)

        pairs = [(flat(self._pairs[s][0]), flat(self._pairs[s][1])) for s in self._sources]
        seed = derive_seed(self._effects.seed, f"surrogate/{key}")
        surrogate = fit(pairs, (flat(self._pairs[key][0]), flat(self._pairs[key][1])), field=field, seed=seed)

        def path(sources: Sequence[Tensor], copies: int) -> Tensor:
            found: Tensor = surrogate(*map(flat, sources))
            return found.unflatten(0, (-1, copies)) if by_row else found[:, None].expand(-1, copies, *key.shape)

        return path
