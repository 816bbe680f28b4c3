"""What a run tells while it goes on."""

from __future__ import annotations

from art_qplugins.evaluation.outcome import Outcome

__all__ = ["Progress"]


class Progress:
    """This one is silent. The command line's shows bars; subclass it for another."""

    def training(self, model: str, epoch: int, epochs: int, loss: float) -> None:
        """After each epoch, counted from 1, with its mean loss."""

    def cells(self, total: int) -> None:
        """Whenever cells are planned, with how many there are by now."""

    def left(self, passes: float | None, until: str) -> None:
        """Before each finished cell is told: the work that is left in the cells that come before ``until``.

        :param passes: expected through networks, gradients and forward passes together; ``None`` where it is not known.
        :param until: ``"diagnosis"`` or ``"end"``; "" where more cells may come that nobody knows yet.
        """

    def cell(self, outcome: Outcome, reused: bool) -> None:
        """After each cell, and whether it was finished before this run."""
