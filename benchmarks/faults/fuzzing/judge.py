"""What is wrong with the result of an input: a traceback, a hang, a line that is none, an acceptance that cannot be right."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from fuzzing.apart import Hung, Result, within
from fuzzing.strategies import Case

__all__ = ["Found", "Group", "judged", "timed", "wrong_numbers"]


@dataclasses.dataclass(frozen=True)
class Found:
    """What came of one case. ``problem`` is the kind of failure, empty where all is well."""

    status: int | None
    problem: str = ""
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """
    :param run: runs a case in the current folder, with the stage that :func:`prepare` made.
    :param share: of all inputs.
    :param batch: cases for one process.
    :param seconds: what takes longer hangs.
    """

    cases: Callable[[], st.SearchStrategy[Case]]
    run: Callable[[Case, Path], Found]
    share: float
    batch: int
    seconds: float = 5.0


def timed(seconds: float, function: Callable[[], Result]) -> Result:
    """A result after at most this time, unless the interpreter is in C code then."""
    try:
        with within(seconds):
            return function()
    except Hung:
        return Result(None, kind="hung")


def judged(result: Result, accepted: Callable[[Result], str] = lambda _: "", ends: tuple[int, ...] = (0, 2)) -> Found:
    """A result with what is wrong about it. ``accepted`` judges what was not refused."""
    if result.kind:
        return Found(None, result.kind, result.trace[-1500:])
    if result.status == 2:
        return Found(2, *_line(result.err))
    if result.status not in ends:
        return Found(result.status, f"status {result.status}", result.err[-300:] or result.out[-300:])
    problem = accepted(result)
    return Found(result.status, problem and f"accepted: {problem}", result.out[-300:] if problem else "")


def _line(err: str) -> tuple[str, str]:
    line = err.removesuffix("\n")
    for problem, wrong in (
        ("no line", not line.strip()),
        ("several lines", "\n" in line),
        ("a line of more than 300 characters", len(line) > 300),
        ("control characters in a line", not line.replace("\n", " ").isprintable()),
        ("a traceback in a line", "Traceback" in line),
    ):
        if wrong:
            return problem, err[:400]
    return "", ""


def wrong_numbers(result: Result) -> str:
    """NaN, infinity, and shares above 100 % in what a command prints."""
    if re.search(r"\b(nan|inf)\b", result.out, re.IGNORECASE):
        return "NaN or infinity is shown"
    if any(float(share) > 100 for share in re.findall(r"(\d+(?:\.\d+)?) ?%", result.out)):
        return "more than 100 % is shown"
    return ""
