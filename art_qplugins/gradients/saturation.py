"""The tensor before a saturation of the logits: tanh, softmax, clamp, votes, rounding, or anything that flattens them.

It is found by measurement. It has a value for each class, its largest value is that of the logits on all but a few images, and
its margin still varies near images where the margin of the logits hardly does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_qplugins.gradients.operations import Key, Operations
from art_qplugins.gradients.trace import Effects, pass_through, per_image
from art_qplugins.seeds import derive_seed

__all__ = ["BeforeSaturation", "before_saturation"]

#: Images, and points near each.
_IMAGES, _POINTS = 31, 4
#: The share of points at which the two must have the same class.
_AGREEMENT = 0.95
#: It must be the same at this share also where ties are broken as the network breaks them.
_SAME = 0.8
#: The logits saturate where their margin varies less than this share of that of the tensor, on this share of images.
_FLAT, _SHARE = 0.25, 0.3
#: A largest value stays where it is below this change, relative to the spread of all values, and moves above that one.
_STILL, _MOVES = 1e-6, 1e-3
#: Two margins change alike above this cosine.
_ALIKE = 0.95


class BeforeSaturation(nn.Module):
    """The tensor before the saturation as logits, (N, K).

    :param keys: the operations whose results it is the mean of: one, or all of a loop over copies of an image.
    :param saturates: the operation behind the last of them.
    :param logits: the operation that returns the logits.
    :param interleaved: operations that put the copies of an image beside each other.
    :ivar answer: the logits (N, K) of the network in the last call, without gradient.
    """

    def __init__(
        self, network: nn.Module, keys: Sequence[Key], saturates: Key, logits: Key, interleaved: Collection[Key]
    ) -> None:
        super().__init__()
        self.network = network
        self.keys, self.saturates, self._logits = tuple(keys), saturates, logits
        self._interleaved = frozenset(interleaved)
        self.answer: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        found: dict[Key, Tensor] = {}
        self.answer = None

        def visit(key: Key, tensor: Tensor, _: frozenset[Key]) -> Tensor | None:
            if key in self.keys:
                found[key] = _rows(key, tensor.clone(), self._interleaved)
            if key != self._logits or not found:
                return None
            self.answer = tensor.detach()
            return torch.stack([*found.values()]).mean(0)  # what the network returns, so that hooks on it count passes

        with Operations(self.network, len(x), visit):
            logits: Tensor = self.network(x.clone())
        if self.answer is None:
            self.answer = logits.detach()
        return logits

    def record(self) -> dict[str, str]:
        """What saturates, as JSON."""
        return {"layer": self.saturates.layer, "op": self.saturates.op}


def before_saturation(module: nn.Module, x: Tensor, *, radius: float, seed: int = 0) -> BeforeSaturation | None:
    """The view of ``module`` before its logits saturate; ``None`` where they do not.

    It takes one or two forward passes of 17 images, and nine of 31 where anything before the logits has as many values.

    :param x: (N, C, H, W) in [0, 1].
    :param radius: half the side of the cube that an attack searches, above 0.
    :param seed: fixes steps and draws.
    """
    effects = Effects(module, x, radius=radius, seed=seed)
    logits = effects.answer
    upstream = _upstream(effects, logits)
    keys = [key for key in effects.order if key in upstream and key.shape == logits.shape]
    loops = [tuple(key for key in keys if key[:4] == alike) for alike in dict.fromkeys(key[:4] for key in keys)]
    candidates = [(key,) for key in keys] + [loop for loop in loops if len(loop) > 1]
    if not candidates:
        return None
    values = _Values(effects, x.detach()[:_IMAGES], [*candidates, (logits,)])
    flat = [
        c for c in candidates if values.agreement(c, (logits,)) >= _AGREEMENT and values.flatter((logits,), c) >= _SHARE
    ]
    for chosen in reversed(flat):
        # The nearest to the logits, unless it is flat itself beside another one.
        if not any(values.flatter(chosen, other) >= _SHARE for other in flat if other != chosen):
            behind = next(key for key in effects.order if chosen[-1] in effects.after[key])
            return BeforeSaturation(module, chosen, behind, logits, effects.interleaved)
    return None


def _upstream(effects: Effects, key: Key) -> set[Key]:
    found, stack = set[Key](), list(effects.after[key])
    while stack:
        near = stack.pop()
        if near not in found:
            found.add(near)
            stack += effects.after[near]
    return found


def _rows(key: Key, tensor: Tensor, interleaved: Collection[Key]) -> Tensor:
    return per_image(tensor, key, interleaved=key in interleaved).mean(1)


class _Values:
    """Values (points, N, K) and margins (points, N) of candidates at images, at points very near and at points in the ball."""

    def __init__(self, effects: Effects, x: Tensor, candidates: Sequence[tuple[Key, ...]]) -> None:
        generator = torch.Generator().manual_seed(derive_seed(effects.seed, "saturation"))
        signs = (torch.rand((_POINTS, *x.shape), generator=generator) < 0.5).to(x) * 2 - 1
        lengths = (effects.radius / 16, effects.radius)
        found = [self._at(effects, x, candidates)]
        found += [
            self._at(effects, (x + length * sign).clamp(0, 1), candidates) for length in lengths for sign in signs
        ]
        self.values = {c: torch.stack([f[c] for f in found]) for c in candidates}
        self.margins = {c: torch.stack([_gap(f[c], found[0][c]) for f in found]) for c in candidates}

    @staticmethod
    def _at(effects: Effects, x: Tensor, candidates: Sequence[tuple[Key, ...]]) -> dict[tuple[Key, ...], Tensor]:
        found: dict[Key, Tensor] = {}
        wanted = {key for candidate in candidates for key in candidate}

        def visit(key: Key, tensor: Tensor, _: frozenset[Key]) -> None:
            if key in wanted:
                found[key] = _rows(key, tensor.detach().clone(), effects.interleaved).double()

        with torch.no_grad():
            pass_through(effects.module, x, visit, seed=effects.seed)
        return {c: torch.stack([found[key] for key in c]).mean(0) for c in candidates}

    def agreement(self, one: tuple[Key, ...], other: tuple[Key, ...]) -> float:
        """The share of points at which the class of ``one`` has the largest value of ``other``, or one as large."""
        values = self.values[other]
        chosen = values.gather(2, self.values[one].argmax(2, keepdim=True))[..., 0]
        ties = float((chosen == values.amax(2)).double().mean())
        same = float((values.argmax(2) == self.values[one].argmax(2)).double().mean())
        return ties if same >= _SAME else same

    def flatter(self, one: tuple[Key, ...], other: tuple[Key, ...]) -> float:
        """The share of images near which the margin of ``one`` hardly varies, relative to its size, and that of ``other`` does.

        Or near which its largest value does not change, and that of ``other`` does, and changes the margin. The larger of the
        shares for points very near and for points in the ball.
        """
        shares = []
        for points in (slice(0, 1 + _POINTS), slice(1 + _POINTS, None)):
            mine, theirs = (self._variation(self.margins[k][points]) for k in (one, other))
            clipped = self._clipped(one, other, points)
            shares.append(float(((mine < _FLAT * theirs) | clipped).double().mean()))
        return max(shares)

    def _clipped(self, one: tuple[Key, ...], other: tuple[Key, ...], points: slice) -> Tensor:
        """(N,) whether the largest value of ``one`` stays where it is, and that of ``other`` moves, so that their margins differ.

        The logarithm of a softmax may stay too, at 0. Its margin is then that of what it takes, so it is not clipped.
        """
        first = self.values[one][:1].argmax(2, keepdim=True)
        stays, moves = (self._movement(k, first, points) for k in (one, other))
        mine, theirs = (self.margins[k][points] - self.margins[k][points].mean(0) for k in (one, other))
        same = F.cosine_similarity(mine, theirs, dim=0) > _ALIKE
        return (stays < _STILL) & (moves > _MOVES) & ~same

    def _movement(self, key: tuple[Key, ...], classes: Tensor, points: slice) -> Tensor:
        """(N,) how much the values of these classes (1, N, 1) change, relative to the spread of all values."""
        values = self.values[key][points]
        chosen = values.gather(2, classes.expand(len(values), -1, 1))[..., 0]
        return chosen.std(0) / self.values[key].std().clamp_min(1e-300)

    @staticmethod
    def _variation(margins: Tensor) -> Tensor:
        return margins.std(0) / margins.abs().mean(0).clamp_min(1e-300)


def _gap(values: Tensor, start: Tensor) -> Tensor:
    """The margin of the class that is the largest at the image, (N,)."""
    first = start.argmax(1, keepdim=True)
    return (values.gather(1, first) - values.scatter(1, first, -torch.inf).amax(1, keepdim=True))[:, 0]
