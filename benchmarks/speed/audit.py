"""How often the interval of an audit covers what full AutoAttack leaves, by resampling complete records.

    python benchmarks/speed/audit.py --cache DIR [--networks ROW:DATASET[:EPS] ...]
    python benchmarks/speed/audit.py --report-only

Networks are those of ``worst_case.py``, where effort ``quick`` leaves two points or more above AutoAttack. Full AutoAttack runs
on every image that stands after ``quick``: which of them it breaks is the complete record, a line of ``audit.jsonl``. Then 1,000
samples are drawn from it. ``audit.md`` is the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import art_qplugins
from art_qplugins import evaluate
from art_qplugins.evaluation.outcome import legal_at, worst_case
from art_qplugins.runner.audit import audited

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))
from worst_case import network_of  # noqa: E402

RECORDS, TABLE = _HERE / "audit.jsonl", _HERE / "audit.md"
NETWORKS = ("at:digits:0.2", "at-large-eps:digits", "at-l2:digits", "residual:digits:0.1", "3bit:digits:0.1")
SIZES, TRIALS = (10, 40, 100), 1000


def complete(name: str, n: int, cache: Path | None, root: Path | None) -> dict[str, Any]:
    """Which of the images that stand after ``quick`` full AutoAttack breaks."""
    estimator, x, y, threat = network_of(name, n, cache, root)
    settings: dict[str, Any] = {"recipe": {"diagnose": False}}
    quick = evaluate(estimator, (x, y), threat, [("artq:worst-case", {"effort": "quick"})], **settings)
    standing = np.flatnonzero(worst_case(legal_at(quick.outcomes, threat.norm, threat.eps)) > 0)
    full = evaluate(estimator, (x[standing], y[standing]), threat, ["autoattack:standard"], **settings)
    left = worst_case(legal_at(full.outcomes, threat.norm, threat.eps))
    return {
        "network": name,
        "n": n,
        "broken": [int(b) for b in left == 0],
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "version": art_qplugins.__version__,
        "torch": torch.__version__,
    }


def covered(broken: np.ndarray, size: int, n: int) -> tuple[int, float]:
    """In how many samples the interval holds the full answer, and its median length in points."""
    random, truth, lengths, held = np.random.default_rng(0), (len(broken) - broken.sum()) / n, [], 0
    for _ in range(TRIALS):
        found = int(random.permutation(broken)[:size].sum())
        asked = min(size, len(broken))
        low, high = audited(norm="Linf", eps=0.0, standing=len(broken), asked=asked, broke=found, n=n).interval
        held += low - 1e-9 <= truth <= high + 1e-9
        lengths.append(100 * (high - low))
    return held, float(np.median(lengths))


def table(records: list[dict[str, Any]]) -> str:
    lines = [
        "# How often an audit holds",
        "",
        f"{records[0]['date']}; art_qplugins {records[0]['version']}, torch {records[0]['torch']}. "
        "`python benchmarks/speed/audit.py` measures, `--report-only` prints this again.",
        "",
        f"Of {TRIALS:,} samples of the images that stand after effort `quick`: those whose interval holds what full AutoAttack "
        "leaves, and the median length of the interval in points of all images. At least 940 are wanted.",
        "",
        "| network | n | stand | AutoAttack breaks | " + " | ".join(f"of {size} images" for size in SIZES) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(SIZES),
    ]
    for record in records:
        broken, n = np.array(record["broken"]), record["n"]
        cells = [f"{held}, {length:.1f}" for held, length in (covered(broken, size, n) for size in SIZES)]
        lines.append(
            f"| {record['network']} | {n} | {len(broken)} | {broken.sum()}, {100 * broken.sum() / n:.2f} points | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--cache", type=Path, help="folder of trained weights")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--report-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    done = {record["network"] for record in records}
    for name in [] if given.report_only else given.networks:
        if name not in done:
            records.append(complete(name, given.n, given.cache, given.data_root))
            with RECORDS.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
    TABLE.write_text(table(records))
    print(TABLE.read_text())


if __name__ == "__main__":
    main()
