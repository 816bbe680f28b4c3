"""Numbers of a paper and those here, in words."""

from __future__ import annotations

from collections.abc import Sequence

from art_qplugins.evaluation.records import Pooled, PooledCell
from art_qplugins.report import words

__all__ = ["follows", "number", "sizes", "summary"]


def number(found: Pooled | None) -> str:
    """``51.8 % [47, 56], n = 500``, and of several trainings ``, 3 seeds``."""
    return words.NONE if found is None else f"{words.accuracy(found.accuracy, found.interval)}, {sizes(found)}"


def sizes(found: Pooled) -> str:
    """``n = 500``, and of several trainings ``, 3 seeds``."""
    seeds = f", {found.trainings}\N{NO-BREAK SPACE}seeds" if found.trainings > 1 else ""
    return f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{found.images}{seeds}"


def follows(row: PooledCell) -> str:
    """What follows from a row, in a sentence or two."""
    if row.beyond is None:
        return "It could not be measured."
    if row.reproduced:
        said = "Reproduced: the interval holds the paper's number."
    else:
        way = "above" if row.beyond > 0 else "below"
        said = f"Not reproduced: {words.points(abs(row.beyond))} {way} the paper."
    if row.overstated is not None:
        return f"{said} Other attacks leave {words.points(row.overstated)} less."
    return said if row.left is None else f"{said} No other attack leaves clearly less."


def summary(found: Sequence[PooledCell]) -> str:
    """What follows from all rows, in two sentences at most."""
    told = [row for row in found if row.beyond is not None]
    if not told:
        return "No number of the paper could be measured."
    held = sum(row.reproduced is True for row in told)
    lower = sum(row.reproduced is False and (row.beyond or 0) < 0 for row in told)
    said = (
        f"Numbers of the paper: {len(told)}. Within the interval here: {held}. Higher than here: {lower}. Lower than here: "
        f"{len(told) - held - lower}."
    )
    attacked = [row for row in told if row.left is not None]
    gaps = [row.overstated for row in attacked if row.overstated is not None]
    if not attacked:
        return said
    if not gaps:
        return f"{said} In no row does the worst case leave clearly less than the paper's attack."
    return (
        f"{said} In {len(gaps)} of {len(attacked)} rows under attack the worst case leaves less than the paper's attack, "
        f"by {words.points(max(gaps))} at most."
    )
