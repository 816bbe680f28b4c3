"""Where a network loses its gradient: a walk over a trace, back from the logits.

Where a result is faithful the walk stops: the gradient arrives, however it does. So a straight-through estimator that is written
by hand is left alone as a whole. An operation is lossy if its result is much less faithful than what it takes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from art_qplugins.gradients.operations import Key
from art_qplugins.gradients.trace import Effects, Gradients

__all__ = ["FAITHFUL", "KNOWN", "inputs", "lossy_operations", "nearest_alike", "nearest_known"]

#: Nothing is repaired before a result of at least this fidelity. Honest networks have 0.9 and more.
FAITHFUL = 0.7
#: A gradient of at least this fidelity tells something. That of nothing has one of 0.1 by chance.
KNOWN = 0.25
#: An operation is lossy if its fidelity is less than this share of that of its least faithful input.
_LOSSY = 0.6


def lossy_operations(
    effects: Effects, gradients: Gradients, *, bridged: Collection[Key], refused: Collection[Key]
) -> list[Key]:
    """The operations on the way to unfaithful logits that lose the gradient, in the order of the pass.

    :param bridged: operations that are not asked again.
    :param refused: operations that no bridge helps. They count as part of the operations behind them.
    """
    logits = effects.answer
    found, seen, stack = [], {logits}, [logits]
    while stack:
        key = stack.pop()
        if gradients.fidelity(key) >= FAITHFUL:
            continue
        before = inputs(effects, key, refused)
        if before and key not in bridged and key not in refused and _loses(gradients, key, before):
            found.append(key)
        stack += [k for k in before if k not in seen]
        seen |= {*before}
    return sorted(found, key=effects.order.index)


def _loses(gradients: Gradients, key: Key, before: list[Key]) -> bool:
    fidelity, least = gradients.fidelity(key), min(map(gradients.fidelity, before))
    if least >= KNOWN:
        return fidelity < _LOSSY * least
    # Behind another loss fidelity tells nothing. A gradient that stops here still does.
    return fidelity == 0 and gradients.stops(key, before)


def inputs(effects: Effects, key: Key, refused: Collection[Key] = ()) -> list[Key]:
    """The results before ``key`` that steps change, past those refused. Where there is none, the pixels; for them, ``[]``."""
    found, stack = set(), list(effects.after[key])
    if not stack:
        return []
    while stack:
        before = stack.pop()
        if before in refused:
            stack += effects.after[before]
        elif effects.changes(before):
            found.add(before)
    return sorted(found, key=effects.order.index) or effects.order[:1]


def nearest_alike(
    effects: Effects, gradients: Gradients, key: Key, *, refused: Collection[Key]
) -> Iterator[tuple[Key, ...]]:
    """The results before ``key`` with as many values in a row that a gradient can leave, nearest first, by distance."""
    level, seen = inputs(effects, key, refused), {key}
    while level:
        alike = (k for k in level if math.prod(k.shape) == math.prod(key.shape))
        if sources := tuple(k for k in alike if gradients.has_graph(k)):
            yield sources
        seen |= {*level}
        further = (k for near in level for k in inputs(effects, near, refused))
        level = [k for k in dict.fromkeys(further) if k not in seen]


def nearest_known(
    effects: Effects, gradients: Gradients, key: Key, *, bridged: Collection[Key], refused: Collection[Key]
) -> list[Key]:
    """The nearest results before ``key`` whose gradient tells something, or has a bridge."""
    found, seen, stack = [], {key}, inputs(effects, key, refused)
    while stack:
        near = stack.pop()
        if near in seen:
            continue
        seen.add(near)
        further = inputs(effects, near, refused)
        if not further or near in bridged or gradients.fidelity(near) >= KNOWN:
            found.append(near)
        else:
            stack += further
    return sorted(found, key=effects.order.index)
