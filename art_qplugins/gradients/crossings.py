"""Finds by measurement where a network loses its gradient, and the bridges that bring it back.

A pass goes back from the logits. Where a result is faithful, nothing is repaired: its fidelity says that the gradient arrives,
however it does. So a straight-through estimator that is written by hand is left alone as a whole. An operation is lossy if its result
is much less faithful than what it takes. Each bridge is tried and measured, and kept if the logits need it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from art_qplugins.gradients.bridges import Bridge, Bridged, Crossing, straight_path
from art_qplugins.gradients.learned import Learned, fit, receptive_fields
from art_qplugins.gradients.operations import Key
from art_qplugins.gradients.trace import Effects, Gradients, pass_through
from art_qplugins.seeds import derive_seed

__all__ = ["find_bridges"]

#: Nothing is repaired before a result of at least this fidelity. Honest networks have 0.9 and more.
FAITHFUL = 0.7
#: An operation is lossy if its fidelity is less than this share of that of its least faithful input ...
_LOSSY = 0.6
#: ... which must be known to be faithful at least this much.
_KNOWN = 0.25
#: A bridge must raise the fidelity of its operation by this much, ...
_GAIN = 0.1
#: ... and is taken away if the logits lose less than this without it.
_IDLE = 0.02
_ROUNDS, _PASSES, _FITS = 12, 60, 8
#: Images and steps on which surrogates are fitted.
_SAMPLE, _STEPS = 61, 8


def find_bridges(module: nn.Module, x: Tensor, *, radius: float, seed: int = 0) -> Bridged | None:
    """A view of ``module`` with a way back to the pixels; ``None`` where its gradient arrives, or no bridge helps.

    :param x: (N, C, H, W) in [0, 1]; 17 images are used, and 61 for surrogates.
    :param radius: half the side of the cube that an attack searches, above 0.
    :param seed: fixes steps and draws.
    """
    search = _Search(module, x, radius, seed)
    bridges = search.run()
    return Bridged(module, bridges, search.effects.interleaved) if bridges else None


class _Search:
    """The state of a search.

    :ivar bridges: those accepted so far.
    :ivar refused: operations that no bridge helped. They count as part of the operations behind them.
    """

    def __init__(self, module: nn.Module, x: Tensor, radius: float, seed: int) -> None:
        self.module, self.x, self.seed = module, x.detach(), seed
        self.effects = Effects(module, x, radius=radius, seed=seed)
        self.logits = self.effects.order[-1]
        self.rank = {key: i for i, key in enumerate(self.effects.order)}
        self.bridges: dict[Key, Bridge] = {}
        self.switched_on = False
        self.refused: set[Key] = set()
        self.passes = self.fits = 0
        self._sampled: _Samples | None = None

    def run(self) -> list[Bridge]:
        current = self.attempt({})
        if current is None or not self.effects.changes(self.logits):
            return []
        first = current.fidelity(self.logits)
        for _ in range(_ROUNDS):
            if current.fidelity(self.logits) >= FAITHFUL or self.passes > _PASSES:
                break
            lossy = self.lossy(current)
            if not lossy:
                break
            current = self.round(current, lossy)
        current = self.pruned(current)
        gained = current.fidelity(self.logits) - first
        return list(self.bridges.values()) if gained >= _GAIN else []

    def attempt(self, bridges: dict[Key, Bridge]) -> Gradients | None:
        """A pass with these bridges; ``None`` where the network raises, as where it differentiates within its forward pass."""
        self.passes += 1
        try:
            switched_on = any(b.how == "gradient" for b in bridges.values())
            visit = Crossing(bridges.values(), self.effects.interleaved)
            return Gradients(self.effects, visit, with_gradient=switched_on)
        except Exception:  # a network may raise anything; with no bridge it has just answered
            if not bridges:
                raise
            return None

    # --- Where it is lost

    def inputs(self, key: Key) -> list[Key]:
        """The results before ``key`` that steps change; past those that were refused."""
        found: dict[Key, None] = {}
        stack = list(self.effects.after[key])
        while stack:
            before = stack.pop()
            if before in self.refused:
                stack += self.effects.after[before]
            elif self.effects.changes(before):
                found[before] = None
        return sorted(found, key=self.rank.__getitem__) or [self.effects.order[0]]

    def lossy(self, current: Gradients) -> list[Key]:
        """The operations that lose the gradient on the way from unfaithful logits, in the order of the pass."""
        found, seen, stack = [], {self.logits}, [self.logits]
        while stack:
            key = stack.pop()
            fidelity = current.fidelity(key)
            if fidelity >= FAITHFUL:
                continue
            inputs = self.inputs(key) if self.effects.after[key] else []
            if inputs and key not in self.bridges and key not in self.refused:
                least = min(current.fidelity(before) for before in inputs)
                arrives = any(current.result(before).requires_grad for before in inputs)
                is_dead = fidelity == 0 and arrives and current.is_dead(key, inputs)
                if is_dead or (least >= _KNOWN and fidelity < _LOSSY * least):
                    found.append(key)
            for before in inputs:
                if before not in seen:
                    seen.add(before)
                    stack.append(before)
        return sorted(found, key=self.rank.__getitem__)

    # --- Bridges

    def round(self, current: Gradients, lossy: Sequence[Key]) -> Gradients:
        """Try the kinds of bridges in turn for all of these operations, and accept the best for each."""
        before = {key: current.fidelity(key) for key in lossy}
        best: dict[Key, Bridge] = {}

        def keep(candidates: Iterable[Bridge]) -> None:
            offered = {b.key: b for b in candidates}
            if not offered:
                return
            joint = self.attempt({**self.bridges, **best, **offered})
            for key, bridge in offered.items():
                tried = joint or self.attempt({**self.bridges, **best, key: bridge})
                fidelity = 0.0 if tried is None else tried.fidelity(key)
                if fidelity >= max(before[key] + _GAIN, best[key].after if key in best else -1.0):
                    best[key] = Bridge(
                        key=key,
                        how=bridge.how,
                        sources=bridge.sources,
                        path=bridge.path,
                        before=before[key],
                        after=fidelity,
                    )

        if current.without_gradient:
            keep(Bridge(key=key, how="gradient") for key in lossy)
        keep(b for key in lossy if self._poor(key, best) and (b := self.identity(key, lossy)))
        for index in range(2):
            keep(b for key in lossy if self._poor(key, best) and (b := self.surrogate(key, current, index)))
        self.refused |= {key for key in lossy if key not in best}
        if not best:
            return current
        accepted = self.attempt({**self.bridges, **best})
        if accepted is None:
            self.refused |= {*best}
            return current
        self.bridges |= best
        return accepted

    def _poor(self, key: Key, best: dict[Key, Bridge]) -> bool:
        return key not in best or best[key].after < FAITHFUL

    def identity(self, key: Key, lossy: Sequence[Key]) -> Bridge | None:
        """From the nearest results with as many values per row."""
        level, seen = self.inputs(key), {key}
        while level:
            sources = tuple(k for k in level if math.prod(k.shape) == math.prod(key.shape))
            if sources:
                slope = self.samples((key, *sources)).slope(key, sources)
                return None if slope is None else Bridge(key=key, how="identity", sources=sources, path=straight_path(slope, key))
            seen |= {*level}
            level = [k for k in dict.fromkeys(b for near in level for b in self.inputs_of(near)) if k not in seen]
        return None

    def inputs_of(self, key: Key) -> list[Key]:
        return self.inputs(key) if self.effects.after[key] else []

    def surrogate(self, key: Key, current: Gradients, index: int) -> Bridge | None:
        """A learned map from the nearest results that are faithful."""
        sources, stack, seen = [], self.inputs(key), {key}
        while stack:
            near = stack.pop()
            if near in seen:
                continue
            seen.add(near)
            further = self.inputs_of(near)
            if current.fidelity(near) >= _KNOWN or near in self.bridges or not further:
                sources.append(near)
            else:
                stack += further
        shapes = [k.shape for k in sources]
        fields = receptive_fields(shapes, key.shape)
        if index >= len(fields) or self.fits >= _FITS or not sources:
            return None
        self.fits += 1
        samples = self.samples((key, *sources))
        copies = key.copies if all(k.copies == key.copies for k in sources) else 0
        learned = samples.learned(key, sources, copies, fields[index], derive_seed(self.seed, f"surrogate/{key}"))
        return Bridge(key=key, how="surrogate", sources=tuple(sources), path=_learned_path(learned, key, copies))

    def samples(self, keys: Sequence[Key]) -> _Samples:
        return _Samples(self, keys)

    def pruned(self, current: Gradients) -> Gradients:
        """Take away the bridges that the logits do not need."""
        for key in sorted(self.bridges, key=self.rank.__getitem__, reverse=True):
            fewer = {k: b for k, b in self.bridges.items() if k != key}
            without = self.attempt(fewer)
            if without is not None and without.fidelity(self.logits) >= current.fidelity(self.logits) - _IDLE:
                self.bridges, current = fewer, without
        return current


def _learned_path(learned: Learned, key: Key, copies: int):  # type: ignore[no-untyped-def]
    def path(sources: Sequence[Tensor]) -> Tensor:
        if copies:
            return learned(*(s.flatten(0, 1) for s in sources)).unflatten(0, (-1, copies))
        found: Tensor = learned(*(s.mean(1) for s in sources))
        return found[:, None].expand(-1, key.copies, *key.shape)

    return path


class _Samples:
    """The values of some results at images and at points near them, each (B, copies, *shape)."""

    def __init__(self, search: _Search, keys: Sequence[Key]) -> None:
        x = search.x[:_SAMPLE]
        generator = torch.Generator().manual_seed(derive_seed(search.seed, "trace/samples"))
        noise = [(torch.rand(x.shape, generator=generator).to(x) * 2 - 1) * search.effects.radius for _ in range(_STEPS)]
        values = [self._values(search, x, keys), *(self._values(search, (x + u).clamp(0, 1), keys) for u in noise)]
        self._start = {key: torch.cat([values[0][key]] * _STEPS) for key in keys}
        self._end = {key: torch.cat([v[key] for v in values[1:]]) for key in keys}

    @staticmethod
    def _values(search: _Search, x: Tensor, keys: Sequence[Key]) -> dict[Key, Tensor]:
        found: dict[Key, Tensor] = {}

        def visit(key: Key, tensor: Tensor, _: frozenset[Key]) -> None:
            if key in keys:
                found[key] = search.effects.rows(key, tensor.detach().clone())

        with torch.no_grad():
            pass_through(search.module, x, visit, seed=search.seed)
        return found

    def slope(self, key: Key, sources: Sequence[Key]) -> float | None:
        """Least squares of the changes of the result on those of the sources; ``None`` where they do not change."""
        path = straight_path(1.0, key)
        taken = path([self._end[s] for s in sources]) - path([self._start[s] for s in sources])
        given = self._end[key] - self._start[key]
        square = float(taken.double().square().sum())
        slope = float((taken.double() * given.double()).sum()) / square if square > 0 else math.nan
        return slope if math.isfinite(slope) else None

    def learned(self, key: Key, sources: Sequence[Key], copies: int, field: int, seed: int) -> Learned:
        def flat(values: Tensor) -> Tensor:
            return values.flatten(0, 1) if copies else values.mean(1)

        pairs = [(flat(self._start[s]), flat(self._end[s])) for s in sources]
        return fit(pairs, (flat(self._start[key]), flat(self._end[key])), field=field, seed=seed)
