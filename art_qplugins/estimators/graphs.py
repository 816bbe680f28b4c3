"""Modules that switch gradients on: their answers leave the graph where the caller has switched gradients off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.guard import takes_hooks

__all__ = ["leave_graph"]


def leave_graph(module: nn.Module) -> None:
    """Detach the answers of ``module`` within ``torch.no_grad()``, in place and once.

    A test-time loop, e.g. purification, computes gradients in its forward pass. Its answers may stay in their graph, and
    libraries take answers as arrays.
    """
    # ART's wrapper calls the children of a Sequential one by one, so hooks of the Sequential itself do not run.
    parts = list(module.children()) if isinstance(module, nn.Sequential) else []
    end = parts[-1] if parts else module
    if takes_hooks(end) and _detached not in end._forward_hooks.values():
        end.register_forward_hook(_detached)


def _detached(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """A forward hook."""
    leaves = isinstance(output, Tensor) and output.requires_grad and not torch.is_grad_enabled()
    return output.detach() if leaves else None
