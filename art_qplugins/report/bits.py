"""The section on bits: what fewer of them do to the accuracy, clean and under attack."""

from __future__ import annotations

from art_qplugins.report.figures.bits import drawings, written
from art_qplugins.report.files import Run
from art_qplugins.report.rendering import template

__all__ = ["section"]


def section(run: Run) -> str | None:
    """The HTML; ``None`` where no models differ in their bits alone."""
    found = drawings(run.results)
    return template("bits.html.j2").render(drawings=found, written=written) if found else None
