"""``results.md`` for people and ``results.csv`` for programs. The first rounds to percent, the second never does."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence

from art_qplugins.evaluation.records import Cell, ModelResult, Results, Robust
from art_qplugins.report import select, words
from art_qplugins.report.files import Run

CSV_COLUMNS = (
    *("id", "model", "source", "attack", "role", "norm", "eps", "seed", "n", "accuracy", "lower", "upper"),
    *("forward_samples", "backward_samples", "seconds", "status", "error", "notes", "params"),
)

READING = (
    "Robust accuracy is an upper bound under the attacks that were run: the mean over images of the worst case over "
    "attacks. Brackets hold 95 % Wilson intervals, in percent."
)


def csv_text(run: Run) -> str:
    """One row per cell; accuracies and intervals are fractions as recorded."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_row(cell) for cell in run.results.cells)
    return out.getvalue()


def _csv_row(cell: Cell) -> dict[str, object]:
    row = {key: value for key, value in cell.model_dump().items() if key in CSV_COLUMNS}
    row["lower"], row["upper"] = cell.interval or (None, None)
    row["notes"] = "; ".join(cell.notes)
    row["params"] = json.dumps(cell.params, sort_keys=True, default=str)
    return row


def budgets(results: Results) -> list[tuple[str, float]]:
    """The budgets that any model has a worst case for: the columns of the summary."""
    return sorted({(robust.norm, robust.eps) for model in results.models for robust in model.robust})


def robust_at(model: ModelResult, norm: str, eps: float) -> Robust | None:
    return next((robust for robust in model.robust if (robust.norm, robust.eps) == (norm, eps)), None)


def markdown(run: Run) -> str:
    """The whole run as GitHub-flavoured Markdown."""
    results = run.results
    parts = [
        "# Robustness of quantized networks",
        _text(words.headline(results)),
        *(f"**{_text(note)}**" for note in words.troubles(results)),
        READING,
        "## Summary",
        _summary(results),
        *(part for model in results.models for part in _model(model)),
        "## Cells",
        _cells(results),
        "## Data",
        _text(", ".join(f"{key} {value}" for key, value in results.data.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(results: Results) -> str:
    columns = budgets(results)
    head = ["model", "n", "clean", *(words.budget(*column) for column in columns)]
    rows = [
        [
            model.name,
            model.n,
            words.clean(model),
            *(_bound(robust_at(model, *column)) for column in columns),
            words.percent(model.claim.accuracy),
            words.at_most(model.claim.corrected, model.claim.interval),
            words.CLAIMS[model.claim.status],
            words.verdict(model.verdict),
        ]
        for model in results.models
    ]
    return _table([*head, "claimed", "corrected", "claim", "verdict"], rows)


def _bound(robust: Robust | None) -> str:
    return words.NONE if robust is None else words.at_most(robust.accuracy, robust.interval)


def _model(model: ModelResult) -> list[str]:
    parts = [f"## {_text(model.name)}", _text(model.description), f"**{words.verdict(model.verdict)}.** "]
    parts[-1] += _text(words.VERDICTS[model.verdict].short)
    parts.append(_text(model.summary))
    rows = [
        [
            words.OUTCOMES[finding.fired],
            f"{finding.id} {finding.title}",
            words.CLASSES[finding.class_],
            finding.evidence,
            finding.mitigation if finding.fired else "",
        ]
        for finding in words.ordered(model.findings)
    ]
    if rows:
        parts.append(_table(["outcome", "check", "class", "evidence", "what to do"], rows))
    return [part for part in parts if part]


def _cells(results: Results) -> str:
    rows = [
        [
            cell.model,
            cell.label,
            cell.source,
            "clean" if cell.role == "clean" else select.kind(cell),
            words.budget(cell.norm, cell.eps),
            cell.n,
            words.accuracy(cell.accuracy, cell.interval),
            cell.backward_samples,
            words.duration(cell.seconds),
            "; ".join(["ok", *cell.notes]) if cell.status == "success" else f"FAILED: {cell.error}",
        ]
        for cell in results.cells
    ]
    head = ["model", "attack", "crafted on", "kind", "budget", "n", "accuracy", "backward passes", "time", "status"]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_text(entry) for entry in line)} |" for line in lines)


def _text(value: object) -> str:
    """Free text made harmless in Markdown: no HTML, no links, no broken table, one line."""
    text = re.sub(r"\s*[\r\n]+\s*", " ", str(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A bracket alone is left as it is, so that intervals stay readable; "](", "][" and "]:" would make a link.
    return re.sub(r"([\\`*|~]|\](?=[(\[:]))", r"\\\1", text)
