"""``results.md``: every number of the run for people, rounded to percent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from art_qplugins.evaluation.records import Cell, ModelResult, Results, Robust
from art_qplugins.report import randomness, robustbench, select, words
from art_qplugins.report.files import Run
from art_qplugins.report.steps import Level, StepRow, levels, steps
from art_qplugins.report.training import training

__all__ = ["text"]

_EXPLANATION = (
    "Robust accuracy is the mean over images of the worst case over attacks. It is an upper bound under the attacks that "
    "were run. Brackets hold 95 % Wilson intervals, in percent."
)


def text(run: Run) -> str:
    """The whole run as GitHub-flavoured Markdown."""
    results = run.results
    parts = [
        "# Robustness of quantized networks",
        _text(words.headline(results)),
        *(f"**{_text(note)}**" for note in words.troubles(results)),
        _EXPLANATION,
        "## Summary",
        _summary(run),
        *_randomness(results),
        *(part for model in results.models for part in _model(model, run)),
        "## Cells",
        _cells(results),
        *([about] if (about := words.about_corruptions(results)) else []),
        *([words.ABOUT_PAPER] if select.referenced(results) else []),
        *_suites(results),
        "## RobustBench",
        _robustbench(run),
        "## Data",
        _text(", ".join(f"{key} {value}" for key, value in results.data.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _randomness(results: Results) -> list[str]:
    rows = randomness.tried(results)
    if not rows:
        return []
    head = ["model", "images", *(words.tries(one.tries) for one in rows[0].tries)]
    body = [
        [row.model, row.images, *(words.left(one, bound=row.threat is not None) for one in row.tries)] for row in rows
    ]
    known = "\n".join(f"- {_text(line)}" for line in randomness.known(results))
    return [part for part in ("## Models that draw afresh", known, _table(head, body), randomness.ABOUT) if part]


def _suites(results: Results) -> list[str]:
    lines = [f"- {_text(line)}" for line in words.suites(results)]
    return ["## Suites", "\n".join(lines)] if lines else []


def _robustbench(run: Run) -> str:
    """The models that RobustBench's leaderboards would accept, and the reasons for the others."""
    lines = []
    for model in run.results.models:
        why = robustbench.obstacles(model, run)
        lines.append(f"- {_text(model.name)}: {'no: ' + _text('; '.join(why)) if why else 'yes, see the JSON entry'}.")
    return "\n".join(lines) or "No finished model."


def _summary(run: Run) -> str:
    results = run.results
    columns = select.threats(results)
    grids = [select.on_grid(model, run) for model in results.models]
    clean = [select.with_reference(select.clean(model, results)) for model in results.models]
    claimed = [select.with_reference(select.claimed(model, results)) for model in results.models]
    rounded = ["corrected, pixels rounded"] if any(grids) else []
    rows = [
        [
            model.name,
            model.n,
            words.clean(model),
            *([words.paper(clean[i])] if any(clean) else []),
            *(_bound(select.robust_at(model, *column)) for column in columns),
            words.percent(model.claim.accuracy),
            *([words.paper(claimed[i])] if any(claimed) else []),
            words.at_most(model.claim.corrected, model.claim.interval),
            *([words.on_grid(grid)] if rounded else []),
            words.CLAIMS[model.claim.status],
            words.overstated(model.claim) or words.NONE,
            words.verdict(model.verdict),
            words.layer(model.layer) or words.NONE,
        ]
        for i, (model, grid) in enumerate(zip(results.models, grids, strict=True))
    ]
    head = ["model", "n", "clean", *(["clean, paper"] if any(clean) else [])]
    head += [*(words.threat(*column) for column in columns), "claimed", *(["claimed, paper"] if any(claimed) else [])]
    return _table([*head, "corrected", *rounded, "claim", "by how much", "verdict", "gradient lost at"], rows)


def _bound(robust: Robust | None) -> str:
    return words.NONE if robust is None else words.at_most(robust.accuracy, robust.interval)


