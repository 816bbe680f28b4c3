"""A network without activation quantization, or with other bit widths, for the time of an attack."""

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
    """Within the context, ``module`` is its full-precision twin: each quantizer is the function that it rounds.

    Quantized activations become their clip. Stochastic activations become their mean. PyTorch's own rounding functions
    (round, floor, ceil, trunc, fake_quantize) become the identity. sign becomes the clip to [-1, 1]. A custom
    ``autograd.Function`` does not change. The module is restored afterwards, also after an exception.

    :param x: images. The first one is used to find out whether the network has anything to replace.
    :raises InputError: where it has nothing to replace.
    """
    steps = ContinuousSteps()
    # The full-precision form of a quantizer may have steps of its own, such as the number of the bin that is nearest.
    chosen = {m: steps.paused()(quantizer.full_precision) for m, quantizer in activation_quantizers(module)}
    # Only inside the module's forward: an attack on the twin calls sign itself.
    with _forwards(chosen), _forwards({module: partial(_within, steps, module.forward)}):
        if not chosen:
            with evaluating(module), torch.no_grad():
                module(x[:1])
            if not steps.replaced:
                raise InputError(
                    f"{type(module).__name__} has no quantized activation, so it has no full-precision twin to attack; "
                    "use artq:apgd-margin, or quantize it first"
                )
        yield


@contextlib.contextmanager
def other_bits(module: nn.Module, num_bits: int) -> Iterator[None]:
    """Within the context, every quantized activation of ``module`` rounds to the nearest of ``2 ** num_bits`` levels.

    :raises InputError: where the network has no quantized activation.
    """
    ranges = {m: quantizer.range for m, quantizer in activation_quantizers(module)}
    if not ranges:
        raise InputError(
            f"{type(module).__name__} has no quantized activation, so it has no bit width to change; "
            "use artq:apgd-margin, or quantize it first"
        )
    with _forwards({m: partial(_rounded, low=low, high=high, num_bits=num_bits) for m, (low, high) in ranges.items()}):
        yield


@contextlib.contextmanager
def _forwards(chosen: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within the context, these modules have other forward functions, wherever the network holds them."""
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
