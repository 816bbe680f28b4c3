"""An upper estimate of the cost of an attack before it runs. Cascades are ordered by it, and budgets are checked by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.evaluation.cell import CellSpec

__all__ = ["Cost", "exceeds", "expected_cost", "expected_passes"]


class Cost(NamedTuple):
    """Passes through the network for an image that stays robust to the end. A gradient also takes a forward pass."""

    gradients: float
    queries: float


#: The cost is proportional to these options.
_FACTORS = ("max_iter", "num_random_init", "eot_iter", "nb_restarts", "targets")


def expected_cost(attack: str, options: Mapping[str, Any] | None = None) -> Cost | None:
    """An approximate upper bound per attacked image, for a model with one pass per call; ``None`` where it is unknown.

    It is the registry's cost at the default options, scaled to these options, else the number of steps in the options, and at
    most the ``budget`` among them. The queries of a search are added to that.
    """
    entry = ATTACKS[attack]
    resolved = entry.resolve(options or {})
    known = entry.costs.get(str(resolved.get("effort")), entry.cost)
    if known is None:
        return _steps(attack, resolved)
    factor = 1.0
    for name in _FACTORS:
        default, value = entry.defaults.get(name), resolved.get(name)
        if default and value is not None:
            factor *= value / default
    searched = entry.defaults.get("n_queries") or 0
    asked = (resolved.get("n_queries") or 0) * (min(1, known[1] / searched) if searched else 1)
    gradients = min(known[0] * factor, resolved.get("budget") or math.inf)
    return Cost(gradients, max(known[1] - searched, 0) * factor + asked)


def _steps(attack: str, options: Mapping[str, Any]) -> Cost | None:
    entry = ATTACKS[attack]
    if entry.one_step:
        return Cost(1, 1)
    if "max_iter" not in options:
        return None
    steps = float(options["max_iter"])
    for name in ("num_random_init", "eot_iter", "nb_restarts"):
        steps *= max(1, options.get(name) or 1)
    return Cost(0, steps) if entry.knowledge == "black-box" else Cost(steps, 2 * steps)


def expected_passes(spec: CellSpec, images: int, *, passes: int) -> float | None:
    """An approximate upper bound of a cell's gradients and forward passes together; ``None`` where it is unknown.

    :param images: number of images that the cell attacks.
    :param passes: passes through the network per call: the draws of a random model.
    """
    if spec.role == "clean" or spec.check:  # these measure the model, or attack others
        return None
    cost = expected_cost(spec.attack, spec.options)
    return None if cost is None else (cost.gradients + cost.queries) * passes * images


def exceeds(
    spec: CellSpec, images: int, of: int, *, passes: int, spent: Cost, gradients: float | None, queries: float | None
) -> str | None:
    """The reason why a cell exceeds a budget per image of the whole set; ``None`` where it does not.

    :param images: number of images that the cell attacks, out of ``of``.
    :param passes: passes through the network per call: the draws of a random model.
    :param spent: cost so far per image of the whole set.
    """
    expected = expected_cost(spec.attack, spec.options) or Cost(0, 0)
    budget = {"gradient evaluations": gradients, "queries": queries}
    for (name, limit), each, before in zip(budget.items(), expected, spent, strict=True):
        cost = each * passes * images / of
        if limit is not None and not before + cost <= limit:
            return (
                f"it may take {cost:.0f} {name} per image, and {max(0.0, limit - before):.0f} "
                f"of {limit:g} are left of the budget"
            )
    return None
