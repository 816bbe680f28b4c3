"""How long passes through a network take on this machine, measured on random images in about a second."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.gradients.counting import passes
from art_qplugins.guard import isolated, restoring
from art_qplugins.quantizers.noise import draws_from

__all__ = ["Pace", "pace_of_attacks", "pace_of_training"]

#: A batch that takes so many seconds is not made larger.
_LONG = 0.1
#: The last batch is tried so often and for so many seconds, whichever is more, and for so many seconds at most.
_TIMES, _ENOUGH, _MOST = 3, 0.05, 0.4
#: How many times larger the next batch is.
_LARGER = 4


@dataclass(frozen=True)
class Pace:
    """Seconds that a pass of one image takes: forward, and backward after it. Each draw of a random model is a pass."""

    forward: float
    backward: float


def pace_of_attacks(estimator: QuantizedClassifier, *, batch_size: int) -> Pace | None:
    """The pace of gradients of the pixels. The model is as before; ``None`` where it cannot be asked.

    :param batch_size: images in the largest batch that is tried.
    """
    model = estimator.model
    shape, device = tuple(estimator.input_shape), estimator.device
    with isolated(model, 0), draws_from(model, 0), restoring(model):
        found = _pace(model, lambda x: [x], shape, device, batch_size)
    draws = passes(model, requires_grad=True)
    return None if found is None else Pace(found.forward / draws, found.backward / draws)


def pace_of_training(network: nn.Module, shape: Sequence[int], *, batch_size: int) -> Pace | None:
    """The pace of gradients of the parameters, in train mode, in which the network stays.

    :param shape: (C, H, W).
    """
    parameters = [p for p in network.train().parameters() if p.requires_grad]
    with torch.random.fork_rng():
        return _pace(network, lambda x: parameters, shape, parameters[0].device, batch_size)


def _pace(
    network: nn.Module,
    inputs: Callable[[Tensor], Sequence[Tensor]],
    shape: Sequence[int],
    device: torch.device,
    most: int,
) -> Pace | None:
    """The pace on the largest batch that does not take long, the fastest of a few, since other programs slow it down.

    The first pass, of two images, is not counted.

    :param inputs: what the gradient is of, from the images.
    """
    found: Pace | None = None
    count, tried = min(2, most), list[tuple[float, float]]()
    # A network of somebody else may raise anything; a batch may need more memory than there is.
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _seconds(network, inputs, torch.rand(count, *shape, device=device))
        while (spent := sum(map(sum, tried))) < _ENOUGH or (len(tried) < _TIMES and spent < _MOST):
            tried.append(_seconds(network, inputs, torch.rand(count, *shape, device=device)))
            found = Pace(*(min(times) / count for times in zip(*tried, strict=True)))
            if count < most and sum(tried[-1]) < _LONG:
                count, tried = min(_LARGER * count, most), []
    return found


def _seconds(network: nn.Module, inputs: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass of a batch; 0 for the latter where nothing has a gradient."""
    begun = _now(x.device)
    with torch.enable_grad():
        logits = network(x.requires_grad_())
        middle = _now(x.device)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), list(inputs(x)), allow_unused=True)
    return middle - begun, _now(x.device) - middle


def _now(device: torch.device) -> float:
    """The time at which the device has done all that it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
