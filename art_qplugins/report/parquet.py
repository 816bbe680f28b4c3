"""``results.parquet`` and ``samples.parquet`` for programs. They need pyarrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from art_qplugins.evaluation.records import Cell, Sample
from art_qplugins.report.files import Run, write_bytes

NAMES = ("results.parquet", "samples.parquet")


def write(run: Run) -> list[Path]:
    """Write one row per cell to ``results.parquet``, and one row per cell and image to ``samples.parquet``.

    Columns are the fields of the records. A list or a table is JSON. Each measure of images has its own column,
    ``measures.NAME``.

    :return: the files written; none without pyarrow.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return []
    tables = {
        "results.parquet": _columns([_cell(cell) for cell in run.results.cells], list(Cell.model_fields)),
        "samples.parquet": _columns(
            [_sample(sample) for rows in run.samples.values() for sample in rows],
            [name for name in Sample.model_fields if name != "measures"],
        ),
    }
    written = []
    for name, columns in tables.items():
        out = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.table(columns), out)
        written.append(write_bytes(run.folder / name, out.getvalue().to_pybytes()))
    return written


def _cell(cell: Cell) -> dict[str, Any]:
    return {key: _flat(value) for key, value in cell.model_dump(mode="json").items()}


def _flat(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value


def _sample(sample: Sample) -> dict[str, Any]:
    row = sample.model_dump(mode="json", exclude={"measures"})
    return row | {f"measures.{name}": value for name, value in sample.measures.items()}


def _columns(rows: list[dict[str, Any]], first: list[str]) -> dict[str, list[Any]]:
    """Columns in the order of the records, then columns that only some rows have. Missing values are ``None``."""
    names = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
    return {name: [row.get(name) for row in rows] for name in names}
