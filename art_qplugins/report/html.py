"""``report.html``: one page that needs nothing else, from the records and the figures drawn from them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from art_qplugins.evaluation.records import Cell, Finding, ModelResult, Robust
from art_qplugins.report import ladder, robustbench, select, tables, words
from art_qplugins.report.files import Run
from art_qplugins.report.gallery import Gallery, gallery
from art_qplugins.report.plots import Drawing, Figures
from art_qplugins.report.svg import inline


@dataclass(frozen=True, kw_only=True)
class _Section:
    """One model, with what the template would otherwise have to look up."""

    anchor: str
    model: ModelResult
    at: tuple[str, float] | None
    robust: Robust | None  # at that budget
    meaning: words.Meaning
    findings: list[Finding]
    checks: list[tuple[str, dict[str, list[tuple[int, Finding]]]]]  # by subject, then by outcome, with their row
    counts: dict[str, int]  # findings by outcome
    levels: list[ladder.Level]
    evidence: str | None  # address of the evidence file, beside the report
    bars: Drawing | None
    margins: Drawing | None
    gradients: Drawing | None
    on_grid: select.OnGrid | None
    robustbench: list[str]  # why its leaderboards would not take this model
    gallery: Gallery | None


def page(run: Run, figures: Figures) -> str:
    """The report as HTML. Every string from the records is escaped; only the figures drawn here go in as they are."""
    results = run.results
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(json=_json, svg=lambda drawing: Markup(inline(drawing.svg)))
    template = environment.from_string(_own("report.html.j2"))
    script = _own("sort.js.j2")
    return template.render(
        results=results,
        sections=[_section(index, model, run, figures) for index, model in enumerate(results.models)],
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        curves=figures.curves,
        transfer=figures.transfer,
        bits=figures.bits,
        budgets=tables.budgets(results),
        robust_at=tables.robust_at,
        kind=select.kind,
        groups=_groups(results.cells, lambda cell: cell.model),
        names=_names(results.cells),
        skipped=sum(cell.status == "skipped" for cell in results.cells),
        failed=[cell for cell in results.cells if cell.status == "error"],
        words=words,
    )


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _section(index: int, model: ModelResult, run: Run, figures: Figures) -> _Section:
    at = select.budget(model, run.results)
    outcomes = [words.OUTCOMES[finding.fired] for finding in model.findings]
    findings = words.ordered(model.findings)
    return _Section(
        anchor=f"model-{index + 1}",
        model=model,
        at=at,
        robust=None if at is None else tables.robust_at(model, *at),
        meaning=words.VERDICTS[model.verdict],
        findings=findings,
        checks=_checks(findings),
        counts={outcome: outcomes.count(outcome) for outcome in words.OUTCOMES.values()},
        levels=ladder.levels(model, run),
        evidence=_address(model.evidence),
        bars=figures.bars[index],
        margins=figures.margins[index],
        gradients=figures.gradients[index],
        on_grid=select.on_grid(model, run),
        robustbench=robustbench.obstacles(model, run),
        gallery=gallery(model, run),
    )


def _groups(cells: list[Cell], key: Callable[[Cell], Hashable]) -> dict[Hashable, list[Cell]]:
    """Cells by ``key``, in the order of the run."""
    groups: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def _names(cells: list[Cell]) -> dict[str, str]:
    """Short names by cell id. Only cells at the same budget need telling apart; the budget has a column of its own."""
    names: dict[str, str] = {}
    for group in _groups(cells, lambda cell: (cell.model, cell.norm, cell.eps)).values():
        names |= select.labels(group)
    return names


def _checks(findings: list[Finding]) -> list[tuple[str, dict[str, list[tuple[int, Finding]]]]]:
    """Subjects that have a check, each with its checks by outcome and their rows in the table of findings."""
    table = []
    for subject in words.SUBJECTS:
        rows = [(row, finding) for row, finding in enumerate(findings, 1) if words.subject(finding) == subject]
        if rows:
            outcomes = words.OUTCOMES.items()
            table.append((subject, {word: [r for r in rows if r[1].fired is fired] for fired, word in outcomes}))
    return table


def _address(path: str | None) -> str | None:
    """A link to a file within the run's folder; ``None`` for anything that could lead elsewhere."""
    if path is None:
        return None
    parts = PurePosixPath(path.replace("\\", "/")).parts
    inside = parts[:1] == ("evidence",) and len(parts) > 1 and ".." not in parts
    return quote("/".join(parts)) if inside else None


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
