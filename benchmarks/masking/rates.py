"""Rates over runs of the zoo, with intervals over what the runs share: their family of rows, and their trained network.

Runs of one family are variations of one plant, and runs on one network fail together. So an interval over runs would be too
narrow. Families, or networks, are drawn anew with replacement, each with all of its runs (cluster bootstrap).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tables import ACCUSED, TOOK, table, took

from art_qplugins import metrics

__all__ = ["corrected_within", "interval", "rate", "rates"]

Record = dict[str, Any]
_RESAMPLES = 2000
#: Rounding of accuracies.
_TINY = 1e-9


def interval(hits: Sequence[bool], clusters: Sequence[object]) -> tuple[float, float]:
    """95 % interval of the share of hits. Where all or none hit, Wilson's of the number of clusters."""
    groups: dict[object, list[int]] = defaultdict(lambda: [0, 0])
    for hit, cluster in zip(hits, clusters, strict=True):
        groups[cluster][0] += hit
        groups[cluster][1] += 1
    sums = np.array(list(groups.values()))
    if all(hits) or not any(hits):
        return metrics.wilson_interval(len(sums) * all(hits), len(sums))
    random = np.random.default_rng(0)
    drawn = sums[random.integers(len(sums), size=(_RESAMPLES, len(sums)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    return float(low), float(high)


def rate(records: Sequence[Record], hit: Callable[[Record], bool]) -> str:
    """Of how many records ``hit`` holds, in percent, with intervals by family and by network."""
    if not records:
        return "–"
    hits = [bool(hit(r)) for r in records]
    ends = (
        interval(hits, [r["family"] for r in records]),
        interval(hits, [(r["dataset"], r["seed"], r.get("network", r["family"])) for r in records]),
    )
    shown = " ".join(f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in ends)
    return f"{sum(hits)} of {len(hits)}, {100 * np.mean(hits):.1f} % {shown}"


def corrected_within(record: Record, points: float) -> bool:
    """Whether the corrected accuracy is at most so far above the strongest attack known."""
    strongest = record.get("reference")
    corrected = record["corrected"]
    return strongest is not None and corrected is not None and bool(corrected - strongest <= points + _TINY)


def rates(records: Sequence[Record]) -> list[str]:
    """Each rate on each half. Half A, on which thresholds were tuned, does not show how well they work."""
    halves = sorted({r["half"] for r in records})

    def column(half: str) -> list[str]:
        here = [r for r in records if r["half"] == half]
        of = {k: [r for r in here if r["kind"] == k] for k in ("masked", "misleading", "weak", "invalid", "honest")}
        real = [r for r in of["masked"] if took(r)]
        strict = [r for r in (*real, *of["misleading"]) if r["expected"] == ["MASKED"]]
        soft = [r for r in real if r["expected"] != ["MASKED"]]
        weak = [r for r in of["weak"] if took(r)]
        numbers = [r for r in here if r["claimed"] is not None and r["kind"] != "invalid"]
        known = [r for r in here if r["verdict"] == "MASKED" and r.get("reference") is not None]
        return [
            rate(of["honest"], lambda r: r["verdict"] == "MASKED"),
            rate(of["honest"], lambda r: r["verdict"] == "SUSPECT"),
            rate(of["honest"], lambda r: r["verdict"] in ("INCONCLUSIVE", "INVALID")),
            rate(strict, lambda r: r["verdict"] == "MASKED"),
            rate(soft, lambda r: r["verdict"] in ACCUSED),
            rate(real, lambda r: r["verdict"] in ACCUSED or corrected_within(r, TOOK)),
            rate(real, lambda r: r["verdict"] in r["expected"]),
            rate(known, lambda r: corrected_within(r, TOOK)),
            rate(known, lambda r: corrected_within(r, 0.05)),
            rate(of["misleading"], lambda r: r["verdict"] == "MASKED" and r["claim"] == "HOLDS"),
            rate(of["invalid"], lambda r: r["verdict"] == "INVALID"),
            rate(weak, lambda r: r["verdict"] == "MASKED"),
            rate(weak, lambda r: r["verdict"] in r["expected"]),
            rate([r for r in numbers if took(r)], lambda r: r["claim"] == "OVERSTATED"),
            rate([r for r in numbers if not took(r)], lambda r: r["claim"] == "OVERSTATED"),
            _cost(of["honest"]),
            _passes(here),
        ]

    names = (
        "false MASKED, of honest models (at most 1 %)",
        "false SUSPECT, of honest models (at most 5 %)",
        "INCONCLUSIVE or INVALID, of honest models",
        "recall of MASKED, where it is the only right verdict (at least 95 %)",
        "accused, of planted failures with other right verdicts",
        "accused or corrected to within 2 points, of all planted failures (at least 95 %)",
        "verdict as expected, of all planted failures",
        "corrected within 2 points of the strongest attack known, of MASKED (at least 95 %)",
        "at most 5 points above it, of these (all)",
        "MASKED and HOLDS, of right numbers on hidden gradients",
        "INVALID, of evaluations that have no number",
        "false MASKED, of weak attacks on models that hide nothing",
        "verdict as expected, of these",
        f"claim OVERSTATED, of numbers more than {100 * TOOK:.0f} points off",
        "claim OVERSTATED, of numbers that are not",
        "gradients of honest models over AutoAttack's, median (at most 0.25)",
        "forward passes of an image, largest (at most 20,000)",
    )
    columns = [column(half) for half in halves]
    return table(["what", *(f"half {half}" for half in halves)], zip(names, *columns, strict=True))


def _cost(honest: Sequence[Record]) -> str:
    shares = [r["backward"] / r["autoattack_backward"] for r in honest if r.get("autoattack_backward")]
    return f"{np.median(shares):.2f} of {len(shares)} runs" if shares else "–"


def _passes(records: Sequence[Record]) -> str:
    if not records:
        return "–"
    most = max(records, key=lambda r: r["forward"])
    return f"{most['forward']:.0f} ({most['row']}, {most['dataset']}, seed {most['seed']})"
