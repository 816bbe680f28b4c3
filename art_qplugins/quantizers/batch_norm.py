"""Batch norm folded into the convolution or linear layer before it, as deployments do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fusion, parametrize

from art_qplugins.quantizers.tracing import put, trace

__all__ = ["fold_batch_norm"]

#: The layers that it can be folded into.
_BEFORE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> list[str]:
    """Fold every batch norm of ``model``, with its running statistics, into the layer before it. In place.

    A batch norm is folded where a trace of a module around it shows that it alone takes what a layer gives, and that both
    are called once. ``nn.Identity`` takes its place.

    :return: the paths of those that stay, such as one before its convolution.
    """
    graphs: dict[str, fx.Graph | None] = {}
    held = dict(model.named_modules(remove_duplicate=False))
    places = Counter(map(id, held.values()))
    shared = {name for name, m in held.items() if places[id(m)] > 1}
    left = []
    for path, norm in [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]:
        layer = next(_layers_before(model, path, graphs), None)
        if layer is None or norm.running_mean is None or shared & {path, layer}:
            left.append(path)
            continue
        _fold(model.get_submodule(layer), norm)
        put(model, path, nn.Identity().train(norm.training))
    return left


def _layers_before(model: nn.Module, path: str, graphs: dict[str, fx.Graph | None]) -> Iterator[str]:
    """The path of the layer that the batch norm at ``path`` follows, as the modules around it tell, from the nearest."""
    around = path
    while around:
        around = around.rpartition(".")[0]
        if around not in graphs:
            graphs[around] = trace(model.get_submodule(around))
        prefix = f"{around}." if around else ""
        graph = graphs[around]
        if graph is not None and (found := _before(model, graph, prefix, path.removeprefix(prefix))):
            yield found


def _before(model: nn.Module, graph: fx.Graph, prefix: str, norm: str) -> str | None:
    """The path of the layer whose values ``graph`` gives to ``norm`` and to nothing else, both called once."""
    steps = [node for node in graph.nodes if node.op == "call_module"]
    norms = [node for node in steps if node.target == norm]
    if len(norms) != 1 or len(norms[0].all_input_nodes) != 1:
        return None
    (step,) = norms[0].all_input_nodes
    once = step.op == "call_module" and sum(node.target == step.target for node in steps) == 1
    if not once or len(step.users) != 1:
        return None
    layer = f"{prefix}{step.target}"
    module = model.get_submodule(layer)
    return layer if isinstance(module, _BEFORE) and not parametrize.is_parametrized(module) else None


def _fold(layer: Any, norm: Any) -> None:
    fuse = fusion.fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fusion.fuse_conv_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
