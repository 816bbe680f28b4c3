"""Which cells run in which order and on which images, where the worst case is wanted and no table of every attack.

Cheap attacks come first, and only images that still stand go on. Two things follow from a ball within a ball: an image
broken at a smaller budget is broken at a larger one, and one that withstood an attack at a larger budget is not given
to the same attack at a smaller one. So each attack begins at the largest budget, and what it leaves there is left for
good. The result is an upper bound on robustness like any other; nothing is claimed of an image that was not attacked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.cost import expected_cost
from art_qplugins.evaluation.outcome import Outcome, legal_at

__all__ = ["Left", "images_key", "narrowed", "ordered"]


def images_key(spec: CellSpec) -> tuple[Any, ...]:
    """What the adversarial images of a cell depend on, its rows aside: everything but the model that judges them."""
    options = repr(sorted(ATTACKS[spec.attack].resolve(spec.options).items()))
    kept = (spec.source, spec.attack, spec.norm, spec.eps, spec.seed, spec.restart)
    return (*kept, options, spec.gap, spec.start, spec.check)


def ordered(specs: Iterable[CellSpec]) -> list[list[CellSpec]]:
    """Groups of cells, each judged on the same images, in the order to run them.

    By the expected cost of a gradient-taking pass and then of a query; attacks whose cost is not known come last, as
    listed; of one attack, the largest budget first.
    """
    groups: dict[tuple[Any, ...], list[CellSpec]] = {}
    for spec in specs:
        groups.setdefault(images_key(spec), []).append(spec)
    listed = {name: i for i, name in enumerate(dict.fromkeys(_attack_key(g[0]) for g in groups.values()))}

    def place(group: Sequence[CellSpec]) -> tuple[float, int, float]:
        spec = group[0]
        cost = expected_cost(spec.attack, spec.options)
        price = -1.0 if spec.role == "clean" else math.inf if cost is None else cost.gradients + cost.queries
        return price, listed[_attack_key(spec)], -spec.eps

    return sorted(groups.values(), key=place)


def _attack_key(spec: CellSpec) -> tuple[str, str]:
    return spec.attack, repr(sorted(ATTACKS[spec.attack].resolve(spec.options).items()))


@dataclass(frozen=True)
class Left(Outcome):
    """A finished cell without its samples, but for what a cascade asks of them."""

    selection: NDArray[np.float64] = field(kw_only=True)

    @classmethod
    def by(cls, outcome: Outcome) -> Left:
        return cls(outcome.cell, (), selection=outcome.column("selection") if outcome.ok else np.empty(0))

    def column(self, name: str) -> NDArray[Any]:
        if name != "selection":
            raise KeyError(name)
        return self.selection


def narrowed(
    group: Sequence[CellSpec], outcomes: Mapping[str, Sequence[Outcome]], whole: Sequence[CellSpec]
) -> list[CellSpec]:
    """The cells of a group on the images that still stand on one of its models; none where all are broken.

    :param outcomes: the cells so far, by model; each model's clean one among them.
    :param whole: cells that attack every image whatever is known: claims.
    """
    if any(spec.role == "clean" or spec in whole for spec in group):
        return list(group)
    group = [spec for spec in group if any(o.ok for o in outcomes[spec.model])]
    if not group:  # no answer to clean images is known, so no attack on them says anything
        return []
    standing = [_standing(spec, outcomes[spec.model]) for spec in group]
    wanted = [spec for spec, rows in zip(group, standing, strict=True) if rows.any()]
    together = np.any(standing, axis=0)
    if together.all():
        return wanted
    return [replace(spec, rows=tuple(int(i) for i in np.flatnonzero(together))) for spec in wanted]


def _standing(spec: CellSpec, outcomes: Sequence[Outcome]) -> NDArray[np.bool_]:
    """Images that something is left of at this budget and that have not withstood this attack at a larger one."""
    legal = legal_at(outcomes, spec.norm, spec.eps)
    left = np.nanmin([o.column("selection") for o in legal], axis=0)
    standing = left > 0
    for o in outcomes:
        if o.ok and o.cell.eps > spec.eps and o.cell.norm == spec.norm and _same_attack(spec, o):
            withstood = o.column("selection")
            standing &= ~(withstood >= left)  # NaN, where it was not attacked: not withstood
    return np.asarray(standing)


def _same_attack(spec: CellSpec, o: Outcome) -> bool:
    options = ATTACKS[spec.attack].resolve(spec.options)
    same = (spec.source, spec.attack, spec.seed) == (o.cell.source, o.cell.attack, o.cell.seed)
    return same and all(o.cell.params.get(name) == value for name, value in options.items())
