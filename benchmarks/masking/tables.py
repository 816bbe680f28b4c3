"""What the tables of the zoo are made of, and the table of ``--check``. The report is in ``report.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from art_qplugins import metrics

__all__ = ["TOOK", "VERDICTS", "check_table", "counts", "percent", "rate", "table", "took"]

Record = dict[str, Any]
VERDICTS = ("MASKED", "SUSPECT", "NOT_REFUTED", "INCONCLUSIVE", "INVALID")
#: A planted failure took where the claimed number is more than this above the strongest attack known.
TOOK = 0.02


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def took(record: Record) -> bool:
    """Whether the claimed number is too high, whatever the diagnosis finds. Where there is no number: yes."""
    if record["claimed"] is None:
        return True
    strongest = record.get("reference", record.get("strongest", record.get("corrected")))
    return bool(record["claimed"] - strongest > TOOK)


def rate(records: Sequence[Record], hit: Callable[[Record], bool]) -> str:
    """Of how many records ``hit`` holds, in percent, with a 95 % Wilson interval."""
    if not records:
        return "–"
    k, n = sum(map(hit, records)), len(records)
    low, high = metrics.wilson_interval(k, n)
    return f"{k} of {n}, {100 * k / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def counts(record: Record) -> bool:
    """Whether it counts in the rates: a plant or a weak attack must have taken."""
    return record["kind"] in ("honest", "invalid") or took(record)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table, and an empty line."""
    return [f"| {' | '.join(map(str, r))} |" for r in (header, ["---"] * len(header), *rows)] + [""]


def check_table(records: Sequence[Record]) -> list[str]:
    """The table of ``--check``: "no" where a planted failure, or a weak attack, is not off by enough to count."""
    header = ("row", "data", "seed", "clean", "claimed", "strongest", "took", "train s", "attack s")
    return table(
        header,
        (
            (
                *(r[key] for key in ("row", "dataset", "seed")),
                *(percent(r[key]) for key in ("clean", "claimed", "strongest")),
                "" if r["kind"] in ("honest", "invalid") else "yes" if took(r) else "**no**",
                f"{r['training_seconds']:.1f}",
                f"{r.get('seconds', 0):.1f}",
            )
            for r in records
        ),
    )
