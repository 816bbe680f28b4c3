"""How the images of an epoch are divided into batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from art_qplugins.errors import InputError

__all__ = ["batches", "explained"]


def batches(order: Tensor, batch_size: int, *, drop_last: bool = False) -> list[Tensor]:
    """The rows of one epoch, (N,), in parts of ``batch_size``.

    A last part of one row joins the part before, since batch norm may need two values of a channel. So each image counts
    in every epoch.

    :param drop_last: leave out a last part that is smaller than the others.
    """
    parts: list[Tensor] = list(order.split(batch_size))
    if drop_last and len(parts[-1]) < batch_size:
        return parts[:-1]
    if len(parts) > 1 and len(parts[-1]) == 1 < batch_size:
        return [*parts[:-2], torch.cat(parts[-2:])]
    return parts


@contextlib.contextmanager
def explained(count: int) -> Iterator[None]:
    """Within the context, batch norm's error about a batch of one image becomes an :class:`InputError`.

    :param count: number of images in the batch. Errors about larger batches do not change.
    """
    try:
        yield
    except ValueError as error:
        if count > 1 or isinstance(error, InputError):
            raise
        raise InputError(
            f"a training batch has one image, and the network needs more ({error}); give batch_size 2 or more, and two "
            "images or more"
        ) from error
