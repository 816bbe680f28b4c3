"""How often the diagnostics are wrong: the zoo's verdicts against its truth.

    python benchmarks/masking/measure.py [--rows NAME ...] [--seeds 0 1 2] [--reference] [--out FILE.jsonl]

Every (row, seed) becomes one JSON line when it is finished and is not run again, unless the zoo, the package or the
settings changed. ``--reference`` adds the strongest attack known here, per image the worst of the diagnosis and of
AutoAttack: on the planted failure's twin with an honest gradient where there is one, else on the model; ``rand`` with two
EOT draws (each an average already) where that is stochastic. Without it, the corrected accuracy stands for it.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import art_qplugins
from art_qplugins import Threat, evaluate, load, metrics
from art_qplugins.attacks.craft import craft
from art_qplugins.diagnostics import INDICATORS
from art_qplugins.evaluation.outcome import legal_at
from art_qplugins.evaluation.verify import check_legal, judge
from art_qplugins.quantizers import is_stochastic

sys.path.insert(0, str(Path(__file__).parent))
from zoo import ROWS, Built, Row, classifier

VERDICTS = ("MASKED", "SUSPECT", "NOT_REFUTED", "INCONCLUSIVE", "INVALID")
#: A planted failure took where the claimed number is more than this above the strongest attack known.
TOOK = 0.05
_N = 200

Record = dict[str, Any]


def measure(row: Row, seed: int, *, n: int = _N, reference: bool = False) -> Record:
    """Diagnose one row. The same images for every row; the seed makes the network and the attacks."""
    images = load("digits", "test").take(n, seed=0)
    built = row.build(seed)
    estimator, threat = classifier(built.model), Threat(row.norm, row.eps)
    started = time.perf_counter()
    run = evaluate(estimator, images, threat, [(row.attack, row.options)], claim=row.attack, seed=seed)
    seconds = time.perf_counter() - started
    result = run.models[0]
    record = {
        "row": row.name,
        "seed": seed,
        "kind": row.kind,
        "expected": sorted(row.expected),
        "verdict": result.verdict,
        "claim": result.claim.status,
        "clean": result.clean_accuracy,
        "claimed": result.claim.accuracy,
        "corrected": result.claim.corrected,
        "must_fire": sorted(row.must_fire),
        "fired": [f.id for f in result.findings if f.fired],
        "not_run": [f.id for f in result.findings if f.fired is None],
        "values": {f.id: f.value for f in result.findings},
        "cells": {o.cell.label: o.cell.accuracy for o in run.outcomes},
        "forward": sum(c.forward_samples for c in run.cells) / n,
        "backward": sum(c.backward_samples for c in run.cells) / n,
        "seconds": seconds,
        "summary": result.summary,
    }
    if reference:
        legal = legal_at([o for o in run.outcomes if o.ok], row.norm, row.eps)
        found = [(o.column("correct"), o.column("selection")) for o in legal]
        found.append(_reference(built, images.x(), images.y(), threat, seed))
        worst = metrics.worst_case([c for c, _ in found], [s for _, s in found])
        record["reference"] = float(worst.mean())
    return record


def _reference(
    built: Built, x: torch.Tensor, y: torch.Tensor, threat: Threat, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per image (correct, selection) of the deployed model under AutoAttack on its twin, or on itself."""
    model = built.twin or built.model
    stochastic = is_stochastic(model)
    suite, options = ("autoattack:rand", {"eot_iter": 2}) if stochastic else ("autoattack:standard", {})
    x_adv = craft(classifier(model), suite, x, y, threat=threat, options=options, seed=seed).x_adv
    check_legal(x, x_adv, threat)
    judged = judge(built.model, x_adv, y, seed=seed, batch_size=250)
    return np.asarray(judged.correct), np.asarray(judged.selection)


# --- Records


