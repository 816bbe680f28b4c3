"""The section on how far models are from their baselines, by paired tests, and the words for one difference."""

from __future__ import annotations

from art_qplugins.evaluation.records import Difference
from art_qplugins.report.figures import grids
from art_qplugins.report.figures.svg import drawn
from art_qplugins.report.files import Run
from art_qplugins.report.rendering import template

__all__ = ["follows", "section", "summary"]


def section(run: Run) -> str | None:
    """The HTML; ``None`` where no model has a baseline."""
    rows = run.results.differences
    if not rows:
        return None
    found = enumerate(grids.grids(run.results), 1)
    return template("baselines.html.j2").render(
        rows=rows,
        follows=follows,
        summary=summary(rows),
        drawings=[
            (drawn(f"section-baselines-{number}", grids.heat_map_alt(grid), grids.heat_map(grid)), grids.about(grid))
            for number, grid in found
        ],
    )


def follows(row: Difference) -> str:
    """What follows from a row."""
    if row.invalid:
        return "Says nothing: a verdict is INVALID."
    if not row.significant:
        return "No significant difference."
    return f"Significantly {'better' if row.difference > 0 else 'worse'} than {row.first}."


def summary(rows: list[Difference]) -> str:
    """What follows from all rows under attack, in a sentence or two."""
    attacked = [row for row in rows if row.metric == "robust_accuracy"]
    if not attacked:
        return "Nothing was attacked."
    invalid = sum(row.invalid for row in attacked)
    better, worse = (sum(row.significant and sign * row.difference > 0 for row in attacked) for sign in (1, -1))
    return (
        f"Numbers under the worst case: {len(attacked)}. Significantly better than the baseline: {better}. Significantly worse: "
        f"{worse}. No significant difference: {len(attacked) - better - worse - invalid}."
        + (f" Of models that could not be evaluated: {invalid}." if invalid else "")
    )
