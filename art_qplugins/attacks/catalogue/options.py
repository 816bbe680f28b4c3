"""The domains of options that several attacks share, by name. The defaults are in the rows.

A domain holds the values with which an attack works as its library intends. Its ends are where a value is surely a slip: it
switches the attack off, ends in NaN, or asks for more memory or time than there is. An option whose name means something
else in one attack has its domain in that row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from art_qplugins.domains import Domain, Maybe, Number, Option, Rule
from art_qplugins.threat import kurakin_steps

__all__ = [
    "COUNTED",
    "DOMAINS",
    "ITERATIVE",
    "RULES",
    "SCHEDULES",
    "count",
    "kurakin_size",
    "option_of",
]


def count(most: int, *, least: int = 1) -> Number:
    """Whole numbers from ``least`` to ``most``."""
    return Number(least, most, whole=True)


_STEP = Number(1e-5, 1)
_CONFIDENCE = Number(0, 50)
_MOMENTUM = Number(0, 1)  # above 1 it grows without bound

DOMAINS: Mapping[str, Domain] = {
    "binary_search_steps": count(100),
    "confidence": _CONFIDENCE,
    "decay": _MOMENTUM,
    "directions": count(100_000),
    "eot_iter": count(10_000),
    "grey": Number(0, 1),
    "init_size": count(1_000_000),
    "initial_const": Number(1e-5, 100),
    "kappa": _CONFIDENCE,
    "learning_rate": _STEP,
    "lr": _STEP,
    "max_iter": count(100_000),
    "momentum": _MOMENTUM,
    "n_queries": count(10_000_000),
    "nb_restarts": count(1000),
    "num_random_init": count(1000),
    "num_trial": count(100_000),
    "overshoot": Number(1e-6, 0.5),
    "p_init": Number(0, 0.85, above=True),  # a square that is smaller than an 8x8 image
    "rel_eps_step": Number(1e-6, 10),
    "repeats": count(100_000),
    "stepsize": _STEP,
    "theta": Number(-1, 1),
}

#: Options that count something in the attacks of every package.
COUNTED = ("eot_iter", "max_iter", "n_queries", "nb_restarts")

#: Each is checked in the rows that have its options.
RULES: tuple[Rule, ...] = (
    Rule(
        ("max_iter", "rel_eps_step"),
        lambda steps, size: steps * size >= 0.1,
        "steps that are together at least a tenth of eps long, or leave rel_eps_step out",
    ),
    Rule(("theta",), lambda theta: abs(theta) >= 0.01, "a theta of at least 0.01, or at most -0.01 to darken"),
)

#: rel_eps_step is the step size as a fraction of eps. None means min(1, 2.5 / max_iter).
ITERATIVE: Mapping[str, Any] = {"max_iter": 20, "rel_eps_step": None}


def kurakin_size(eps: float) -> float:
    """The size of the steps of Kurakin et al. (2017), 1/255, relative to eps."""
    return min(1.0, 1 / (255 * eps))


#: What ``steps = NAME`` stands for at an eps in Linf, of the options that an attack has.
SCHEDULES: Mapping[str, Callable[[float], dict[str, Any]]] = {
    "kurakin": lambda eps: {"max_iter": kurakin_steps(eps), "rel_eps_step": kurakin_size(eps), "start": "signs"},
}


def option_of(name: str, given: Any) -> Any:
    """``given``. A bare default becomes an option with the shared domain of its name, where there is one."""
    if isinstance(given, Option) or name not in DOMAINS:
        return given
    return Option(given, Maybe(DOMAINS[name]) if given is None else DOMAINS[name])
