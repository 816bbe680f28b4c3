"""Views of a network that does something at test time before it answers: it takes steps of its own, or asks itself many times.

They have the same outputs. ``unrolled`` differentiates through steps that the network takes without a gradient. ``inner`` takes
the gradient of the network that is asked, and passes what stands around it straight through (BPDA, Athalye et al. 2018).
``inner-alone`` attacks that network as if nothing stood around it: where the steps undo every small move, only images that
already fool it go through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from art_qplugins.gradients.bridges import Twin
from art_qplugins.gradients.probe import gradient
from art_qplugins.guard import takes_hooks
from art_qplugins.quantizers.functional import straight_through

__all__ = ["InnerAlone", "ThroughInner", "Unrolled", "inner_network", "views_at_test_time"]

_TRIED = 2  # images on which it is found out what applies
_MEMORY = 2**31  # bytes of an unrolled batch


def views_at_test_time(module: nn.Module, x: Tensor, *, batch_size: int, seed: int) -> dict[str, nn.Module]:
    """``unrolled``, ``inner`` and ``inner-alone``, each where it applies to this network.

    ``unrolled`` applies where its gradient is another one, and where the steps of a batch fit into 2 GiB.

    :param x: images. The first two are tried.
    """
    views: dict[str, nn.Module] = {}
    tried, unrolled = x[:_TRIED], Unrolled(module)
    sizes: list[int] = []

    def keep(saved: Tensor) -> Tensor:
        sizes.append(saved.numel() * saved.element_size())
        return saved

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            through = gradient(unrolled, tried, _best, seed=seed)
    except Exception:  # a module that cannot be differentiated twice, or that leaves torch, keeps its own gradient
        through = None
    small = sum(sizes) / max(len(tried), 1) * min(batch_size, len(x)) <= _MEMORY
    if through is not None and small and not torch.allclose(through, gradient(module, tried, _best, seed=seed)):
        views["unrolled"] = unrolled
    if (inner := inner_network(module, tried)) is not None:
        views |= {"inner": ThroughInner(module, inner), "inner-alone": InnerAlone(module, inner)}
    return views


def _best(logits: Tensor) -> Tensor:
    return logits.amax(1)


class ThroughInner(nn.Module):
    """The same network with the gradient of a network inside it, taken at the pixels themselves.

    What stands around the inner network is passed straight through: a change of its pixels, a vote over noisy copies, or steps
    of its own that move an image before it is classified.

    :param inner: maps images to logits of the same shape as ``network``, see :func:`inner_network`.
    """

    def __init__(self, network: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.network, self.inner = network, inner

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.network(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        return straight_through(value, self.inner(x))


class InnerAlone(Twin):
    """The network inside alone, with its own answers.

    :param inner: as of :class:`ThroughInner`.
    """

    def __init__(self, network: nn.Module, inner: nn.Module) -> None:
        super().__init__(network)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        with torch.no_grad():
            self.answer = self.network(x)
        return logits


@torch.no_grad()
def inner_network(module: nn.Module, x: Tensor) -> nn.Module | None:
    """The outermost part of ``module`` that maps images like ``x`` to logits, if it is more than ``module`` under another name.

    It is more if it is asked several times in one forward pass, or about other pixels. ``None`` where there is no such part.

    :param x: a few images.
    """
    calls: dict[nn.Module, list[bool]] = {}

    def note(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            calls.setdefault(part, []).append(inputs[0].shape == x.shape and not torch.equal(inputs[0], x))
            shapes.setdefault(part, set()).add((inputs[0].shape, output.shape))

    shapes: dict[nn.Module, set[tuple[torch.Size, torch.Size]]] = {}
    hooks = [part.register_forward_hook(note) for part in module.modules() if part is not module and takes_hooks(part)]
    try:
        logits = module(x)
    finally:
        for hook in hooks:
            hook.remove()
    fits = [part for part in module.modules() if shapes.get(part) == {(x.shape, logits.shape)}]
    return next((part for part in fits if len(calls[part]) > 1 or any(calls[part])), None)


class Unrolled(nn.Module):
    """The same network with the gradient of the steps that it takes without one.

    ``no_grad`` and ``detach`` have no effect in its forward pass, and gradients that it takes itself can be differentiated. So a
    solver of a fixed point, or steps of gradient descent on the pixels, are differentiated through, and all their steps are
    kept in memory.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            logits: Tensor = self.network(x)
            return logits
        with _Unrolling():
            logits = self.network(x)
        return logits


class _Unrolling(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "_set_grad_enabled":
            return None
        if name == "detach":
            return args[0].view_as(args[0])
        if func is torch.autograd.grad:
            kwargs = {**kwargs, "create_graph": True}
        return func(*args, **kwargs)
