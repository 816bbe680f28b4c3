"""What an attack may cost before it is run: an upper estimate, for the order of a cascade and for budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from art_qplugins.attacks.registry import ATTACKS
from art_qplugins.evaluation.cells import CellSpec

__all__ = ["Cost", "exceeds", "expected_cost"]


class Cost(NamedTuple):
    """Passes through the network for an image that stands to the end. A gradient takes a forward pass too."""

    gradients: float
    queries: float


#: Options that a cost grows with in proportion.
_FACTORS = ("max_iter", "num_random_init", "eot_iter", "n_queries", "nb_restarts", "targets")
#: AutoAttack (Croce & Hein 2020, appendix): 100 iterations of each part, 9 target classes, 5000 queries.
_APGD, _TARGETED, _QUERIES = Cost(100, 201), Cost(900, 1810), Cost(0, 5000)
#: At an attack's default options, where they do not say it themselves.
_DEFAULTS = {
    "autoattack:apgd-ce": _APGD,
    "autoattack:apgd-t": _TARGETED,
    "autoattack:fab-t": _TARGETED,
    "autoattack:square": _QUERIES,
    "autoattack:standard": Cost(1900, 8821),
    "autoattack:rand": Cost(4000, 4040),  # APGD-CE and APGD-DLR, 20 draws
    "artq:multi-targeted": Cost(180, 370),
    "artq:surrogates": Cost(60, 130),
    "artq:shadow": Cost(40, 90),
    "artq:bits": Cost(100, 210),
    "artq:joint": Cost(40, 90),
    "artq:eot": Cost(200, 210),
    "artq:clean": Cost(0, 1),
}


def expected_cost(attack: str, options: Mapping[str, Any] | None = None) -> Cost | None:
    """At most about this much for each attacked image, with one pass an answer; ``None`` where nothing is known.

    The registry's cost comes first, then the table above, then the number of steps that the options say.
    """
    entry = ATTACKS[attack]
    resolved = entry.resolve(options or {})
    known = getattr(entry, "cost", None) or _DEFAULTS.get(attack)
    if known is None:
        return _steps(attack, resolved)
    factor = 1.0
    for name in _FACTORS:
        default, value = entry.options.get(name), resolved.get(name)
        if default and value is not None:
            factor *= value / default
    return Cost(known[0] * factor, known[1] * factor)


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


def exceeds(
    spec: CellSpec, images: int, of: int, *, passes: int, spent: Cost, gradients: float | None, queries: float | None
) -> str | None:
    """Why a cell is not run within a budget per image of the whole set, in a sentence; ``None`` where it is.

    :param images: how many of ``of`` images the cell attacks.
    :param passes: through the network for one answer: a random model's draws.
    :param spent: per image of the whole set, so far.
    """
    expected = expected_cost(spec.attack, spec.options) or Cost(0, 0)
    budget = {"gradient evaluations": gradients, "queries": queries}
    for (name, limit), each, before in zip(budget.items(), expected, spent, strict=True):
        cost = each * passes * images / of
        if limit is not None and before + cost > limit:
            return (
                f"it may take {cost:.0f} {name} an image, and {max(0.0, limit - before):.0f} "
                f"of {limit:g} are left of the budget"
            )
    return None
