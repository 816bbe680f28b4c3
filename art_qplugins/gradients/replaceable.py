"""Replaceable operations: their gradient is a choice, so that an attack may choose another gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from art_qplugins.gradients.nodes import (
    GATES,
    LAYERS,
    GraphPath,
    find_path,
    is_custom,
    is_mixing,
    is_named,
    is_step,
    straight_edge,
)
from art_qplugins.guard import isolated
from art_qplugins.quantizers.stochastic import draws_from
from art_qplugins.seeds import derive_seed

__all__ = ["replaceable_operations"]


def replaceable_operations(module: nn.Module, x: Tensor, *, seed: int = 0) -> tuple[str, ...]:
    """Names of the replaceable operations between logits and pixels, sorted; () where no path leads to the pixels.

    An operation is replaceable if it keeps the shape, and is one of these:

    * a custom ``autograd.Function``, whose gradient its author chose;
    * a step function of PyTorch (round, sign, floor ...);
    * an elementwise function of the logits behind the last layer, or of values in the shape of the pixels (tanh, clamp,
        softmax ...). Such a function can change slopes much and outputs little.

    ``straight=`` of :class:`~art_qplugins.gradients.repair.GradientRepair` takes these names.

    :param x: (N, C, H, W) in [0, 1]; the first two images are used.
    :param seed: fixes the draws of a random module.
    """
    drawn = derive_seed(seed, "ledger")
    with isolated(module, drawn), draws_from(module, drawn), torch.enable_grad():
        entered = x.detach()[:2].clone().requires_grad_().clone()
        entrance = entered.grad_fn  # read before the forward pass: an in-place operation gives the tensor another node
        logits = module(entered)
        path = find_path(logits.grad_fn, entrance)
        found = {*filter(_is_chosen, path), *_squashing(path, logits, entered)}
    return tuple(sorted({node.name() for node in found if straight_edge(node, path[node]) is not None}))


def _is_chosen(node: Node) -> bool:
    return not is_mixing(node) and (is_custom(node) or is_step(node))


def _squashing(path: GraphPath, logits: Tensor, pixels: Tensor) -> Iterator[Node]:
    """Elementwise operations on values in the logits' shape behind the last layers, and in the pixels' shape anywhere.

    Linear operations and casts do not count. Gates do not count either, because a network has many of them.
    """
    behind = _behind_the_last_layers(path)
    for node in path:
        gave = [tuple(metadata.shape) for metadata in node._input_metadata]
        squashed = gave == [pixels.shape] or (gave == [logits.shape] and node in behind)
        if squashed and not is_mixing(node) and not is_named(node, (*GATES, "ToCopy")):
            yield node


def _behind_the_last_layers(path: GraphPath) -> set[Node]:
    """The nodes between the logits and the first layers with weights on each branch back to the pixels."""
    behind: set[Node] = set()
    stack: list[Node | None] = [next(iter(path))] if path else []
    while stack:
        node = stack.pop()
        if node is not None and node not in behind and not is_named(node, LAYERS):
            behind.add(node)
            stack += [node.next_functions[edge][0] for edge in path[node]]
    return behind
