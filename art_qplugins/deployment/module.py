"""A deployed model as a torch module: its answers, and in the backward pass the gradient of another network, its twin.

This is BPDA (Athalye, Carlini & Wagner 2018, section 4.1.1) around the model as a whole. Every library attacks it as it
attacks any module, and every image is judged by the deployed model, because the values are its own.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from art_qplugins.deployment.checked import checked
from art_qplugins.deployment.predictors import BLACK_BOXES, Predict, as_predict
from art_qplugins.errors import InputError, at
from art_qplugins.estimators.probabilities import LogProbabilities, are_probabilities, floor_of
from art_qplugins.foreign import foreign
from art_qplugins.guard import evaluating
from art_qplugins.quantizers.functional import straight_through
from art_qplugins.quantizers.noise import is_stochastic

__all__ = ["Answering", "answering_of"]

#: Images that a model is asked for before anything else.
_FIRST, _FIRST_LABELS = 8, 64
#: The probability of a label, where a model gives nothing else.
_SURE = 0.9
#: By how much its score exceeds the next one, relative to that, where the twin alone has scores.
_AHEAD = 1e-3


class Answering(nn.Module):
    """The answers of a model that anything may compute.

    Values are the scores of the deployed model, bit for bit. Probabilities become their logarithms, which predict the same
    classes. A model that gives labels alone has the scores of its twin, with the label's raised above the others where
    it is not the largest. Without a twin, the label has probability 0.9.

    Points outside [0, 1], for which some attacks ask, are answered as the nearest point inside. A point with NaN is answered
    with NaN.

    :param predict: see :mod:`~art_qplugins.deployment.predictors`; or a torch module, or an ART black-box classifier.
    :param input_shape: (C, H, W).
    :param twin: a module from pixels to logits or probabilities, whose gradient is taken. ``None``: there is no gradient.
    :param labels_only: the model gives labels, (N,). Of scores, only the largest is then looked at.
    :param probabilities: whether its scores are probabilities. ``None`` judges by its first answers.
    :ivar identity: what tells this deployed model from others: that of ``predict``, else a hash of its first answers.
    :ivar distilled_from: the number of its answers that the twin was fitted to; ``None`` for a twin that was given.
    :raises InputError: where it answers with something else for images of noise, or the twin does. There are 8, and 64 where
        labels must tell it from others.
    """

    def __init__(
        self,
        predict: Any,
        input_shape: tuple[int, ...],
        nb_classes: int,
        *,
        twin: nn.Module | None = None,
        labels_only: bool = False,
        probabilities: bool | None = None,
    ) -> None:
        super().__init__()
        self.predict: Predict = as_predict(predict)
        self.input_shape, self.nb_classes, self.labels_only = tuple(input_shape), nb_classes, labels_only
        self.floor: float | None = None
        self.distilled_from: int | None = None
        known = getattr(self.predict, "identity", None)
        n = _FIRST_LABELS if labels_only and known is None else _FIRST
        with foreign("predict", hint=f"it was given {n} images {self.input_shape}, float32 in [0, 1]"):
            answers = self.predict(_array(_noise(self.input_shape, n)))
        first = self._scores(answers, n)
        if not labels_only and (are_probabilities(first) if probabilities is None else probabilities):
            self.floor = floor_of(first.clamp_min(0))
        self.identity = known if isinstance(known, str) else hashlib.sha256(_rounded(first)).hexdigest()
        self.twin = None if twin is None else _logits_of(twin, self.input_shape, nb_classes)
        self.eval()

    def with_twin(self, twin: nn.Module, *, distilled_from: int | None = None) -> Answering:
        """The same deployed model with the gradient of ``twin``."""
        same = self.without_twin()
        same.twin = _logits_of(twin, self.input_shape, self.nb_classes)
        same.distilled_from = distilled_from
        return same

    def without_twin(self) -> Answering:
        """The same deployed model without a gradient."""
        same = Answering.__new__(Answering)
        nn.Module.__init__(same)  # with no hook of this one
        for name in ("predict", "input_shape", "nb_classes", "labels_only", "floor", "identity"):
            setattr(same, name, getattr(self, name))
        same.twin = same.distilled_from = None
        return same.eval()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self._seen(x.detach().clamp(0, 1))
            answers = self._answers(seen)
        if self.twin is None or not (self.labels_only or (torch.is_grad_enabled() and x.requires_grad)):
            return answers
        slope: Tensor = self.twin(straight_through(seen, x))
        if self.labels_only:
            return straight_through(_label_ahead(slope.detach(), answers.argmax(1)), slope)
        return straight_through(answers, slope if self.floor is None else slope.log_softmax(1))

    def twin_logits(self, x: Tensor) -> Tensor:
        """What the twin answers for the images as the deployed model sees them, (N, nb_classes), without a gradient."""
        assert self.twin is not None, "there is a twin"
        with torch.no_grad():
            logits: Tensor = self.twin(self._seen(x.detach().clamp(0, 1)))
        return logits

    @property
    def facts(self) -> list[str]:
        """How it answers and where its gradient is from, each ready to follow "The model"."""
        found = ["answers through a function or a file, and has no gradient of its own"]
        if self.twin is not None and self.distilled_from is None:
            found.append("is attacked along the gradient of a given twin")
        if self.distilled_from is not None:
            found.append(f"is attacked along the gradient of a network distilled from {self.distilled_from} answers")
        if self.labels_only:
            whose = "no scores" if self.twin is None else "the scores of the twin with its own label ahead"
            found.append(f"gives labels alone, so attacks see {whose}")
        if self.reading is not None:
            found.append(f"reads pixels {self.reading}, and images are judged as it reads them")
        return found

    @property
    def reading(self) -> str | None:
        """How the deployed model rounds pixels; ``None`` where nothing says that it does."""
        return getattr(self.predict, "reading", None)

    def _seen(self, x: Tensor) -> Tensor:
        """The images as the deployed model reads them."""
        if self.reading is None:
            return x
        seen: Any = self.predict
        return torch.where(x.isnan(), x, torch.from_numpy(seen.seen(_array(x.nan_to_num()))).to(x))

    def _answers(self, x: Tensor) -> Tensor:
        """Scores (N, nb_classes) on the device of ``x``."""
        finite = x.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            scores = torch.full((len(x), self.nb_classes), torch.nan, device=x.device)
            if bool(finite.any()):
                scores[finite] = self._answers(x[finite])
            return scores
        scores = self._scores(self.predict(_array(x)), len(x)).to(x.device)
        return scores if self.floor is None else (scores.clamp_min(0) + self.floor).log()

    def _scores(self, answers: Any, n: int) -> Tensor:
        """What the deployed model answered, as scores (n, nb_classes)."""
        with at("predict"):
            found = checked(answers, n, nb_classes=self.nb_classes, labels_only=self.labels_only, finite=False)
        if not self.labels_only:
            return torch.from_numpy(found)
        labels = torch.from_numpy(found)
        others = (1 - _SURE) / (self.nb_classes - 1)
        return torch.full((n, self.nb_classes), others).scatter_(1, labels[:, None], _SURE).log()

    def extra_repr(self) -> str:
        return f"{self.input_shape}, {self.nb_classes}, labels_only={self.labels_only}"


def answering_of(made: Any) -> Any:
    """Of an ART black-box classifier, its answers as a module; anything else as it is."""
    if not isinstance(made, BLACK_BOXES):
        return made
    shape = tuple(made.input_shape)
    last = not getattr(made, "channels_first", True)
    return Answering(made, (shape[-1], *shape[:-1]) if last else shape, made.nb_classes)


def _array(x: Tensor) -> Any:
    """A copy, because whoever answers may write into it."""
    return np.array(x.detach().cpu().numpy(), dtype=np.float32, order="C")


def _rounded(answers: Tensor) -> bytes:
    """Answers to three digits, which another machine gives too."""
    size = float(answers.abs().max().nan_to_num(1.0, 1.0)) or 1.0
    return (answers / size * 1000).round().nan_to_num().to(torch.int32).numpy().tobytes()


def _label_ahead(scores: Tensor, labels: Tensor) -> Tensor:
    """``scores`` in which those of ``labels`` are the largest. Most are already."""
    own = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)
    raised = torch.maximum(own, others + _AHEAD * (1 + others.abs()))
    return scores.scatter(1, labels[:, None], torch.where(own > others, own, raised))


def _noise(shape: tuple[int, ...], n: int = _FIRST) -> Tensor:
    """The images that a model is asked for before anything else: of fine and of coarse noise, by turns."""
    random = torch.Generator().manual_seed(0)
    fine, few = torch.rand(n, *shape, generator=random), torch.rand(n, shape[0], 4, 4, generator=random)
    coarse = nn.functional.interpolate(few, shape[1:])
    return torch.where((torch.arange(n) % 2 == 0)[:, None, None, None], fine, coarse)


def _logits_of(twin: nn.Module, shape: tuple[int, ...], nb_classes: int) -> nn.Module:
    """``twin``, or its logarithm where it answers with probabilities.

    :raises InputError: where it draws noise, or gives no logits for images of this shape.
    """
    if is_stochastic(twin):
        raise InputError(
            "twin: it draws noise, and the deployed model does not; give a frozen ensemble, or one network"
        )
    images = _noise(shape).to(next((p.device for p in twin.parameters()), torch.device("cpu")))
    hint = f"it was given {len(images)} images {shape}, float32 in [0, 1]"
    with foreign("twin", hint=hint), evaluating(twin), torch.no_grad():
        found = twin(images)
    kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if kind != (len(images), nb_classes):
        raise InputError(
            f"twin: it gives {kind} for {len(images)} images; it must give logits {(len(images), nb_classes)}"
        )
    return LogProbabilities(twin, floor_of(found)) if are_probabilities(found) else twin
