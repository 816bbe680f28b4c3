"""What a diagnosis tried, in the order of its cost: each step's images, what it broke of them, and its passes.

Counted from the records of the cells; nothing is judged again here.
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
    2: "controls",
    3: "everything",
}

Outcome = Literal["broke images", "broke none", "not run"]


@dataclass(frozen=True, kw_only=True)
class DiagnosisStep:
    """One step as it is shown.

    ``standing`` images were attacked. ``broke`` of them are answered wrongly after it, by most draws where the model is
    random, and were not after the claimed attack.
    """

    id: str
    level: int
    title: str
    status: Literal["run", "skipped", "failed"]
    reason: str = ""
    standing: int | None = None
    broke: int | None = None  # None where it attacked nothing
    at: str = ""  # its budget, where it is another than the claim's
    forward: float = 0.0  # passes per image of the whole set
    backward: float = 0.0  # gradient evaluations per image of the whole set

    @property
    def outcome(self) -> Outcome:
        if self.status != "run":
            return "not run"
        return "broke images" if self.broke else "broke none"

    @property
    def why_not(self) -> str:
        """Why there is no answer; empty where there is one."""
        return {"run": "", "skipped": self.reason, "failed": f"FAILED: {self.reason}"}[self.status]

    @property
    def told(self) -> str:
        """What came of it, in a few words."""
        if self.status != "run":
            return f"not run: {self.reason}" if self.status == "skipped" else self.why_not
        if self.broke is None:
            return "done"
        return f"broke {self.broke} of {self.standing}{f' at {self.at}' if self.at else ''}"


@dataclass(frozen=True, kw_only=True)
class Level:
    """All steps of one level, and what they cost together."""

    level: int
    rungs: list[DiagnosisStep]

    @property
    def title(self) -> str:
        return LEVELS.get(self.level, "")

    @property
    def ran(self) -> bool:
        return any(rung.status != "skipped" for rung in self.rungs)

    @property
    def forward(self) -> float:
        return sum(rung.forward for rung in self.rungs)

    @property
    def backward(self) -> float:
        return sum(rung.backward for rung in self.rungs)

    def by(self, outcome: Outcome) -> list[DiagnosisStep]:
        return [rung for rung in self.rungs if rung.outcome == outcome]


def rungs(model: ModelResult, run: Run) -> list[DiagnosisStep]:
    """Level 0, which every diagnosis has, and the steps of the others."""
    return [*_start(model, run), *(_rung(step, model, run) for step in model.steps)]


def levels(model: ModelResult, run: Run) -> list[Level]:
    steps = rungs(model, run)
    return [
        Level(level=level, rungs=[rung for rung in steps if rung.level == level])
        for level in sorted({rung.level for rung in steps})
    ]


def _start(model: ModelResult, run: Run) -> list[DiagnosisStep]:
    """What is measured of the model, and the claimed attack: they are cells, not steps."""
    cells = {cell.id: cell for cell in run.results.cells}
    clean, claimed = select.clean(model, run.results), cells.get(model.claim.cell or "")
    if clean is None:
        return []
    start = [_cost(clean, "measures", "answers, margins and gradients of the clean images", clean.n)]
    if claimed is not None:
        right = _right(clean, run)
        broken = right & _broken([claimed], run)
        start.append(_cost(claimed, "claim", f"the claimed attack, {claimed.label}", len(right), len(broken)))
    return start


def _cost(cell: Cell, name: str, title: str, standing: int, broke: int | None = None) -> DiagnosisStep:
    n = max(cell.n, 1)
    failed = cell.status == "error"
    return DiagnosisStep(
        id=name,
        level=0,
        title=title,
        status="failed" if failed else "run",
        reason=cell.error_line if failed else "",
        standing=standing,
        broke=None if failed else broke,
        forward=cell.forward_samples / n,
        backward=cell.backward_samples / n,
    )


def _rung(step: Step, model: ModelResult, run: Run) -> DiagnosisStep:
    cells = [cell for cell in run.results.cells if cell.id in step.cells and cell.status == "success"]
    return DiagnosisStep(
        id=step.id,
        level=step.level,
        title=step.title,
        status=step.status,
        reason=step.reason,
        standing=step.robust,
        broke=len(_broken(cells, run) - _lost(model, run)) if step.status == "run" else None,
        at=_elsewhere(cells, model),
        forward=step.forward,
        backward=step.backward,
    )


def _lost(model: ModelResult, run: Run) -> set[str]:
    """What the claimed attack had broken. A step attacks none of it, but where a random model still answers some draws."""
    return _broken([cell for cell in run.results.cells if cell.id == model.claim.cell], run)


def _right(cell: Cell, run: Run) -> set[str]:
    return {sample.sample for sample in run.samples.get(cell.id, []) if sample.correct >= 0.5}


def _broken(cells: list[Cell], run: Run) -> set[str]:
    return {sample.sample for cell in cells for sample in run.samples.get(cell.id, []) if sample.correct < 0.5}


def _elsewhere(cells: list[Cell], model: ModelResult) -> str:
    claim = model.claim
    if not cells or claim.eps is None or all(math.isclose(c.eps, claim.eps, rel_tol=1e-6) for c in cells):
        return ""
    return words.budget(cells[0].norm, cells[0].eps)
