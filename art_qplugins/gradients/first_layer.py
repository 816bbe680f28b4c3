"""BPDA at the first layer with weights: whatever comes before it has the identity as backward pass.

This serves where a network cannot be traced. It is the attack of Athalye, Carlini & Wagner 2018, section 4.1, on an image
transformation before a network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.gradients.bridges import instead_of
from art_qplugins.gradients.fidelity import fidelity
from art_qplugins.gradients.trace import IMAGES
from art_qplugins.guard import isolated, takes_hooks
from art_qplugins.seeds import derive_seed

__all__ = ["AtFirstLayer", "at_first_layer"]

#: The fidelity of the margin must rise by this much.
_GAIN = 0.1


class AtFirstLayer(nn.Module):
    """The answers of ``network``, bit for bit. The gradient at the input of one layer goes to the pixels unchanged.

    :param path: of the layer inside ``network``. Its input must have the shape of the images.
    :ivar lost: what was measured, as JSON.
    """

    def __init__(self, network: nn.Module, path: str, lost: list[dict[str, Any]]) -> None:
        super().__init__()
        self.network = network
        self.path, self.lost = path, lost

    @property
    def is_substitute(self) -> bool:
        return False

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            answer: Tensor = self.network(x)
            return answer

        def enter(_: nn.Module, args: Any) -> Any:
            if args and isinstance(args[0], Tensor) and args[0].shape == x.shape:
                return (instead_of(args[0], x), *args[1:])
            return None

        hook = self.network.get_submodule(self.path).register_forward_pre_hook(enter)
        try:
            logits: Tensor = self.network(x)
        finally:
            hook.remove()
        return logits


def at_first_layer(module: nn.Module, x: Tensor, *, radius: float, seed: int = 0) -> AtFirstLayer | None:
    """The view of ``module``; ``None`` where no layer takes the shape of the images, or it does not help.

    :param x: (N, C, H, W) in [0, 1]; 17 images are used.
    :param radius: half the side of the cube that an attack searches, above 0.
    """
    x = x.detach()[:IMAGES]
    path = _first_layer(module, x, seed)
    if path is None:
        return None
    with isolated(module, seed), torch.no_grad():
        y = module(x).argmax(1)
    view = AtFirstLayer(module, path, [])
    before, after = (float(fidelity(m, x, y, step=radius / 4, seed=seed).mean()) for m in (module, view))
    if not after >= before + _GAIN:
        return None
    layer = type(module.get_submodule(path)).__name__
    view.lost.append({"layer": path, "op": layer, "ordinal": 0, "how": "identity", "before": before, "after": after})
    return view


def _first_layer(module: nn.Module, x: Tensor, seed: int) -> str | None:
    """The path of the first layer to be called that has weights and takes tensors in the shape of ``x``."""
    called: list[str] = []
    hooks = []
    for path, part in module.named_modules():
        if not takes_hooks(part):
            continue
        if path and any(p is not None and p.dim() > 1 for p in part._parameters.values()):

            def see(_: nn.Module, args: Any, path: str = path) -> None:
                if args and isinstance(args[0], Tensor) and args[0].shape == x.shape:
                    called.append(path)

            hooks.append(part.register_forward_pre_hook(see))
    try:
        with isolated(module, derive_seed(seed, "trace")), torch.no_grad():
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return called[0] if called else None
