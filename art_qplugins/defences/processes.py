"""What a defence can know of the whole batch where several processes train together, each on a part of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from art_qplugins.quantizers.functional import straight_through

__all__ = ["batch_mean", "together"]

_Sum = Callable[[Tensor], Tensor]
_SUM: ContextVar[_Sum | None] = ContextVar("sum over processes", default=None)


@contextlib.contextmanager
def together(total: _Sum) -> Iterator[None]:
    """Within the context, this process is one of several, and ``total`` gives each the sum of all their tensors."""
    token = _SUM.set(total)
    try:
        yield
    finally:
        _SUM.reset(token)


def batch_mean(mean: Tensor, images: int) -> Tensor:
    """A mean over the images of the whole batch, of this process' mean over its part.

    The gradient goes to this process' mean unchanged. Training weights the gradients of processes by their images and adds
    them up. So the gradient of a function of what is returned is, over all processes, that of the same function of the whole
    batch, where every process adds that function to its loss.

    :param mean: over the images of this process, float32, on its device.
    :param images: how many those are.
    """
    total = _SUM.get()
    if total is None:
        return mean
    weighted = torch.cat([images * mean.detach().flatten(), mean.new_full((1,), images)])
    both = total(weighted)
    return straight_through((both[:-1] / both[-1]).view_as(mean), mean)
