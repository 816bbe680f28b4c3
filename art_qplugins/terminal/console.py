"""The console, and the number format of all tables in the terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import TextIO, cast

from rich.console import Console

__all__ = ["STYLES", "console", "number", "show_warnings", "spaced"]

STYLES = {"MASKED": "bold red", "INVALID": "bold red", "SUSPECT": "yellow", "NOT_REFUTED": "green"}


#: Of a line where nobody says how wide it may be.
_ENDLESS = 100_000


class _Trimmed:
    """Standard output without the spaces that tables end their lines in: a file is shown in narrower windows, too."""

    def write(self, text: str) -> int:
        return sys.stdout.write(re.sub(r" +(?=\n)", "", text))

    def flush(self) -> None:
        sys.stdout.flush()

    @property
    def encoding(self) -> str:
        return sys.stdout.encoding


def console() -> Console:
    """As wide as the terminal, or as ``COLUMNS`` says; in a file or a pipe no line is broken."""
    screen = Console(highlight=False, soft_wrap=False)
    if not screen.is_terminal:
        screen = Console(
            file=cast("TextIO", _Trimmed()),
            width=None if "COLUMNS" in os.environ else _ENDLESS,
            highlight=False,
            soft_wrap=False,
        )
    return screen


def number(value: object) -> str:
    """An option's value; three digits of a float."""
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def spaced(text: str) -> str:
    """``text`` with plain spaces, at which every terminal can break lines."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


def show_warnings(screen: Console, lines: Iterable[str]) -> None:
    """What is legal in a recipe and surely a mistake."""
    for line in lines:
        screen.print(f"warning: {line}", markup=False, soft_wrap=True)
