"""Finds out by hooks in the forward pass which submodule made which node of the autograd graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from art_qplugins.gradients.nodes import find_path
from art_qplugins.guard import takes_hooks

__all__ = ["Layers"]


class Layers(contextlib.AbstractContextManager["Layers"]):
    """Records a forward pass of ``module`` within the context. The hooks are removed afterwards."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._handles: list[RemovableHandle] = []
        self._owners: dict[Node, str] = {}
        self._running: list[tuple[nn.Module, set[Node]]] = []
        self._finished: list[tuple[str, set[Node], set[Node]]] = []  # inner modules come before outer ones

    def __enter__(self) -> Layers:
        for path, part in self._module.named_modules():
            if not takes_hooks(part):
                continue
            name = path or type(part).__name__
            self._handles.append(part.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(part.register_forward_hook(self._leaver(name), with_kwargs=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def owner(self, node: Node) -> str:
        """Path of the innermost submodule that made ``node``, or the class of ``module`` if its own forward made it."""
        return self._owners.get(node, type(self._module).__name__)

    def end(self, entrance: Node | None) -> str | None:
        """The first submodule to finish whose inputs have a path to ``entrance`` and whose outputs have none."""
        for name, taken, given in self._finished:
            if any(find_path(node, entrance) for node in taken) and not any(find_path(n, entrance) for n in given):
                return name
        return None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._running.append((module, _nodes((args, kwargs))))

    def _leaver(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            started, taken = self._running.pop()
            while started is not module:  # a forward in between failed, and the exception was caught
                started, taken = self._running.pop()
            given = _nodes(output)
            self._finished.append((name, taken, given))
            for node in _between(given, taken):
                self._owners.setdefault(node, name)  # an inner module has set it before

        return leave


def _between(given: set[Node], taken: set[Node]) -> Iterator[Node]:
    """Every node that a module made: those from its outputs back to its inputs."""
    stack, seen = list(given), set(taken)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += [after for after, _ in node.next_functions if after is not None]


def _nodes(value: Any) -> set[Node]:
    """The nodes of all tensors in nested tuples, lists and dictionaries."""
    return {tensor.grad_fn for tensor in _tensors(value) if tensor.grad_fn is not None}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
