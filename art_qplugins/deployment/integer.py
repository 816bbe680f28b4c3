r"""The integer form of a quantized network: the same graph with whole numbers for its levels, as a file holds it.

Its answers are those of the network up to the rounding of float32, except where integer kernels need otherwise. That is in
two places, and only with ``bias="int"``:

- The bias of a convolution between two quantizers is a whole number of steps (:mod:`~art_qplugins.deployment.weights`).
- A convolution that is added to the activations of a skip connection is rounded before the sum, because ONNX Runtime has no
  kernel that adds first. For activations of up to 7 bits this changes nothing: what it is added to is on the levels of the sum,
  :math:`Q(n s + r) = n s + s \cdot \mathrm{round}(r / s)`. For 8 bits, int8 holds every other level, and a sum is off by at
  most one level.

So what ships is evaluated where this form is.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, fx, nn

from art_qplugins.deployment.grids import Grid
from art_qplugins.deployment.layers import Weighted, weighted
from art_qplugins.deployment.levels import QUANTIZE, grid_before, mark_levels
from art_qplugins.deployment.tracing import traced
from art_qplugins.deployment.weights import Stored, needs_vnni, stored, with_integer_bias
from art_qplugins.domains import OneOf, check_all
from art_qplugins.quantizers import bake
from art_qplugins.torch_domains import MODULE

__all__ = ["BIAS", "IntegerForm", "Layer", "integer_form"]

BIAS = OneOf(("int", "float"))
aten = torch.ops.aten
_SUMS = (aten.add.Tensor, aten.add_.Tensor)
_UINT8 = 255
#: Exporters compute constants of up to this many elements themselves, which would leave a float weight.
_FOLDED = 4096


@dataclass(frozen=True)
class Layer:
    """How a file holds a layer with weights.

    :ivar name: its name in the network.
    :ivar kernel: ``"integer"`` where a runtime can multiply integers, else ``"float"``.
    :ivar weight: ``"int8"`` or ``"float32"``.
    :ivar reason: why the kernel or the weight is in float, or what was rounded, else "".
    :ivar saturates: integer kernels of x86 without VNNI may saturate.
    """

    name: str
    kernel: Literal["integer", "float"]
    weight: Literal["int8", "float32"]
    reason: str = ""
    saturates: bool = False


@dataclass(frozen=True)
class IntegerForm:
    """A network as a file holds it.

    :ivar module: takes what the network takes, gives what the file gives, and has the network's straight-through gradient.
    :ivar layers: those with weights, in the order in which they are computed.
    """

    module: fx.GraphModule
    layers: tuple[Layer, ...]


def integer_form(
    module: nn.Module, input_shape: tuple[int, int, int], *, bias: Literal["int", "float"] = "int"
) -> IntegerForm:
    """The integer form of a copy of ``module``, on the CPU and in eval mode. ``module`` stays as it is.

    :param module: takes (N, C, H, W) float32 in [0, 1]. Its answers are not random.
    :param input_shape: (C, H, W).
    :param bias: ``"int"`` for integer kernels; ``"float"`` for the network's own answers.
    :raises InputError: where ``torch.export`` cannot follow the network. It names the layer.
    """
    check_all(locals(), {"module": MODULE, "bias": BIAS})
    network = bake(copy.deepcopy(module).cpu().float()).eval().requires_grad_(False)
    mark_levels(network)
    graph = traced(network, input_shape)
    layers = weighted(graph, network)
    rounded = _round_branches(graph.graph, layers) if bias == "int" else {}
    told = [_store(graph, layer, rounded.get(layer.node, ""), bias) for layer in layers]
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return IntegerForm(graph, tuple(told))


def _round_branches(graph: fx.Graph, layers: list[Weighted]) -> dict[fx.Node, str]:
    """Round each convolution that is added to quantized activations. Returns what is not exact in it, by node."""
    told = {}
    for layer in layers:
        total = layer.only_user
        if (
            isinstance(layer.codes, str)
            or layer.linear
            or layer.inputs is None
            or total is None
            or total.target not in _SUMS
        ):
            continue
        (skip,) = [one for one in total.args[:2] if one is not layer.node]
        one, of_sum = grid_before(skip), _grid_after(total)
        if one is None or of_sum is None or total.kwargs.get("alpha", 1) != 1:
            continue
        between, told[layer.node] = _between(one, of_sum)
        with graph.inserting_after(layer.node):
            levels = graph.call_function(QUANTIZE, (layer.node, *between))
        levels.meta = dict(layer.node.meta)
        total.replace_input_with(layer.node, levels)
    return told


def _grid_after(node: fx.Node) -> Grid | None:
    """The grid that the only user of a node rounds to."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return Grid(*user.args[1:]) if user is not None and user.target == QUANTIZE else None  # type: ignore[arg-type]


