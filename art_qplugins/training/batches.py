"""How the images of an epoch are divided into batches, and the loss of one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.errors import InputError

__all__ = ["batches", "loss_of"]


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


def loss_of(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    defences: Sequence[Defence],
    batch: tuple[Tensor, Tensor],
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The loss of one training step with the defences applied, a scalar with gradient.

    :param loss: of logits and labels.
    :param batch: images (N, C, H, W) and their labels.
    :param forward: what answers in place of ``network``, e.g. one that averages gradients over processes. Defences see
        ``network``.
    """
    x, y = batch
    with _explained(len(x)):
        for defence in defences:
            x = defence.images(network, x, y)
        logits = (network if forward is None else forward)(x)
        value = loss(logits, y)
    value = value + sum(defence.penalty(network) for defence in defences)
    return value + sum(defence.term(network, x, y, logits) for defence in defences)


@contextlib.contextmanager
def _explained(count: int) -> Iterator[None]:
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
