"""``results.csv``: every cell of the run for programs. No number is rounded.

A text that a spreadsheet would run as a formula starts with an apostrophe, as OWASP advises on CSV injection.
"""

from __future__ import annotations

import csv
import io
import json

from art_qplugins.evaluation.records import Cell, ModelResult, Results
from art_qplugins.report import select
from art_qplugins.report.files import Run

__all__ = ["COLUMNS", "text"]

COLUMNS = (
    *("id", "model", "source", "attack", "role", "norm", "eps", "seed", "n", "accuracy", "lower", "upper"),
    *("forward_samples", "backward_samples", "seconds", "status", "error", "notes", "params"),
    "of",  # images in all, where only n of them were attacked
    "reference",  # the accuracy that a paper gives, if one does
    "rejected",  # of the accuracy, what part are rejected images; empty without a rejection class
    # Of a random model: what is left after so many tries, or after tries_counted of 100 where there were no more draws.
    *("after_10_tries", "after_100_tries", "tries_counted"),
    *("grid", "grid_accuracy", "grid_lower", "grid_upper"),  # after pixels were rounded to this many levels
    *("level", "step"),  # of the diagnosis that ran the cell; empty for cells of the recipe
    # Of the model, and the same in all of its rows:
    *("verdict", "claim_status", "claimed", "corrected", "overstated_by", "overstated_lower", "overstated_upper"),
    *("blocking_layer", "blocking_op"),
)

#: The first characters by which spreadsheets know a formula; tab and line ends are skipped before they look.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def text(run: Run) -> str:
    """One row a cell. Accuracies and intervals are fractions, as recorded.

    ``accuracy`` is over the ``n`` images that the cell attacked. So filter on an empty ``of`` before you average. The sum
    of the passes of one ``level`` is what that level of the diagnosis cost.
    """
    models = {model.name: _model(model) for model in run.results.models}
    places = {name: place for model in run.results.models for name, place in _places(model, run.results).items()}
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for cell in run.results.cells:
        row = _row(cell) | models.get(cell.model, {}) | places.get(cell.id, {})
        writer.writerow({column: _no_formula(value) for column, value in row.items()})
    return out.getvalue()


def _no_formula(value: object) -> object:
    """Numbers stay numbers, negative ones too."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _model(model: ModelResult) -> dict[str, object]:
    low, high = model.claim.overstated_interval or (None, None)
    return {
        "verdict": model.verdict,
        "claim_status": model.claim.status,
        "claimed": model.claim.accuracy,
        "corrected": model.claim.corrected,
        "overstated_by": model.claim.overstated_by,
        "overstated_lower": low,
        "overstated_upper": high,
        "blocking_layer": model.layer.layer if model.layer else None,
        "blocking_op": model.layer.op if model.layer else None,
    }


def _places(model: ModelResult, results: Results) -> dict[str, dict[str, object]]:
    """Level and step by cell id."""
    clean = select.clean(model, results)
    places = {name: {"level": step.level, "step": step.id} for step in model.steps for name in step.cells}
    if clean is not None and model.claim.cell is not None:
        places[clean.id] = {"level": 0, "step": "measures"}
        places[model.claim.cell] = {"level": 0, "step": "claim"}
    return places


def _row(cell: Cell) -> dict[str, object]:
    row = {key: value for key, value in cell.model_dump().items() if key in COLUMNS}
    row["lower"], row["upper"] = cell.interval or (None, None)
    row |= {f"after_{one.tries}_tries": one.accuracy for one in cell.tries if one.tries > 1}
    row["tries_counted"] = cell.tries[-1].counted if cell.tries else None
    row["grid_lower"], row["grid_upper"] = cell.grid_interval or (None, None)
    row["notes"] = "; ".join(cell.notes)
    row["params"] = json.dumps(cell.params, sort_keys=True, default=str)
    return row
