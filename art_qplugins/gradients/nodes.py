"""Nodes of the autograd graph: the operation of each node, and the path from the logits to the pixels.

A node stands for one operation of the forward pass. In the backward pass it takes the gradient of the operation's output,
here called *before*, and returns the gradients of its inputs, here called *behind*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

__all__ = [
    "GATES",
    "GraphPath",
    "find_path",
    "is_custom",
    "is_mixing",
    "is_named",
    "per_image",
    "straight_edge",
]

#: Nodes from the logits to the pixels in order, each with the positions of its inputs that lead to the pixels.
GraphPath: TypeAlias = dict[Node, list[int]]

#: Operations that usually set elements to zero: ReLU, and the operations of a ReLU written by hand.
GATES = ("Relu", "Threshold", "Hardtanh", "Maximum", "Minimum", "Where", "MaskedFill", "Abs")
#: Operations that have weights, or multiply two activations.
_LAYERS = ("Convolution", "Conv2D", "Addmm", "Addmv", "Mm", "Bmm", "Baddbmm", "Linear")
#: Operations that are linear, or that are not elementwise although they may keep the shape.
_MIXING = (
    *_LAYERS,
    *("Norm", "Pool", "Pad", "Index", "View", "Permute", "Transpose", "TBackward", "Cum", "Fft", "Upsample", "Slice"),
    *("Select", "Expand", "Repeat", "CopySlices", "Stack", "Cat", "Sum", "Mean", "Sort", "Flip", "Roll", "Gather"),
    *("Scatter", "Squeeze", "Clone", "Alias", "Embedding", "Add", "Sub", "Neg", "Mul", "Div", "AccumulateGrad"),
)


def is_custom(node: Node) -> bool:
    """Whether a custom ``autograd.Function`` made the node. PyTorch's checkpoints are custom functions too."""
    return isinstance(node, BackwardCFunction)


def is_named(node: Node, names: Sequence[str]) -> bool:
    """Whether one of these operations of PyTorch made the node. A custom function with such a name does not count."""
    name = node.name().rpartition("::")[2]
    return not is_custom(node) and not _rounds_a_division(node) and any(kind in name for kind in names)


def is_mixing(node: Node) -> bool:
    """Whether the operation is linear, or joins several elements, or is a checkpoint, which holds any operations."""
    return is_named(node, _MIXING) or (is_custom(node) and node.name() == "CheckpointFunctionBackward")


def _rounds_a_division(node: Node) -> bool:
    """Whether the node is a division that floors or truncates. Its name is that of a plain division."""
    return not is_custom(node) and getattr(node, "_saved_rounding_mode", None) is not None


def find_path(last: Node | None, entrance: Node | None) -> GraphPath:
    """The path from ``last`` to ``entrance`` with all its branches. It is empty if there is no path."""
    path: GraphPath = {}
    for node in _inputs_first(last, entrance):
        ends = node is entrance or node.name().endswith("NotImplemented")  # the backward pass of the latter raises
        edges = [] if ends else [i for i, (after, _) in enumerate(node.next_functions) if after in path]
        if edges or node is entrance:
            path[node] = edges
    return dict(reversed(path.items())) if last in path else {}


def _inputs_first(last: Node | None, entrance: Node | None) -> list[Node]:
    """Every node that ``last`` depends on, up to ``entrance``, each after all of its inputs."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(last, False)] if last is not None else []
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if node is not entrance:
                stack += [(after, False) for after, _ in node.next_functions if after is not None]
    return order


def straight_edge(node: Node, edges: Sequence[int]) -> int | None:
    """The first of these inputs with the shape of the node's single output; ``None`` where there is none.

    The shapes are those that the graph holds before the backward pass.
    """
    outputs = node._input_metadata  # the node takes the gradient of the operation's output
    if len(outputs) != 1 or len(outputs[0].shape) < 1:
        return None
    for edge in edges:
        after, number = node.next_functions[edge]
        if after is not None and tuple(after._input_metadata[number].shape) == tuple(outputs[0].shape):
            return edge
    return None


def per_image(gradient: Tensor, images: int) -> Tensor:
    """``gradient`` with one row per image or draw of an image, or a single row if dimension 0 is neither."""
    alike = gradient.dim() > 0 and len(gradient) % images == 0 and (gradient.dim() > 1 or len(gradient) == images)
    return gradient.flatten(1) if alike and gradient.dim() > 1 else gradient.reshape(len(gradient) if alike else 1, -1)
