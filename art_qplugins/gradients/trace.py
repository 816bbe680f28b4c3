"""Does the gradient of each result in a forward pass predict what real steps of the pixels do to it?

For a result T, a random projection w and a step d of the pixels, the prediction is <d<w, T>/dx, d>, and the effect is
<w, T(x + d)> - <w, T(x)>. The fidelity of T is the cosine of the two over random steps. It is near 1 where the gradient arrives,
and near 0 behind an operation that loses it or shatters it. The projection of the logits is the margin of the predicted class.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from art_qplugins.geometry import ORDERS
from art_qplugins.gradients.operations import Key, Operations, Visit, version_of
from art_qplugins.guard import isolated
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["IMAGES", "Effects", "Gradients", "half_side", "pass_through", "per_image"]

#: Number of images of a trace. It is a prime, so that no other dimension is taken for the batch.
IMAGES = 17
#: Number of random steps of each length.
_DIRECTIONS = 12


def half_side(threat: Threat, x: Tensor) -> float:
    """Half the side of the cube whose corners are as far from its centre as eps. In L0 it is a quarter of the pixels' range."""
    if threat.norm == "L0":
        return 0.25
    return float(threat.eps / x[0].numel() ** (1 / ORDERS[threat.norm]))


@contextlib.contextmanager
def _same_draws(module: nn.Module, seed: int) -> Iterator[None]:
    drawn = derive_seed(seed, "trace")
    with isolated(module, drawn), draws_from(module, drawn):
        yield


def pass_through(
    module: nn.Module, x: Tensor, visit: Visit, *, seed: int, with_gradient: bool = False
) -> tuple[Tensor, Operations]:
    """The logits of one call that ``visit`` sees, and what was watched. Draws are those of ``seed`` in every call."""
    operations = Operations(module, len(x), visit, with_gradient=with_gradient)
    with _same_draws(module, seed), operations:
        logits: Tensor = module(x)
    return logits, operations


class Effects:
    """What steps of the pixels do to every result of ``module``. It takes 26 forward passes of at most 17 images.

    :param x: (N, C, H, W) in [0, 1].
    :param radius: half the side of the cube that an attack searches. Steps are corners of the cube and of one with a quarter
        of its side, clipped to [0, 1].

    :ivar order: the operations in the order of the pass. The first is the pixels.
    :ivar answer: the operation that returns the logits.
    :ivar after: the last reported operations before each.
    :ivar interleaved: operations that put the copies of an image beside each other; others put batches one after another.
    """

    def __init__(self, module: nn.Module, x: Tensor, *, radius: float, seed: int = 0) -> None:
        self.module, self.x, self.radius, self.seed = module, x.detach()[:IMAGES], radius, seed
        generator = torch.Generator().manual_seed(derive_seed(seed, "trace/steps"))
        signs = torch.rand((_DIRECTIONS, *self.x.shape), generator=generator).to(self.x) * 2 - 1
        lengths = torch.tensor([radius / 4, radius], device=x.device).view(2, 1, 1, 1, 1, 1)
        self.points = (self.x + lengths * signs.sign()).clamp(0, 1)
        self.after: dict[Key, frozenset[Key]] = {}
        self._copied: dict[Key, Tensor] = {}
        with torch.no_grad():
            logits, operations = pass_through(module, self.x, self._first, seed=seed)
        self.order, self.answer = list(self.after), operations.key(logits)
        self.interleaved: set[Key] = set()
        self._weights: dict[Key, Tensor] = {self.answer: _margin(logits)}
        if self._copied:
            self._watched(torch.cat([self.points[1, 0, :1], self.x[1:]]), self._arranged)

    def _watched(self, x: Tensor, visit: Visit) -> None:
        with torch.no_grad():
            pass_through(self.module, x, visit, seed=self.seed)

    def _first(self, key: Key, tensor: Tensor, after: frozenset[Key]) -> None:
        self.after[key] = after
        if key.copies > 1:
            self._copied[key] = tensor.detach().clone()

    def _arranged(self, key: Key, tensor: Tensor, _: frozenset[Key]) -> None:
        """Only the first image has moved: the rows that change are its copies."""
        if key in self._copied:
            moved = (tensor != self._copied[key]).flatten(1).any(1)
            if moved[: key.copies].any() and not moved[key.copies :].any():
                self.interleaved.add(key)

    @cached_property
    def of(self) -> Mapping[Key, Tensor]:
        """The effect of every step on the projection of every result, (lengths, directions, N)."""
        base = self._projections(self.x)
        moved = [[self._projections(point) for point in points] for points in self.points]
        known = [key for key in self.order if all(key in found for row in moved for found in row)]
        return {
            key: torch.stack([torch.stack([found[key] - base[key] for found in row]) for row in moved]) for key in known
        }

    def _projections(self, x: Tensor) -> dict[Key, Tensor]:
        found = {}

        def visit(key: Key, tensor: Tensor, _: frozenset[Key]) -> None:
            if key in self.after:
                product = self.weights(key, tensor).double() * tensor
                found[key] = self.rows(key, product).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).flatten(1).sum(1)

        self._watched(x, visit)
        return found

    def weights(self, key: Key, tensor: Tensor) -> Tensor:
        """The projection w of a result, in its shape."""
        if key not in self._weights:
            digest = hashlib.blake2b(repr(key).encode(), digest_size=6).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
            self._weights[key] = torch.randint(2, tensor.shape, generator=generator).to(tensor) * 2 - 1
        return self._weights[key]

    def rows(self, key: Key, tensor: Tensor) -> Tensor:
        """The result with its copies of each image together, (N, copies, *shape)."""
        return per_image(tensor, key, interleaved=key in self.interleaved)

    def changes(self, key: Key) -> bool:
        """Whether any step changes the result."""
        return key in self.of and bool((self.of[key] != 0).any())


