"""Odd inputs, thousands of them: does each end in one clear line, or in a result that can be believed?

    python benchmarks/faults/fuzz.py [--minutes 20] [--inputs 20000] [--seed 1] [--groups recipes set] [--out FOLDER]
    python benchmarks/faults/fuzz.py --repeat '{"group": ...}'

Seven groups: recipes by dry run; recipes for real; ``--set``; checkpoints; records (``report``, ``compare``, ``replay``);
data sets; calls from Python. A case is a valid input with one to three edits. The seed decides all of them. Results are kept in
FOLDER, and the same command again goes on. At the end come a table, and every kind of failure with the fewest edits that
show it. The status is 1 where there was one.

Cases run in forks of this process, many in each. One that hangs or dies is replaced.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from fuzzing import calls, checkpoints, data, recipes, records, strategies
from fuzzing.apart import Result, apart, command, prepare_child
from fuzzing.judge import Found, Group
from hypothesis import HealthCheck, Phase, assume, given, seed, settings

GROUPS = {
    "recipes": Group(strategies.recipes, recipes.run_recipe, 0.49, 200),
    "real": Group(recipes.real, recipes.run_real, 0.03, 20, 60),
    "set": Group(strategies.changes, recipes.run_set, 0.16, 200),
    "checkpoints": Group(checkpoints.checkpoints, checkpoints.run_checkpoint, 0.06, 60, 20),
    "records": Group(records.records, records.run_records, 0.09, 60),
    "data": Group(data.data, data.run_data, 0.07, 100),
    "calls": Group(calls.calls, calls.run_call, 0.1, 100),
}
_ESCAPE = Path("/tmp/artq-fuzz-escape")


# --- One case


def attempt(group: str, case: strategies.Case, stage: Path) -> Found:
    """Run a case in an empty folder, and remove the folder."""
    outer = Path(tempfile.mkdtemp(prefix="case-", dir=stage / "cases"))
    here = outer / "a" / "b" / "here"
    here.mkdir(parents=True)
    os.chdir(here)
    path = [*sys.path]
    try:
        found = GROUPS[group].run(case, stage)
        strays = [p for p in (outer, outer / "a", outer / "a" / "b") if len(list(p.iterdir())) > 1]
        if strays or _ESCAPE.exists():
            found = Found(found.status, "accepted: files outside of the folder", str(strays))
    except Exception as error:
        found = Found(None, f"the fuzz itself: {type(error).__name__}", str(error)[-500:])
    finally:
        sys.path[:] = path
        os.chdir(stage)
        shutil.rmtree(outer, ignore_errors=True)
        shutil.rmtree(_ESCAPE, ignore_errors=True)
    return found


# --- Many cases in a child


class _Enough(BaseException):
    """The batch is finished. Hypothesis lets it pass."""


def run_batch(group: str, batch: int, base: int, skip: int, stage: Path, lines: Any) -> None:
    """The cases of one batch, a line of JSON before and after each. The first ``skip`` are drawn and not run."""
    count = itertools.count()
    number = int.from_bytes(hashlib.sha256(f"{base} {group} {batch}".encode()).digest()[:8], "big")

    @seed(number)
    @settings(
        max_examples=10,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(GROUPS[group].cases())
    def one(case: strategies.Case) -> None:
        if (index := next(count)) >= GROUPS[group].batch:
            raise _Enough
        assume(index >= skip)
        print(json.dumps({"case": case}), file=lines, flush=True)
        began = time.monotonic()
        found = attempt(group, case, stage)
        if found.problem == "hung":  # or the machine was busy
            found = attempt(group, case, stage)
        about = {"index": index, "status": found.status, "problem": found.problem, "detail": found.detail}
        print(json.dumps({**about, "seconds": round(time.monotonic() - began, 3)}), file=lines, flush=True)
        assume(False)  # else the next cases would be this one, changed a little

    with warnings.catch_warnings(), contextlib.suppress(_Enough):
        warnings.simplefilter("ignore")
        one()


class Worker:
    """A child with one batch. Where it hangs or dies in a case, another goes on with the next case."""

    def __init__(self, group: str, batch: int, base: int, stage: Path) -> None:
        self.group, self.batch, self.base, self.stage = group, batch, base, stage
        self.lines = stage / f"{group}-{batch}.jsonl"
        self.rows: list[dict[str, Any]] = []
        self.start(0)

    def start(self, skip: int) -> None:
        self.skip = skip
        self.child = os.fork()
        if self.child == 0:
            with contextlib.suppress(BaseException):
                prepare_child()
                with self.lines.open("w") as lines:
                    run_batch(self.group, self.batch, self.base, skip, self.stage, lines)
                os._exit(0)
            os._exit(1)
        self.moved, self.size = time.monotonic(), 0

    def finished(self) -> bool:
        """Look after the child; whether the batch is finished."""
        size = self.lines.stat().st_size if self.lines.exists() else 0
        if size != self.size:
            self.moved, self.size = time.monotonic(), size
        ended, status = os.waitpid(self.child, os.WNOHANG)
        hangs = time.monotonic() - self.moved > GROUPS[self.group].seconds * 2 + 10
        if not ended and not hangs:
            return False
        if not ended:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
        code = None if not ended else os.waitstatus_to_exitcode(status)
        return self._collect(code)

    def _collect(self, code: int | None) -> bool:
        written = self.lines.read_text().splitlines() if self.lines.exists() else []
        self.lines.unlink(missing_ok=True)
        told = [json.loads(line) for line in written]
        for begun, done in itertools.zip_longest(told[::2], told[1::2]):
            row = {"group": self.group, "batch": self.batch, **begun}
            if done is None:
                ended = (
                    "hung"
                    if code is None
                    else f"killed by {signal.Signals(-code).name}"
                    if code < 0
                    else f"exit {code}"
                )
                done = {
                    "index": self.skip + len(told) // 2,
                    "status": None,
                    "problem": ended,
                    "detail": "",
                    "seconds": 0,
                }
            self.rows.append(row | done)
        if code == 0:
            return True
        after = self.rows[-1]["index"] + 1 if self.rows else self.skip
        if after >= GROUPS[self.group].batch or not told:
            return True
        self.start(after)
        return False

    def stop(self) -> None:
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        self.lines.unlink(missing_ok=True)


# --- All batches


def batches(groups: list[str], inputs: int, done: set[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """(group, batch) in turn, so that each group has its share at any time. Real runs come early, because they are slow."""
    shares = sum(GROUPS[g].share for g in groups)
    wanted = {g: max(1, round(inputs * GROUPS[g].share / shares / GROUPS[g].batch)) for g in groups}
    order = [((number + 0.5) / wanted[g], g, number) for g in groups for number in range(wanted[g])]
    yield from ((g, number) for _, g, number in sorted(order) if (g, number) not in done)


def fuzz(arguments: argparse.Namespace, stage: Path, results: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["group"], row["batch"]) for row in rows}
    waiting = batches(arguments.groups, arguments.inputs, done)
    end = time.monotonic() + arguments.minutes * 60
    working: list[Worker] = []
    while True:
        while len(working) < arguments.workers and time.monotonic() < end and (following := next(waiting, None)):
            working.append(Worker(*following, arguments.seed, stage))
        if not working:
            return rows
        for worker in [*working]:
            if worker.finished():
                working.remove(worker)
                rows += worker.rows
                with results.open("a") as lines:
                    lines.writelines(json.dumps(row) + "\n" for row in worker.rows)
                bad = sum(bool(row["problem"]) for row in worker.rows)
                print(
                    f"{worker.group} {worker.batch}: {len(worker.rows)} inputs, {bad} bad", file=sys.stderr, flush=True
                )
        if time.monotonic() > end + 60:
            for worker in working:
                worker.stop()
            return rows
        time.sleep(0.02)


# --- The fewest edits, and the report


def again(row: dict[str, Any], edits: list[Any], stage: Path) -> str:
    """The problem of the case with these edits, in a process of its own."""
    limit = GROUPS[row["group"]].seconds * 2 + 10

    def asked() -> Result:
        found = attempt(row["group"], {**row["case"], "edits": edits}, stage)
        return Result(found.status, kind=found.problem)

    return apart(asked, limit).kind


def reduced(row: dict[str, Any], stage: Path) -> list[Any]:
    """The edits that are left when each is dropped that the problem does not need."""
    edits = [*row["case"]["edits"]]
    for edit in [*edits]:
        fewer = [e for e in edits if e is not edit]
        if fewer and again(row, fewer, stage) == row["problem"]:
            edits = fewer
    return edits


def report(rows: list[dict[str, Any]], stage: Path, minutes: float) -> bool:
    """Print the table and every kind of failure; whether there was one."""
    print(
        "| group | inputs | status 0 | 2 | other | tracebacks | hangs | accepted wrongly | other failures |\n"
        + "|---" * 9
        + "|"
    )
    for group in GROUPS:
        mine = [row for row in rows if row["group"] == group]
        counts = collections.Counter(_column(row) for row in mine)
        columns = ("0", "2", "other", "tracebacks", "hangs", "accepted", "failures")
        if mine:
            print(f"| {group} | {len(mine)} | {' | '.join(str(counts[c]) for c in columns)} |")
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["problem"]:
            kinds.setdefault((row["group"], row["problem"]), []).append(row)
    print(f"\n{len(rows)} inputs, {sum(map(len, kinds.values()))} bad, {len(kinds)} kinds of failure")
    end = time.monotonic() + minutes * 60
    for (group, problem), several in sorted(kinds.items(), key=lambda item: -len(item[1])):
        first = min(several, key=lambda row: len(json.dumps(row["case"])))
        edits = reduced(first, stage) if time.monotonic() < end else first["case"]["edits"]
        case = json.dumps({"group": group, **first["case"], "edits": edits})
        print(f"\n{group}, {len(several)} times: {problem}")
        if first["detail"]:
            print(f"    {' '.join(first['detail'].split())[-200:]}")
        print(f"    python benchmarks/faults/fuzz.py --repeat {_quoted(case)}")
    return bool(kinds)


def _column(row: dict[str, Any]) -> str:
    problem = row["problem"]
    if " in art_qplugins/" in problem or "no frame of the package" in problem:
        return "tracebacks"
    if problem.startswith(("hung", "killed", "exit")):
        return "hangs"
    if problem:
        return "accepted" if problem.startswith("accepted") else "failures"
    return str(row["status"]) if row["status"] in (0, 2) else "other"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def repeat(text: str, stage: Path) -> None:
    case = json.loads(text)
    found = attempt(case.pop("group"), case, stage)
    print(f"status {found.status}; {found.problem or 'nothing is wrong'}\n{found.detail}")
    sys.exit(bool(found.problem))


def warmed(stage: Path) -> None:
    """Import everything, and make the stage. Nothing here computes a gradient: torch's engine survives no fork after one."""
    torch.set_num_threads(1)
    (stage / "cases").mkdir()
    os.environ |= {"ARTQ_CACHE": str(stage / "cache"), "ARTQ_DATA": str(stage / "data"), "COLUMNS": "200"}
    for module in (
        "art_qplugins.runner.runner",
        "art_qplugins.evidence",
        "art_qplugins.report.html",
        "PIL.Image",
        "foolbox",
    ):
        with contextlib.suppress(ImportError):
            __import__(module)
    command("run", "digits", "--dry-run")

    def make() -> Result:
        recipes.prepare(stage)
        return Result(0)

    made = apart(make, 300)
    if made.status != 0:
        sys.exit(f"the stage cannot be made: {made.kind}\n{made.trace}")
    command("report", stage / "real")  # the figures' fonts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="start no batch after this time")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=[*GROUPS])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep results here, and go on from them")
    parser.add_argument("--repeat", metavar="CASE", help="run one case again")
    arguments = parser.parse_args()
    stage = Path(tempfile.mkdtemp(prefix="artq-fuzz-")).resolve()
    out = (arguments.out or stage / "results").resolve()
    try:
        warmed(stage)
        if arguments.repeat:
            repeat(arguments.repeat, stage)
        out.mkdir(parents=True, exist_ok=True)
        rows = fuzz(arguments, stage, out / f"seed-{arguments.seed}.jsonl")
        sys.exit(report(rows, stage, max(1.0, arguments.minutes / 4)))
    finally:
        shutil.rmtree(stage, ignore_errors=True)


if __name__ == "__main__":
    main()
