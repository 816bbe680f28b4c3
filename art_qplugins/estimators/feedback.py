"""Feedback learning as one of ART's trainers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.defences.trainer import Trainer
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.defences.feedback import FeedbackLearning
from art_qplugins.domains import COUNT, PATH, Domain, Is, Maybe, check_all
from art_qplugins.estimators.base import QuantizedClassifier
from art_qplugins.estimators.fitting import defended
from art_qplugins.seeds import derive_seed
from art_qplugins.training.images import TrainingImages
from art_qplugins.training.state import State, optimizer_tensors, read_state, restore_optimizer, write_state

__all__ = ["FeedbackTrainer"]


_ARGUMENTS: dict[str, Domain] = {
    "classifier": Is(QuantizedClassifier, "a QuantizedClassifier"),
    "feedback": Maybe(Is(FeedbackLearning, "a FeedbackLearning")),
}


class FeedbackTrainer(Trainer):  # type: ignore[misc]  # ART has no types
    """Trains an estimator by :class:`~art_qplugins.FeedbackLearning`, beside its own training defences.

    Rounds go on until ``nb_epochs`` are over or the mean margin stalls. What they found is in ``feedback.told()``.

    :param classifier: trained before, with an optimizer.
    :param feedback: the defence with its options.
    """

    def __init__(self, classifier: QuantizedClassifier, feedback: FeedbackLearning | None = None) -> None:
        check_all(locals(), _ARGUMENTS)
        super().__init__(classifier)
        self.feedback = FeedbackLearning() if feedback is None else feedback

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int = 128,
        nb_epochs: int = 5,
        *,
        state: str | Path | None = None,
        progress: Callable[[dict[str, Any]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Train for at most ``nb_epochs``.

        :param x: (N, C, H, W) in [0, 1].
        :param y: labels (N,) or one-hot (N, nb_classes).
        :param state: a file that is written after each round, from which the same call goes on. It stays.
        :param progress: called with what each round measured, as it begins.
        :param kwargs: of :meth:`~art_qplugins.estimators.QuantizedClassifier.fit`.
        :raises InputError: where the network classifies no image of a class, or has no margin; see also ``fit``.
        """
        check_all(locals(), {"nb_epochs": COUNT, "state": Maybe(PATH)})
        estimator, feedback = self._classifier, self.feedback
        network, pixels, labels = defended(estimator, x, y, [feedback])
        images = TrainingImages(pixels.cpu(), (labels.argmax(1) if labels.dim() > 1 else labels).cpu(), 1)
        settings = {
            "trainer": "feedback-learning",
            "options": feedback.options,
            "batch_size": batch_size,
            "nb_epochs": nb_epochs,
            "images": len(pixels),
        }
        saved = None if state is None else read_state(Path(state), settings)
        feedback.start(network)
        if saved is None:
            done = 0
            self._look(network, images, done, progress)
        else:
            done = self._restore(saved)
        while done < nb_epochs and not feedback.enough:
            count = min(feedback.epochs, nb_epochs - done)
            with _beside(estimator, feedback):
                estimator.fit(x, y, batch_size=batch_size, nb_epochs=count, **kwargs)
            done += count
            self._look(network, images, done, progress)
            if state is not None:
                self._save(Path(state), settings, done)

    def _look(self, network: nn.Module, images: TrainingImages, done: int, progress: Any) -> None:
        device = next(network.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self._classifier._fits, f"look/{done}"))
            rounds = len(self.feedback.rounds)
            self.feedback.look(network, images, done, lambda doing: None)
        if progress is not None:
            for told in self.feedback.rounds[rounds:]:
                progress(told)

    # -- Going on

    def _save(self, path: Path, settings: dict[str, Any], done: int) -> None:
        estimator = self._classifier
        moments, others = optimizer_tensors(estimator._optimizer)
        parts = {"model": estimator._network.state_dict(), "optimizer": moments, "feedback": self.feedback.state()}
        tensors = {f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}
        facts = {"total": 0.0, "seen": estimator._fits, "scaler": {}, "curve": (), "best": None}
        write_state(path, State(settings=settings, tensors=tensors, epoch=done, step=0, optimizer=others, **facts))

    def _restore(self, saved: State) -> int:
        """The epochs that are done."""
        estimator = self._classifier
        estimator._network.load_state_dict(saved.part("model"))
        restore_optimizer(estimator._optimizer, saved.part("optimizer"), saved.optimizer)
        self.feedback.restore({name: value.to(estimator.device) for name, value in saved.part("feedback").items()})
        estimator._fits = saved.seen
        return saved.epoch


class _Term(Defence):
    """The images that were chosen last, and no look at others."""

    def __init__(self, feedback: FeedbackLearning) -> None:
        self._feedback = feedback

    def term(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor | float:
        return self._feedback.term(model, x, y, logits)


@contextlib.contextmanager
def _beside(estimator: QuantizedClassifier, feedback: FeedbackLearning) -> Iterator[None]:
    """Within the context ``feedback`` is one of the training defences."""
    own = estimator.training_defences
    estimator.training_defences = (*own, _Term(feedback))
    try:
        yield
    finally:
        estimator.training_defences = own
