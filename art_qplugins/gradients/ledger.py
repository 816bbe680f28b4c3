"""Where a gradient is lost on its way from the logits to the pixels.

The gradient ledger lists the norm of the gradient before and behind every operation, in the direction of the backward
pass. A rounding, a saturated unit or another operation with derivative zero blocks the whole gradient (Athalye, Carlini
& Wagner 2018, section 3). The ledger names this operation and its layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from art_qplugins.gradients.layers import Layers
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.nodes import find_path, per_image
from art_qplugins.guard import isolated
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.seeds import derive_seed

__all__ = ["Ledger", "LedgerRow", "blocking_operation", "ledger"]

#: A blocking operation leaves more than this share of the images without a gradient.
_BLOCKING = 0.9


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """The effect of one operation on the gradient in the backward pass.

    :param op: the node's name, e.g. ``"RoundBackward0"``.
    :param layer: path of the innermost submodule that made the node, or the class of the module if its own forward did.
    :param ratio: median over images of ||behind|| / ||before||; NaN if the node has no batch dimension.
    :param zeroed: share of images whose gradient is not zero before the node, and exactly zero behind it and at the
        pixels.
    :param elements: share of the nonzero elements that the node makes zero; NaN if it changes the shape.
    """

    op: str
    layer: str
    ratio: float
    zeroed: float
    elements: float


@dataclass(frozen=True)
class Ledger:
    """The rows, from the logits to the pixels.

    :param reaches_pixels: whether a path leads back to the pixels. Without a path there are no rows.
    :param ends_at: the layer in whose forward the graph ends, if it does not reach the pixels.
    :param zero: share of images whose gradient at the pixels is exactly zero.
    """

    rows: list[LedgerRow] = field(default_factory=list)
    reaches_pixels: bool = True
    ends_at: str | None = None
    zero: float = 0.0


def ledger(module: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0) -> Ledger:
    """The gradient ledger of one backward pass of the logit margin. Modes and random states are restored.

    :param x: (N, C, H, W) in [0, 1].
    :param y: (N,) labels.
    :param seed: fixes the draws of a random module.
    """
    drawn = derive_seed(seed, "ledger")
    with isolated(module, drawn), draws_from(module, drawn), torch.enable_grad(), Layers(module) as layers:
        # The clone adds a node at the end of the path, whatever the first operation does with its input.
        point = x.detach().clone().requires_grad_()
        entered = point.clone()
        entrance = entered.grad_fn
        logits = module(entered)
        path = find_path(logits.grad_fn, entrance)
        if not path:
            return Ledger(reaches_pixels=False, ends_at=layers.end(entrance), zero=1.0)
        watched = [(node, _Watch(len(x), edges)) for node, edges in path.items() if node is not entrance]
        handles = [node.register_hook(watch) for node, watch in watched]
        try:
            (behind,) = torch.autograd.grad(logit_margin(logits, y).sum(), point, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        lost = torch.ones_like(y, dtype=torch.bool) if behind is None else ~behind.flatten(1).any(1)
        rows = [watch.row(node.name(), layers.owner(node), lost) for node, watch in watched if watch.called]
    return Ledger(rows=rows, zero=float(lost.double().mean()))


def blocking_operation(found: Ledger) -> LedgerRow | None:
    """The operation that zeroes the gradient of the most images, if these are more than 90 %; else ``None``."""
    worst = max(found.rows, key=lambda row: row.zeroed, default=None)
    return worst if worst is not None and worst.zeroed > _BLOCKING else None


class _Watch:
    """A hook that measures the gradients before and behind one node, per image.

    :param edges: the inputs of the node that lead to the pixels.
    """

    def __init__(self, images: int, edges: Sequence[int]) -> None:
        self._images, self._edges = images, edges
        self.called = False
        self._before = self._behind = torch.zeros(images, dtype=torch.float64)
        self._any_before = self._any_behind = torch.zeros(images, dtype=torch.bool)
        self._elements = float("nan")

    def __call__(self, behind: tuple[Tensor | None, ...], before: tuple[Tensor | None, ...]) -> None:
        self.called = True
        taken = [g for g in before if g is not None]
        given = [g for edge in self._edges if (g := behind[edge]) is not None]
        self._before, self._any_before = _norms(taken, self._images)
        self._behind, self._any_behind = _norms(given, self._images)
        alike = [g for g in given if len(taken) == 1 and g.shape == taken[0].shape]
        if alike:
            alive = taken[0] != 0
            gone = torch.stack([g == 0 for g in alike]).all(0) & alive
            self._elements = float(gone.sum() / alive.sum().clamp_min(1))

    def row(self, op: str, layer: str, lost: Tensor) -> LedgerRow:
        """The measurements as a row.

        :param lost: (N,) bool, whether the gradient at the pixels is zero.
        """
        ratio = (self._behind / self._before)[self._before > 0]
        return LedgerRow(
            op=op,
            layer=layer,
            ratio=float(ratio.nanquantile(0.5)) if len(ratio) else float("nan"),
            zeroed=float((self._any_before & ~self._any_behind & lost.cpu()).double().mean()),
            elements=self._elements,
        )


def _norms(gradients: Sequence[Tensor], images: int) -> tuple[Tensor, Tensor]:
    """Per image, the norm of all gradients together, (N,) float64, and whether any element is not zero, (N,) bool.

    The norm is NaN if a gradient has no batch dimension.
    """
    squares, nonzero = torch.zeros(images, dtype=torch.float64), torch.zeros(images, dtype=torch.bool)
    for gradient in gradients:
        rows = per_image(gradient.detach(), images)
        if len(rows) % images:
            squares, nonzero = squares + torch.nan, nonzero | bool((gradient != 0).any())
            continue
        draws = rows.unflatten(0, (-1, images))  # an ensemble computes its draws one after another along dimension 0
        squares += draws.double().square().sum((0, 2)).cpu()
        nonzero |= (draws != 0).any(0).any(1).cpu()
    return squares.sqrt(), nonzero
