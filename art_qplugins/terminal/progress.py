"""Progress of a run: a line per finished model and cell, and bars on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TaskID
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from art_qplugins.errors import visible
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell
from art_qplugins.report import select, words
from art_qplugins.runner.progress import Progress
from art_qplugins.terminal.console import console, show_warnings
from art_qplugins.terminal.time_limit import tell_what_is_left
from art_qplugins.training.progress import TrainingProgress

__all__ = ["LiveProgress"]

#: Seconds between two lines about epochs, where there is no terminal that shows a bar.
_QUIET = 5.0


class LiveProgress(Progress):
    """A line per finished model and cell, and bars on a terminal. See :class:`~art_qplugins.runner.Progress`.

    A cell's line ends in what all attacks so far leave of the model at its budget, and how long the passes through
    networks that are still expected take at the pace of those that were measured.
    """

    def __init__(self) -> None:
        self.console = console()
        self.reused = self.computed = 0
        self._bars = _Bars(
            _Name(),
            BarColumn(bar_width=16),
            _Field("count"),
            _Field("left"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._attack: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}  # of the models in training, and of what is measured of one
        self._validated: dict[str, list[str]] = {}  # by model, after its last epoch
        self._line_at = 0.0  # when a line about an epoch was printed last
        self._worst: dict[tuple[str, str, float], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        self._total, self._start = 0, time.monotonic()
        self._measured = 0  # passes of the cells computed here
        self._left: tuple[float | None, str] = None, ""

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._bars.stop()
        tell_what_is_left(error, self._unfinished())

    def _unfinished(self) -> str:
        """How far it is: with the model in training, or with the cells that are known."""
        if self._total:
            return f"{self.reused + self.computed} of {self._total} known cells are finished"
        return f"{', '.join(self._tasks)} is not finished" if self._tasks else "no cell is finished"

    def warn(self, lines: Sequence[str]) -> None:
        show_warnings(self.console, lines)

    def step(self, model: str, title: str, gradients: float, queries: float) -> None:
        most = f"at most {words.count(round(gradients))} gradients, {words.count(round(queries))} passes an image"
        self.console.print(Text(f"{visible(model)}: {title}; {most}", style="dim"))

    def training(self, model: str, told: TrainingProgress) -> None:
        if told.ends_epoch:  # it stays in sight within the next epoch
            self._validated[model] = _validated(told)
        found = [f"loss {words.loss(told.loss)}", *self._validated.get(model, [])]
        found.append(f"{words.count(told.images_per_second)} img/s")
        left = f"{words.rough(told.seconds_left)} left"
        if told.step == told.steps:
            if (task := self._tasks.pop(model, None)) is not None:
                self._bars.remove_task(task)
            self._print(f"trained {model}: {words.epochs(told.epochs)}", *found)
            return
        if model not in self._tasks:
            self._tasks[model] = self._bars.add_task(model, total=told.steps, found="", count="", left="")
            self._line_at = time.monotonic()
        self._bars.update(
            self._tasks[model],
            completed=told.step,
            found=told.doing or ", ".join(found),
            count=f"epoch {told.epoch + (not told.ends_epoch)}/{told.epochs}",
            left=left,
        )
        quiet = time.monotonic() - self._line_at
        if (told.ends_epoch or told.doing) and not self.console.is_terminal and quiet >= _QUIET:
            self._line_at = time.monotonic()
            told_now = [told.doing] if told.doing else [*found, left]
            self._print(f"{model} {told.epoch}/{told.epochs}: {told_now[0]}", *told_now[1:])

    def measured(self, model: str, what: str, done: int, total: int) -> None:
        name = f"{model}: {what}"
        if done == total:
            if (task := self._tasks.pop(name, None)) is not None:
                self._bars.remove_task(task)
            self._print(f"measured {name}", f"{total} {'part' if total == 1 else 'parts'}")
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, found="", count="", left="")
        self._bars.update(self._tasks[name], completed=done, count=f"{done}/{total}")

    def cells(self, total: int) -> None:
        """It may be called again, because a diagnosis adds cells."""
        if not self._total:  # the time before was for data and training
            self._start = time.monotonic()
        self._total = total
        if self._attack is None:
            self._attack = self._bars.add_task("attack", found="", count="", left="")
        self._bars.update(self._attack, total=total, count=f"{self.reused + self.computed}/{total}")

    def left(self, passes: float | None, until: str) -> None:
        self._left = passes, until

    def cell(self, outcome: Outcome, reused: bool) -> None:
        cell = outcome.cell
        so_far = self._so_far(outcome)
        self.reused, self.computed = self.reused + reused, self.computed + (not reused)
        self._measured += 0 if reused else cell.forward_samples + cell.backward_samples
        left = self._time_left()
        assert self._attack is not None, "cells are planned before they are told"
        self._bars.update(
            self._attack,
            advance=1,
            description=f"{cell.model}: {cell.label}",
            count=f"{self.reused + self.computed}/{self._total}",
            left=left,
        )
        if not reused:
            self._print(self._told(cell), f"so far {100 * so_far:.1f} %" if so_far is not None else "", left)

    def _told(self, cell: Cell) -> str:
        """Which cell it is and what came of it. How many there are is not known while a diagnosis looks for more."""
        number = f"{self.reused + self.computed:3}" + (f"/{self._total}" if self._left[1] else "")
        source = "" if cell.source == cell.model else f" from {cell.source}"
        threat = f" {cell.norm} {words.eps(cell.eps)}" if select.has_threat(cell) else ""
        found = "FAILED" if cell.accuracy is None else f"{100 * cell.accuracy:5.1f} %"
        found += "" if cell.rows is None else f" of {cell.n}"
        return f"{number} {cell.model}: {cell.label}{source}{threat} -> {found}"

    def _print(self, *parts: str) -> None:
        """Parts of a sentence; where they need a new line it begins with a part."""
        line, *rest = (part for part in parts if part)
        for part in rest:
            if len(line) + len(part) + 3 > self.console.width:
                self.console.print(f"{line},", soft_wrap=True)
                line = f"        {part}"
            else:
                line += f", {part}"
        self.console.print(line, soft_wrap=True)

    def _so_far(self, outcome: Outcome) -> float | None:
        """Worst case over the recipe's attacks so far at the norm and eps of this cell; None for other cells."""
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

    def _time_left(self) -> str:
        """For the passes that are still expected, at the pace so far; "" where one of the two is not known."""
        passes, until = self._left
        if not passes or not self._measured:
            return ""
        seconds = passes * (time.monotonic() - self._start) / self._measured
        return f"{words.rough(seconds)} {'left' if until == 'end' else f'to {until}'}"


def _validated(told: TrainingProgress) -> list[str]:
    """Clean and robust accuracy on the validation images, where they are known."""
    shares = {"valid": told.validation_accuracy, "PGD": told.robust_validation_accuracy}
    return [f"{name} {100 * share:.1f} %" for name, share in shares.items() if share is not None]


class _Bars(Bars):
    """Bars with what was found so far below each."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if found := task.fields["found"]:
                yield Text(f"  {found}", no_wrap=True, overflow="ellipsis")


class _Name(ProgressColumn):
    """What a bar is of, cut where there is no room. Names of models are in it, so it holds no markup."""

    def render(self, task: Task) -> Text:
        return Text(visible(task.description), no_wrap=True, overflow="ellipsis")


class _Field(ProgressColumn):
    """A field of a bar that is never cut."""

    def __init__(self, name: str) -> None:
        super().__init__(Column(no_wrap=True))
        self.name = name

    def render(self, task: Task) -> Text:
        return Text(task.fields[self.name])
