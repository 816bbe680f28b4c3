"""Which tests reach a line: the coverage of every test, kept for each test file as long as it and the package are the same."""

from __future__ import annotations

import ast
import bisect
import contextlib
import importlib
import importlib.util
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from children import PACKAGE, TESTS, Copy, Run, digest, tracked


class Mapping(Run):
    """The lines of each test. A fixture that tests share has its lines under its own name, and they go to all its tests."""

    def __init__(self, package: Path) -> None:
        import coverage

        super().__init__()
        self._coverage = coverage.Coverage(data_file=None, config_file=False, source=[str(package)], messages=False)
        self._root, self._context = package.parent, ""
        self._users: dict[str, list[str]] = {}
        self._seconds: dict[str, float] = {}
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
        self._seconds[item.nodeid] = round(time.perf_counter() - start, 3)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        with self._in(self._context if fixturedef.scope == "function" else _shared(fixturedef)):
            return (yield)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data, parts = self._coverage.get_data(), defaultdict[str, dict[str, Any]](_nothing)
        for test, seconds in self._seconds.items():
            parts[_file(test)]["seconds"][test] = seconds
        for test in self.told["failed"]:
            parts[_file(test)]["failed"].append(test)
        number = {test: n for part in parts.values() for n, test in enumerate(part["seconds"])}
        for measured in data.measured_files():
            path = Path(measured).relative_to(self._root).as_posix()
            for line, contexts in data.contexts_by_lineno(measured).items():
                for test in {
                    test for context in contexts for test in self._users.get(context, [context])
                } & number.keys():
                    parts[_file(test)]["lines"].setdefault(path, {}).setdefault(line, []).append(number[test])
        self.told["files"] = parts


def _nothing() -> dict[str, Any]:
    return {"seconds": {}, "lines": {}, "failed": []}


def _file(test: str) -> str:
    return test.split("::")[0]


def _shared(fixture: Any) -> str:
    return f"fixture {fixture.baseid} {fixture.argname}"


@dataclass(frozen=True)
class Reach:
    """What a run of all tests showed: the seconds of each test, the tests of each line, and those that failed."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    @classmethod
    def measured(cls, copy: Copy, cache: Path, *, hours: float = 3.0) -> Reach:
        """Of all tests. Test files that are in ``cache`` with this package and these helpers are not run."""
        root, paths = copy.root, tracked(copy.root)
        tests = [path for path in paths if path.startswith(TESTS + "/") and Path(path).match("test_*.py")]
        common = [
            path for path in paths if path.startswith((PACKAGE + "/", TESTS + "/", "setup.cfg")) and path not in tests
        ]
        kept = {path: cache / f"reach-{digest(root, [*common, path])}.json" for path in tests}
        if missing := [path for path, file in kept.items() if not file.exists()]:
            print(f"mapping {len(missing)} test files to the lines that they reach", flush=True)
            copy.start(Mapping, copy.folder / PACKAGE, arguments=missing, limit=3600 * hours)
            code, told = copy.wait()
            if code not in ("0", "1"):
                raise SystemExit(f"the tests did not run to their end (status {code}):\n{copy.output()}")
            cache.mkdir(parents=True, exist_ok=True)
            for path in missing:
                kept[path].write_text(json.dumps(told["files"].get(path, _nothing())), encoding="utf-8")
        reach = cls()
        for file in kept.values():
            reach._add(json.loads(file.read_text(encoding="utf-8")))
        return reach

    def _add(self, part: dict[str, Any]) -> None:
        self.seconds.update(part["seconds"])
        self.failed.update(part["failed"])
        names = list(part["seconds"])
        for path, lines in part["lines"].items():
            for line, numbers in lines.items():
                self.lines.setdefault(path, {}).setdefault(int(line), []).extend(names[n] for n in numbers)

    def tests(self, root: Path, path: str, lines: range | None, *, seconds: float) -> tuple[list[str], int]:
        """(the tests of these lines that fit into ``seconds``, how many there are). No lines: of the whole file.

        What runs when a file is imported is reached by all tests of the file, and of the files that import it.

        The tests of one file stay together, since they share fixtures. First those in the file that is named after the
        module, then the quickest.
        """
        files = [path] if lines else [path, *_importers(root, path)]
        of_files = [self.lines.get(file, {}) for file in files]
        found = {
            test for lined in of_files for line, tests in lined.items() if not lines or line in lines for test in tests
        }
        of_file: dict[str, list[str]] = {}
        for test in self.seconds:
            if test in found and test not in self.failed:
                of_file.setdefault(_file(test), []).append(test)

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
