"""A network with its activation quantization undone, or done with other bits, for the time of an attack."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.attacks.adaptive.continuous import ContinuousSteps
from art_qplugins.errors import InputError
from art_qplugins.guard import evaluating
from art_qplugins.quantizers.functional import straight_through
from art_qplugins.quantizers.protocol import activation_quantizers

__all__ = ["full_precision", "other_bits"]


@contextlib.contextmanager
def full_precision(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Within, ``module`` is its full-precision twin: each quantizer is the real-valued function that it rounds.

    Quantized activations become their clip, stochastic ones their mean. Rounding that is written with PyTorch's own
    functions (round, floor, ceil, trunc, sign, fake_quantize) becomes the identity, sign the clip to [-1, 1]. The
    gradient of a custom ``autograd.Function`` stays its own. Afterwards all is as before, also after an exception.

    :param x: images; on the first of them it is found whether there is anything to undo.
    :raises InputError: where there is not.
    """
    chosen = {m: quantizer.full_precision for m, quantizer in activation_quantizers(module)}
    steps = ContinuousSteps()
    # In the module's forward alone: an attack on the twin takes signs of its own.
    with _forwards(chosen), _forwards({module: partial(_within, steps, module.forward)}):
        if not chosen:
            with evaluating(module), torch.no_grad():
                module(x[:1])
            if not steps.replaced:
                raise InputError(
                    f"{type(module).__name__} has no quantized activation, so no shadow to attack; "
                    "use artq:apgd-margin, or quantize it first"
                )
        yield


@contextlib.contextmanager
def other_bits(module: nn.Module, num_bits: int) -> Iterator[None]:
    """Within, every quantized activation of ``module`` rounds to ``2 ** num_bits`` levels of its range, to the nearest.

    :raises InputError: where there is none.
    """
    ranges = {m: quantizer.range for m, quantizer in activation_quantizers(module)}
    if not ranges:
        raise InputError(
            f"{type(module).__name__} has no QuantReLU or StochasticQuantizer, so no bit width to change; "
            "use artq:apgd-margin, or quantize it first"
        )
    with _forwards({m: partial(_rounded, low=low, high=high, num_bits=num_bits) for m, (low, high) in ranges.items()}):
        yield


@contextlib.contextmanager
def _forwards(chosen: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within, these modules compute something else; wherever the network holds them, and whatever their parents are."""
    before = {m: m.__dict__.get("forward") for m in chosen}
    try:
        for m, forward in chosen.items():
            m.__dict__["forward"] = forward
        yield
    finally:
        for m, own in before.items():
            if own is None:
                m.__dict__.pop("forward", None)
            else:
                m.__dict__["forward"] = own


def _within(context: AbstractContextManager[Any], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with context:
        return call(*args, **kwargs)


def _rounded(x: Tensor, *, low: Any, high: Any, num_bits: int) -> Tensor:
    clipped = x.clamp(low, high)
    step = (high - low) / (2**num_bits - 1)
    return straight_through(low + step * ((clipped - low) / step).round(), clipped)
