"""``report.html``: one self-contained page made from the records, the figures and ``templates``."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from markupsafe import Markup

from art_qplugins.evaluation.outcome import outcomes_of
from art_qplugins.evaluation.pooled import pooled_cells
from art_qplugins.evaluation.records import Cell, Finding, ModelResult, Robust
from art_qplugins.report import reproduction, robustbench, select, words
from art_qplugins.report.figures import Drawing, Figures
from art_qplugins.report.files import Run
from art_qplugins.report.gallery import Gallery, gallery
from art_qplugins.report.rendering import own, template
from art_qplugins.report.sections import sections
from art_qplugins.report.steps import Level, levels
from art_qplugins.report.training import Training, training


@dataclass(frozen=True, kw_only=True)
class _ModelView:
    """One model, with everything that a template cannot look up.

    :ivar at: the norm and eps of the model's main numbers. ``robust`` is its worst case there.
    :ivar checks: by class of check, then by outcome: each finding with its row in the table of findings.
    :ivar counts: number of findings by outcome.
    :ivar clean_paper: the cell of its clean images, if a paper gives a number for it. ``claimed_paper`` is that of its claim.
    :ivar evidence: address of the evidence file, relative to the page.
    :ivar robustbench: reasons why RobustBench's leaderboards would not accept this model.
    """

    anchor: str
    model: ModelResult
    at: tuple[str, float] | None
    robust: Robust | None
    meaning: words.Meaning
    findings: list[Finding]
    checks: list[tuple[str, dict[str, list[tuple[int, Finding]]]]]
    counts: dict[str, int]
    levels: list[Level]
    evidence: str | None
    bars: Drawing | None
    margins: Drawing | None
    gradients: Drawing | None
    on_grid: select.OnGrid | None
    clean_paper: Cell | None
    claimed_paper: Cell | None
    robustbench: list[str]
    gallery: Gallery | None
    training: Training | None
    learning: Drawing | None


def page(run: Run, figures: Figures) -> str:
    """The page as text.

    Every string of the records is escaped. Only the figures drawn here, the style sheet, the script, and the checked
    HTML of sections from other packages are not.
    """
    results = run.results
    pooled = pooled_cells(results, outcomes_of(results, run.samples))
    papers = [row for row in pooled if row.paper is not None]
    script = own("sort.js")
    return template("page.html.j2").render(
        results=results,
        views=[_view(index, model, run, figures) for index, model in enumerate(results.models)],
        sections=sections(run),
        style=Markup(own("style.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        figures=figures,
        threats=select.threats(results),
        groups=select.groups(results.cells, lambda cell: cell.model),
        names=select.names(results.cells),
        papers=papers,
        cells={cell.id: cell for cell in results.cells},
        about_papers=reproduction.summary(papers),
        skipped=sum(cell.status == "skipped" for cell in results.cells),
        failed=[cell for cell in results.cells if cell.status == "error"],
    )


def _view(index: int, model: ModelResult, run: Run, figures: Figures) -> _ModelView:
    at = select.threat(model, run.results)
    outcomes = [words.OUTCOMES[finding.answer] for finding in model.findings]
    findings = words.ordered(model.findings)
    return _ModelView(
        anchor=f"model-{index + 1}",
        model=model,
        at=at,
        robust=None if at is None else select.robust_at(model, *at),
        meaning=words.VERDICTS[model.verdict],
        findings=findings,
        checks=_checks(findings),
        counts={outcome: outcomes.count(outcome) for outcome in words.OUTCOMES.values()},
        levels=levels(model, run),
        evidence=_address(model.evidence),
        bars=figures.bars[index],
        margins=figures.margins[index],
        gradients=figures.gradients[index],
        on_grid=select.on_grid(model, run),
        clean_paper=select.with_reference(select.clean(model, run.results)),
        claimed_paper=select.with_reference(select.claimed(model, run.results)),
        robustbench=robustbench.obstacles(model, run),
        gallery=gallery(model, run),
        training=training(model.name, run.results),
        learning=figures.training[index],
    )


def _checks(findings: list[Finding]) -> list[tuple[str, dict[str, list[tuple[int, Finding]]]]]:
    """Each class that has a check, with its checks by outcome and their rows in the table of findings."""
    table = []
    for name in words.CHECK_CLASSES:
        rows = [(row, finding) for row, finding in enumerate(findings, 1) if words.check_class(finding) == name]
        if rows:
            outcomes = words.OUTCOMES.items()
            table.append((name, {word: [r for r in rows if r[1].answer == answer] for answer, word in outcomes}))
    return table


def _address(path: str | None) -> str | None:
    """A link to a file of the run's evidence; ``None`` for a path that could lead elsewhere."""
    if path is None:
        return None
    parts = PurePosixPath(path.replace("\\", "/")).parts
    inside = parts[:1] == ("evidence",) and len(parts) > 1 and ".." not in parts
    return quote("/".join(parts)) if inside else None
