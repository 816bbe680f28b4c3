"""Slips planted one by one in the modules that decide numbers: do the tests notice?

    python benchmarks/faults/mutants.py [--sample 300] [--seed 1] [--minutes M] [--workers 1] [--module PATTERN]
                                        [--retry] [--list-survivors] [--out FILE.md]

A mutant is one change of one place by an operator of mutmut: another comparison, a number plus one, an argument that is
gone. Places are drawn at random, and one mutant at each. The tests that reach the changed statement run until one fails.
A mutant that runs four times as long as its tests do, and half a minute, is killed by time.

Each result is written to ``.mutants/records.jsonl`` as it comes, and the same command goes on where it stopped, as long as the
package and its tests are the same. The first run of a version maps the tests to lines, which takes minutes; after new tests
only their files are mapped.

``--retry`` plants again what survived in earlier versions. Mutants that change nothing that can be seen are named with their
reason in ``equivalent_mutants.toml``, and do not count.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from children import PACKAGE, Copy, Run, fingerprint, tracked, warm_up
from planting import Mutant, mutants_of
from reach import Reach

# What a module decides: the model's answers, its gradients, the images, or what is said of them.
MODULES = [
    "quantizers/*",
    "models/ensemble",
    "gradients/*",
    "attacks/views",
    "attacks/adaptive/*",
    "evaluation/binarization",
    "evaluation/cell",
    "evaluation/compare",
    "evaluation/outcome",
    "evaluation/records",
    "evaluation/score",
    "evaluation/sharing",
    "evaluation/significance",
    "evaluation/store",
    "evaluation/strategy",
    "evaluation/worker",
    "diagnostics/attack_health",
    "diagnostics/indicator",
    "diagnostics/mechanisms",
    "diagnostics/model_records",
    "diagnostics/model_result",
    "diagnostics/proofs",
    "diagnostics/steps",
    "diagnostics/symptoms",
    "diagnostics/thresholds",
    "diagnostics/validity",
    "diagnostics/verdict",
    "checkpoint",
    "evidence",
    "fingerprint",
    "geometry",
    "metrics",
    "seeds",
    "threat",
]
_HERE = Path(__file__).parent
_CACHE = _HERE / ".mutants"
_FIRST = 5.0  # seconds of the tests that run first: most mutants end there, and few files are imported
_SLOWER, _EXTRA = 4.0, 30.0  # the time limit of a mutant: so many times that of its tests, and so many seconds
Record = dict[str, Any]


class Sources:
    """The package's files of the modules that are asked for, with their texts."""

    def __init__(self, root: Path, pattern: str) -> None:
        paths = [path for path in tracked(root) if path.startswith(f"{PACKAGE}/") and path.endswith(".py")]
        asked = [path for path in paths if any(fnmatch.fnmatch(path, f"{PACKAGE}/{name}.py") for name in MODULES)]
        self.root = root
        self.texts = {path: (root / path).read_text(encoding="utf-8") for path in asked if pattern in path}
        if not self.texts:
            raise SystemExit(f"no module that decides numbers has {pattern!r} in its path")

    def change(self, mutant: Mutant) -> tuple[str, str]:
        return mutant.change(self.texts[mutant.path])

    def sample(self, n: int, seed: int) -> list[Mutant]:
        """``n`` places drawn at random, and one mutant at each."""
        places: dict[tuple[str, int, int], list[Mutant]] = {}
        for path, text in self.texts.items():
            for mutant in mutants_of(path, text):
                places.setdefault((path, mutant.start, mutant.stop), []).append(mutant)
        draw = random.Random(seed)
        drawn = (draw.choice(places[place]) for place in draw.sample(sorted(places), len(places)))
        chosen: dict[tuple[str, ...], Mutant] = {}
        for mutant in drawn:
            if len(chosen) == n:
                break
            if mutant.is_python(self.texts[mutant.path]):
                chosen.setdefault((mutant.path, *self.change(mutant)), mutant)
        return list(chosen.values())

    def again(self, records: Sequence[Record]) -> list[Mutant]:
        """The mutants of the records' survivors, where the line is still there."""
        lived = {_key(record) for record in records if record["status"] == "survived"}
        found: dict[tuple[str, ...], Mutant] = {}
        for path in {path for path, *_ in lived} & set(self.texts):
            for mutant in mutants_of(path, self.texts[path]):
                key = (path, *self.change(mutant))
                if key in lived:
                    found.setdefault(key, mutant)
        return list(found.values())