def _model(model: ModelResult, run: Run) -> list[str]:
    parts = [f"## {_text(model.name)}", _text(model.description), f"**{words.verdict(model.verdict)}.** "]
    parts[-1] += _text(words.VERDICTS[model.verdict].short)
    parts.append(_text(model.summary))
    if (trained := training(model.name, run.results)) is not None:
        parts.append(_text(f"{trained}, {trained.pace}."))
    parts += [_text(f"{what} {shown} ({end})") for what, shown, end in words.reasons(model)]
    parts += [_text(f"Audit, {line}") for line in words.audits(model)]
    if model.evidence:
        parts.append(f"Evidence: {_text(model.evidence)}")
    if model.steps:
        parts += _steps(model, run)
    parts += _checks(model)
    return [part for part in parts if part]


def _checks(model: ModelResult) -> list[str]:
    rows = [
        [
            words.OUTCOMES[finding.answer],
            f"{finding.id}: {finding.title}",
            words.class_of(finding),
            finding.evidence,
            finding.shows_not,
            finding.mitigation if finding.fired else "",
        ]
        for finding in words.ordered(model.findings)
    ]
    head = ["outcome", "check", "class", "evidence", "what it does not show", "what to do"]
    return ["### Checks", _table(head, rows)] if rows else []


def _steps(model: ModelResult, run: Run) -> list[str]:
    """The steps of the diagnosis, and what each level cost per image."""
    rows = [
        [step.level, step.id, step.title, _or_none(step.robust), step.result, *_passes(step)]
        for step in steps(model, run)
    ]
    costs = [
        [f"{level.level} {level.title}", *(_passes(level) if level.ran else ("not run", "not run"))]
        for level in levels(model, run)
    ]
    passes = ("gradients per image", "forward passes per image")
    return [
        "### Steps of the diagnosis",
        _table(["level", "step", "what it does", "images attacked", "result", *passes], rows),
        _table(["level", *passes], costs),
    ]


def _passes(spent: StepRow | Level) -> tuple[str, str]:
    return words.count(spent.backward), words.count(spent.forward)


def _or_none(value: int | None) -> object:
    return words.NONE if value is None else value


def _status(cell: Cell) -> str:
    if cell.status == "success":
        return "; ".join(["ok", *cell.notes])
    return f"not run: {'; '.join(cell.notes)}" if cell.status == "skipped" else f"FAILED: {cell.error}"


def _cells(results: Results) -> str:
    gridded = any(cell.grid for cell in results.cells)
    papers = bool(select.referenced(results))
    rows = [
        [
            cell.model,
            cell.label,
            cell.source,
            "clean" if cell.role == "clean" else select.kind(cell),
            words.threat(cell.norm, cell.eps) if cell.role != "corruption" else words.NONE,
            words.images(cell),
            words.cell_accuracy(cell),
            *([words.paper(cell)] if papers else []),
            *([words.accuracy(cell.grid_accuracy, cell.grid_interval)] if gridded else []),
            cell.backward_samples,
            words.duration(cell.seconds),
            _status(cell),
        ]
        for cell in results.cells
    ]
    rounded = ["pixels rounded"] if gridded else []
    head = [
        "model",
        "attack",
        "crafted on",
        "kind",
        "threat",
        "n",
        "accuracy",
        *(["paper"] if papers else []),
        *rounded,
    ]
    head += ["backward passes", "time", "status"]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_text(entry) for entry in line)} |" for line in lines)


def _text(value: object) -> str:
    """Free text as Markdown shows it, on one line. It makes no HTML, no link and no table column."""
    text = re.sub(r"\s*[\r\n]+\s*", " ", str(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # "](", "][" and "]:" would make a link. Other brackets stay, so that intervals can be read.
    return re.sub(r"([\\`*|~]|\](?=[(\[:]))", r"\\\1", text)
