"""A twin of a network without the operations that lose its gradient: each is left out, and what it takes goes on in its place.

It serves where bridges tell little, because the answers hardly change within a small step, as behind the nearest codeword of a
codebook. The twin is found by measurement: it must give the classes of the network.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from art_qplugins.gradients.bridges import Bridge, Bypassed, Crossing, layout_of, straight_path
from art_qplugins.gradients.lost import FAITHFUL, lossy_operations, nearest_alike
from art_qplugins.gradients.operations import Key
from art_qplugins.gradients.trace import Effects, Gradients, pass_through

__all__ = ["find_bypass"]

#: The share of images to which the twin must give the same class. An attack is scored on the network itself.
_AGREEMENT = 0.8
_IMAGES, _ROUNDS, _LEVELS = 61, 12, 3


def find_bypass(effects: Effects, x: Tensor) -> Bypassed | None:
    """The twin of the module; ``None`` where its gradient arrives, or where no operation can be left out.

    :param x: (N, C, H, W) in [0, 1]; 61 images are used to compare classes.
    """
    images = x.detach()[:_IMAGES]
    classes = _classes(effects, images, {})
    left_out: dict[Key, Bridge] = {}
    refused: set[Key] = set()
    for _ in range(_ROUNDS):
        current = Gradients(effects, Crossing(left_out.values(), layout_of(effects), bypass=True))
        if current.fidelity(effects.answer) >= FAITHFUL:
            break
        lossy = lossy_operations(effects, current, bridged=left_out, refused=refused)
        if not lossy:
            break
        best, top = {}, _AGREEMENT
        for index in range(_LEVELS):
            offered = {key: b for key in lossy if (b := _straight(effects, current, key, index, refused))}
            agreement = _agreement(effects, images, classes, {**left_out, **offered}) if offered else 0.0
            if agreement >= top:
                best, top = offered, agreement
        left_out |= best
        refused |= {key for key in lossy if key not in best}
    return Bypassed(effects.module, [*left_out.values()], layout_of(effects)) if left_out else None


def _straight(effects: Effects, current: Gradients, key: Key, index: int, refused: set[Key]) -> Bridge | None:
    """From a single result with as many values in a row and as many copies; ``index`` counts how near."""
    levels = nearest_alike(effects, current, key, refused=refused)
    sources = (k for level in levels for k in level if k.copies == key.copies)
    source = next(itertools.islice(sources, index, None), None)
    return source and Bridge(key=key, how="identity", sources=(source,), path=straight_path(1.0, key.shape))


def _agreement(effects: Effects, x: Tensor, classes: Tensor, bridges: dict[Key, Bridge]) -> float:
    try:
        return float((_classes(effects, x, bridges) == classes).double().mean())
    except Exception:  # values may leave the domain of what comes next
        return 0.0


def _classes(effects: Effects, x: Tensor, bridges: dict[Key, Bridge]) -> Tensor:
    crossing = Crossing(bridges.values(), layout_of(effects), bypass=True)
    with torch.no_grad():
        return pass_through(effects.module, x, crossing, seed=effects.seed)[0].argmax(1)
