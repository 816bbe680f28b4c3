"""The gradient's way back, node by node of the autograd graph: where it is lost, and how to carry it past there.

A layer with a derivative of zero, a rounding or a saturated unit takes the whole gradient with it (Athalye, Carlini &
Wagner 2018, section 3). :func:`ledger` says which operation of which layer does it; :class:`GradientRepair` is BPDA with the
identity (their section 4.1) wherever it happens, found by looking at the gradients and not at the layers, so it needs no
knowledge of the network. What the graph does not hold (detach, no_grad, a comparison) no view of it can give back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from art_qplugins.gradients.fidelity import logit_margin
from art_qplugins.guard import isolated
from art_qplugins.quantizers.stochastic import draws_from
from art_qplugins.seeds import derive_seed

__all__ = ["GradientRepair", "Ledger", "LedgerRow", "blocking_operation", "ledger", "replaceable_operations"]

#: A node of the autograd graph; its type is private to torch.
Node = Any

#: An operation kills an image's gradient where at least this share of its elements is zero behind it, and not before.
_KILLED = 0.9
#: The share of images that an operation has to leave without gradient to be called guilty.
_GUILTY = 0.9
# Operations that set elements to zero as a rule, ReLU and what may be one written by hand: only where nothing is left.
_GATES = ("Relu", "Threshold", "Hardtanh", "Maximum", "Minimum", "Where", "MaskedFill", "Abs")
#: What has weights, or multiplies two activations.
_LAYERS = ("Convolution", "Conv2D", "Addmm", "Addmv", "Mm", "Bmm", "Baddbmm", "Linear")
# Operations that may give the shape that they take, and are not elementwise; or are linear.
_MIXING = (
    *_LAYERS,
    *("Norm", "Pool", "Pad", "Index", "View", "Permute", "Transpose", "TBackward", "Cum", "Fft", "Upsample", "Slice"),
    *("Select", "Expand", "Repeat", "CopySlices", "Stack", "Cat", "Sum", "Mean", "Sort", "Flip", "Roll", "Gather"),
    *("Scatter", "Squeeze", "Clone", "Alias", "Embedding", "Add", "Sub", "Neg", "Mul", "Div", "AccumulateGrad"),
    "CheckpointFunction",
)
#: PyTorch's own operations that are constant between jumps.
_STEPS = ("Round", "Sign", "Sgn", "Floor", "Ceil", "Trunc", "Heaviside", "Bucketize")


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """What one operation does to the gradient on its way to the pixels.

    :param op: the node's name, e.g. ``"RoundBackward0"``.
    :param layer: the innermost submodule whose forward made it, by its path, or the module's class for its own forward.
    :param ratio: median over images of ||behind|| / ||before||; NaN where the node has no dimension of images.
    :param zeroed: share of images whose gradient is exactly zero behind the node and in the pixels, and was not before it.
    :param elements: share of the elements other than zero that the node makes zero; NaN where it changes the shape.
    """

    op: str
    layer: str
    ratio: float
    zeroed: float
    elements: float


@dataclass(frozen=True)
class Ledger:
    """The rows, from the logits to the pixels.

    :param reaches_pixels: whether there is any way back; if not there are no rows.
    :param ends_at: the layer in whose forward the graph ends, where it does not reach the pixels.
    :param zero: share of images whose pixels get a gradient of exactly zero.
    """

    rows: list[LedgerRow] = field(default_factory=list)
    reaches_pixels: bool = True
    ends_at: str | None = None
    zero: float = 0.0


def ledger(module: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0) -> Ledger:
    """One backward pass of the logit margin, watched at every operation. Modes and random states are as before.

    :param x: (N, C, H, W) in [0, 1]; ``y`` (N,) labels.
    :param seed: of the draws of a stochastic module.
    """
    drawn = derive_seed(seed, "ledger")
    with isolated(module, drawn), draws_from(module, drawn), torch.enable_grad(), _Layers(module) as layers:
        # A node that the network's first operation can be told from, whatever that does with its input.
        point = x.detach().clone().requires_grad_()
        entered = point.clone()
        entrance = entered.grad_fn
        logits = module(entered)
        way = _way(logits.grad_fn, entrance) if logits.requires_grad else {}
        if not way:
            return Ledger(reaches_pixels=False, ends_at=layers.end(entrance), zero=1.0)
        watched = [(node, _Watch(len(x), edges)) for node, edges in way.items() if node is not entrance]
        handles = [node.register_hook(watch) for node, watch in watched]
        try:
            (behind,) = torch.autograd.grad(logit_margin(logits, y).sum(), point, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        lost = torch.ones_like(y, dtype=torch.bool) if behind is None else ~behind.flatten(1).any(1)
        rows = [watch.row(node.name(), layers.of(node), lost) for node, watch in watched if watch.seen]
    return Ledger(rows=rows, zero=float(lost.double().mean()))


def blocking_operation(found: Ledger) -> LedgerRow | None:
    """The operation that leaves most images without a gradient, if those are more than nine in ten."""
    worst = max(found.rows, key=lambda row: row.zeroed, default=None)
    return worst if worst is not None and worst.zeroed > _GUILTY else None


def replaceable_operations(module: nn.Module, x: Tensor, *, seed: int = 0) -> tuple[str, ...]:
    """Names of operations between logits and pixels, of one shape in and out, whose gradient is somebody's choice.

    Custom ``autograd.Function``s, PyTorch's own steps (round, sign, floor ...), and what squashes the logits behind the last
    layer or numbers of the pixels' shape (tanh, clamp, softmax ...), where it changes answers little and slopes much: what
    ``straight=`` of :class:`GradientRepair` may replace. Sorted; () where there is no way back to the pixels.
    """
    drawn = derive_seed(seed, "ledger")
    with isolated(module, drawn), draws_from(module, drawn), torch.enable_grad():
        entered = x.detach()[:2].clone().requires_grad_().clone()
        entrance = entered.grad_fn  # now: what works in place gives it another
        logits = module(entered)
        way = _way(logits.grad_fn, entrance) if logits.requires_grad else {}
        odd = {*filter(_chosen, way), *_squashing(way, logits, entered)}
    return tuple(sorted({node.name() for node in odd if _straight_edge(node, way[node]) is not None}))


class GradientRepair(nn.Module):
    """The answers of ``network``, bit for bit; backward, what kills an image's gradient passes it straight through.

    At each operation that gives the shape it takes: per image, where at least 90 % of the gradient's elements become
    exactly zero, they stay as they came. Rounding, sign, a custom backward of zeros, saturated tanh, sigmoid, softmax and
    clamp become the identity so. ReLU and its like, which zero elements as a rule, do only where nothing at all is left;
    what is linear, a product with a mask too, has no other gradient and keeps it.

    :param network: logits out. Its parameters keep their gradients' way, which changes likewise.
    :param straight: names of operations, see :func:`suspects`, that pass straight through whatever they give.
    """

    def __init__(self, network: nn.Module, *, straight: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.straight = tuple(straight)

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.network(x)  # type: ignore[no-any-return]
        entered = x.clone()
        entrance = entered.grad_fn
        logits: Tensor = self.network(entered)
        for node, edges in _way(logits.grad_fn, entrance).items():
            if node is entrance or _is(node, _MIXING):
                continue
            edge = _straight_edge(node, edges)
            if edge is not None:
                always = node.name() in self.straight
                share = 1.0 if _is(node, _GATES) else _KILLED
                node.register_hook(_reviver(len(x), edge, edges, 0.0 if always else share))
        return logits

    def extra_repr(self) -> str:
        return f"straight={self.straight}" if self.straight else ""


# --- Nodes


def _is(node: Node, kinds: Sequence[str]) -> bool:
    """Of PyTorch's own operations; a custom function may have any name."""
    name = node.name().rpartition("::")[2]
    if isinstance(node, BackwardCFunction):
        return name == "CheckpointFunctionBackward" and "CheckpointFunction" in kinds
    if getattr(node, "_saved_rounding_mode", None) is not None:  # a division that floors or truncates
        return kinds is _STEPS
    return any(kind in name for kind in kinds)


