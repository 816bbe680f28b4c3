"""``--time-limit`` of every command: when it is up, the command ends as an interrupt ends it."""

from __future__ import annotations

import _thread
import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click

__all__ = ["STATUS", "Limited", "OutOfTime", "seconds_of", "tell_what_is_left", "time_limit"]

#: The exit status of a command whose time is up, as of ``timeout`` of the GNU core utilities.
STATUS = 124
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
#: A year. What is longer is a mistake, and more than timers take.
_LONGEST = 366 * 86400.0


class OutOfTime(KeyboardInterrupt):
    """The time limit is up.

    :ivar left: what is left to do, where whoever was at work knows it.
    """

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


def tell_what_is_left(interrupt: BaseException | None, left: str) -> None:
    """Let an interrupt say what is left to do. Anything else stays as it is."""
    if isinstance(interrupt, KeyboardInterrupt):
        vars(interrupt)["left"] = left


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Within, the main thread is interrupted after so many seconds, also while it waits.

    Windows has no timer that ends a wait; there it is interrupted when the wait is over.

    :raises OutOfTime: at the end, in place of that interrupt, which others may have caught and raised anew, as Ray does.
    """
    if seconds is None:
        yield
        return
    up = threading.Event()
    stop = (_alarm if hasattr(signal, "setitimer") else _timer)(seconds, up)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not up.is_set():
            raise
        ended = OutOfTime()
        ended.left = vars(interrupt).get("left", "")
        raise ended from interrupt
    finally:
        stop()


def _alarm(seconds: float, up: threading.Event) -> Callable[[], None]:
    """Interrupt by a signal. What is returned takes it back."""

    def end(*_: Any) -> None:
        up.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)

    def stop() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    return stop


def _timer(seconds: float, up: threading.Event) -> Callable[[], None]:
    """The same by a thread."""

    def end() -> None:
        up.set()
        _thread.interrupt_main()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer.cancel


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
