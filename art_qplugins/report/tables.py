"""``results.md`` for people and ``results.csv`` for programs. The first rounds to percent, the second never does."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence

from art_qplugins.evaluation.records import Cell, ModelResult, Results, Robust
from art_qplugins.report import ladder, robustbench, select, words
from art_qplugins.report.files import Run

CSV_COLUMNS = (
    *("id", "model", "source", "attack", "role", "norm", "eps", "seed", "n", "accuracy", "lower", "upper"),
    *("forward_samples", "backward_samples", "seconds", "status", "error", "notes", "params"),
    "of",  # images in all, where only n of them were attacked
    *("grid", "grid_accuracy", "grid_lower", "grid_upper"),  # once pixels were rounded to so many levels
    *("level", "step"),  # of the diagnosis that ran the cell; empty where it was the recipe's
    # Of the model, the same in all of its rows:
    *("verdict", "claim_status", "claimed", "corrected", "overstated_by", "overstated_lower", "overstated_upper"),
    *("guilty_layer", "guilty_op"),
)

READING = (
    "Robust accuracy is an upper bound under the attacks that were run: the mean over images of the worst case over "
    "attacks. Brackets hold 95 % Wilson intervals, in percent."
)


def csv_text(run: Run) -> str:
    """One row per cell; accuracies and intervals are fractions as recorded.

    ``accuracy`` is over the ``n`` images that the cell attacked: filter on an empty ``of`` before averaging. Passes summed
    over ``level`` are what the levels of a diagnosis cost.
    """
    models = {model.name: _csv_model(model) for model in run.results.models}
    places = {name: place for model in run.results.models for name, place in _places(model, run.results).items()}
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        _csv_row(cell) | models.get(cell.model, {}) | places.get(cell.id, {}) for cell in run.results.cells
    )
    return out.getvalue()


def _csv_model(model: ModelResult) -> dict[str, object]:
    low, high = model.claim.overstated_interval or (None, None)
    return {
        "verdict": model.verdict,
        "claim_status": model.claim.status,
        "claimed": model.claim.accuracy,
        "corrected": model.claim.corrected,
        "overstated_by": model.claim.overstated_by,
        "overstated_lower": low,
        "overstated_upper": high,
        "guilty_layer": model.layer.layer if model.layer else None,
        "guilty_op": model.layer.op if model.layer else None,
    }


def _places(model: ModelResult, results: Results) -> dict[str, dict[str, object]]:
    """Level and step by cell id."""
    clean = select.clean(model, results)
    places = {name: {"level": step.level, "step": step.id} for step in model.steps for name in step.cells}
    if clean is not None and model.claim.cell is not None:
        places[clean.id] = {"level": 0, "step": "measures"}
        places[model.claim.cell] = {"level": 0, "step": "claim"}
    return places


def _csv_row(cell: Cell) -> dict[str, object]:
    row = {key: value for key, value in cell.model_dump().items() if key in CSV_COLUMNS}
    row["lower"], row["upper"] = cell.interval or (None, None)
    row["grid_lower"], row["grid_upper"] = cell.grid_interval or (None, None)
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
        _summary(run),
        *(part for model in results.models for part in _model(model, run)),
        "## Cells",
        _cells(results),
        "## RobustBench",
        *_robustbench(run),
        "## Data",
        _text(", ".join(f"{key} {value}" for key, value in results.data.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _robustbench(run: Run) -> Iterable[str]:
    """Which models its leaderboards would take, and why not the others."""
    lines = []
    for model in run.results.models:
        why = robustbench.obstacles(model, run)
        lines.append(f"- {_text(model.name)}: {'no: ' + _text('; '.join(why)) if why else 'yes, see the JSON entry'}.")
    yield "\n".join(lines) or "No finished model."


def _summary(run: Run) -> str:
    results = run.results
    columns = budgets(results)
    grids = [select.on_grid(model, run) for model in results.models]
    head = ["model", "n", "clean", *(words.budget(*column) for column in columns)]
    rounded = ["corrected, pixels rounded"] if any(grids) else []
    rows = [
        [
            model.name,
            model.n,
            words.clean(model),
            *(_bound(robust_at(model, *column)) for column in columns),
            words.percent(model.claim.accuracy),
            words.at_most(model.claim.corrected, model.claim.interval),
            *([words.on_grid(grid)] if rounded else []),
            words.CLAIMS[model.claim.status],
            words.overstated(model.claim) or words.NONE,
            words.verdict(model.verdict),
            words.layer(model.layer) or words.NONE,
        ]
        for model, grid in zip(results.models, grids, strict=True)
    ]
    return _table(
        [*head, "claimed", "corrected", *rounded, "claim", "by how much", "verdict", "gradient lost at"], rows
    )


def _bound(robust: Robust | None) -> str:
    return words.NONE if robust is None else words.at_most(robust.accuracy, robust.interval)


def _model(model: ModelResult, run: Run) -> list[str]:
    parts = [f"## {_text(model.name)}", _text(model.description), f"**{words.verdict(model.verdict)}.** "]
    parts[-1] += _text(words.VERDICTS[model.verdict].short)
    parts.append(_text(model.summary))
    if model.evidence:
        parts.append(f"Evidence: {_text(model.evidence)}")
    if model.steps:
        parts += _ladder(model, run)
    rows = [
        [
            words.OUTCOMES[finding.fired],
            f"{finding.id} {finding.title}",
            words.class_of(finding),
            finding.evidence,
            finding.shows_not,
            finding.mitigation if finding.fired else "",
        ]
        for finding in words.ordered(model.findings)
    ]
    if rows:
        parts.append(_table(["outcome", "check", "class", "evidence", "what it does not show", "what to do"], rows))
    return [part for part in parts if part]


def _ladder(model: ModelResult, run: Run) -> list[str]:
    """The steps, and what each level cost an image."""
    steps = [
        [rung.level, rung.id, rung.title, _or_none(rung.standing), rung.told, *_passes(rung)]
        for rung in ladder.rungs(model, run)
    ]
    costs = [
        [f"{level.level} {level.title}", *(_passes(level) if level.ran else ("not run", "not run"))]
        for level in ladder.levels(model, run)
    ]
    passes = ("gradients an image", "forward passes an image")
    return [
        _table(["level", "step", "what it tries", "images standing", "what came of it", *passes], steps),
        _table(["level", *passes], costs),
    ]


def _passes(spent: ladder.DiagnosisStep | ladder.Level) -> tuple[str, str]:
    return words.count(spent.backward), words.count(spent.forward)


def _or_none(value: int | None) -> object:
    return words.NONE if value is None else value


def _status(cell: Cell) -> str:
    if cell.status == "success":
        return "; ".join(["ok", *cell.notes])
    return f"not run: {'; '.join(cell.notes)}" if cell.status == "skipped" else f"FAILED: {cell.error}"


def _cells(results: Results) -> str:
    gridded = any(cell.grid for cell in results.cells)
    rows = [
        [
            cell.model,
            cell.label,
            cell.source,
            "clean" if cell.role == "clean" else select.kind(cell),
            words.budget(cell.norm, cell.eps),
            words.images(cell),
            words.left(cell),
            *([words.accuracy(cell.grid_accuracy, cell.grid_interval)] if gridded else []),
            cell.backward_samples,
            words.duration(cell.seconds),
            _status(cell),
        ]
        for cell in results.cells
    ]
    rounded = ["pixels rounded"] if gridded else []
    head = ["model", "attack", "crafted on", "kind", "budget", "n", "accuracy", *rounded]
    head += ["backward passes", "time", "status"]
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
