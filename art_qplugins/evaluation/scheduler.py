"""What a run has computed so far. Nothing is computed twice, whoever asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.cost import Cost
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.executor import Executor, Serial, run_cells
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.sharing import SharedImages, scored_on_grid
from art_qplugins.evaluation.store import Storage

__all__ = ["CellProgress", "Scheduler"]


class CellProgress(Protocol):
    """Is told how many cells there are, and each one as it is finished."""

    def cells(self, total: int) -> None: ...
    def cell(self, outcome: Outcome, reused: bool) -> None: ...


class Scheduler:
    """Runs cells on an executor: those that no earlier run and no earlier call has finished.

    Images that were crafted for one model are scored by another without crafting them again.

    :param executor: by default this process.
    :param grid: score every cell also on this many levels of a pixel.
    :ivar total: cells asked for so far.
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
        self._outcomes: dict[str, Outcome | None] = {}  # by id, in the order of asking; None until it is finished
        self._shared = SharedImages(evaluator, store)

    def run(self, specs: Iterable[CellSpec]) -> None:
        new = {self.evaluator.id_of(spec): spec for spec in specs}
        new = {name: spec for name, spec in new.items() if self._outcomes.get(name) is None}
        self._outcomes |= dict.fromkeys(new)
        self.total += len(new)
        self.progress.cells(self.total)
        crafted, waiting = self._shared.split(new)
        self._run(crafted)
        missing = {}
        for name, spec in waiting.items():
            if (outcome := self._shared.scored(spec)) is None:
                missing[name] = spec  # finished in an earlier run, or its images could not be had
            else:
                self._finish(spec, outcome, reused=False)
        self._run(missing)

    def _run(self, specs: Mapping[str, CellSpec]) -> None:
        for spec, outcome, reused in run_cells(self.evaluator, specs.values(), self.store, self._executor):
            self._finish(spec, outcome, reused=reused)

    def _finish(self, spec: CellSpec, outcome: Outcome, *, reused: bool) -> None:
        outcome = scored_on_grid(self.evaluator, spec, outcome, self.store, self.grid)
        self._outcomes[outcome.cell.id] = outcome
        self._shared.add(spec, outcome)
        self.progress.cell(outcome, reused)

    def outcome(self, spec: CellSpec) -> Outcome:
        """Of a cell that this run has; it is computed where it has not."""
        name = self.evaluator.id_of(spec)
        if self._outcomes.get(name) is None:
            self.run([spec])
        found = self._outcomes[name]
        assert found is not None
        return found

    def outcomes(self, model: str | None = None) -> list[Outcome]:
        """What is finished, in the order in which it was asked for, whatever was ready first."""
        return [o for o in self._outcomes.values() if o is not None and model in (None, o.cell.model)]

    def holds_images(self, spec: CellSpec) -> bool:
        """Whether the images of ``spec`` were crafted already, so that it costs no attack."""
        return self._shared.holds(spec)

    def spent(self, model: str) -> Cost:
        """What the attacks on a model took so far, per image of the whole set."""
        mine = [o.cell for o in self.outcomes(model) if o.cell.role != "clean"]
        n = len(self.evaluator)
        return Cost(sum(c.backward_samples for c in mine) / n, sum(c.forward_samples for c in mine) / n)
