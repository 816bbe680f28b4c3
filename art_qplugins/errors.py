"""The exception for input that a person can correct, and the words of its messages."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["InputError", "at", "did_you_mean", "one_line", "said", "shown", "visible"]

#: The longest message and the longest value in one, in characters.
LONGEST = 300
LONGEST_VALUE = 80

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LONGEST_VALUE
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 10
_SHORT.maxlevel = 3


class InputError(ValueError):
    """Bad input. The message is one line of at most 300 characters that says what is wrong, where, and what to type next.

    The command line prints it and exits with status 2. Nothing is written before.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@contextlib.contextmanager
def at(where: str) -> Iterator[None]:
    """Prefix an :class:`InputError` with the place of what is wrong, where it does not begin with it."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(where) else f"{where}: {message}") from None


def one_line(text: str, longest: int = LONGEST) -> str:
    """``text`` in one line without control characters. What is too long is cut in its middle."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= longest:
        return line
    head = longest * 2 // 3
    return f"{line[:head]} ... {line[len(line) - (longest - head - 5) :]}"


def visible(text: str) -> str:
    """``text`` with its lines, and with escapes such as ``\\x1b`` in place of characters that are not shown."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return " " if character == "\t" else character.encode("unicode_escape").decode()


def said(error: BaseException) -> str:
    """What an exception says, in one line of at most 80 characters; its class where it says nothing."""
    try:
        return one_line(str(error), LONGEST_VALUE) or type(error).__name__
    except Exception:  # the str of somebody's exception
        return type(error).__name__


def shown(value: Any) -> str:
    """``value`` as in Python, cut to 80 characters. It never raises, and does not build what it cuts."""
    try:
        words = one_line(_SHORT.repr(value), LONGEST_VALUE)
    except Exception:  # the repr of somebody's object, or a whole number of too many digits
        words = " at 0x"
    return one_line(f"a {type(value).__name__}", LONGEST_VALUE) if " at 0x" in words else words


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """``"; did you mean 'convnet'?"``, or the nearest three names, or all where there are at most three."""
    names = sorted({str(k) for k in known})
    wanted = str(name)[:LONGEST_VALUE] if isinstance(name, str) else shown(name)
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    if len(names) <= 3:
        return f"; there is: {', '.join(names) or 'none'}"
    nearest = difflib.get_close_matches(wanted, names, n=3, cutoff=0.0)
    return f"; nearest are: {', '.join(nearest)}"
