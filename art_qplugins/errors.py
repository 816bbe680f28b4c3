"""The exception for input that a person can correct."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "did_you_mean"]


class InputError(ValueError):
    """Bad input. The message is one line that says what is wrong, where, and what to type next.

    The command line prints it and exits with status 2. Nothing is written before.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'convnet'?"``, or a list of the known names where none is similar."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there is: {', '.join(known)}"
