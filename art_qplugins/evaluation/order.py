"""The order of a cascade, learnt from records: what breaks most images for its passes comes first.

Attacks are chosen one after the other, each by the images that it breaks of those that the ones before left, over the passes
that it takes for them (as Liu et al. 2023, AutoAE, chooses by images over time). ``order.json`` is what the package comes with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from art_qplugins.errors import InputError
from art_qplugins.evaluation.fields import Norm
from art_qplugins.evaluation.records import Cell, Results, Sample
from art_qplugins.files import read_json

__all__ = ["Learnt", "as_json", "learn", "shipped"]

_SHIPPED = Path(__file__).with_name("order.json")
#: Attacks learn from the same images of a network: (run, model, norm, eps).
_Place: TypeAlias = tuple[int, str, Norm, float]


@dataclass(frozen=True)
class Learnt:
    """One attack of an order.

    :ivar standing: images that the attacks before it left, over all networks and eps at which it ran.
    :ivar broken: of these, the images that it broke.
    :ivar passes: forward and backward passes that it takes for them.
    """

    attack: str
    standing: int
    broken: int
    passes: float


@cache
def shipped() -> Sequence[str]:
    """The attacks of the order that the package comes with, the first one first: those that broke what others had left."""
    table = read_json(_SHIPPED, most=2**20, hint="install art_qplugins again")
    return [row["attack"] for row in table["order"] if row["broken"]]


def as_json(order: Sequence[Learnt]) -> bytes:
    """An order as the file that :func:`shipped` reads."""
    return (json.dumps({"order": [asdict(row) for row in order]}, indent=1) + "\n").encode()


def learn(runs: Iterable[tuple[Results, Mapping[str, Sequence[Sample]]]], *, first: Sequence[str] = ()) -> list[Learnt]:
    """The order that breaks most images for its passes in these runs.

    Only white-box and black-box cells on whole sets of images count: what a cascade ran last saw hard images alone.

    :param runs: the records of each, and its samples by cell.
    :param first: attacks that come first in any case, in this order.
    :raises InputError: where no attack ran on all images.
    """
    found: dict[str, dict[_Place, tuple[NDArray[np.bool_], float]]] = {}
    standing: dict[_Place, NDArray[np.bool_]] = {}
    for number, (results, samples) in enumerate(runs):
        clean = {
            cell.model: _robust(samples[cell.id])
            for cell in results.cells
            if cell.role == "clean" and cell.status == "success"
        }
        for cell in results.cells:
            if not _counts(cell) or cell.model not in clean:
                continue
            place = (number, cell.model, cell.norm, cell.eps)
            cost = (cell.forward_samples + cell.backward_samples) / cell.n
            known = found.setdefault(cell.attack, {})
            if place not in known or cost < known[place][1]:
                known[place] = (~_robust(samples[cell.id]), cost)
            standing[place] = clean[cell.model].copy()
    if not found:
        raise InputError('no run has an attack on all its images; give folders of runs with strategy = "matrix"')
    order: list[Learnt] = []
    given = [attack for attack in first if attack in found]
    while found:
        candidates = [given.pop(0)] if given else found
        best = max((_next(attack, found[attack], standing) for attack in candidates), key=_worth)
        order.append(best)
        for place, (broken, _) in found.pop(best.attack).items():
            standing[place] &= ~broken
    return order


def _counts(cell: Cell) -> bool:
    """Whether a cell is of an attack on all images, along the model's own gradient or by its answers."""
    return cell.status == "success" and cell.rows is None and cell.role == "attack" and cell.source == cell.model


def _robust(samples: Sequence[Sample]) -> NDArray[np.bool_]:
    """(n,) the images that at least one draw classifies correctly."""
    return np.array([sample.selection > 0 for sample in samples])


def _next(
    attack: str, places: Mapping[_Place, tuple[NDArray[np.bool_], float]], standing: Mapping[_Place, NDArray[np.bool_]]
) -> Learnt:
    broke = sum(int((standing[place] & broken).sum()) for place, (broken, _) in places.items())
    left = {place: int(standing[place].sum()) for place in places}
    return Learnt(attack, sum(left.values()), broke, sum(left[place] * cost for place, (_, cost) in places.items()))


def _worth(row: Learnt) -> float:
    """Images for a pass."""
    return row.broken / row.passes if row.passes else 0.0
