"""Counts the forward and backward passes of images through a module, and all backward passes of a process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.gradients.operations import unseen

__all__ = ["BackwardPasses", "Counter", "counting", "counting_backward_passes", "passes"]


class Counter:
    """Forward and backward passes so far, in images. Each draw of an ensemble counts as one."""

    def __init__(self) -> None:
        self.forward = self.backward = 0


def passes(module: nn.Module, *, requires_grad: bool) -> int:
    """Number of forward passes of each image in one call: the draws of the ensemble that ``module`` is or holds, else 1."""
    return _draws(module)(requires_grad)


def _draws(module: nn.Module) -> Callable[[bool], int]:
    ensembles = (part for part in module.modules() if callable(getattr(part, "passes", None)))
    found: Callable[[bool], int] = getattr(next(ensembles, None), "passes", lambda requires_grad: 1)
    return found


@contextlib.contextmanager
def counting(module: nn.Module) -> Iterator[Counter]:
    """Count the forward and backward passes of images through ``module`` within the context."""
    counter, draws = Counter(), _draws(module)

    @unseen
    def count(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            counter.forward += draws(output.requires_grad) * len(output)
            if output.requires_grad:
                output.register_hook(count_backward)

    def count_backward(grad: Tensor) -> None:
        counter.backward += draws(True) * len(grad)

    hook = module.register_forward_hook(count)
    try:
        yield counter
    finally:
        hook.remove()


class BackwardPasses:
    """Backward passes so far."""

    def __init__(self) -> None:
        self.number = 0


@contextlib.contextmanager
def counting_backward_passes() -> Iterator[BackwardPasses]:
    """Count every backward pass that runs within the context, by any function of torch.

    AutoAttack uses a trace function for this purpose, which stops coverage tools and debuggers.
    """
    counter = BackwardPasses()
    autograd: Any = torch.autograd  # the engine is private and has no type in torch
    engine = autograd._engine_run_backward

    def run(*args: Any, **kwargs: Any) -> Any:
        counter.number += 1
        return engine(*args, **kwargs)

    autograd._engine_run_backward = run
    try:
        yield counter
    finally:
        autograd._engine_run_backward = engine
