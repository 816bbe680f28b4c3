"""Restores what other code changes: modes, parameters, buffers, flags, random states and the trace function.

ART and torchattacks switch the whole module tree to eval mode. AutoAttack seeds the global generators and clears the trace
function. Every call of such code is inside :func:`evaluating` or :func:`isolated`.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["evaluating", "isolated", "restoring", "takes_hooks", "takes_modes"]


@contextlib.contextmanager
def evaluating(module: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Put ``module`` into eval mode, or into train mode, within the context. The mode of every submodule is restored."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        for m, mode in modes:
            if mode is not training:
                m.training = training
        yield
    finally:
        for m, mode in modes:
            if m.training is not mode:
                m.training = mode


@contextlib.contextmanager
def isolated(module: nn.Module, seed: int) -> Iterator[None]:
    """Put ``module`` into eval mode with frozen parameters, and seed every global generator, within the context.

    Afterwards modes, ``requires_grad`` flags, torch's gradient mode, the trace function, and the states of Python's,
    NumPy's and torch's generators are restored. These include the generators of accelerators that hold parameters.

    Operations without a backward pass, as those of quantized tensors, end the graph within. By default torch goes on without a
    gradient, and warns.
    """
    frozen = [(p, p.requires_grad) for p in module.parameters()]
    numpy_state, python_state, trace = np.random.get_state(), random.getstate(), sys.gettrace()
    differentiable = torch.is_grad_enabled()
    devices = list({p.device for p in module.parameters() if p.device.type == "cuda"})
    with evaluating(module), torch.random.fork_rng(devices=devices), _ending_the_graph():
        try:
            for p, _ in frozen:
                p.requires_grad_(False)
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            torch.set_grad_enabled(differentiable)
            sys.settrace(trace)
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            for p, requires_grad in frozen:
                p.requires_grad_(requires_grad)


@contextlib.contextmanager
def _ending_the_graph() -> Iterator[None]:
    core: Any = torch._C  # has no public name for it
    before = core._get_autograd_fallback_mode()
    core._set_autograd_fallback_mode("nothing")
    try:
        yield
    finally:
        core._set_autograd_fallback_mode(before)


def takes_modes(module: nn.Module) -> bool:
    """Whether it can be put into eval mode. What ``torch.export`` makes is of one mode, and raises."""
    with evaluating(module):
        try:
            module.eval()
        except NotImplementedError:
            return False
    return True


def takes_hooks(module: nn.Module) -> bool:
    """Whether torch lets hooks be registered on it. A scripted module takes none."""
    return not isinstance(module, torch.jit.ScriptModule)


@contextlib.contextmanager
def restoring(module: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Restore the values of parameters and buffers at the end of the context.

    :return: a function that returns the sorted paths of the parameters and buffers that have changed so far.
    """
    snapshot = _Snapshot(module)
    try:
        yield snapshot.changed
    finally:
        snapshot.restore()


class _Snapshot:
    """The current parameters and buffers of a module, and their values."""

    def __init__(self, module: nn.Module) -> None:
        self._tables: list[tuple[str, dict[str, Any], dict[str, Tensor | None]]] = [
            (path, table, dict(table.items()))
            for path, part in module.named_modules()
            for table in (part._parameters, part._buffers)
        ]
        tensors = [t for _, _, old in self._tables for t in old.values() if t is not None]
        self._values = {id(t): [part.detach().clone() for part in _parts(t)] for t in tensors}

    def changed(self) -> list[str]:
        """Paths of the parameters and buffers that have other values, were replaced or were added."""
        return sorted(
            {
                f"{path}.{key}".lstrip(".")
                for path, table, old in self._tables
                for key, value in table.items()
                if not self._is_kept(old.get(key), value)
            }
        )

    @torch.no_grad()
    def restore(self) -> None:
        for _, table, old in self._tables:
            if isinstance(table, dict):  # a scripted module lets nobody replace its tensors
                table.clear()
                table.update(old)
            for tensor in old.values():
                if tensor is None or self._is_kept(tensor, tensor):
                    continue
                for part, was in zip(_parts(tensor), self._values[id(tensor)], strict=True):
                    if (
                        part.shape == was.shape
                    ):  # a layer may pack its weight at its first use; it cannot be unpacked from here
                        part.copy_(was)

    def _is_kept(self, old: Tensor | None, new: Tensor | None) -> bool:
        """Whether ``new`` has the value that ``old`` had."""
        if old is None or new is None:
            return old is new
        was, now = self._values[id(old)], _parts(new)
        return len(was) == len(now) and all(map(_alike, was, now))


def _parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor is made of: itself, unless it is of a class that wraps others."""
    if not hasattr(type(tensor), "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _alike(was: Tensor, now: Tensor) -> bool:
    return was.shape == now.shape and bool(((was == now) | (was.isnan() & now.isnan())).all())
