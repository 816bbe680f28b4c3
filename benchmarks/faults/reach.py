"""Which tests reach a line, and those tests in a process that has imported everything but the package.

Torch and ART take seconds to import, and each mutant is imported anew. So this process imports what the tests import, the
package aside, and forks: a child imports the package from a copy of the repository, in which one file is changed, and runs
pytest on the tests that reach the change.
"""

from __future__ import annotations

import ast
import bisect
import contextlib
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


def fingerprint(root: Path) -> str:
    """A hash of the package and its tests as they are on the disk."""
    digest = hashlib.sha256()
    for path in tracked(root):
        if path.startswith((PACKAGE + "/", TESTS + "/", "setup.cfg")):
            digest.update(path.encode() + b"\0" + (root / path).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


# In the child --------------------------------------------------------------------------------------------------------


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


class Mapping(Run):
    """The lines of each test. A fixture that tests share has its lines under its own name, and they go to all its tests."""

    def __init__(self, package: Path) -> None:
        import coverage

        super().__init__()
        self._coverage = coverage.Coverage(data_file=None, config_file=False, source=[str(package)], messages=False)
        self._root, self._context = package.parent, ""
        self._users: dict[str, list[str]] = {}
        self.told["seconds"] = {}
        self._coverage.start()

    @contextlib.contextmanager
    def _in(self, context: str) -> Iterator[None]:
        before, self._context = self._context, context
        self._coverage.switch_context(context)
        try:
            yield
        finally:
            self._context = before
            self._coverage.switch_context(before)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Any:
        for fixture in (fixture for same in item._fixtureinfo.name2fixturedefs.values() for fixture in same):
            self._users.setdefault(_shared(fixture), []).append(item.nodeid)
        start = time.perf_counter()
        with self._in(item.nodeid):
            result = yield
        self.told["seconds"][item.nodeid] = round(time.perf_counter() - start, 3)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        with self._in(self._context if fixturedef.scope == "function" else _shared(fixturedef)):
            return (yield)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data, number = self._coverage.get_data(), {test: n for n, test in enumerate(self.told["seconds"])}
        lines: dict[str, dict[int, list[int]]] = {}
        for file in data.measured_files():
            of_file = lines.setdefault(Path(file).relative_to(self._root).as_posix(), {})
            for line, contexts in data.contexts_by_lineno(file).items():
                tests = {test for context in contexts for test in self._users.get(context, [context])}
                of_file[line] = sorted(number[test] for test in tests if test in number)
        self.told["lines"] = lines


def _shared(fixture: Any) -> str:
    return f"fixture {fixture.baseid} {fixture.argname}"


# In the parent -------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Reach:
    """What a run of all tests showed: their seconds, and the tests of each line, by their place in ``seconds``."""

    seconds: dict[str, float]
    lines: dict[str, dict[str, list[int]]]
    failed: list[str]

    @classmethod
    def measured(cls, copy: Copy, cache: Path, hours: float = 2.0) -> Reach:
        """From ``cache``, or of a run of all tests, which takes minutes."""
        if not cache.exists():
            copy.start(Mapping, copy.folder / PACKAGE, arguments=[], limit=3600 * hours)
            code, told = copy.wait()
            if code not in ("0", "1"):
                raise SystemExit(f"the tests did not run to their end (status {code}):\n{copy.output()}")
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps({key: told[key] for key in ("seconds", "lines", "failed")}))
        return cls(**json.loads(cache.read_text()))

    def tests(self, root: Path, path: str, lines: range | None, *, seconds: float) -> tuple[list[str], int]:
        """(the tests of these lines that fit into ``seconds``, how many there are). No lines: of the whole file.

        What runs when a file is imported is reached by all tests of the file, and of the files that import it.

        The tests of one file stay together, since they share fixtures. First those in the file that is named after the
        module, then the quickest.
        """
        files = [path] if lines else [path, *_importers(root, path)]
        of_files = [self.lines.get(file, {}) for file in files]
        found = {
            test
            for lined in of_files
            for line, tests in lined.items()
            if not lines or int(line) in lines
            for test in tests
        }
        names = list(self.seconds)
        of_file: dict[str, list[str]] = {}
        for test in (names[number] for number in sorted(found)):
            if test not in self.failed:
                of_file.setdefault(test.split("::")[0], []).append(test)

        def cost(file: str) -> tuple[bool, float]:
            return Path(file).stem != f"test_{Path(path).stem}", self.time(of_file[file])

        tests = [test for file in sorted(of_file, key=cost) for test in of_file[file]]
        return next(iter(self.parts(tests, seconds=seconds)), []), len(tests)

    def parts(self, tests: Sequence[str], *, seconds: float) -> list[list[str]]:
        """The tests that fit into ``seconds``, at least one, and the others."""
        spent = list(itertools.accumulate(self.seconds[test] for test in tests))
        cut = max(1, bisect.bisect(spent, seconds))
        return [list(part) for part in (tests[:cut], tests[cut:]) if part]

    def time(self, tests: Sequence[str]) -> float:
        return sum(self.seconds[test] for test in tests)


def _importers(root: Path, path: str) -> list[str]:
    """The package's files that import this one."""
    name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return [other for other in tracked(root) if other.startswith(PACKAGE) and name in _imported(root, other)]


def _imported(root: Path, path: str) -> set[str]:
    if not path.endswith(".py"):
        return set()
    package, names = ".".join(Path(path).parent.parts), set()
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names