def _key(record: Record) -> tuple[str, str, str]:
    return record["file"], record["before"], record["after"]


def equivalent() -> set[tuple[str, str, str]]:
    """(file, line, line of the mutant) of those that change nothing that can be seen."""
    table = tomllib.loads((_HERE / "equivalent_mutants.toml").read_text(encoding="utf-8"))
    return {(row["file"], row["before"], row["after"]) for row in table["mutants"]}


def results(todo: list[Mutant], sources: Sources, arguments: argparse.Namespace) -> Iterator[Record]:
    """A record for each mutant as it is finished, until the time is over. The map of the tests is not in that time."""
    waiting = list(reversed(todo))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy(sources.root, Path(folder) / str(n)) for n in range(arguments.workers)]
        warm_up(copies[0])
        for other in copies[1:]:
            shutil.copytree(copies[0].folder, other.folder, dirs_exist_ok=True)  # with the bytecode
        reach = Reach.measured(copies[0], _CACHE)
        print(
            f"{len(reach.seconds)} tests, {len(reach.failed)} of which fail without a mutant and are left out",
            flush=True,
        )
        for test in sorted(reach.failed):
            print(f"  {test}")
        deadline = time.monotonic() + 60 * arguments.minutes
        trials: dict[Copy, Generator[None, None, Record]] = {}
        try:
            while waiting or trials:
                if time.monotonic() > deadline:
                    waiting.clear()
                for copy in copies:
                    if copy not in trials and waiting:
                        trials[copy] = _trial(copy, waiting.pop(), sources, reach, arguments.seconds)
                    try:
                        if copy in trials:
                            next(trials[copy])
                    except StopIteration as end:
                        del trials[copy]
                        yield end.value
                time.sleep(0.02)
        finally:
            for copy in copies:
                copy.stop()


def _trial(copy: Copy, mutant: Mutant, sources: Sources, reach: Reach, seconds: float) -> Generator[None, None, Record]:
    """Plant a mutant and run its tests, the quick ones first. It yields while they run."""
    lines = range(mutant.first, mutant.last + 1) if mutant.in_function else None
    tests, reaching = reach.tests(sources.root, mutant.path, lines, seconds=seconds)
    status, by, started = "survived", "", time.monotonic()
    copy.write(mutant.path, mutant.plant(sources.texts[mutant.path]))
    try:
        for part in reach.parts(tests, seconds=_FIRST):
            copy.start(Run, part, arguments=["-x", *_files(part)], limit=_EXTRA + _SLOWER * reach.time(part))
            while (end := copy.finished()) is None:
                yield
            code, told = end
            if code == "timeout":
                status, by = "timeout", ""
            elif code not in ("0", "5"):  # 5: the parameters of its tests are gone, which nobody would notice
                status, by = "killed", next(iter(told.get("failed", [])), f"status {code}")
            if status != "survived":
                break
    finally:
        copy.stop()
        copy.write(mutant.path, sources.texts[mutant.path])
    before, after = sources.change(mutant)
    record = {"file": mutant.path, "line": mutant.line, "operator": mutant.operator, "before": before, "after": after}
    record |= {"status": status, "by": by, "tests": len(tests), "reaching": reaching}
    return record | {"seconds": round(time.monotonic() - started, 1)}


def _files(tests: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(test.split("::")[0] for test in tests))