def version() -> str:
    """Hash of what changes an answer: the zoo, this file, the package and torch."""
    here, package = Path(__file__).parent, Path(art_qplugins.__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    for file in (here / "zoo.py", *sorted(package.rglob("*.py"))):
        if package not in file.parents or file.relative_to(package).parts[0] not in ("report", "data", "cli.py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def read(path: Path, current: str | None) -> dict[tuple[str, int], Record]:
    """The last record of every (row, seed) that was made with this version; of any version where ``current`` is None."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(r["row"], r["seed"]): r for r in lines if current in (None, r["version"])}


# --- Tables


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _rate(records: Sequence[Record], hit: Callable[[Record], bool]) -> str:
    if not records:
        return "–"
    k, n = sum(map(hit, records)), len(records)
    low, high = metrics.wilson_interval(k, n)
    return f"{k} of {n}, {100 * k / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def took(record: Record) -> bool:
    """Whether the claimed number is really an illusion, whatever the diagnosis says."""
    if record["claimed"] is None:
        return True
    return bool(record["claimed"] - record.get("reference", record["corrected"]) > TOOK)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, r))} |" for r in (header, ["---"] * len(header), *rows)] + [""]


def report(records: Sequence[Record]) -> str:
    of = {kind: [r for r in records if r["kind"] == kind] for kind in ("masked", "weak", "honest")}
    planted = of["masked"]
    strict = [r for r in planted if r["expected"] == ["MASKED"]]
    real = [r for r in planted if took(r)]
    overstated = [r for r in records if r["claimed"] is not None and took(r)]
    lines = ["## Rates", ""]
    lines += table(
        ["what", "rate, 95 % Wilson interval"],
        [
            ("MASKED, of planted failures whose only right verdict it is", _rate(strict, lambda r: r["verdict"] == "MASKED")),
            ("accused (MASKED, SUSPECT or INVALID), of all planted failures", _rate(planted, lambda r: r["verdict"] in ("MASKED", "SUSPECT", "INVALID"))),
            (f"MASKED, of planted failures that took (number off by > {TOOK:.0%})", _rate(real, lambda r: r["verdict"] == "MASKED")),
            ("accused, of planted failures that took", _rate(real, lambda r: r["verdict"] in ("MASKED", "SUSPECT", "INVALID"))),
            ("claim OVERSTATED, of all numbers that are off, whatever the reason", _rate(overstated, lambda r: r["claim"] == "OVERSTATED")),
            ("false MASKED, of honest models", _rate(of["honest"], lambda r: r["verdict"] == "MASKED")),
            ("false SUSPECT, of honest models", _rate(of["honest"], lambda r: r["verdict"] == "SUSPECT")),
            ("INCONCLUSIVE, of honest models", _rate(of["honest"], lambda r: r["verdict"] == "INCONCLUSIVE")),
            ("OVERSTATED, of honest models", _rate(of["honest"], lambda r: r["claim"] == "OVERSTATED")),
            ("MASKED, of weak attacks on models that hide nothing", _rate(of["weak"], lambda r: r["verdict"] == "MASKED")),
            ("verdict as expected, of everything", _rate(records, lambda r: r["verdict"] in r["expected"])),
        ],
    )  # fmt: skip
    lines += ["## Confusion matrix", "", "Expected (rows) against given; a cell counts (row, seed) pairs.", ""]
    counts = Counter((r["kind"], " or ".join(r["expected"]), r["verdict"]) for r in records)
    lines += table(
        ["kind", "expected", *VERDICTS],
        [(*key, *(counts[(*key, v)] for v in VERDICTS)) for key in sorted({k[:2] for k in counts})],
    )
    lines += [
        "## Indicators",
        "",
        "Recall: of the pairs whose plant has to set it off. Precision: the share of its firings that were not on honest models.",
        "",
    ]
    lines += table(
        ["indicator", "recall", "precision", "fired on honest", "not run"], map(_indicator(records), INDICATORS)
    )
    errors = [r["corrected"] - r["reference"] for r in records if r["corrected"] is not None and "reference" in r]
    if errors:
        lines += [
            "## Corrected accuracy",
            "",
            f"Corrected minus the strongest attack known, in points over {len(errors)} pairs: "
            f"mean {100 * np.mean(errors):.1f}, median {100 * np.median(errors):.1f}, "
            f"90 % below {100 * np.quantile(errors, 0.9):.1f}, largest {100 * max(errors):.1f}.",
            "",
        ]
    lines += [
        "## Cost",
        "",
        f"Per image, median (largest): {_spread(records, 'backward')} gradient evaluations, {_spread(records, 'forward')} "
        f"forward passes; {_spread(records, 'seconds', 1)} s a diagnosis.",
        "",
        "## Every row",
        "",
        "Verdicts and numbers by seed; accuracies in percent. Bold: not as expected. `*`: this plant did not take.",
        "",
    ]
    return "\n".join(lines + _every(records))


def _indicator(records: Sequence[Record]) -> Callable[[Any], Sequence[object]]:
    def line(indicator: Any) -> Sequence[object]:
        name = indicator.id
        must = [r for r in records if name in r["must_fire"]]
        fired = [r for r in records if name in r["fired"]]
        honest = sum(r["kind"] == "honest" for r in fired)
        unrun = sum(name in r["not_run"] for r in records)
        return (
            name,
            _rate(must, lambda r: name in r["fired"]),
            _rate(fired, lambda r: r["kind"] != "honest"),
            honest,
            unrun,
        )

    return line


def _spread(records: Sequence[Record], key: str, digits: int = 0) -> str:
    values = [r[key] for r in records]
    return f"{np.median(values):.{digits}f} ({max(values):.{digits}f})"


def _every(records: Sequence[Record]) -> list[str]:
    lines = []
    for name in dict.fromkeys(r["row"] for r in records):
        mine = [r for r in records if r["row"] == name]

        def verdict(r: Record) -> str:
            star = "*" if r["kind"] != "honest" and not took(r) else ""
            return (r["verdict"] if r["verdict"] in r["expected"] else f"**{r['verdict']}**") + star

        fired = Counter(i for r in mine for i in r["fired"])
        lines.append(
            (
                name,
                " or ".join(mine[0]["expected"]),
                ", ".join(map(verdict, mine)),
                ", ".join(r["claim"] for r in mine),
                *(
                    ", ".join(_percent(r.get(key)) for r in mine)
                    for key in ("clean", "claimed", "corrected", "reference")
                ),
                " ".join(i if k == len(mine) else f"{i}({k})" for i, k in fired.items()),
            )
        )
    header = [
        "row",
        "expected",
        "verdict",
        "claim",
        "clean",
        "claimed",
        "corrected",
        "reference",
        "fired (seeds, if not all)",
    ]
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[r.name for r in ROWS], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/masking.jsonl"))
    parser.add_argument("--report-only", action="store_true", help="print the tables of what is there, of any version")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    current = version()
    done = read(arguments.out, None if arguments.report_only else current)
    rows = [r for r in ROWS if arguments.rows is None or r.name in arguments.rows]
    for row in rows if not arguments.report_only else ():
        for seed in arguments.seeds:
            found = done.get((row.name, seed))
            if found is not None and ("reference" in found or not arguments.reference):
                continue
            record = {"version": current, **measure(row, seed, reference=arguments.reference)}
            done[row.name, seed] = record
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            numbers = (
                f"{_percent(record['claimed'])} -> {_percent(record['corrected'])}, {_percent(record.get('reference'))}"
            )
            print(
                f"{row.name:22} {seed} {record['verdict']:13} {numbers:20} {' '.join(record['fired'])}", file=sys.stderr
            )
    records = [done[r.name, s] for r in rows for s in arguments.seeds if (r.name, s) in done]
    print(
        f"# The diagnostics, measured on the zoo\n\n{datetime.date.today()}; art_qplugins {art_qplugins.__version__} "
        f"({current}), torch {torch.__version__}, Python {platform.python_version()}; {_N} test images of digits, "
        f"{len({r['row'] for r in records})} rows, seeds {', '.join(map(str, arguments.seeds))}; one CPU thread.\n"
    )
    print(report(records))


if __name__ == "__main__":
    main()