def _chosen(node: Node) -> bool:
    return not _is(node, _MIXING) and (isinstance(node, BackwardCFunction) or _is(node, _STEPS))


def _squashing(way: dict[Node, list[int]], logits: Tensor, pixels: Tensor) -> Iterator[Node]:
    """Operations on numbers of the logits' shape behind the last layers, and of the pixels' shape anywhere.

    Other than linear ones, casts, and gates, of which a network is full.
    """
    behind: set[Node] = set()
    stack = [next(iter(way))] if way else []
    while stack:
        node = stack.pop()
        if node not in behind and not _is(node, _LAYERS):
            behind.add(node)
            stack += [node.next_functions[edge][0] for edge in way[node]]
    for node in way:
        gave = [tuple(metadata.shape) for metadata in node._input_metadata]
        squashed = gave == [pixels.shape] or (gave == [logits.shape] and node in behind)
        if squashed and not _is(node, (*_MIXING, *_GATES, "ToCopy")):
            yield node


def _way(last: Node | None, entrance: Node) -> dict[Node, list[int]]:
    """Nodes between ``last`` and ``entrance``, the last first, with the positions of their inputs that lead there."""
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
    way: dict[Node, list[int]] = {}
    for node in order:
        ends = node is entrance or node.name().endswith("NotImplemented")  # whose backward pass raises
        edges = [] if ends else [i for i, (after, _) in enumerate(node.next_functions) if after in way]
        if edges or node is entrance:
            way[node] = edges
    return dict(reversed(way.items())) if last in way else {}


