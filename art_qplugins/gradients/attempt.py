"""Measurements that may fail. A failed measurement is ``None`` with a reason, and does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["Attempt"]

T = TypeVar("T")


class Attempt:
    """Calls measurements by name. A model may raise any exception when it is called.

    :ivar skipped: the reason of each measurement that failed, by its name.
    """

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    def __call__(self, name: str, measurement: Callable[[], T]) -> T | None:
        try:
            return measurement()
        except (Exception, SystemExit) as error:
            self.skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return None
