"""The choice of layers by the keys of a ``quantize`` table: so many of the last ones, names, patterns and positions."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from art_qplugins.errors import InputError, shown

__all__ = ["NAMED", "chosen_names"]

#: Number of names that a message lists from each end.
NAMED = 4


def chosen_names(names: Sequence[str], wanted: int | Sequence[str | int] | None, key: str, what: str) -> list[str]:
    """The ``names`` that ``wanted`` stands for, in their order; all of them for ``None``.

    :param key: the setting, in a message.
    :param what: what they name, in a message.
    """
    if wanted is None:
        return list(names)
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(names):
            raise InputError(f"{key} is {wanted}, and the network has {len(names)} {what}")
        return list(names[-wanted:])
    chosen: set[str] = set()
    for one in wanted:
        if isinstance(one, str):
            found = [name for name in names if fnmatchcase(name, one)]
        else:
            found = list(names[one : one + 1 or None])
        if not found:
            which = (
                f"none of the {what} is called {shown(one)}" if isinstance(one, str) else f"there is no position {one}"
            )
            raise InputError(f"{key}: {which}; the {what} are: {_listed(names)}")
        chosen.update(found)
    return [name for name in names if name in chosen]


def _listed(names: Sequence[str]) -> str:
    """Names, by their positions those of both ends where there are many."""
    if len(names) <= 2 * NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:NAMED])}, ... {', '.join(names[-NAMED:])} ({len(names)})"
