"""Where the records of runs are kept, and when one is still good. A record is one JSON line, without data of single images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from one_run import IMAGES, Key, Record

import art_qplugins
from art_qplugins.evaluation.old_names import INDICATORS

__all__ = ["COMMITTED", "commit", "key_of", "read", "version"]

#: The records that the tables of ``results.md`` are made of.
COMMITTED = Path(__file__).parent / "records.jsonl"
#: What a committed record has, where its run has it.
_FIELDS = (
    *("row", "dataset", "seed", "n", "half", "kind", "family", "mechanism", "network", "expected", "must_fire"),
    *("verdict", "claim", "clean", "claimed", "corrected", "reference", "fired", "not_run", "values"),
    *("forward", "backward", "levels", "seconds"),
    *("autoattack", "autoattack_forward", "autoattack_backward", "version"),
)
#: Indicators whose values the report shows thresholds of.
VALUED = ("large-logits", "gradient-underflow", "gradient-alignment", "unfaithful-gradient", "noisy-gradient")
#: Files of the package that change no record.
_UNTOUCHED = ("report", "data", "cli.py", "terminal", "evidence.py")
#: Modules beside this one that change no record.
_ASIDE = ("measure", "null", "papers", "records", "report", "rates", "tables")


def version(*more: Path) -> str:
    """Hash of what changes a record: the zoo, how it is run, the files of ``more``, the package and torch."""
    here, package = Path(__file__).parent, Path(art_qplugins.__file__).parent
    digest = hashlib.sha256(torch.__version__.encode())
    files = [f for f in sorted(here.glob("*.py")) if f.stem not in _ASIDE]
    files += [f for f in sorted(package.rglob("*.py")) if f.relative_to(package).parts[0] not in _UNTOUCHED]
    for file in (*files, *more):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def key_of(record: Record) -> Key:
    return record["row"], record["dataset"], record["seed"], record.get("n", IMAGES)


def read(paths: Iterable[Path], current: str | None) -> dict[Key, Record]:
    """The last record of every run made with this version; of any version where ``current`` is None.

    :param paths: files of one run each, e.g. of its shards. Those that are missing have no records.
    """
    lines = [line for path in paths if path.exists() for line in path.read_text(encoding="utf-8").splitlines()]
    records = map(_renamed, map(json.loads, lines))
    return {key_of(r): r for r in records if current in (None, r["version"])}


def _renamed(record: Record) -> Record:
    """With today's ids of the indicators, whatever version wrote it."""

    def today(name: str) -> str:
        return INDICATORS.get(name, name)

    renamed = {"n": IMAGES} | record
    for key in ("fired", "not_run", "must_fire"):
        if key in record:
            renamed[key] = [today(name) for name in record[key]]
    if "values" in record:
        renamed["values"] = {today(name): value for name, value in record["values"].items()}
    return renamed


def commit(records: Sequence[Record], path: Path = COMMITTED) -> None:
    """Write what the tables need, sorted and rounded, so that one changed run is one changed line."""
    lines = sorted(json.dumps(_small(r), separators=(",", ":")) for r in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _small(record: Record) -> Record:
    small = {key: record[key] for key in _FIELDS if key in record}
    small["values"] = {k: v for k, v in record.get("values", {}).items() if k in VALUED and v is not None}
    rounded: Record = _rounded(small)
    return rounded


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return value
