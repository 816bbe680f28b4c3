"""How often the diagnostics are wrong: the zoo's verdicts against its truth.

    python benchmarks/masking/measure.py --check [--rows NAME ...]        # does every plant take? cheap attacks only
    python benchmarks/masking/measure.py --workers 2 --reference          # halves A and B, hours; resumable
    python benchmarks/masking/measure.py --half A --dataset digits        # what thresholds may be tuned on
    python benchmarks/masking/measure.py --shard 1/4 --out shard1.jsonl   # one of four parts, e.g. one a machine
    python benchmarks/masking/measure.py --report-only --read shard*.jsonl --commit
    python benchmarks/masking/measure.py --nightly                        # a fixed choice on digits, 15 minutes

Every (row, data set, seed, number of images) becomes one JSON line when it is finished. It is not run again, unless the zoo,
the package or the settings changed (``--keep``: not even then). MNIST and CIFAR-10 are looked for under ``--data-root``, else
``ARTQ_DATA``; CIFAR-10 as images in ``cifar10-jpeg/train/CLASS/`` and ``test``.

Half C is sealed (``halves.py``). It is run only where ``--half C`` says so.

``--reference`` adds the strongest attack known here: per image the worst case of the diagnosis and of AutoAttack's published
``standard`` version. AutoAttack runs on the planted failure's twin with an honest gradient where there is one, else on the
model; where that is random, its version ``rand`` runs with two EOT draws, each an average already. Of a detector it is a PGD
that aims past it. Without ``--reference``, the corrected accuracy stands for it.

``--commit`` writes ``records.jsonl`` and ``results.md`` beside this file. What ``notes.md`` says stands above the tables. ``--report-only`` without ``--read`` and ``--out``
makes the tables of the former again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from networks import DATASETS, Site
from one_run import IMAGES, Job, Record, check, measure, row_named
from records import COMMITTED, commit, key_of, read, version
from report import report
from tables import ACCUSED, check_table, counts, percent
from zoo import ROWS


def quiet() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


Done = tuple[Job, Record | None, str | None]


def run_all(work: Callable[[Job], Record], jobs: Sequence[Job], workers: int, ray: str | None = None) -> Iterator[Done]:
    """(job, record, None) or (job, None, error) as they finish. Nothing that fails keeps the others from running.

    :param ray: the address of a Ray cluster, in place of processes here. Its machines have this folder and the data too.
    """
    if ray is not None:
        yield from _on_ray(work, jobs, ray)
    elif workers == 1:
        for job in jobs:
            try:
                yield job, work(job), None
            except Exception:
                yield job, None, traceback.format_exc()
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=quiet) as pool:
            futures = {pool.submit(work, job): job for job in jobs}
            for future in as_completed(futures):
                error = future.exception()
                trace = None if error is None else "".join(traceback.format_exception(error))
                yield futures[future], None if error else future.result(), trace


def _on_ray(work: Callable[[Job], Record], jobs: Sequence[Job], address: str) -> Iterator[Done]:
    import ray

    here = str(Path(__file__).parent)
    ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([here, *sys.path])}})

    @ray.remote(num_cpus=1)
    def remote(job: Job) -> Record:
        quiet()
        return work(job)

    waiting = {remote.remote(job): job for job in jobs}
    while waiting:
        (reference, *_), _ = ray.wait(list(waiting))
        job = waiting.pop(reference)
        try:
            yield job, ray.get(reference), None
        except Exception:
            yield job, None, traceback.format_exc()


def chosen(arguments: argparse.Namespace) -> list[Job]:
    """The jobs that are asked for, in a fixed order. Rows of the sealed half are refused unless that is asked for."""
    halves = arguments.half or ["A", "B"]
    rows = [
        r
        for r in ROWS
        if arguments.kind in (None, r.kind)
        and (arguments.rows is None or r.name in arguments.rows)
        and r.name not in arguments.without
    ]
    sealed = [r.name for r in rows if r.half == "C"]
    if arguments.rows is not None and sealed and "C" not in halves:
        raise SystemExit(f"half C is sealed, and {', '.join(sealed)} is in it; run it once, at the end, with --half C")
    jobs = [
        Job(row.name, Site(name, seed, arguments.data_root, arguments.cache), arguments.n, arguments.reference)
        for seed, name, row in itertools.product(arguments.seeds, arguments.dataset, rows)
        if row.half in halves and name in row.datasets
    ]
    part, parts = arguments.shard
    return [job for job in jobs if _place(job) % parts == part - 1]


def _place(job: Job) -> int:
    """A number that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(repr(job.key).encode()).digest()[:4], "big")


def nightly(jobs: Sequence[Job]) -> list[Job]:
    """Of each family the first row, those of a hash first: every mechanism and kind comes early."""
    by_family = {row_named(job.row).family: job for job in reversed(jobs)}
    kinds: dict[str, list[Job]] = {}
    for job in sorted(by_family.values(), key=_place):
        kinds.setdefault(row_named(job.row).mechanism, []).append(job)
    return [job for turn in itertools.zip_longest(*kinds.values()) for job in turn if job is not None]


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"it is {text!r}; give i/k with i from 1 to k, e.g. 1/4")
    return int(part), int(parts)


