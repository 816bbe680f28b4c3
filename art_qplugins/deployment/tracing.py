"""A network as a graph of operations, by ``torch.export``."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from art_qplugins.errors import InputError, said

__all__ = ["exported", "layer_of", "quiet", "traced"]


def exported(module: nn.Module, input_shape: Sequence[int]) -> torch.export.ExportedProgram:
    """``module`` for any number of images of this shape, (C, H, W).

    :raises InputError: where ``torch.export`` cannot follow it. It names the layer.
    """
    batch = (torch.zeros(2, *input_shape),)
    with _naming(module) as inside, quiet():
        try:
            return torch.export.export(module, batch, dynamic_shapes=({0: torch.export.Dim("batch")},))
        except Exception as error:  # whatever the code of a network raises
            where = f"layer {inside[-1]!r}" if inside and inside[-1] else type(module).__name__
            raise InputError(
                f"export: torch.export cannot follow {where}: {said(error)}; write it without branches on the values of "
                "tensors, and without code that is not PyTorch's"
            ) from None


def traced(module: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    """The graph of ``module`` in eval mode, a module that can be changed, copied and differentiated."""
    with quiet():
        program = exported(module, input_shape).module()
    graph = program.graph
    for node in list(graph.nodes):
        if node.op == "call_module":  # a check of the shape of inputs
            graph.erase_node(node)
    graph.eliminate_dead_code()
    return fx.GraphModule(program, graph)


def layer_of(node: fx.Node) -> str:
    """The name of the layer that a node is part of, or the node's own."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (stack[-1][0] if stack else "") or node.name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, torch and ONNX's exporter do not tell of their own workings."""
    levels = {name: logging.getLogger(name).level for name in ("torch", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.|copyreg|onnxscript")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _naming(module: nn.Module) -> Iterator[list[str]]:
    """Yields the names of the layers whose forward passes have begun and not ended."""
    inside: list[str] = []

    def leave(*_: Any) -> None:
        inside.pop()

    hooks = []
    for name, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(lambda _, args, name=name: inside.append(name)))
        hooks.append(part.register_forward_hook(leave))
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()
