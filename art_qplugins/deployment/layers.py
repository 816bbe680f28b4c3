"""The layers with weights in the graph of a network, each with its batch norm folded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from art_qplugins.deployment.grids import Codes, Grid, codes_of
from art_qplugins.deployment.levels import grid_before
from art_qplugins.deployment.tracing import layer_of
from art_qplugins.deployment.weights import folded
from art_qplugins.quantizers.stored import weight_maps
from art_qplugins.quantizers.weight import MuLawMapping, UniformWeightQuantizer

__all__ = ["Weighted", "weighted"]

aten = torch.ops.aten
_LINEAR = aten.linear.default
#: The weight is the second argument of each, and the bias the third.
_WEIGHTED = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding, _LINEAR),
)


@dataclass(frozen=True)
class Weighted:
    """A convolution or a linear layer.

    :ivar codes: its weight in integers, or why it has none.
    :ivar weight: its weight in float, (out, ...).
    :ivar bias: (out,).
    """

    node: fx.Node
    name: str
    codes: Codes | str
    weight: Tensor
    bias: Tensor | None

    @property
    def linear(self) -> bool:
        return self.node.target == _LINEAR

    @property
    def inputs(self) -> Grid | None:
        """The grid of its inputs."""
        return grid_before(self.node.args[0])

    @property
    def only_user(self) -> fx.Node | None:
        return next(iter(self.node.users)) if len(self.node.users) == 1 else None


def weighted(graph: fx.GraphModule, network: nn.Module) -> list[Weighted]:
    """The layers with weights of their own, in the order in which they are computed. Their batch norms leave the graph.

    :param network: the module whose graph it is.
    """
    found = []
    for node in list(graph.graph.nodes):
        if node.target not in _WEIGHTED or (weight := _constant(graph, node, 1)) is None:
            continue
        name = str(node.args[1].target).rpartition(".")[0]
        codes = _codes(weight, network.get_submodule(name))
        found.append(_with_norm(graph, Weighted(node, layer_of(node), codes, weight, _constant(graph, node, 2))))
    return found


def _constant(graph: fx.GraphModule, node: fx.Node, index: int) -> Tensor | None:
    """The argument of a node, where it is a parameter or a buffer."""
    given = node.args[index] if index < len(node.args) else None
    if not isinstance(given, fx.Node) or given.op != "get_attr":
        return None
    parent, _, name = str(given.target).rpartition(".")
    value: Tensor = getattr(graph.get_submodule(parent), name)
    return value.detach()


def _codes(weight: Tensor, layer: nn.Module) -> Codes | str:
    maps = weight_maps(layer)
    if any(isinstance(one, MuLawMapping) for one in maps):
        return "mapped by the mu-law, whose levels are not even: no integer form exists"
    if not maps or not isinstance(maps[-1], UniformWeightQuantizer):
        return "it was not quantized"
    return codes_of(weight, maps[-1])


def _with_norm(graph: fx.GraphModule, layer: Weighted) -> Weighted:
    """The layer with the batch norm that follows it."""
    norm = layer.only_user
    if norm is None or norm.target != aten.batch_norm.default or norm.args[5]:
        return layer
    if layer.linear and layer.node.meta["val"].dim() != 2:  # the norm's channels are not the layer's
        return layer
    weight, shift, mean, var = (_constant(graph, norm, index) for index in range(1, 5))
    if mean is None or var is None:
        return layer
    gain = 1 / (var.double() + norm.args[7]).sqrt() * (1 if weight is None else weight)  # type: ignore[operator]
    bias = (0 if layer.bias is None else layer.bias) - mean.double()
    bias = bias * gain + (0 if shift is None else shift)
    norm.replace_all_uses_with(layer.node)
    graph.graph.erase_node(norm)
    gain = gain.float()
    return replace(
        layer,
        codes=layer.codes if isinstance(layer.codes, str) else folded(layer.codes, gain),
        weight=layer.weight * gain.view(-1, *[1] * (layer.weight.dim() - 1)),
        bias=bias.float(),
    )
