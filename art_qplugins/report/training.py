"""What the records tell of a model's training: the epoch whose weights it has, and its numbers in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from art_qplugins.evaluation.network_records import Curve, FeedbackRound, TrainedEpoch
from art_qplugins.evaluation.records import Results
from art_qplugins.report import words

__all__ = ["ATTACK", "Training", "training"]

#: The attack of the robust accuracy on validation images.
ATTACK = "PGD-10"

#: The most epochs that are drawn.
_DRAWN = 120


@dataclass(frozen=True, kw_only=True)
class Training:
    """The training of one model.

    :ivar curve: its epochs, at least one.
    :ivar best: the epoch whose weights were kept, where the recipe keeps the best; ``None`` where it keeps the last.
    """

    curve: Curve
    best: TrainedEpoch | None

    @property
    def validated(self) -> bool:
        """Whether an accuracy on validation images is known."""
        return self.robustly or any(told.validation_accuracy is not None for told in self.curve)

    @property
    def robustly(self) -> bool:
        """Whether one under attack is."""
        return any(told.robust_validation_accuracy is not None for told in self.curve)

    @property
    def rounds(self) -> Sequence[FeedbackRound]:
        """The rounds of feedback learning."""
        return self.curve[-1].measured.feedback_learning

    @property
    def every(self) -> int:
        """One of so many epochs is drawn."""
        return -(-len(self.curve) // _DRAWN)

    @property
    def drawn(self) -> Sequence[TrainedEpoch]:
        """The epochs that are drawn; the last one is among them."""
        return self.curve[(len(self.curve) - 1) % self.every :: self.every]

    def __str__(self) -> str:
        """``Trained 20 epochs, loss 0.012, validation 97.5 %, under PGD-10 41.2 %``, of the epoch whose weights it has."""
        trained = f"Trained {words.epochs(len(self.curve))}"
        if self.best is None:
            return f"{trained}, {_numbers(self.curve[-1])}"
        return f"{trained}, weights of epoch {self.best.epoch:,} kept, {_numbers(self.best)}"

    @property
    def pace(self) -> str:
        """``2,300 images/s``, over the whole training."""
        return words.pace(self.curve[-1].images_per_second)

    @property
    def caption(self) -> str:
        """What the curves show, and where they end."""
        told = [
            f"The last epoch: {_numbers(self.curve[-1])}; {self.pace}.",
            "The loss is the mean of an epoch, with all terms.",
        ]
        if self.validated:
            told.append("Validation images are not trained on.")
        if self.robustly:
            told.append(
                f"{ATTACK} attacks at most 1,000 of them, at the largest eps that a defence of the model names."
            )
        if self.rounds:
            told.append(
                "A round of feedback learning begins with a search for margins along random directions. The thick line is their "
                "mean; thin lines are classes: solid of high robustness, dashed of medium, dotted of low."
            )
        if self.best is not None:
            told.append("The dotted line is at the epoch whose weights were kept.")
        if self.every > 1:
            told.append(f"One of {self.every:,} epochs is drawn.")
        return " ".join(told)


def _numbers(told: TrainedEpoch) -> str:
    parts = [f"loss {words.loss(told.loss)}"]
    if told.validation_accuracy is not None:
        parts.append(f"validation {words.percent(told.validation_accuracy)}")
    if told.robust_validation_accuracy is not None:
        parts.append(f"under {ATTACK} {words.percent(told.robust_validation_accuracy)}")
    return ", ".join(parts)


def training(name: str, results: Results) -> Training | None:
    """The training of a model of the run; ``None`` where no epoch of it is known."""
    curve = results.training.get(name)
    if not curve:
        return None
    return Training(curve=curve, best=max(curve, key=_measure) if _keeps_best(name, results) else None)


def _keeps_best(name: str, results: Results) -> bool:
    """Whether the recipe says so. Of a checkpoint that was trained elsewhere it says nothing."""
    model = next((model for model in results.settings if model["name"] == name), {})
    return model.get("checkpoint") is None and (model.get("train") or {}).get("keep") == "best"


def _measure(told: TrainedEpoch) -> float:
    """What the best epoch has most of: the robust accuracy where it was measured. Among equal ones the first is best."""
    measures = (told.robust_validation_accuracy, told.validation_accuracy)
    return next((measure for measure in measures if measure is not None), -1.0)
