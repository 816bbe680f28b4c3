"""The exit status of ``artq diagnose``: which results fail a CI job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

from art_qplugins.domains import OneOf, check

if TYPE_CHECKING:
    from art_qplugins.evaluation.records import ModelResult

__all__ = ["fails", "verdicts_to_fail_on"]

_FAILS: Mapping[str, Callable[[ModelResult], bool]] = {
    "masked": lambda model: model.verdict == "MASKED",
    "overstated": lambda model: model.claim.status == "OVERSTATED",
    "suspect": lambda model: model.verdict == "SUSPECT",
    "inconclusive": lambda model: model.verdict == "INCONCLUSIVE",
    "invalid": lambda model: model.verdict == "INVALID",
}


def verdicts_to_fail_on(context: click.Context, parameter: click.Parameter, value: str | None) -> frozenset[str] | None:
    """The words of ``--fail-on``; ``None`` where it was not given.

    :raises InputError: where a word is unknown.
    """
    if value is None:
        return None
    wanted = [word.strip().lower() for word in value.split(",") if word.strip()]
    for word in wanted or [value]:
        check("--fail-on", word, OneOf(tuple(_FAILS)))
    return frozenset(wanted)


def fails(model: ModelResult, fail_on: frozenset[str] | None) -> bool:
    """Whether a result fails. By default INVALID does, and a number that is too high because gradients are hidden.

    An honest number of a model with hidden gradients does not fail.
    """
    if fail_on is not None:
        return any(_FAILS[word](model) for word in fail_on)
    return model.verdict == "INVALID" or (model.verdict == "MASKED" and _beyond_its_interval(model))


def _beyond_its_interval(model: ModelResult) -> bool:
    claim = model.claim
    if claim.status != "OVERSTATED" or claim.accuracy is None:
        return False
    return claim.interval is None or not claim.accuracy <= claim.interval[1]
