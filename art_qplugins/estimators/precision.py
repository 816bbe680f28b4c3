"""Modules that take float64 pixels as their own dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.guard import takes_hooks

__all__ = ["accept_float64"]


def accept_float64(module: nn.Module) -> None:
    """Cast float64 pixels to the dtype of the weights, in place and once.

    Under NumPy 2 some attacks pass float64 pixels, also to plain classifiers that they build around the module.
    """
    # ART's wrapper calls the children of a Sequential one by one, so hooks of the Sequential itself do not run.
    entry = next(iter(module.children()), module) if isinstance(module, nn.Sequential) else module
    if takes_hooks(entry) and _to_dtype_of_weights not in entry._forward_pre_hooks.values():
        entry.register_forward_pre_hook(_to_dtype_of_weights)


def _to_dtype_of_weights(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A forward pre-hook. A module without weights gets float32."""
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].dtype == torch.float64:
        first = next((p for p in module.parameters() if p.is_floating_point()), None)
        return (inputs[0].to(torch.float32 if first is None else first.dtype), *inputs[1:])
    return None
