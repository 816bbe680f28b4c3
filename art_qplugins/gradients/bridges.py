"""Bridges: another backward pass for the operations of a network that lose its gradient. No value changes.

This is BPDA (Athalye, Carlini & Wagner 2018, section 4.1) at single operations. An operation is known by its layer, its name
and its ordinal, as ``operations`` sees it, and not by its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from art_qplugins.gradients.operations import PIXELS, Key, Operations
from art_qplugins.gradients.trace import Effects, per_image

__all__ = [
    "Bridge",
    "Bridged",
    "Bypassed",
    "Crossing",
    "Layout",
    "Path",
    "Twin",
    "instead_of",
    "layout_of",
    "straight_path",
]

How = Literal["gradient", "identity", "surrogate"]
#: From sources (N, copies, *shape), and the number of copies of the result, to a result (N, copies, *shape).
Path: TypeAlias = Callable[[Sequence[Tensor], int], Tensor]
Kind: TypeAlias = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """The backward pass of one operation.

    :param key: the operation.
    :param how: ``"identity"`` of the nearest results in its shape, a learned ``"surrogate"``, or its own ``"gradient"``
        where the network switches gradients off.
    :param sources: the results that the gradient goes to.
    :param path: its gradient is used.
    :param before: the fidelity of the logits without this bridge, and ``after`` with all bridges.
    """

    key: Key
    how: How
    sources: tuple[Key, ...] = ()
    path: Path | None = None
    before: float = 0.0
    after: float = 0.0

    def record(self) -> dict[str, Any]:
        """The bridge as JSON."""
        at = {"layer": self.key.layer, "op": self.key.op, "ordinal": self.key.ordinal}
        return {**at, "how": self.how, "before": round(self.before, 3), "after": round(self.after, 3)}


class _Instead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def instead_of(value: Tensor, path: Tensor) -> Tensor:
    """A copy of ``value``, bit for bit, whose gradient goes to ``path`` alone. The copy may be changed in place."""
    result: Tensor = _Instead.apply(value.detach(), path)
    return result


@dataclass(frozen=True)
class Layout:
    """What the trace knows of the rows of results.

    :param traced: the operations of the trace.
    :param interleaved: those that put the copies of an image beside each other; others put batches one after another.
    """

    traced: frozenset[Key]
    interleaved: frozenset[Key]


def layout_of(effects: Effects) -> Layout:
    return Layout(frozenset(effects.order), frozenset(effects.interleaved))


class Crossing:
    """The visit of one forward pass that puts the bridges in.

    A network may take its copies in chunks that depend on the size of the batch. So an operation that was not traced, with other
    copies or a higher ordinal, gets the bridge of its kind: the same layer, name and shape.

    :param bypass: go over the bridges in the forward pass too, which changes values.
    """

    def __init__(self, bridges: Iterable[Bridge], layout: Layout, *, bypass: bool = False) -> None:
        self._bypass, self._layout = bypass, layout
        self._bridges = {bridge.key: bridge for bridge in bridges if bridge.path is not None}
        self._kinds = {_kind(key): bridge for key, bridge in self._bridges.items()}
        self._interleaved = {_kind(key) for key in layout.interleaved}
        self._sources = {_kind(key) for bridge in self._bridges.values() for key in bridge.sources}
        self._held: dict[Key | Kind, Tensor] = {}  # by operation, and the latest of each kind

    def __call__(self, key: Key, tensor: Tensor, _: frozenset[Key]) -> Tensor | None:
        kind, instead = _kind(key), None
        known = key in self._layout.traced
        bridge = self._bridges.get(key) if known else self._kinds.get(kind)
        if bridge is not None and bridge.path is not None:
            sources = [self._held.get(source if known else _kind(source)) for source in bridge.sources]
            held = [source for source in sources if source is not None]
            if len(held) == len(sources):
                path = bridge.path(held, key.copies)
                path = (path if kind in self._interleaved else path.transpose(0, 1)).flatten(0, 1)
                instead = path if self._bypass else instead_of(tensor, path)
        if kind in self._sources:
            taken = tensor.clone() if instead is None else instead
            self._held[key] = self._held[kind] = per_image(taken, key, interleaved=kind in self._interleaved)
        return instead


def _kind(key: Key) -> Kind:
    return key.layer, key.op, key.shape


def straight_path(slope: float, shape: tuple[int, ...]) -> Path:
    """The identity times ``slope``. Several sources are added up, and copies are averaged where the result has fewer."""

    def path(sources: Sequence[Tensor], copies: int) -> Tensor:
        total = _in_shape(sources[0], copies, shape)
        for source in sources[1:]:
            total = total + _in_shape(source, copies, shape)
        return total * slope

    return path


def _in_shape(source: Tensor, copies: int, shape: tuple[int, ...]) -> Tensor:
    if source.shape[1] != copies:
        source = source.mean(1, keepdim=True).expand(-1, copies, *source.shape[2:])
    return source.reshape(len(source), copies, *shape)


class Bridged(nn.Module):
    """The answers of ``network``, bit for bit, with a backward pass over ``bridges``. Without gradients it is the network.

    :param layout: of the trace in which the bridges were found.
    """

    def __init__(self, network: nn.Module, bridges: Sequence[Bridge], layout: Layout) -> None:
        super().__init__()
        self.network = network
        self.bridges, self._layout = tuple(bridges), layout

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            answer: Tensor = self.network(x)
            return answer
        switched_on = any(bridge.how == "gradient" for bridge in self.bridges)
        visit = Crossing(self.bridges, self._layout)
        with Operations(self.network, len(x), visit, with_gradient=switched_on):
            logits: Tensor = self.network(x.clone())
        return logits

    @property
    def lost(self) -> list[dict[str, Any]]:
        """The bridges as JSON."""
        return [bridge.record() for bridge in self.bridges]

    @property
    def is_substitute(self) -> bool:
        """Whether the gradient goes from outputs to pixels by what was learned alone, and through nothing of the network."""
        return all(
            b.how == "surrogate" and {s.layer for s in b.sources} == {PIXELS} and len(b.key.shape) == 1
            for b in self.bridges
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{b.key.layer or 'forward'}:{b.key.op} by {b.how}" for b in self.bridges)


class Twin(nn.Module):
    """Another network than ``network``, as a source of images that transfer to it. Its answers are its own.

    :ivar answer: the logits (N, K) of ``network`` in the last call, without gradient.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.answer: Tensor | None = None


class Bypassed(Twin):
    """It takes the bridges in the forward pass too, and so leaves out what is between their ends: the lossy operations."""

    def __init__(self, network: nn.Module, bridges: Sequence[Bridge], layout: Layout) -> None:
        super().__init__(network)
        self.bridges, self._layout = tuple(bridges), layout

    def forward(self, x: Tensor) -> Tensor:
        with Operations(self.network, len(x), Crossing(self.bridges, self._layout, bypass=True)):
            logits: Tensor = self.network(x.clone())
        with torch.no_grad():
            self.answer = self.network(x)
        return logits
