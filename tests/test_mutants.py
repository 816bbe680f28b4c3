"""``benchmarks/faults/mutants.py``: which mutants a file has, and whether tests that notice one are told from tests that do not."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mutmut")
_FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults"
SOURCE = '''"""A module with a é."""
from dataclasses import dataclass

LIMIT: int = 3


@dataclass(frozen=True)
class Box:
    """What is not code has no mutants: 1 + 1."""

    @property
    def size(self) -> "list[int] | None":
        if self.x not in (1, 2):
            raise ValueError(f"{self.x + 1} is odd")
        return min(
            self.x,
            5,
            say("in words"),
        )
'''


@pytest.fixture
def planting(monkeypatch):
    monkeypatch.syspath_prepend(str(_FAULTS))
    return importlib.import_module("planting")


def test_a_mutant_changes_its_place_and_nothing_else(planting):
    mutants = list(planting.mutants_of("box.py", SOURCE))
    changes = {mutant.change(SOURCE) for mutant in mutants}
    assert ("LIMIT: int = 3", "LIMIT: int = 4") in changes
    assert ("if self.x not in (1, 2):", "if self.x in (1, 2):") in changes
    assert ("if self.x not in (1, 2):", "if self.x not in (1, 3):") in changes
    assert ("5,", "6,") in changes
    assert ('say("in words"),', "say(None),") not in changes
    assert not [before for before, _ in changes if any(word in before for word in ("raise", "frozen", "->", '"""'))]
    for mutant in mutants:
        assert mutant.is_python(SOURCE)
        assert ast.dump(ast.parse(mutant.plant(SOURCE))) != ast.dump(ast.parse(SOURCE))


def test_a_mutant_knows_its_statement(planting):
    found = {(m.change(SOURCE)[1], m.first, m.last, m.in_function) for m in planting.mutants_of("box.py", SOURCE)}
    assert ("LIMIT: int = 4", 4, 4, False) in found
    assert ("if self.x in (1, 2):", 13, 13, True) in found
    assert ("6,", 15, 19, True) in found


@pytest.mark.slow
def test_mutants_are_killed_where_a_test_looks_and_live_where_none_does(tmp_path):
    shutil.copytree(_FAULTS, tmp_path / "benchmarks" / "faults", ignore=shutil.ignore_patterns(".mutants"))
    files = {
        "setup.cfg": "[tool:pytest]\ntestpaths = tests\n",
        "art_qplugins/__init__.py": "",
        "art_qplugins/geometry.py": "def area(a, b):\n    return a * b\n\n\ndef unseen(a):\n    return a + 1\n",
        "art_qplugins/metrics.py": "def wait(n):\n    while n > 0:\n        n = n - 1\n    return 0\n",
        "tests/test_geometry.py": (
            "import pytest\nfrom art_qplugins.geometry import area, unseen\n\n"
            "@pytest.fixture(scope='module')\ndef shared():\n    return unseen(1)\n\n"
            "def test_area():\n    assert area(2, 3) == 6\n\n"
            "def test_shared(shared):\n    assert shared\n\n"
            "def test_broken(shared):\n    assert not shared\n"
        ),
        "tests/test_metrics.py": "from art_qplugins.metrics import wait\n\ndef test_wait():\n    assert wait(3) == 0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    script = [sys.executable, "benchmarks/faults/mutants.py", "--sample", "100"]

    first = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert (
        "4 tests, 1 of which fail without a mutant and are left out\n  tests/test_geometry.py::test_broken\n" in first
    )
    survivors = first[first.index("survivors:") :]
    assert "`return a * b`" not in survivors
    assert "`return a + 1`" in survivors
    assert "`n = n + 1`" not in survivors and "timeout art_qplugins/metrics.py" in first
    again = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert again == first[first.index("sample of") :]
