"""The section on what codes tell of images: the information plane, ROC curves, and how well weak attacks foretell strong ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from art_qplugins.report import words
from art_qplugins.report.figures.information import drawings
from art_qplugins.report.files import Run
from art_qplugins.report.plane import Prediction, planes, predictions
from art_qplugins.report.rendering import template

__all__ = ["section"]


def section(run: Run) -> str | None:
    """The HTML; ``None`` where the recipe did not ask for it, or no model is stochastic."""
    results = run.results
    if not results.information:
        return None
    found = planes(results)
    curves = [(plane, attack, points) for plane in found for attack, points in plane.attacks.items()]
    foretold = [(plane, attack, one) for plane, attack, points in curves for one in predictions(points)]
    return template("information.html.j2").render(
        records=results.information,
        drawings=drawings(results),
        rows=[(plane, attack, point, plane.control(point.eps)) for plane, attack, points in curves for point in points],
        foretold=foretold,
        summary=_summary([one for _, _, one in foretold]),
        few=sorted({f"{attack} on {plane.model}" for plane, attack, points in curves if len(points) < 3}),
    )


def _summary(foretold: Sequence[Prediction]) -> str:
    """The mean errors, where there are some."""
    errors = [(abs(one.error), abs(one.naive_error)) for one in foretold if one.error is not None]
    if not errors:
        return ""
    by_line, naive = (words.points(statistics.fmean(several)) for several in zip(*errors, strict=True))
    strengths = "one held-out strength" if len(errors) == 1 else f"{len(errors)} held-out strengths"
    return f"Over {strengths} its mean error is {by_line}, and that of the naive prediction {naive}."