def _line(record: Record) -> str:
    numbers = f"{percent(record['claimed'])} -> {percent(record['corrected'])}, {percent(record.get('reference'))}"
    wrong = " " if record["verdict"] in record["expected"] else "!"
    seconds = f"{record['seconds']:.0f} s"
    return (
        f"{wrong}{record['row']:18} {record['dataset']:6} {record['seed']} {record['verdict']:12} {record['claim']:10} "
        f"{numbers:20} {seconds:>6} {' '.join(record['fired'])}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[r.name for r in ROWS], metavar="NAME")
    parser.add_argument(
        "--without", nargs="+", choices=[r.name for r in ROWS], metavar="NAME", default=[], help="e.g. slow rows"
    )
    parser.add_argument("--kind", choices=("masked", "misleading", "weak", "invalid", "honest"))
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--half", nargs="+", choices=("A", "B", "C"), help="A to tune, B to check (both); C is sealed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=IMAGES, help="test images (200)")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1, help="processes, one torch thread each")
    parser.add_argument("--reference", action="store_true", help="also the strongest attack known, AutoAttack")
    parser.add_argument("--check", action="store_true", help="no diagnosis: does every plant take?")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST; by default ARTQ_DATA")
    parser.add_argument("--cache", type=Path, default=Path("results/masking-weights"), help="folder of trained weights")
    parser.add_argument("--out", type=Path, help="where records go (results/masking.jsonl)")
    parser.add_argument(
        "--read", nargs="+", type=Path, default=[], metavar="FILE", help="further records, e.g. of shards"
    )
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="i/k", help="one of k parts of the runs")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster, e.g. auto")
    parser.add_argument("--nightly", action="store_true", help="one row of each family, on digits, for 15 minutes")
    parser.add_argument("--minutes", type=float, help="start no further run after this time")
    parser.add_argument("--commit", action="store_true", help="write records.jsonl and results.md beside this file")
    parser.add_argument("--keep", action="store_true", help="use finished records of any version")
    parser.add_argument("--report-only", action="store_true", help="run nothing; records of any version")
    return parser.parse_args()


def _progress(done: Iterable[tuple[Job, Record | None, str | None]], line: Callable[[Record], str]) -> Iterator[Record]:
    failed = []
    for job, record, error in done:
        if record is None:
            failed.append(job)
            print(f"?{job.row} {job.site.dataset} {job.site.seed} failed:\n{error}", file=sys.stderr, flush=True)
            continue
        print(line(record), file=sys.stderr, flush=True)
        yield record
    if failed:
        print(
            f"{len(failed)} runs failed and are not in the tables; the same command tries them again", file=sys.stderr
        )


def main() -> int:
    arguments = _arguments()
    quiet()
    if arguments.nightly:
        arguments.dataset, arguments.seeds = ["digits"], [0]
        arguments.minutes = arguments.minutes or 15
    jobs = nightly(chosen(arguments)) if arguments.nightly else chosen(arguments)
    if arguments.check:
        records = list(
            _progress(run_all(check, jobs, arguments.workers, arguments.ray), lambda r: check_table([r])[-2])
        )
        print("\n".join(check_table(records)))
        return 0
    out = arguments.out or Path("results/masking.jsonl")
    if arguments.report_only:
        paths = [*arguments.read, *([arguments.out] if arguments.out else [])] or [COMMITTED]
        known = list(read(paths, None).values())
    else:
        known = _run(arguments, jobs, out)
    notes = COMMITTED.with_name("notes.md")
    text = report(known, notes.read_text(encoding="utf-8") if notes.exists() else "")
    print(text)
    if arguments.commit:
        commit(known)
        (COMMITTED.parent / "results.md").write_text(text + "\n", encoding="utf-8")
    return int(arguments.nightly and any(_wrong(record) for record in known))


def _run(arguments: argparse.Namespace, jobs: Sequence[Job], out: Path) -> list[Record]:
    """The records of these jobs, of earlier runs where they are still good."""
    out.parent.mkdir(parents=True, exist_ok=True)
    current, end = version(), time.monotonic() + 60 * (arguments.minutes or float("inf"))
    done = read([*arguments.read, out], None if arguments.keep else current)
    open_jobs = [j for j in jobs if j.key not in done or (j.reference and _lacks_reference(done[j.key]))]
    running = run_all(measure, open_jobs, arguments.workers, arguments.ray)
    for measured in _progress(running, _line):
        record = {"version": current, **measured}
        done[key_of(record)] = record
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if time.monotonic() > end:
            print("the time is over; the same command goes on", file=sys.stderr)
            break
    return [done[j.key] for j in jobs if j.key in done]


def _wrong(record: Record) -> bool:
    """An honest model that is accused, or a plant that took and is not, where MASKED is the only right verdict."""
    accused = record["verdict"] in ACCUSED
    must = record["expected"] == ["MASKED"] and counts(record)
    return accused if record["kind"] == "honest" else must and not accused


def _lacks_reference(record: Record) -> bool:
    return "reference" not in record and record["kind"] != "invalid" and record["verdict"] != "INVALID"


if __name__ == "__main__":
    sys.exit(main())
