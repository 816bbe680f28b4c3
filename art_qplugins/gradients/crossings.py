"""Finds the bridges that bring the gradient of a network back, by trying and measuring them.

Operations that lose the gradient are bridged from the pixels on, until the logits are faithful. Each kind of bridge is tried at
all operations that lose it at a time. In the end the logits say which bridges they need.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from torch import Tensor

from art_qplugins.gradients.bridges import Bridge, Bridged, Crossing, layout_of
from art_qplugins.gradients.learned import receptive_fields
from art_qplugins.gradients.lost import FAITHFUL, KNOWN, lossy_operations, nearest_alike, nearest_known
from art_qplugins.gradients.operations import Key
from art_qplugins.gradients.samples import Samples
from art_qplugins.gradients.trace import Effects, Gradients

__all__ = ["find_bridges"]

#: A bridge must raise the fidelity of its operation by this much, and so must all of them that of the logits.
_GAIN = 0.1
#: A bridge is taken away if the logits lose less than this without it.
_IDLE = 0.02
#: Bounds on the search: rounds, passes with gradients, surrogates, and operations at once for which surrogates are learned.
_ROUNDS, _PASSES, _FITS, _FEW = 12, 60, 8, 4

Bridges = dict[Key, Bridge]


def find_bridges(effects: Effects, x: Tensor) -> Bridged | None:
    """A view of the module with a way back to the pixels; ``None`` where its gradient arrives, or no bridge helps.

    :param x: (N, C, H, W) in [0, 1]; 61 images are used to fit bridges.
    """
    bridges = _Search(effects, x.detach()).run()
    return Bridged(effects.module, bridges, layout_of(effects)) if bridges else None


class _Search:
    """The state of a search.

    :ivar bridges: those accepted so far.
    :ivar refused: operations that no bridge helped. They count as part of the operations behind them.
    """

    def __init__(self, effects: Effects, x: Tensor) -> None:
        self.effects, self.x = effects, x
        self.logits = effects.answer
        self.bridges: Bridges = {}
        self.refused: set[Key] = set()
        self.passes = self.fits = 0

    def run(self) -> list[Bridge]:
        current = plain = Gradients(self.effects)
        for _ in range(_ROUNDS):
            if current.fidelity(self.logits) >= FAITHFUL or self.passes >= _PASSES:
                break
            lossy = lossy_operations(self.effects, current, bridged=self.bridges, refused=self.refused)
            if not lossy:
                break
            current = self.round(current, lossy)
        without = plain.fidelity(self.logits)
        if current.fidelity(self.logits) < without + (_GAIN if without else _IDLE):  # any gradient is better than none
            return []
        return self.needed(current.fidelity(self.logits))

    def attempt(self, bridges: Bridges) -> Gradients | None:
        """Both passes with these bridges; ``None`` where one raises, as where a network differentiates within its forward."""
        self.passes += 1
        switched_on = any(bridge.how == "gradient" for bridge in bridges.values())
        try:
            visit = Crossing(bridges.values(), layout_of(self.effects))
            found = Gradients(self.effects, visit, with_gradient=switched_on)
            found.fidelity(self.logits)
        except Exception:
            return None
        return found

    def round(self, current: Gradients, lossy: list[Key]) -> Gradients:
        """Try the kinds of bridges in turn at all of these operations. Accept the kind that serves the logits best.

        Where the gradient arrives at the logits by none, as where more operations behind lose it, each operation decides for
        itself.
        """
        best: Bridges = {}
        chosen, top = best, max(current.fidelity(self.logits) + _GAIN, KNOWN)
        gains = dict.fromkeys(lossy, _GAIN)
        for offered in self.offers(current, lossy):
            tried, bridges = self.tolerated(offered)
            if tried is None:
                continue
            for key, bridge in bridges.items():
                gain = tried.fidelity(key) - current.fidelity(key)
                if gain >= gains[key]:
                    best[key], gains[key] = bridge, gain + _IDLE  # the first of two that are as good is the simpler one
            reached = tried.fidelity(self.logits)
            if reached >= top:
                chosen, top = bridges, reached + _IDLE
            if reached >= FAITHFUL:
                break
        accepted = self.attempt({**self.bridges, **chosen}) if chosen else None
        self.refused |= {key for key in lossy if accepted is None or key not in chosen}
        if accepted is None:
            return current
        self.bridges |= chosen
        return accepted

    def tolerated(self, offered: Bridges) -> tuple[Gradients | None, Bridges]:
        """A pass with the bridges at which the network does not raise, and these bridges. The others are refused."""
        if not offered:
            return None, offered
        tried = self.attempt({**self.bridges, **offered})
        if tried is not None:
            return tried, offered
        self.refused |= {key for key, bridge in offered.items() if self.attempt({**self.bridges, key: bridge}) is None}
        left = {key: bridge for key, bridge in offered.items() if key not in self.refused}
        return (self.attempt({**self.bridges, **left}) if left else None), left

    def offers(self, current: Gradients, lossy: list[Key]) -> Iterator[Bridges]:
        """One kind of bridge after the other."""
        if current.without_gradient:
            yield {key: Bridge(key=key, how="gradient") for key in lossy}
        for index in range(3):
            yield {key: b for key in lossy if key not in self.refused and (b := self.identity(current, key, index))}
        for index in range(2) if len(lossy) <= _FEW else ():
            yield {key: b for key in lossy if key not in self.refused and (b := self.surrogate(current, key, index))}

    def identity(self, current: Gradients, key: Key, index: int) -> Bridge | None:
        """From the nearest results with as many values in a row; ``index`` counts how near."""
        levels = nearest_alike(self.effects, current, key, refused=self.refused)
        sources = next(itertools.islice(levels, index, None), None)
        path = None if sources is None else Samples(self.effects, self.x, key, sources).line()
        return None if path is None or sources is None else Bridge(key=key, how="identity", sources=sources, path=path)

    def surrogate(self, current: Gradients, key: Key, index: int) -> Bridge | None:
        """Learned, from the nearest results whose gradient is known; ``index`` counts the forms that it can have."""
        sources = nearest_known(self.effects, current, key, bridged=self.bridges, refused=self.refused)
        fields = receptive_fields([k.shape for k in sources], key.shape)
        if index >= len(fields) or self.fits >= _FITS:
            return None
        self.fits += 1
        path = Samples(self.effects, self.x, key, sources).learned(fields[index])
        return Bridge(key=key, how="surrogate", sources=tuple(sources), path=path)

    def needed(self, reached: float) -> list[Bridge]:
        """The bridges that the logits need, with their fidelity without and with them. Those of a loop stay together."""
        for alike in dict.fromkeys(key[:4] for key in reversed(self.effects.order) if key in self.bridges):
            part = {key: bridge for key, bridge in self.bridges.items() if key[:4] == alike}
            without = self.attempt({key: bridge for key, bridge in self.bridges.items() if key not in part})
            before = 0.0 if without is None else without.fidelity(self.logits)
            if without is not None and before >= reached - _IDLE:
                self.bridges, reached = {k: b for k, b in self.bridges.items() if k not in part}, before
            else:
                self.bridges |= {k: dataclasses.replace(b, before=before) for k, b in part.items()}
        return [dataclasses.replace(bridge, after=reached) for bridge in self.bridges.values()]
