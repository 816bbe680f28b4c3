"""What the tables of the zoo are made of, and the table of ``--check``. The report is in ``report.py``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["ACCUSED", "TOOK", "VERDICTS", "check_table", "counts", "percent", "table", "took"]

Record = dict[str, Any]
ACCUSED = ("MASKED", "SUSPECT", "INVALID")
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


def counts(record: Record) -> bool:
    """Whether it counts in the rates: a plant or a weak attack must have taken."""
    return record["kind"] in ("honest", "misleading", "invalid") or took(record)


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
                "" if r["kind"] in ("honest", "misleading", "invalid") else "yes" if took(r) else "**no**",
                f"{r['training_seconds']:.1f}",
                f"{r.get('seconds', 0):.1f}",
            )
            for r in records
        ),
    )
