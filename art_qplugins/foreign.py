"""Code of other people: what it raises, and that it exits, as one line that shows the place in their code."""

from __future__ import annotations

import contextlib
import linecache
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from art_qplugins.errors import InputError, one_line

__all__ = ["foreign", "raised"]

_OURS = str(Path(__file__).parent)
_PYTHON = sysconfig.get_path("stdlib")
#: The longest message of somebody's exception and the longest line of their code, in characters.
_MESSAGE, _LINE = 100, 50


@contextlib.contextmanager
def foreign(where: str, *, package: str = "", hint: str = "") -> Iterator[None]:
    """Within, whatever is raised is an :class:`InputError` that names the last place in their code. So is an exit.

    :param where: begins the message, e.g. ``"model nets:make"``.
    :param package: the top-level package of their code. Else it is what no package manager installed.
    :param hint: ends the message: what to do about it.
    :raises KeyboardInterrupt: an interrupt stays one.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may exit, and asyncio's cancellation is no Exception
        place = _place(error, package)
        at = f", at {place}" if place else ""
        raise InputError(f"{where}: {raised(error)}{at}{hint and '; '}{hint}") from error


def raised(error: BaseException) -> str:
    """The class and the message of an exception in one short line. The message of an :class:`InputError` says it all."""
    try:
        said = one_line(str(error), _MESSAGE)
    except Exception:  # the str of somebody's exception
        said = ""
    kind = "" if isinstance(error, InputError) else type(error).__name__
    return ": ".join(part for part in (kind, said) if part)


def _place(error: BaseException, package: str) -> str:
    """``"nets.py:3 (import nothing)"``; "" where none of their code was running."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return _shown(error.filename, error.lineno or 1)
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if str(frame.f_globals.get("__name__")).split(".")[0] == package or _is_loose(file):
            return _shown(file, line)
    return ""


def _is_loose(file: str) -> bool:
    """Whether a file is of no installed package, of Python or of this package."""
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return not (file.startswith(("<", _OURS, _PYTHON)) or installed)


def _shown(file: str, line: int) -> str:
    text = one_line(linecache.getline(file, line), _LINE)
    return f"{Path(file).name}:{line}" + (f" ({text})" if text else "")
