"""Progress messages of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TypeVar

from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.training.progress import TrainingProgress

__all__ = ["Progress"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Progress:
    """Receives the progress of a run and logs its warnings. Subclasses show it, such as the bars of the command line."""

    def warn(self, lines: Sequence[str]) -> None:
        """Called once, before training, with what is legal in the recipe and surely a mistake."""
        for line in lines:
            logger.warning("%s", line)

    def training(self, model: str, told: TrainingProgress) -> None:
        """Called after each epoch of a model's training, and about once a second in between."""

    def cells(self, total: int) -> None:
        """Called whenever cells are planned, with their number so far."""

    def step(self, model: str, title: str, gradients: float, queries: float) -> None:
        """Called before each step of a diagnosis, with the most that it may cost per image."""

    def measured(self, model: str, what: str, done: int, total: int) -> None:
        """Called before the first and after each part of what is measured after the last cell, such as ``"information"``."""

    def over(self, model: str, what: str, parts: Sequence[T]) -> Iterator[T]:
        """The parts of a measurement, each told of when it is done."""
        for done, part in enumerate(parts):
            self.measured(model, what, done, len(parts))
            yield part
        if parts:
            self.measured(model, what, len(parts), len(parts))

    def left(self, passes: float | None, until: str) -> None:
        """Before each finished cell is told: the work that is left in the cells that come before ``until``.

        :param passes: expected through networks, gradients and forward passes together; ``None`` where it is not known.
        :param until: ``"diagnosis"`` or ``"end"``; "" where more cells may come that nobody knows yet.
        """

    def cell(self, outcome: Outcome, reused: bool) -> None:
        """Called after each cell, and whether it was finished before this run."""
