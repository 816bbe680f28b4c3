"""The result of a run in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, ModelResult, Results
from art_qplugins.evaluation.store import Storage

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """A finished evaluation. ``models`` and ``cells`` are the records of ``results.json``.

    :ivar outcomes: every finished cell with its per-image results.
    :ivar report: the file ``report.html``; ``None`` for a run without a folder.
    """

    results: Results
    outcomes: Sequence[Outcome] = field(repr=False)
    store: Storage = field(repr=False)
    report: Path | None = None

    @property
    def models(self) -> list[ModelResult]:
        return self.results.models

    @property
    def cells(self) -> list[Cell]:
        return self.results.cells

    def x_adv(self, cell: Cell) -> NDArray[np.float32]:
        """The adversarial images of a cell, (N, C, H, W) in [0, 1]."""
        return self.store.images(cell.id)

    def __str__(self) -> str:
        rows = [("model", "clean", "threat", "robust at most", "verdict")]
        for m in self.models:
            clean = _interval(m.clean_accuracy, m.clean_interval)
            clean += "" if m.clean_rejected is None else f", {100 * m.clean_rejected:.1f} % rejected"
            bounds = [(f"{r.norm} {r.eps:.4g}", _interval(r.accuracy, r.interval)) for r in m.robust] or [("", "")]
            rows += [(m.name, clean, *bound, m.verdict) for bound in bounds]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        audits = [f"{m.name}, {a.norm} {a.eps:.4g}: {a}" for m in self.models for a in m.audits]
        return "\n".join([*lines, *audits])

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def _interval(accuracy: float, interval: tuple[float, float]) -> str:
    return f"{100 * accuracy:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
