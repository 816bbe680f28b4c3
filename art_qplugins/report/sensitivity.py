"""The section on how far models carry a change of their input: figures of distances, and the norms of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from art_qplugins.report import words
from art_qplugins.report.figures import changes, distances, logits
from art_qplugins.report.figures.svg import Drawing, drawn
from art_qplugins.report.files import Run
from art_qplugins.report.rendering import template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from art_qplugins.evaluation.network_records import Terms

__all__ = ["section"]


def section(run: Run) -> str | None:
    """The HTML; ``None`` where the recipe did not ask for it."""
    results = run.results
    if not results.sensitivity:
        return None
    return template("sensitivity.html.j2").render(
        drawings=[pair for number, one in enumerate(distances.moved(results), 1) for pair in _drawings(number, one)],
        changed=drawn("section-sensitivity-changes", changes.over_layers_alt(changed), changes.over_layers(changed))
        if (changed := changes.changes(results))
        else None,
        over=[
            drawn(f"section-sensitivity-logits-{number}", logits.over_values_alt(one), logits.over_values(one))
            for number, one in enumerate(logits.changed(results), 1)
        ],
        scaled=[(model, record) for model, record in results.sensitivity.items() if record.gain is not None],
        terms=list(_terms(run)),
        norms=[(model, norm) for model, record in results.sensitivity.items() for norm in record.norms],
        skipped=[
            (model, name, reason)
            for model, record in results.sensitivity.items()
            for name, reason in record.skipped.items()
        ],
    )


def _drawings(number: int, one: distances.Moved) -> Iterator[tuple[Drawing, str]]:
    crafted = "each model" if one.source is None else one.source
    about = f"Images of {one.attack} on {crafted}."
    if len(one.eps) > 1:
        name = f"section-sensitivity-eps-{number}"
        yield drawn(name, distances.over_eps_alt(one), distances.over_eps(one)), about
    eps = one.eps[-1]
    name = f"section-sensitivity-layers-{number}"
    yield (
        drawn(name, distances.over_layers_alt(one, eps), distances.over_layers(one, eps)),
        f"{about} At {words.threat(one.norm, eps)}.",
    )


def _terms(run: Run) -> Iterator[tuple[str, str, str, Terms]]:
    """The model, its base, the attack and the terms of each cell that was measured."""
    cells = {cell.id: cell for cell in run.results.cells}
    for model, record in run.results.sensitivity.items():
        for terms in record.terms:
            if record.base is not None and (cell := cells.get(terms.cell)) is not None:
                yield model, record.base, f"{cell.label}, {words.threat(cell.norm, cell.eps)}", terms