def _straight_edge(node: Node, edges: list[int]) -> int | None:
    """The input that has the shape of the node's one output, as far as the graph tells before the backward pass."""
    outputs = node._input_metadata  # of the backward pass: what the node takes is what the operation gave
    if len(outputs) != 1 or len(outputs[0].shape) < 1:
        return None
    for edge in edges:
        after, number = node.next_functions[edge]
        metadata = after._input_metadata
        if number < len(metadata) and tuple(metadata[number].shape) == tuple(outputs[0].shape):
            return edge
    return None


def _rows(gradient: Tensor, images: int) -> Tensor:
    """One row per image or draw of an image; one in all where dimension 0 is something else."""
    alike = gradient.dim() > 0 and len(gradient) % images == 0 and (gradient.dim() > 1 or len(gradient) == images)
    return gradient.flatten(1) if alike and gradient.dim() > 1 else gradient.reshape(len(gradient) if alike else 1, -1)


def _reviver(images: int, edge: int, edges: list[int], share: float) -> Callable[..., tuple[Tensor | None, ...] | None]:
    """A hook that puts the gradient before a node behind it, where the node kills ``share`` of it; 0 is always."""

    def revive(behind: tuple[Tensor | None, ...], before: tuple[Tensor | None, ...]) -> Any:
        came, left = before[0], behind[edge]
        # torch lets no hook put a tensor where a backward gave None.
        if came is None or left is None or left.shape != came.shape or left.dtype != came.dtype:
            return None
        if share == 0:
            return tuple(came if i == edge else g for i, g in enumerate(behind))
        # Several inputs may share the gradient out among them, as the two sides of a `where` do.
        parts = [g for i in edges if (g := behind[i]) is not None and g.shape == came.shape]
        alive = _rows(came, images) != 0
        still = alive.clone()
        gone = torch.stack([part == 0 for part in parts]).all(0) if len(parts) > 1 else left == 0
        still &= ~gone.reshape(still.shape)
        count = alive.sum(1)
        dead = (count > 0) & (count - still.sum(1) >= share * count)
        if not dead.any():
            return None
        revived = torch.where(dead[:, None], _rows(came, images), _rows(left, images)).reshape(left.shape)
        return tuple(revived if i == edge else g for i, g in enumerate(behind))

    return revive


