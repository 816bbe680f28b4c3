"""Runs cells and keeps their outcomes. No cell is computed twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.cost import Cost, expected_passes
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.executor import Executor, Serial, run_cells
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.sharing import SharedImages, scored_on_grid
from art_qplugins.evaluation.store import Storage

__all__ = ["CellProgress", "Scheduler"]


class CellProgress(Protocol):
    """Is told how many cells there are, how much work is left in them, and each one as it is finished."""

    def cells(self, total: int) -> None: ...
    def left(self, passes: float | None, until: str) -> None: ...
    def cell(self, outcome: Outcome, reused: bool) -> None: ...


class Scheduler:
    """Runs the cells that no earlier run and no earlier call has finished, on an executor.

    Images that were crafted for one model are scored on another model without crafting them again.

    :param executor: by default this process.
    :param grid: also score every cell with pixels rounded to this many levels.
    :ivar total: number of cells requested so far.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        store: Storage,
        progress: CellProgress,
        executor: Executor | None = None,
        *,
        grid: int | None = None,
    ) -> None:
        self.evaluator, self.store, self.progress, self.grid = evaluator, store, progress, grid
        self.total = 0
        self._executor = executor or Serial(evaluator)
        self._outcomes: dict[str, Outcome | None] = {}  # by id, in the order of the requests; None until it is finished
        self._shared = SharedImages(evaluator, store)
        self._left: dict[str, tuple[str, float | None]] = {}  # attack and expected passes of unfinished cells, by id
        self._took: dict[
            str, tuple[float, float]
        ] = {}  # expected passes of finished cells and what they took, by attack

    def run(self, specs: Iterable[CellSpec], *, until: str = "") -> None:
        """Run those cells that are new.

        :param until: what comes after them; "" where more cells may come that nobody knows yet.
        """
        new = {self.evaluator.id_of(spec): spec for spec in specs}
        new = {name: spec for name, spec in new.items() if self._outcomes.get(name) is None}
        self._outcomes |= dict.fromkeys(new)
        self.total += len(new)
        self.progress.cells(self.total)
        crafted, waiting = self._shared.split(new)
        self._left = {name: (spec.attack, self._passes(spec)) for name, spec in crafted.items()}
        self._left |= {name: (spec.attack, 0.0) for name, spec in waiting.items()}
        self._run(crafted, until)
        missing = {}
        for name, spec in waiting.items():
            if (outcome := self._shared.scored(spec)) is None:
                missing[name] = spec  # finished in an earlier run, or its images were not available
            else:
                self._finish(spec, outcome, until, reused=False)
        self._left |= {name: (spec.attack, self._passes(spec)) for name, spec in missing.items()}
        self._run(missing, until)

    def _run(self, specs: Mapping[str, CellSpec], until: str) -> None:
        for spec, outcome, reused in run_cells(self.evaluator, specs.values(), self.store, self._executor):
            self._finish(spec, outcome, until, reused=reused)

    def _passes(self, spec: CellSpec) -> float | None:
        """What a cell may take that is not finished."""
        images = len(self.evaluator.rows(spec.rows))
        return expected_passes(spec, images, passes=self.evaluator.passes(spec))

    def _finish(self, spec: CellSpec, outcome: Outcome, until: str, *, reused: bool) -> None:
        outcome = scored_on_grid(self.evaluator, spec, outcome, self.store, self.grid)
        self._outcomes[outcome.cell.id] = outcome
        self._shared.add(spec, outcome)
        _, expected = self._left.pop(outcome.cell.id, ("", None))
        if expected and outcome.ok and not reused:
            before, took = self._took.get(spec.attack, (0.0, 0.0))
            passes = outcome.cell.forward_samples + outcome.cell.backward_samples
            self._took[spec.attack] = before + expected, took + passes
        self.progress.left(self._passes_left() if until else None, until)
        self.progress.cell(outcome, reused)

    def _passes_left(self) -> float | None:
        """Expected passes of the unfinished cells; ``None`` where those of one are unknown.

        The expected cost is that of an image that stays robust. An attack that stops early takes the share of it that its
        finished cells took.
        """
        total = 0.0
        for attack, passes in self._left.values():
            if passes is None:
                return None
            expected, took = self._took.get(attack, (1.0, 1.0))
            total += passes * took / expected
        return total

    def outcome(self, spec: CellSpec) -> Outcome:
        """The outcome of a cell. It is computed if this run does not have it."""
        name = self.evaluator.id_of(spec)
        if self._outcomes.get(name) is None:
            self.run([spec])
        found = self._outcomes[name]
        assert found is not None
        return found

    def outcomes(self, model: str | None = None) -> list[Outcome]:
        """The finished outcomes in the order of the requests."""
        return [o for o in self._outcomes.values() if o is not None and model in (None, o.cell.model)]

    def holds_images(self, spec: CellSpec) -> bool:
        """Whether the images of ``spec`` were crafted already, so that the cell costs no attack."""
        return self._shared.holds(spec)

    def spent(self, model: str) -> Cost:
        """The cost of the attacks on a model so far, per image of the whole set."""
        mine = [o.cell for o in self.outcomes(model) if o.cell.role != "clean"]
        n = len(self.evaluator)
        return Cost(sum(c.backward_samples for c in mine) / n, sum(c.forward_samples for c in mine) / n)
