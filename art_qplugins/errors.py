"""The one exception for input that a person can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to type next.

    The command line prints it and exits with status 2; nothing has been written by then.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'convnet'?"``, or a list of what there is where nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there is: {', '.join(known)}"
