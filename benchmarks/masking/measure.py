"""How often the diagnostics are wrong: the zoo's verdicts against its truth.

    python benchmarks/masking/measure.py --check [--rows NAME ...]        # does every plant take? cheap attacks only
    python benchmarks/masking/measure.py --workers 2 --reference          # everything, hours; resumable
    python benchmarks/masking/measure.py --half A --dataset digits        # what thresholds may be tuned on

Every (row, data set, seed) becomes one JSON line when it is finished and is not run again, unless the zoo, the package
or the settings changed (``--keep``: not even then). MNIST is looked for under ``--data-root``, else ``ARTQ_DATA``.

``--reference`` adds the strongest attack known here: per image the worst of the diagnosis and of AutoAttack, the published
``standard`` version: on the planted failure's twin with an honest gradient where there is one, else on the model; ``rand``
with two EOT draws (each an average already) where that is stochastic. Without it, the corrected accuracy stands for it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import art_qplugins
from art_qplugins import InputError, Threat, evaluate, metrics
from art_qplugins.attacks.craft import Crafted, craft
from art_qplugins.data import from_arrays
from art_qplugins.evaluation.outcome import legal_at
from art_qplugins.evaluation.score import check_legal, score
from art_qplugins.quantizers import is_stochastic

sys.path.insert(0, str(Path(__file__).parent))
from networks import DATASETS, Site
from tables import check_table, percent, report
from zoo import ROWS, Built, Row, classifier

Record = dict[str, Any]
Key = tuple[str, str, int]
#: Per image (correct, selection) of a model under one attack.
Scores = tuple[np.ndarray, np.ndarray]

_IMAGES = 200
#: Of ``--check``: cheap, and strong where the gradient is honest.
_CHEAP = (("artq:pgd-margin", {"max_iter": 50}), ("autoattack:apgd-t", {}), ("autoattack:square", {"n_queries": 500}))


@dataclass(frozen=True)
class Job:
    row: str
    site: Site
    n: int = _IMAGES
    reference: bool = False

    @property
    def key(self) -> Key:
        return self.row, self.site.dataset, self.site.seed


def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


# --- One run


def measure(job: Job) -> Record:
    return diagnosed(row_named(job.row), job.site, n=job.n, reference=job.reference)


def diagnosed(row: Row, site: Site, *, n: int = _IMAGES, reference: bool = False) -> Record:
    """Diagnose one row. The same images for every row of a data set; the seed makes the network and the attacks."""
    seed = site.seed
    x, y = site.test(n)
    started = time.perf_counter()
    built = row.build(site)
    trained = time.perf_counter()
    threat, estimator = row.threat(site.dataset), classifier(built.model, site)
    claimed = None if row.claim is None else row.claim(built.model, x, y, threat, seed)
    record = {
        "row": row.name,
        "dataset": site.dataset,
        "seed": seed,
        "half": row.half,
        "kind": row.kind,
        "family": row.family,
        "mechanism": row.mechanism,
        "expected": sorted(row.expected),
        "must_fire": sorted(row.must_fire),
        "training_seconds": trained - started,
    }
    try:
        run = evaluate(
            estimator,
            from_arrays(x, y, classes=[str(i) for i in range(10)]),
            threat,
            [(row.attack, row.options)],
            claim=row.attack,
            claimed_accuracy=claimed,
            seed=seed,
        )
    except InputError as refusal:  # refusing to give a number, by one line that says why, is a verdict too
        return record | _refused(str(refusal), time.perf_counter() - trained)
    record |= _told(run, n) | {"seconds": time.perf_counter() - trained}
    if reference and row.kind != "invalid":
        legal = legal_at([o for o in run.outcomes if o.ok], row.norm, threat.eps)
        scores = [(o.column("correct"), o.column("selection")) for o in legal]
        started = time.perf_counter()
        found, crafted = _reference(built, site, x, y, threat)
        record |= {
            "reference": _worst([*scores, found]),
            "autoattack": float(found[0].mean()),
            "autoattack_forward": crafted.forward_samples / n,
            "autoattack_backward": crafted.backward_samples / n,
            "autoattack_seconds": time.perf_counter() - started,
        }
    return record


def _told(run: art_qplugins.Run, n: int) -> Record:
    result = run.models[0]
    levels: dict[str, dict[str, float]] = {}
    for step in getattr(result, "steps", []):  # the rungs of the diagnosis, where it has any
        spent = levels.setdefault(str(step.level), {"forward": 0.0, "backward": 0.0})
        spent["forward"] += step.forward
        spent["backward"] += step.backward
    return {
        "verdict": result.verdict,
        "claim": result.claim.status,
        "clean": result.clean_accuracy,
        "claimed": result.claim.accuracy,
        "corrected": result.claim.corrected,
        "fired": [f.id for f in result.findings if f.fired],
        "not_run": [f.id for f in result.findings if f.fired is None],
        "values": {f.id: f.value for f in result.findings},
        "cells": {o.cell.label: o.cell.accuracy for o in run.outcomes},
        "errors": {o.cell.label: o.cell.error for o in run.outcomes if not o.ok},
        "forward": sum(c.forward_samples for c in run.cells) / n,
        "backward": sum(c.backward_samples for c in run.cells) / n,
        "levels": levels,
        "summary": result.summary,
    }


def _refused(message: str, seconds: float) -> Record:
    return {
        "verdict": "INVALID",
        "claim": "NONE",
        **dict.fromkeys(("clean", "claimed", "corrected")),
        **{key: [] for key in ("fired", "not_run")},
        **{key: {} for key in ("values", "cells", "errors", "levels")},
        **dict.fromkeys(("forward", "backward"), 0.0),
        "summary": message,
        "seconds": seconds,
    }


def _reference(built: Built, site: Site, x: torch.Tensor, y: torch.Tensor, threat: Threat) -> tuple[Scores, Crafted]:
    model = built.twin or built.model
    suite, options = ("autoattack:rand", {"eot_iter": 2}) if is_stochastic(model) else ("autoattack:standard", {})
    crafted = craft(classifier(model, site), suite, x, y, threat=threat, options=options, seed=site.seed)
    return _scores(built, site, x, y, threat, crafted.x_adv), crafted


def _scores(built: Built, site: Site, x: torch.Tensor, y: torch.Tensor, threat: Threat, x_adv: torch.Tensor) -> Scores:
    """What the model under test says to images that were crafted on it or on its twin."""
    check_legal(x, x_adv, threat)
    scored = score(built.model, x_adv, y, seed=site.seed, batch_size=250)
    return scored["correct"], scored["selection"]


def _worst(scores: Sequence[Scores]) -> float:
    return float(metrics.worst_case([c for c, _ in scores], [s for _, s in scores]).mean())


def check(job: Job) -> Record:
    """Clean accuracy, the number claimed, and what cheap attacks through the honest twin leave. No diagnosis."""
    row, site = row_named(job.row), job.site
    x, y = site.test(job.n)
    started = time.perf_counter()
    built = row.build(site)
    trained = time.perf_counter()
    threat = row.threat(site.dataset)
    record = {
        "row": row.name,
        "dataset": site.dataset,
        "seed": site.seed,
        "kind": row.kind,
        "training_seconds": trained - started,
        "clean": float(score(built.model, x, y, seed=site.seed)["correct"].mean()),
        "claimed": None,
        "strongest": None,
    }
    if row.kind == "invalid":
        return record

    def attacked(model: torch.nn.Module, attack: str, options: Any) -> Scores:
        estimator = classifier(model, site)
        crafted = craft(estimator, attack, x, y, threat=threat, options=options, seed=site.seed)
        return _scores(built, site, x, y, threat, crafted.x_adv)

    scores = []
    try:
        if row.claim is None:
            scores.append(attacked(built.model, row.attack, row.options))
            record["claimed"] = float(scores[0][0].mean())
        else:
            record["claimed"] = row.claim(built.model, x, y, threat, site.seed)
    except (InputError, RuntimeError, ValueError) as error:  # e.g. no gradient reaches the pixels
        record["error"] = str(error).splitlines()[0]
    for attack, options in _CHEAP:
        scores.append(attacked(built.twin or built.model, attack, options))
    record["strongest"] = _worst(scores)
    return record | {"seconds": time.perf_counter() - trained}


# --- Many runs


def version(*more: Path) -> str:
    """Hash of what changes an answer: the zoo, this file and ``more``, the package and torch."""
    here, package = Path(__file__).parent, Path(art_qplugins.__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    files = [*(here / name for name in ("networks.py", "plants.py", "zoo.py", "measure.py")), *more]
    untouched = ("report", "data", "cli.py", "terminal.py", "replay.py")
    files += [f for f in sorted(package.rglob("*.py")) if f.relative_to(package).parts[0] not in untouched]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def read(path: Path, current: str | None) -> dict[Key, Record]:
    """The last record of every run made with this version; of any version where ``current`` is None."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(r["row"], r["dataset"], r["seed"]): r for r in lines if current in (None, r["version"])}


def _quiet() -> None:
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
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            told = None if error is None else "".join(traceback.format_exception(error))
            yield futures[future], None if error else future.result(), told


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
    parser.add_argument("--n", type=int, default=_IMAGES, help="test images (200)")
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
    _quiet()
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
            done[record["row"], record["dataset"], record["seed"]] = record
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    print(report([done[j.key] for j in jobs if j.key in done], arguments.n))


def _lacks_reference(record: Record) -> bool:
    return "reference" not in record and record["kind"] != "invalid" and record["verdict"] != "INVALID"


if __name__ == "__main__":
    main()
