"""Progress of a run: a line per finished model and cell, and bars on a terminal."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.report import words
from art_qplugins.runner.progress import Progress
from art_qplugins.terminal.console import console

__all__ = ["LiveProgress"]


class LiveProgress(Progress):
    """A line per finished model and cell, and bars on a terminal. See :class:`~art_qplugins.runner.Progress`.

    A cell's line ends in what all attacks so far leave of the model at its budget, and the time left at the pace so far.
    """

    def __init__(self) -> None:
        self.console = console()
        self.reused = self.computed = 0
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._worst: dict[tuple[str, str, float], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        self._total, self._start = 0, time.monotonic()

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bars.stop()

    def training(self, model: str, epoch: int, epochs: int, loss: float) -> None:
        task = self._tasks.get(model)
        if task is None:
            task = self._tasks[model] = self._bars.add_task(f"train {model}", total=epochs)
        self._bars.update(task, completed=epoch, description=f"train {model}, loss {loss:.3f}")
        if epoch == epochs:
            self._bars.remove_task(task)
            self.console.print(f"trained {model}: {epochs} epochs, loss {loss:.4f}")

    def cells(self, total: int) -> None:
        """May be called again: what a diagnosis needs is known as it goes."""
        if not self._total:  # what came before was data and training
            self._start = time.monotonic()
        self._total = total
        if "cells" not in self._tasks:
            self._tasks["cells"] = self._bars.add_task("attack", total=total)
        self._bars.update(self._tasks["cells"], total=total)

    def cell(self, outcome: Outcome, reused: bool) -> None:
        cell = outcome.cell
        so_far = self._so_far(outcome)
        self.reused, self.computed = self.reused + reused, self.computed + (not reused)
        self._bars.update(self._tasks["cells"], advance=1, description=f"{cell.model}: {cell.label}"[:40])
        if not reused:
            source = "" if cell.source == cell.model else f" from {cell.source}"
            budget = "" if cell.eps == 0 else f" {cell.norm} {cell.eps:.3g}"
            left = "FAILED" if cell.accuracy is None else f"{100 * cell.accuracy:5.1f} %"
            if cell.rows is not None:
                left += f" of {cell.n}"
            done = self.reused + self.computed
            line = f"{done:3}/{self._total} {cell.model}: {cell.label}{source}{budget} -> {left}"
            if so_far is not None:
                line += f", so far {100 * so_far:.1f} %"
            if seconds := self._time_left():
                line += f", {words.duration(seconds)} left"
            self.console.print(line, markup=False)

    def _so_far(self, outcome: Outcome) -> float | None:
        """What every attack of the recipe so far leaves at this cell's budget, image by image; None for other cells."""
        cell = outcome.cell
        if cell.role != "attack" or not outcome.ok or "check" in cell.params:
            return None
        correct, selection = outcome.column("correct"), outcome.column("selection")
        key = (cell.model, cell.norm, cell.eps)
        if key in self._worst:
            before = self._worst[key]
            better = np.isnan(selection) | (before[1] <= selection)
            correct, selection = (np.where(better, *pair) for pair in zip(before, (correct, selection), strict=True))
        self._worst[key] = correct, selection
        return None if np.isnan(correct).any() else float(correct.mean())

    def _time_left(self) -> float:
        """Seconds for the cells that are left, at the pace of those computed here."""
        left = self._total - self.reused - self.computed
        return left * (time.monotonic() - self._start) / self.computed if self.computed else 0.0
