"""What an attack asks the module for: only its clean images, or other points too, and what is finite of it?

Any attack of any library is watched, by a hook on the module. No output changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.gradients.operations import unseen

__all__ = ["Visits", "watching"]


class Visits:
    """The points of an attack so far.

    :ivar elsewhere: whether the module was asked for a point that is none of the clean images.
    :ivar undefined: number of points, and of gradients at points, that hold NaN or infinity.
    """

    def __init__(self, x: Tensor) -> None:
        self.elsewhere, self.undefined = False, 0
        self._x = x

    @cached_property
    def _weights(self) -> Tensor:
        values = torch.Generator().manual_seed(0)
        return torch.randint(2**62, (self._x.shape[1:].numel(),), generator=values).to(self._x.device)

    @cached_property
    def _clean(self) -> Tensor:
        return self._keys(self._x)

    def see(self, points: Tensor) -> None:
        """Record one call of the module, with points (B, C, H, W). Others are not images and do not count."""
        if points.shape[1:] != self._x.shape[1:] or not len(points):
            return
        self._check(points)
        if points.requires_grad:
            points.register_hook(self._check)
        points = points.detach()
        if not self.elsewhere:
            moved = ~torch.isin(self._keys(points.to(self._x.device)), self._clean)
            self.elsewhere = bool((moved & torch.isfinite(points).flatten(1).all(1).to(moved.device)).any())

    def _check(self, values: Tensor | None) -> None:
        if values is None:  # the gradient of a backward pass that gives none
            return
        if not torch.isfinite(values.detach().sum()):  # one number is enough to know that all are finite
            self.undefined += int((~torch.isfinite(values)).flatten(1).any(1).sum())

    def _keys(self, points: Tensor) -> Tensor:
        """(B,) a hash of the bits of each point. Integers wrap around, so that the order of the sum does not count."""
        bits = points.detach().float().contiguous().flatten(1).view(torch.int32).long()
        return (bits * self._weights).sum(1)


@contextlib.contextmanager
def watching(module: nn.Module, x: Tensor) -> Iterator[Visits]:
    """Record every call of ``module`` in the :class:`Visits` within the context.

    :param x: (N, C, H, W), the images that the attack starts from.
    """
    visits = Visits(x)

    @unseen
    def look(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            visits.see(inputs[0])

    handle = module.register_forward_pre_hook(look)
    try:
        yield visits
    finally:
        handle.remove()