class _Watch:
    """What one node was given and gave, per image."""

    def __init__(self, images: int, edges: list[int]) -> None:
        self.images, self.edges = images, edges
        self.seen = False
        self.before = self.behind = torch.zeros(images, dtype=torch.float64)
        self.nonzero = [self.before.bool(), self.behind.bool()]
        self.elements = float("nan")

    def __call__(self, behind: tuple[Tensor | None, ...], before: tuple[Tensor | None, ...]) -> None:
        self.seen = True
        came = [g for g in before if g is not None]
        left = [behind[i] for i in self.edges]
        given = [g for g in left if g is not None]
        self.before, before_any = self._sizes(came)
        self.behind, behind_any = self._sizes(given)
        self.nonzero = [before_any, behind_any]
        alike = [g for g in given if len(came) == 1 and g.shape == came[0].shape]
        if alike:
            alive = came[0] != 0
            gone = torch.stack([g == 0 for g in alike]).all(0) & alive
            self.elements = float(gone.sum() / alive.sum().clamp_min(1))

    def _sizes(self, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Norm (N,) in float64, NaN where images cannot be told apart, and whether anything is not zero."""
        squares, some = torch.zeros(self.images, dtype=torch.float64), torch.zeros(self.images, dtype=torch.bool)
        for gradient in gradients:
            rows = _rows(gradient.detach(), self.images)
            if len(rows) % self.images:
                squares, some = squares + torch.nan, some | bool((gradient != 0).any())
                continue
            rows = rows.unflatten(0, (-1, self.images))  # draws of an ensemble one after another
            squares += rows.double().square().sum((0, 2)).cpu()
            some |= (rows != 0).any(0).any(1).cpu()
        return squares.sqrt(), some

    def row(self, op: str, layer: str, lost: Tensor) -> LedgerRow:
        before, behind = self.nonzero
        ratio = (self.behind / self.before)[self.before > 0]
        return LedgerRow(
            op=op,
            layer=layer,
            ratio=float(ratio.nanquantile(0.5)) if len(ratio) else float("nan"),
            zeroed=float((before & ~behind & lost.cpu()).double().mean()),
            elements=self.elements,
        )


class _Layers(contextlib.AbstractContextManager["_Layers"]):
    """Which submodule made which node, noted in the forward pass. Hooks are gone afterwards."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._owners: dict[Node, str] = {}
        self._entered: list[tuple[nn.Module, set[Node]]] = []
        self._left: list[tuple[str, set[Node], set[Node]]] = []  # inner modules first

    def __enter__(self) -> _Layers:
        self._handles: list[Any] = []
        for path, part in self._module.named_modules():
            name = path or type(part).__name__
            self._handles.append(part.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(part.register_forward_hook(self._leaver(name), with_kwargs=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def of(self, node: Node) -> str:
        """The submodule, or the class of the whole module for what its own forward made."""
        return self._owners.get(node, type(self._module).__name__)

    def end(self, entrance: Node) -> str | None:
        """The first forward that takes a way back to ``entrance`` and gives none."""
        for name, entered, given in self._left:
            if any(_way(n, entrance) for n in entered) and not any(_way(n, entrance) for n in given):
                return name
        return None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._entered.append((module, {t.grad_fn for t in _tensors((args, kwargs)) if t.grad_fn is not None}))

    def _leaver(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            entrant, entered = self._entered.pop()
            while entrant is not module:  # a forward in between failed, and somebody caught that
                entrant, entered = self._entered.pop()
            given = {t.grad_fn for t in _tensors(output) if t.grad_fn is not None}
            self._left.append((name, entered, given))
            stack, seen = list(given), set(entered)
            while stack:
                node = stack.pop()
                if node not in seen:
                    seen.add(node)
                    self._owners.setdefault(node, name)  # inner modules leave first
                    stack += [after for after, _ in node.next_functions if after is not None]

        return leave


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
