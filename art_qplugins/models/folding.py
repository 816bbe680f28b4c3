"""Several draws of a stochastic network in one batch.

The batch is repeated inside the network, at the input of one submodule. The layers before it are deterministic and are
computed once for all draws.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from art_qplugins.guard import evaluating
from art_qplugins.quantizers.noise import stochastic_layers

__all__ = ["drawing", "find_part", "fold"]


def fold(network: nn.Module, x: Tensor, times: int, part: str) -> Tensor:
    """Logits of ``network`` for ``x`` repeated ``times`` times, (times * N, C).

    :param part: dotted name of the submodule at whose input the batch is repeated; ``""`` is the network itself.
    """
    inner = network.get_submodule(part)
    hook = inner.register_forward_pre_hook(lambda _, args: (_repeat(args[0], times), *args[1:]))
    try:
        answers: Tensor = network(x)
    finally:
        hook.remove()
    return answers


def find_part(network: nn.Module, x: Tensor) -> str:
    """Name of the innermost submodule around the first stochastic layer at whose input the batch can be repeated.

    It is the layer itself, unless a sum joins its output with an earlier activation. In a residual network it is the block.
    Each submodule is tried on two copies of an image. The network itself always works.

    :param x: (N, C, H, W) in [0, 1]; the first image is used.
    """
    first = stochastic_layers(network)[0]
    path: str = next(name for name, module in network.named_modules() if module is first)
    x = _repeat(x.detach()[:1], 2)  # a batch of one would broadcast where the sizes do not fit
    with evaluating(network), torch.no_grad():
        with drawing(network, 0, 3):
            expected = fold(network, x, 3, "")
        while path and not _agrees(network, x, path, expected):
            path = path.rpartition(".")[0]
    return path


def _agrees(network: nn.Module, x: Tensor, path: str, expected: Tensor) -> bool:
    try:
        with drawing(network, 0, 3):
            answer = fold(network, x, 3, path)
    except RuntimeError:
        return False
    return answer.shape == expected.shape and torch.allclose(answer, expected, rtol=1e-4, atol=1e-4)


@contextlib.contextmanager
def drawing(
    network: nn.Module,
    first: int,
    times: int,
    *,
    seeds: Sequence[int] | None = None,
    antithetic: bool = False,
    shared: bool = False,
) -> Iterator[None]:
    """Within the context, a batch of the stochastic layers holds ``times`` draws in sequence, from draw ``first`` on.

    :param seeds: one for each layer; ``None`` keeps the layers' own.
    :param antithetic: draws 2i and 2i + 1 use u and 1 - u.
    :param shared: all images have the same noise.
    """
    layers = stochastic_layers(network)
    before = [layer.seed for layer in layers]
    for layer, seed in zip(layers, seeds or before, strict=True):
        layer.draw, layer.call, layer.fold = first, 0, times
        layer.seed, layer.antithetic, layer.shared = seed, antithetic, shared
    try:
        yield
    finally:
        for layer, seed in zip(layers, before, strict=True):
            layer.fold, layer.seed, layer.antithetic, layer.shared = 1, seed, False, False


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.repeat(times, *[1] * (x.dim() - 1))
