"""The steps of the diagnosis in the order of their cost: images attacked, images broken, and passes.

Everything is counted from the records of the cells. Nothing is judged again here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from art_qplugins.evaluation.records import Cell, ModelResult, Step
from art_qplugins.report import select, words
from art_qplugins.report.files import Run

LEVELS = {
    0: "the claim",
    1: "cheap attacks",
    2: "control experiments",
    3: "everything",
}

Outcome = Literal["broke images", "broke none", "not run"]


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One step of the diagnosis in the report.

    :ivar robust: number of images that it attacked. Its baseline had not broken them. ``None`` where it is not known.
    :ivar broke: number of attacked images that it broke and the claimed attack did not. A random model counts as broken
        on an image if most draws are wrong. ``None`` where the step attacked nothing.
    :ivar at: the norm and eps of the step, if they differ from those of the claim.
    :ivar forward: forward passes per image of the whole set.
    :ivar backward: gradient evaluations per image of the whole set.
    """

    id: str
    level: int
    title: str
    status: Literal["run", "skipped", "failed"]
    reason: str = ""
    robust: int | None = None
    broke: int | None = None
    at: str = ""
    forward: float = 0.0
    backward: float = 0.0

    @property
    def outcome(self) -> Outcome:
        if self.status != "run":
            return "not run"
        return "broke images" if self.broke else "broke none"

    @property
    def result(self) -> str:
        """The outcome with its numbers, or the reason why there is none."""
        if self.status == "skipped":
            return f"not run: {self.reason}"
        if self.status == "failed":
            return f"FAILED: {self.reason}"
        if self.broke is None:
            return "done"
        return f"broke {self.broke} of {self.robust}{f' at {self.at}' if self.at else ''}"


@dataclass(frozen=True, kw_only=True)
class Level:
    """All steps of one level, and their total cost."""

    level: int
    steps: list[StepRow]

    @property
    def title(self) -> str:
        return LEVELS.get(self.level, "")

    @property
    def ran(self) -> bool:
        return any(step.status != "skipped" for step in self.steps)

    @property
    def forward(self) -> float:
        return sum(step.forward for step in self.steps)

    @property
    def backward(self) -> float:
        return sum(step.backward for step in self.steps)

    def by(self, outcome: Outcome) -> list[StepRow]:
        return [step for step in self.steps if step.outcome == outcome]


def steps(model: ModelResult, run: Run) -> list[StepRow]:
    """The steps of a model's diagnosis. Level 0 comes first. Every diagnosis has it."""
    return [*_level_0(model, run), *(_row(step, model, run) for step in model.steps)]


def levels(model: ModelResult, run: Run) -> list[Level]:
    """The same steps by level. A level without steps is left out."""
    rows = steps(model, run)
    return [
        Level(level=level, steps=[row for row in rows if row.level == level])
        for level in sorted({row.level for row in rows})
    ]


def _level_0(model: ModelResult, run: Run) -> list[StepRow]:
    """The measurements of the model, and the claimed attack. The records hold them as cells, not as steps."""
    cells = {cell.id: cell for cell in run.results.cells}
    clean, claimed = select.clean(model, run.results), cells.get(model.claim.cell or "")
    if clean is None:
        return []
    rows = [_cell_row(clean, "measures", "answers, margins and gradients of the clean images", clean.n)]
    if claimed is not None:
        right = _right(clean, run)
        broken = right & _broken([claimed], run)
        rows.append(_cell_row(claimed, "claim", f"the claimed attack, {claimed.label}", len(right), len(broken)))
    return rows


def _cell_row(cell: Cell, name: str, title: str, robust: int, broke: int | None = None) -> StepRow:
    n = max(cell.n, 1)
    failed = cell.status == "error"
    return StepRow(
        id=name,
        level=0,
        title=title,
        status="failed" if failed else "run",
        reason=cell.error_line if failed else "",
        robust=robust,
        broke=None if failed else broke,
        forward=cell.forward_samples / n,
        backward=cell.backward_samples / n,
    )


def _row(step: Step, model: ModelResult, run: Run) -> StepRow:
    cells = [cell for cell in run.results.cells if cell.id in step.cells and cell.status == "success"]
    return StepRow(
        id=step.id,
        level=step.level,
        title=step.title,
        status=step.status,
        reason=step.reason,
        robust=step.robust,
        broke=len(_broken(cells, run) - _broken_by_claim(model, run)) if step.status == "run" else None,
        at=_other_threat(cells, model),
        forward=step.forward,
        backward=step.backward,
    )


def _broken_by_claim(model: ModelResult, run: Run) -> set[str]:
    """Images that the claimed attack broke. A step attacks them only if a random model is still correct in some draws."""
    return _broken([cell for cell in run.results.cells if cell.id == model.claim.cell], run)


def _right(cell: Cell, run: Run) -> set[str]:
    return {sample.sample for sample in run.samples.get(cell.id, []) if sample.correct >= 0.5}


def _broken(cells: list[Cell], run: Run) -> set[str]:
    return {sample.sample for cell in cells for sample in run.samples.get(cell.id, []) if sample.correct < 0.5}


def _other_threat(cells: list[Cell], model: ModelResult) -> str:
    claim = model.claim
    if not cells or claim.eps is None or all(math.isclose(c.eps, claim.eps, rel_tol=1e-6) for c in cells):
        return ""
    return words.threat(cells[0].norm, cells[0].eps)
