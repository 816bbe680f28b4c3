"""Calls in a process of their own: what comes of them, also where the process hangs or dies.

    apart(lambda: command("run", "digits", "--dry-run"), 5)    # a Result

The process is a fork of this one, so nothing is imported again. It may not use more than some memory beyond what it has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Hung", "Result", "apart", "call", "command", "kind_of", "within"]

_MEMORY = 6 * 2**30  # bytes
_QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


class Hung(BaseException):
    """The time is over. No ``except Exception`` of the package's stops it."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a call.

    ``status`` is the exit status of a command. Of a Python call it is 0 where it returned and 2 where it raised an
    ``InputError``. It is ``None`` where it ended in another exception, hung, or killed its process.
    """

    status: int | None
    out: str = ""
    err: str = ""
    kind: str = ""  # of the failure: the exception with its last frame in the package, "hung" or "killed by SIGNAL"
    trace: str = ""
    seconds: float = 0.0


def command(*arguments: Any) -> Result:
    """``artq`` with these arguments, in this process."""
    from art_qplugins.cli import main

    return _caught(lambda: main([str(a) for a in arguments]))


def call(function: Callable[[], Any]) -> Result:
    """``function()``. An ``InputError`` is a status of 2."""
    from art_qplugins.errors import InputError

    def refusing() -> None:
        try:
            function()
        except InputError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None

    return _caught(refusing)


def _caught(function: Callable[[], Any]) -> Result:
    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    status: int | None = 0
    kind = trace = ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.resetwarnings()
        for category in _QUIET:
            warnings.simplefilter("ignore", category)
        try:
            function()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException as error:
            status, kind = None, kind_of(error)
            trace = "".join(traceback.format_exception(error))
    return Result(status, out.getvalue(), err.getvalue(), kind, trace, time.monotonic() - began)


def kind_of(error: BaseException) -> str:
    """``"TypeError in art_qplugins/api.py, evaluate"``: the exception, and the last frame in the package."""
    if isinstance(error, Hung):
        return "hung"
    place = "no frame of the package"
    for frame in traceback.extract_tb(error.__traceback__):
        if f"{os.sep}art_qplugins{os.sep}" in frame.filename:
            place = f"art_qplugins{frame.filename.rpartition(f'{os.sep}art_qplugins')[2]}, {frame.name}"
    return f"{type(error).__name__} in {place}"


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """:class:`Hung` is raised here after this time, unless the interpreter is in C code then."""

    def stop(*_: Any) -> None:
        raise Hung(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def apart(function: Callable[[], Result], seconds: float) -> Result:
    """The result of ``function``, called in a child. It is killed after ``seconds``."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process are of no use to the child
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(read)
            prepare_child()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(pickle.dumps(function()))
        os._exit(0)
    os.close(write)
    content, end = b"", time.monotonic() + seconds
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            if not (piece := pipe.read(2**16)):
                break
            content += piece
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Result(None, kind="hung", seconds=seconds)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not content:
        return Result(None, kind=f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}")
    result: Result = pickle.loads(content)
    return result


def prepare_child() -> None:
    """No standard input, and a limit on memory, so that what asks for terabytes fails and does not take the machine."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # what C code prints is no part of a result
        os.dup2(null, standard)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