def _between(other: Grid, total: Grid) -> tuple[Grid, str]:
    """The 8-bit grid of a branch that is added to ``other`` before the sum is rounded to ``total``; and what it changes.

    A branch above ``high(total) - low(other)`` or below ``low(total) - high(other)`` saturates the sum whatever it is.
    """
    low, high = total.range[0] - other.range[1], total.range[1] - other.range[0]
    step = (high - low) / _UINT8
    alike = math.isclose(other.scale, total.scale, rel_tol=1e-6)
    if alike:
        step = total.scale * math.ceil(step / total.scale - 1e-6)
    spare = _UINT8 - math.ceil((high - low) / step - 1e-6)
    grid = Grid(step, min(_UINT8, round(-low / step) + spare // 2), 0, _UINT8)
    exact = alike and step < 1.5 * total.scale
    return (
        grid,
        "" if exact else f"rounded to steps of {step:.3g} before a sum whose levels are {total.scale:.3g} apart",
    )


def _store(graph: fx.GraphModule, layer: Weighted, rounded: str, bias: str) -> Layer:
    """Put the weight and the bias of a layer into the graph as a file holds them."""
    if isinstance(layer.codes, str):
        _replace(graph, layer, _constant(graph, layer, "weight", layer.weight), layer.bias)
        return Layer(layer.name, "float", "float32", layer.codes)
    inputs = layer.inputs
    reason = _why_float(layer, bias)
    if reason or inputs is None:
        weight = stored(layer.codes)
        unpack = _unpacked if weight.codes.numel() > _FOLDED else functools.partial(_dequantized, what="weight")
        _replace(graph, layer, unpack(graph, layer, values=weight), layer.bias)
        return Layer(layer.name, "float", "int8", reason)
    zeros = torch.zeros(len(layer.weight))
    given = zeros if layer.bias is None else layer.bias
    weight, steps = with_integer_bias(layer.codes, given, inputs, _thresholds(layer, rounded))
    shift = _dequantized(graph, layer, (*steps, torch.zeros_like(steps.codes)), "bias")
    _replace(graph, layer, _dequantized(graph, layer, weight, "weight"), shift)
    return Layer(layer.name, "integer", "int8", rounded, needs_vnni(weight, inputs))


def _thresholds(layer: Weighted, rounded: str) -> Tensor:
    """Between which two levels of the output lies what: (m,), none where the output is not rounded."""
    outputs = _grid_after(layer.node)
    if outputs is None:
        return torch.zeros(0, dtype=torch.float64)
    found = (
        torch.arange(outputs.quant_min, outputs.quant_max, dtype=torch.float64) + 0.5 - outputs.zero_point
    ) * outputs.scale
    total = next(iter(cast(fx.Node, layer.only_user).users))
    of_sum = _grid_after(total) if total.target in _SUMS else None
    if of_sum is None or rounded:
        return found
    # More than the range of the sum saturates it, so thresholds beyond it do not matter.
    return found[found.abs() < of_sum.range[1] - of_sum.range[0]]


def _why_float(layer: Weighted, bias: str) -> str:
    """Why a layer is computed in float, "" where it is not."""
    if bias == "float":
        return "its bias is in float"
    if layer.inputs is None:
        return "its inputs are not quantized"
    user = layer.only_user
    quantized = user is not None and user.target == QUANTIZE
    return "" if layer.linear or quantized else "its outputs are not quantized"


# --- The graph


def _constant(graph: fx.GraphModule, layer: Weighted, what: str, value: Tensor) -> fx.Node:
    name = f"{layer.node.name}_{what}"
    graph.register_buffer(name, value.contiguous())
    with graph.graph.inserting_before(layer.node):
        return graph.graph.get_attr(name)


def _unpacked(graph: fx.GraphModule, layer: Weighted, values: Stored) -> fx.Node:
    """The weight in float from its integers, by operations that a runtime computes once, when it loads the file.

    It leaves a DequantizeLinear of a weight for every call, and computes with it in a slower layout.
    """
    shape = (-1, *[1] * (layer.weight.dim() - 1))
    codes = _constant(graph, layer, "weight_codes", values.codes)
    scale = _constant(graph, layer, "weight_scale", values.scale.view(shape))
    zero = _constant(graph, layer, "weight_zero_point", values.zero_point.float().view(shape))
    with graph.graph.inserting_before(layer.node):
        found = graph.graph.call_function(aten.to.dtype, (codes, torch.float32))
        if values.zero_point.any():
            found = graph.graph.call_function(aten.sub.Tensor, (found, zero))
        return graph.graph.call_function(aten.mul.Tensor, (found, scale))


def _dequantized(graph: fx.GraphModule, layer: Weighted, values: tuple[Tensor, Tensor, Tensor], what: str) -> fx.Node:
    names = (f"{what}_codes", f"{what}_scale", f"{what}_zero_point")
    nodes = [_constant(graph, layer, name, value) for name, value in zip(names, values, strict=True)]
    with graph.graph.inserting_before(layer.node):
        return graph.graph.call_function(torch.ops.artq.dequantize.default, (*nodes, 0))


def _replace(graph: fx.GraphModule, layer: Weighted, weight: fx.Node, bias: fx.Node | Tensor | None) -> None:
    if isinstance(bias, Tensor):
        bias = _constant(graph, layer, "bias", bias)
    layer.node.args = (layer.node.args[0], weight, bias, *layer.node.args[3:])
