"""Children of a process that has imported everything but the package: they run pytest on a copy of the repository.

Torch and ART take seconds to import, and each mutant is imported anew. So this process imports what the tests import, the
package aside, and forks. A child imports the package from the copy, in which one file is changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

PACKAGE, TESTS = "art_qplugins", "tests"
# Slow to import, and imported in the course of tests.
_LIBRARIES = [
    "art.attacks.evasion",
    "torchattacks",
    "pyautoattack",
    "foolbox",
    "matplotlib.pyplot",
    "sklearn",
    "scipy.stats",
]


def tracked(root: Path) -> list[str]:
    """The files that git knows, below ``root``."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True).stdout
    return [path for path in listed.split("\0") if path and (root / path).is_file()]


def digest(root: Path, paths: Iterable[str]) -> str:
    """A hash of the names and the contents of files."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.encode() + b"\0" + (root / path).read_bytes() + b"\0")
    return found.hexdigest()[:12]


def fingerprint(root: Path) -> str:
    """A hash of the package and its tests as they are on the disk."""
    return digest(root, (path for path in tracked(root) if path.startswith((PACKAGE + "/", TESTS + "/", "setup.cfg"))))


class Run:
    """A pytest plugin: the chosen tests in their order. What it learns is in ``told``."""

    def __init__(self, chosen: Sequence[str] | None = None) -> None:
        self.place = None if chosen is None else {test: place for place, test in enumerate(chosen)}
        self.told: dict[str, Any] = {"failed": [], "ran": 0}

    def pytest_collection(self) -> None:
        """Hypothesis repeats its examples and does not shrink them."""
        from hypothesis import Phase, settings

        settings.register_profile("mutants", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutants")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if (place := self.place) is not None:
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.told["ran"] += report.when == "call"
        if report.failed and report.nodeid not in self.told["failed"]:
            self.told["failed"].append(report.nodeid)


class Imports(Run):
    """Which modules of other packages are there once the tests are collected."""

    def pytest_collection_finish(self) -> None:
        ours = (PACKAGE, "pytest", "_pytest", "_hypothesis")
        found = ((name, getattr(module, "__file__", None) or "") for name, module in list(sys.modules.items()))
        self.told["modules"] = [name for name, file in found if "site-packages" in file and not name.startswith(ours)]


class Copy:
    """A copy of the repository, and the one child that may be at work in it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder, self.root = folder / "repository", root
        self._told, self._out = folder / "told.json", folder / "output.txt"
        self._temporary = folder / "temporary"
        self._pid, self._end = 0, 0.0
        for path in tracked(root):
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, self.folder / path)

    def write(self, path: str, text: str) -> None:
        """Change a file. Its bytecode goes, since two changes in a second have the same time."""
        (self.folder / path).write_text(text, encoding="utf-8")
        Path(importlib.util.cache_from_source(str(self.folder / path))).unlink(missing_ok=True)

    def start(
        self, plugin: type[Run], *given: Any, arguments: Sequence[str], limit: float, bytecode: bool = False
    ) -> None:
        """Fork a child that runs pytest with this plugin for ``limit`` seconds at most."""
        self._told.unlink(missing_ok=True)
        self._end = time.monotonic() + limit
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of libraries; the child does not need them
            self._pid = os.fork()
        if self._pid == 0:
            self._work(plugin, given, arguments, bytecode)

    def _work(self, plugin: type[Run], given: Sequence[Any], arguments: Sequence[str], bytecode: bool) -> None:
        code = 70
        try:
            os.setsid()
            os.chdir(self.folder)
            output = os.open(self._out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(output, stream)
            sys.path[:] = [str(self.folder), *(path for path in sys.path if path != str(Path(__file__).parent))]
            os.environ["PYTHONPATH"] = str(self.folder)
            if not bytecode:
                sys.dont_write_bytecode = True
                os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            hook = plugin(*given)
            options = ["-n0", "--assert=plain", "-p", "no:cacheprovider", f"--basetemp={self._temporary}"]
            code = int(pytest.main([*options, *arguments], plugins=[hook]))
            self._told.write_text(json.dumps(hook.told))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def finished(self) -> tuple[str, dict[str, Any]] | None:
        """None while the child works; else (pytest's exit code or "timeout", what it told)."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid and time.monotonic() < self._end:
            return None
        self.stop()
        told = json.loads(self._told.read_text()) if self._told.exists() else {}
        return (str(os.waitstatus_to_exitcode(status)) if pid else "timeout"), told

    def stop(self) -> None:
        """End the child, if there is one, and what it started."""
        if not self._pid:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._pid = 0

    def wait(self) -> tuple[str, dict[str, Any]]:
        while (result := self.finished()) is None:
            time.sleep(0.1)
        return result

    def output(self) -> str:
        """The last lines that the child printed."""
        return "\n".join(self._out.read_text(errors="replace").splitlines()[-15:])


def warm_up(copy: Copy) -> None:
    """Import here what the tests import, the package aside, and write the bytecode of the copy."""
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(threads, "1")  # a process with threads cannot fork
    copy.start(Imports, arguments=["--collect-only"], limit=600, bytecode=True)
    code, told = copy.wait()
    if code != "0":
        raise SystemExit(f"pytest collects no tests (status {code}):\n{copy.output()}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _LIBRARIES + told["modules"]:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
