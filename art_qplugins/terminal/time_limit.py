"""``--time-limit`` of every command: when it is up, the command ends as an interrupt ends it."""

from __future__ import annotations

import _thread
import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import click

__all__ = ["STATUS", "Limited", "OutOfTime", "seconds_of", "time_limit"]

#: The exit status of a command whose time is up, as of ``timeout`` of the GNU core utilities.
STATUS = 124
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
#: A year. What is longer is a mistake, and more than timers take.
_LONGEST = 366 * 86400.0


class OutOfTime(KeyboardInterrupt):
    """The time limit is up. Whoever was at work may say in ``left`` what is left to do."""

    left = ""


def seconds_of(duration: str) -> float:
    """``"90"``, ``"90s"``, ``"30m"``, ``"2h"`` or ``"1.5d"`` in seconds.

    :raises ValueError: for anything else, and beyond a year.
    """
    found = _DURATION.fullmatch(duration.strip())
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0 < seconds <= _LONGEST:
        raise ValueError(
            f"{duration!r} is no time of at most a year; write seconds, or a number with m, h or d, e.g. 30m"
        )
    return seconds


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Within, :class:`OutOfTime` is raised in the main thread after so many seconds, also while it waits.

    Windows has no timer that ends a wait; there it is raised when the wait is over.
    """
    if seconds is None:
        yield
    elif hasattr(signal, "setitimer"):
        before = signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    else:
        up = threading.Event()

        def end() -> None:
            up.set()
            _thread.interrupt_main()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except KeyboardInterrupt:
            if up.is_set():
                raise OutOfTime from None
            raise
        finally:
            timer.cancel()


def _raise(*_: Any) -> None:
    raise OutOfTime


class _Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else seconds_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Limited(click.Command):
    """A command with the option ``--time-limit``."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        option = click.Option(
            ["--time-limit"],
            type=_Duration(),
            metavar="DURATION",
            help="End after so many seconds, or e.g. 30m or 2h, with exit status 124. What is finished is kept, and the same "
            "command goes on from there.",
        )
        self.params.append(option)

    def invoke(self, ctx: click.Context) -> Any:
        limit = ctx.params.pop("time_limit")
        try:
            with time_limit(limit):
                return super().invoke(ctx)
        except OutOfTime as up:
            left = f"; {up.left}" if up.left else ""
            raise _Ended(
                f"the time limit of {limit:g} s is up{left}; the same command again continues from here"
            ) from None


class _Ended(click.ClickException):
    exit_code = STATUS