def table(records: Sequence[Record]) -> Iterator[str]:
    """Markdown: the score of each module and of each operator, and every survivor."""
    for title, group in (("module", "file"), ("operator", "operator")):
        yield f"| {title} | mutants | equivalent | killed | of these by time | survived | score (95 % interval) |"
        yield "|---|---|---|---|---|---|---|"
        for name in [*sorted({record[group] for record in records}), "all"]:
            yield _row(name, [record for record in records if name in (record[group], "all")])
        yield ""
    lived = sorted((r for r in records if r["status"] == "survived"), key=lambda r: (r["file"], r["line"]))
    yield f"{len(lived)} survivors:"
    yield ""
    for record in lived:
        unreached = "" if record["tests"] else " (no test reaches it)"
        cut = f" ({record['tests']} of {record['reaching']} tests)" if record["tests"] < record["reaching"] else ""
        yield f"- `{record['file']}:{record['line']}`{unreached}{cut}"
        yield f"  - `{record['before']}`"
        yield f"  - `{record['after']}`"


def _row(name: str, records: Sequence[Record]) -> str:
    from art_qplugins.metrics import wilson_interval  # here, since a process that forks must not have it

    count = Counter(record["status"] for record in records)
    killed, score = count["killed"] + count["timeout"], "-"
    if n := killed + count["survived"]:
        low, high = wilson_interval(killed, n)
        score = f"{killed / n:.1%} ({low:.0%} to {high:.0%})"
    return f"| {name} | {len(records)} | {count['equivalent']} | {killed} | {count['timeout']} | {count['survived']} | {score} |"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=300, help="how many mutants")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no mutant is begun after this time")
    parser.add_argument("--workers", type=int, default=1, help="how many at a time")
    parser.add_argument("--module", default="", metavar="PATTERN", help="only files with this in their path")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="of a mutant's tests, those that fit into this time"
    )
    parser.add_argument("--retry", action="store_true", help="the recorded survivors in place of a sample")
    parser.add_argument("--list-survivors", action="store_true", help="print what is recorded, and plant nothing")
    parser.add_argument("--records", type=Path, default=_CACHE / "records.jsonl", metavar="FILE.jsonl")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="the table goes there too")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no child stays

    sources = Sources(_HERE.parents[1], arguments.module)
    version, same = fingerprint(sources.root), equivalent()
    recorded = (
        [json.loads(line) for line in arguments.records.open(encoding="utf-8")] if arguments.records.exists() else []
    )
    mutants = sources.again(recorded) if arguments.retry else sources.sample(arguments.sample, arguments.seed)
    done = {_key(record): record for record in recorded if record["version"] == version}
    keys = {(mutant.path, *sources.change(mutant)): mutant for mutant in mutants}
    todo = [mutant for key, mutant in keys.items() if key not in done and key not in same]
    if todo and not arguments.list_survivors:
        print(f"{len(keys)} mutants, {len(todo)} to plant, in {len(sources.texts)} modules", flush=True)
        arguments.records.parent.mkdir(parents=True, exist_ok=True)
        with arguments.records.open("a", encoding="utf-8") as file:
            for n, record in enumerate(results(todo, sources, arguments), 1):
                print(
                    f"{n}/{len(todo)} {record['status']} {record['file']}:{record['line']} {record['seconds']} s",
                    flush=True,
                )
                done[record["file"], record["before"], record["after"]] = record
                file.write(json.dumps({"version": version, **record}) + "\n")
                file.flush()
    same_here = [
        {"file": key[0], "operator": keys[key].operator, "status": "equivalent"} for key in keys if key in same
    ]
    shown = [done[key] for key in keys if key in done and key not in same] + same_here
    asked = "survivors of earlier versions" if arguments.retry else f"sample of {len(keys)}, seed {arguments.seed}"
    lines = [
        f"{asked}; {len(shown)} finished; version {version}, commit {_git(sources.root, 'rev-parse', '--short', 'HEAD')},",
        f"{datetime.date.today()}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores",
        "",
        *table(shown),
    ]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
