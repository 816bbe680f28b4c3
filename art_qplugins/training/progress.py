"""What is known of a training while it goes on. This module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["OnProgress", "TrainingProgress"]


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a training is. It is told after each epoch, and about once a second in between.

    :ivar epoch: the epochs done, of ``epochs``: of those that there were, where a defence ended the training.
    :ivar step: the steps done, of ``steps`` in the whole training.
    :ivar doing: what a defence does between two epochs, e.g. "margins 40 %"; "" while images are trained on.
    :ivar loss: the mean loss with all terms: of the epoch that ended, or so far of the one that goes on.
    :ivar learning_rate: of the next step, so a schedule that ends at 0 is told to end there.
    :ivar validation_accuracy: of the validation images, in [0, 1]; None where there are none, and within an epoch.
    :ivar robust_validation_accuracy: the same under a short PGD; None where no defence names an eps.
    :ivar measured: what defences have measured so far, as JSON by names of their own; empty within an epoch.
    :ivar images_per_second: of this process and the others together.
    :ivar seconds_left: at this pace.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    validation_accuracy: float | None = None
    robust_validation_accuracy: float | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    images_per_second: float
    seconds_left: float
    doing: str = ""

    @property
    def ends_epoch(self) -> bool:
        return not self.doing and self.step * self.epochs == self.steps * self.epoch


OnProgress: TypeAlias = Callable[[TrainingProgress], None]
