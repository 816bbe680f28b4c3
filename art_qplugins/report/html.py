"""``report.html``: one page that needs nothing else, from the records and the figures drawn from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from art_qplugins.evaluation.records import Cell, Finding, ModelResult, Robust
from art_qplugins.report import select, tables, words
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
    counts: dict[str, int]  # findings by outcome
    bars: Drawing | None
    margins: Drawing | None
    gallery: Gallery | None


def page(run: Run, figures: Figures) -> str:
    """The report as HTML. Every string from the records is escaped; only the figures drawn here go in as they are."""
    results = run.results
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(json=_json, svg=lambda drawing: Markup(inline(drawing.svg)))
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        results=results,
        sections=[_section(index, model, run, figures) for index, model in enumerate(results.models)],
        curves=figures.curves,
        budgets=tables.budgets(results),
        robust_at=tables.robust_at,
        kind=select.kind,
        groups=_groups(results.cells, lambda cell: cell.model),
        names=_names(results.cells),
        error_line=_error_line,
        failed=[cell for cell in results.cells if cell.status == "error"],
        words=words,
    )


def _section(index: int, model: ModelResult, run: Run, figures: Figures) -> _Section:
    at = select.budget(model, run.results)
    outcomes = [words.OUTCOMES[finding.fired] for finding in model.findings]
    return _Section(
        anchor=f"model-{index + 1}",
        model=model,
        at=at,
        robust=None if at is None else tables.robust_at(model, *at),
        meaning=words.VERDICTS[model.verdict],
        findings=words.ordered(model.findings),
        counts={outcome: outcomes.count(outcome) for outcome in words.OUTCOMES.values()},
        bars=figures.bars[index],
        margins=figures.margins[index],
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


def _error_line(cell: Cell) -> str:
    """What went wrong: the last line of a traceback."""
    lines = (cell.error or "").strip().splitlines()
    return lines[-1] if lines else "no message was recorded"


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
