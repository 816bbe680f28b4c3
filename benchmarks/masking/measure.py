"""How often the diagnostics are wrong: the zoo's verdicts against its truth.

    python benchmarks/masking/measure.py --check [--rows NAME ...]        # does every plant take? cheap attacks only
    python benchmarks/masking/measure.py --workers 2 --reference          # everything, hours; resumable
    python benchmarks/masking/measure.py --half A --dataset digits        # what thresholds may be tuned on

Every (row, data set, seed) becomes one JSON line when it is finished. It is not run again, unless the zoo, the package or
the settings changed (``--keep``: not even then). MNIST is looked for under ``--data-root``, else ``ARTQ_DATA``.

``--reference`` adds the strongest attack known here: per image the worst case of the diagnosis and of AutoAttack's published
``standard`` version. AutoAttack runs on the planted failure's twin with an honest gradient where there is one, else on the
model; where that is random, its version ``rand`` runs with two EOT draws, each an average already. Without ``--reference``,
the corrected accuracy stands for it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

import art_qplugins
from art_qplugins.evaluation.old_names import INDICATORS

sys.path.insert(0, str(Path(__file__).parent))
from networks import DATASETS, Site
from one_run import IMAGES, Job, Key, Record, check, measure
from report import report
from tables import check_table, percent
from zoo import ROWS

#: The modules beside this one that change a record.
_CODE = ("networks", "losses", "training", "plants", "rows", "builders", "zoo", "one_run", "measure")


def version(*more: Path) -> str:
    """Hash of what changes a record: the zoo, how it is run, the files of ``more``, the package and torch."""
    here, package = Path(__file__).parent, Path(art_qplugins.__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    files = [*(here / f"{name}.py" for name in _CODE), *more]
    untouched = ("report", "data", "cli.py", "terminal", "evidence.py")
    files += [f for f in sorted(package.rglob("*.py")) if f.relative_to(package).parts[0] not in untouched]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def read(path: Path, current: str | None) -> dict[Key, Record]:
    """The last record of every run made with this version; of any version where ``current`` is None."""
    if not path.exists():
        return {}
    lines = [_renamed(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(r["row"], r["dataset"], r["seed"], r.get("n", IMAGES)): r for r in lines if current in (None, r["version"])}


def _renamed(record: Record) -> Record:
    """With today's ids of the indicators, whatever version wrote it."""

    def today(name: str) -> str:
        return INDICATORS.get(name, name)

    renamed = dict(record)
    for key in ("fired", "not_run", "must_fire"):
        if key in record:
            renamed[key] = [today(name) for name in record[key]]
    if "values" in record:
        renamed["values"] = {today(name): value for name, value in record["values"].items()}
    return renamed


def quiet() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


def run_all(
    work: Callable[[Job], Record], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, Record | None, str | None]]:
    """(job, record, None) or (job, None, error) as they finish. Nothing that fails keeps the others from running."""
    if workers == 1:
        for job in jobs:
            try:
                yield job, work(job), None
            except Exception:
                yield job, None, traceback.format_exc()
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=quiet) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            trace = None if error is None else "".join(traceback.format_exception(error))
            yield futures[future], None if error else future.result(), trace


def _chosen(arguments: argparse.Namespace) -> list[Job]:
    rows = [r for r in ROWS if arguments.rows is None or r.name in arguments.rows]
    rows = [r for r in rows if arguments.half in (None, r.half) and arguments.kind in (None, r.kind)]
    return [
        Job(row.name, Site(name, seed, arguments.data_root, arguments.cache), arguments.n, arguments.reference)
        for seed in arguments.seeds
        for name in arguments.dataset
        for row in rows
    ]


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
    parser.add_argument("--kind", choices=("masked", "weak", "invalid", "honest"))
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--half", choices=("A", "B"), help="A to tune on, B to report; both by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=IMAGES, help="test images (200)")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1, help="processes, one torch thread each")
    parser.add_argument("--reference", action="store_true", help="also the strongest attack known, AutoAttack")
    parser.add_argument("--check", action="store_true", help="no diagnosis: does every plant take?")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST; by default ARTQ_DATA")
    parser.add_argument("--cache", type=Path, default=Path("results/masking-weights"), help="folder of trained weights")
    parser.add_argument("--out", type=Path, default=Path("results/masking.jsonl"))
    parser.add_argument("--keep", action="store_true", help="use finished records of any version")
    parser.add_argument("--report-only", action="store_true", help="run nothing; implies --keep")
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


def main() -> None:
    arguments = _arguments()
    quiet()
    jobs = _chosen(arguments)
    if arguments.check:
        records = list(_progress(run_all(check, jobs, arguments.workers), lambda r: check_table([r])[-2]))
        print("\n".join(check_table(records)))
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    current = version()
    done = read(arguments.out, None if arguments.keep or arguments.report_only else current)
    open_jobs = [j for j in jobs if j.key not in done or (j.reference and _lacks_reference(done[j.key]))]
    if not arguments.report_only:
        for measured in _progress(run_all(measure, open_jobs, arguments.workers), _line):
            record = {"version": current, **measured}
            done[record["row"], record["dataset"], record["seed"], record["n"]] = record
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    print(report([done[j.key] for j in jobs if j.key in done], arguments.n))


def _lacks_reference(record: Record) -> bool:
    return "reference" not in record and record["kind"] != "invalid" and record["verdict"] != "INVALID"


if __name__ == "__main__":
    main()
