"""The section on deployed files: each beside the network that it was exported from, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from art_qplugins.evaluation.network_records import Deployment, Flips
from art_qplugins.evaluation.records import ModelResult
from art_qplugins.report import select
from art_qplugins.report.figures.deployment import costs, costs_alt, placed, threat_of
from art_qplugins.report.figures.svg import drawn
from art_qplugins.report.files import Run
from art_qplugins.report.rendering import template

__all__ = ["section"]


@dataclass(frozen=True)
class _Row:
    """A file and its network.

    :ivar of: the network; ``None`` of a file that was given.
    """

    file: ModelResult
    record: Deployment
    of: ModelResult | None

    @property
    def flips(self) -> list[Flips]:
        """The layers whose values are on other levels, on clean images or on adversarial ones, the worse of both."""
        several = [agreed.layers for agreed in (self.record.clean, self.record.adversarial) if agreed is not None]
        return [max(pair, key=lambda one: one.flips) for pair in zip(*several, strict=False)]


def section(run: Run) -> str | None:
    """The HTML; ``None`` where no model is a file."""
    results = run.results
    if not results.deployment:
        return None
    rows, at = list(_rows(run)), threat_of(results)
    points = placed(results)
    return template("deployment.html.j2").render(
        rows=rows,
        at=at,
        robust=lambda model: None if at is None or model is None else select.robust_at(model, *at),
        drawing=drawn("section-deployment-costs", costs_alt(points), costs(points, at)) if points and at else None,
    )


def _rows(run: Run) -> Iterator[_Row]:
    models = {model.name: model for model in run.results.models}
    for name, record in run.results.deployment.items():
        if name in models:
            yield _Row(models[name], record, None if record.of is None else models.get(record.of))