def per_image(tensor: Tensor, key: Key, *, interleaved: bool) -> Tensor:
    """(copies * N, *shape) as (N, copies, *shape)."""
    copies, shape = key.copies, tensor.shape[1:]
    return tensor.reshape(-1, copies, *shape) if interleaved else tensor.reshape(copies, -1, *shape).transpose(0, 1)


def _margin(logits: Tensor) -> Tensor:
    """The projection of logits (N, K) to the margin of the class that is predicted."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"a trace needs logits (N, classes), and the module returns {tuple(logits.shape)}")
    first, second = logits.topk(2, dim=1).indices.T
    classes = torch.eye(logits.shape[1]).to(logits)
    return classes[first] - classes[second]


class Gradients:
    """One pass with gradients of the module or of a view with the same results, held against the effects.

    :param visit: may return other tensors with the same values, as in a view.
    """

    def __init__(self, effects: Effects, visit: Visit | None = None, *, with_gradient: bool = False) -> None:
        self._effects = effects
        self._results: dict[Key, tuple[Tensor, int, Tensor]] = {}
        self._fidelity: dict[Key, float] = {}
        self._pixels = effects.x.clone().requires_grad_()

        def watch(key: Key, tensor: Tensor, after: frozenset[Key]) -> Tensor | None:
            instead = None if visit is None else visit(key, tensor, after)
            kept = tensor if instead is None else instead
            self._results[key] = kept, version_of(kept), kept.clone()
            return instead

        with torch.enable_grad():
            _, operations = pass_through(
                effects.module, self._pixels.clone(), watch, seed=effects.seed, with_gradient=with_gradient
            )
        self.without_gradient = operations.without_gradient

    def _result(self, key: Key) -> Tensor:
        """The result with its graph. What was changed in place since is a clone from before."""
        tensor, version, clone = self._results[key]
        return tensor if version_of(tensor) == version else clone

    def fidelity(self, key: Key) -> float:
        """The mean over images of the cosine, for the better length of steps; 0 where nothing arrives or nothing changes."""
        if key not in self._fidelity:
            self._fidelity[key] = self._measure(key)
        return self._fidelity[key]

    def _measure(self, key: Key) -> float:
        effects = self._effects
        if key not in self._results or not effects.changes(key):
            return 0.0
        (slope,) = self._backward(key, [self._pixels])
        if slope is None:
            return 0.0
        steps = (effects.points - effects.x).double()
        predicted = (slope.double().nan_to_num(nan=0.0) * steps).flatten(3).sum(3)
        happened = effects.of[key]
        lengths = predicted.norm(dim=1) * happened.norm(dim=1)
        cosines = (predicted * happened).sum(1) / lengths.clamp_min(1e-300)
        moved = (happened != 0).any(1)
        return max(float(c[m].mean()) if m.any() else 0.0 for c, m in zip(cosines, moved, strict=True))

    def has_graph(self, key: Key) -> bool:
        """Whether a gradient at the result can go further back."""
        return key in self._results and self._result(key).requires_grad

    def stops(self, key: Key, before: list[Key]) -> bool:
        """Whether gradients could arrive at some of the results before it, and none does."""
        tensors = [t for t in map(self._result, before) if t.requires_grad]
        return bool(tensors) and not any(g is not None and bool(g.any()) for g in self._backward(key, tensors))

    def _backward(self, key: Key, to: list[Tensor]) -> tuple[Tensor | None, ...]:
        tensor = self._result(key)
        if not tensor.requires_grad or not to:
            return (None,) * len(to)
        # A backward pass that raises gives nothing. At the logits it says that the view cannot be used.
        raised = NotImplementedError if key == self._effects.answer else RuntimeError
        # Checkpoints call parts of the module again, with the same draws.
        with contextlib.suppress(raised), _same_draws(self._effects.module, self._effects.seed):
            return torch.autograd.grad(
                (tensor * self._effects.weights(key, tensor)).sum(), to, retain_graph=True, allow_unused=True
            )
        return (None,) * len(to)
