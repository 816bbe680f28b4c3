"""Counts images on their way through a module and back: what an attack or a measurement costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["Counter", "counting"]


class Counter:
    """Forward and backward passes so far, in images; each draw of an ensemble is one."""

    def __init__(self) -> None:
        self.forward = self.backward = 0


@contextlib.contextmanager
def counting(module: nn.Module) -> Iterator[Counter]:
    """Count the images that go through ``module``, and back, within the context."""
    counter = Counter()
    passes: Callable[[bool], int] = getattr(module, "passes", lambda requires_grad: 1)  # a stochastic ensemble's draws

    def count(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            counter.forward += passes(output.requires_grad) * len(output)
            if output.requires_grad:
                output.register_hook(count_backward)

    def count_backward(grad: Tensor) -> None:
        counter.backward += passes(True) * len(grad)

    hook = module.register_forward_hook(count)
    try:
        yield counter
    finally:
        hook.remove()
