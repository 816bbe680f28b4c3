"""Inputs that nobody should give: each is asked in a process of its own, which may hang or die."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "faults"))

from fuzzing.apart import apart, call, command

#: A run that only asks: one small network, that is not trained.
RECIPE = """
name = "small"
[data]
name = "digits"
limit = 10
[threat]
eps = [0.1]
[[models]]
name = "fp32"
architecture = { name = "convnet", options = { width = 2 } }
train = { epochs = 0 }
[[models]]
name = "other"
base = "fp32"
architecture = { name = "convnet", options = { width = 2 } }
train = { epochs = 0 }
[[attacks]]
id = "art:fgsm"
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder but for ``small.toml``, two below the test's own."""
    folder = tmp_path / "outer" / "here"
    folder.mkdir(parents=True)
    (folder / "small.toml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ARTQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ARTQ_DATA", str(tmp_path / "data"))
    return folder


@pytest.fixture
def artq(here):
    """``artq`` with these arguments in a process of its own, at most ``seconds``."""
    return lambda *arguments, seconds=10: apart(lambda: command(*arguments), seconds)


@pytest.fixture
def dry(artq):
    """``artq run small.toml --dry-run`` with these changes."""
    return lambda *changes, **more: artq(
        "run", "small.toml", "--dry-run", *(part for change in changes for part in ("--set", change)), **more
    )


@pytest.fixture
def python(here):
    """A Python call in a process of its own, at most ``seconds``."""
    return lambda function, seconds=10: apart(lambda: call(function), seconds)


@pytest.fixture
def refused():
    """Checks that a result is a status of 2 and one line of at most 300 characters that names the places."""

    def check(result, *places, never=()):
        assert (result.status, result.kind) == (2, ""), result.trace[-1500:] or result.out[-500:] or result.err[-500:]
        line = result.err.removesuffix(os.linesep)
        assert 0 < len(line) <= 300 and line.isprintable(), line
        assert "Traceback" not in line
        for place in places:
            assert place in line, line
        for words in never:
            assert words not in line, line

    return check


@pytest.fixture
def noticed(refused):
    """Checks that a result is refused, or that a warning of the plan names the place."""

    def check(result, place):
        if result.status != 0:
            return refused(result, place)
        warnings = [line for line in result.out.splitlines() if "warning" in line.lower()]
        assert any(place in line for line in warnings), result.out
        return None

    return check
