"""Distances between the activations of images and of the same images after a change (Lin, Gan & Han 2019, figure 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.domains import COUNT, SEED, check_all
from art_qplugins.errors import InputError
from art_qplugins.gradients.probe import answer
from art_qplugins.quantizers.maps import weight_layers
from art_qplugins.torch_domains import IMAGES, MODULE

__all__ = ["activation_distances", "inputs"]


def activation_distances(
    module: nn.Module, x: Tensor, changed: Tensor, *, batch_size: int = 50, seed: int = 0
) -> dict[str, Tensor]:
    r""":math:`D = \|A' - A\|_2 / \|A\|_2` at the input of each linear and convolutional layer, for each image.

    Where quantized activations come before a layer, they are what it reads. So D of a network and of its quantized form
    says what quantization does to the change. D is 0 where both are zero, and infinite where A alone is.

    :param module: a network. It is asked in eval mode and does not change. One that draws has the same draws for both
        images, and D is the mean over the draws of one call.
    :param x: (N, C, H, W) in [0, 1].
    :param changed: the images after the change, such as adversarial ones, of the shape of ``x``.
    :param batch_size: images whose activations are kept at once.
    :return: by the path of the layer, in the order of the forward pass, (N,) float64 on the CPU.
    """
    check_all(
        {"module": module, "x": x, "changed": changed, "batch_size": batch_size, "seed": seed},
        {"module": MODULE, "x": IMAGES, "changed": IMAGES, "batch_size": COUNT, "seed": SEED},
    )
    if x.shape != changed.shape:
        raise InputError(f"changed: its shape is {tuple(changed.shape)}, and x has {tuple(x.shape)}; give both alike")
    parts = [
        _distances(module, clean, other, seed)
        for clean, other in zip(x.split(batch_size), changed.split(batch_size), strict=True)
    ]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def _distances(module: nn.Module, x: Tensor, changed: Tensor, seed: int) -> dict[str, Tensor]:
    if (ready := getattr(module, "prepare", None)) is not None:
        ready(x)  # an ensemble tries its network once, which the hooks must not see
    clean, other = inputs(module, x, seed), inputs(module, changed, seed)
    return {layer: _relative(clean[layer], other[layer], len(x)) for layer in clean}


def inputs(module: nn.Module, x: Tensor, seed: int) -> dict[str, list[Tensor]]:
    """What each layer reads, by its path. A layer that is called several times reads several tensors."""
    found: dict[str, list[Tensor]] = {}

    def seeing(path: str) -> Any:
        return lambda layer, args: found.setdefault(path, []).append(args[0].detach())

    hooks = [layer.register_forward_pre_hook(seeing(path)) for path, layer in weight_layers(module)]
    try:
        answer(module, x, seed, 0)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _relative(clean: list[Tensor], other: list[Tensor], n: int) -> Tensor:
    """(n,) the mean over the draws. Draws lie one after the other along the batch."""
    a, b = (torch.cat(seen).flatten(1).double() for seen in (clean, other))
    lengths = torch.linalg.vector_norm(a, dim=1)
    moved = torch.linalg.vector_norm(b - a, dim=1)
    ratios = torch.where(moved == 0, 0.0, moved / lengths)
    return ratios.view(-1, n).mean(0).cpu()
