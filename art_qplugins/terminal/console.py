"""The console, and numbers as every table of the terminal writes them."""

from __future__ import annotations

from rich.console import Console

__all__ = ["STYLES", "console", "number", "spaced"]

STYLES = {"MASKED": "bold red", "INVALID": "bold red", "SUSPECT": "yellow", "NOT_REFUTED": "green"}


def console() -> Console:
    return Console(highlight=False, soft_wrap=False)


def number(value: object) -> str:
    """An option's value; three digits of a float."""
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def spaced(text: str) -> str:
    """With plain spaces, which every terminal breaks lines at."""
    return text.replace("\N{NO-BREAK SPACE}", " ")
