"""Feedback learning (Song, Wang & Li, arXiv 1909.05443; Song et al. 2021, slides): training on images beyond the margins.

A RECONSTRUCTION: the slides give the levels, the numbers of samples and directions, and the factors. How a class is ranked, which
directions are tried, and how old and new images are mixed is a choice here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.defences import FEEDBACK_LEARNING
from art_qplugins.defences.base import Defence, Images
from art_qplugins.defences.margins import margins, random_directions
from art_qplugins.errors import InputError
from art_qplugins.guard import evaluating

__all__ = ["LEVELS", "FeedbackLearning", "levels"]


@dataclass(frozen=True)
class Level:
    """Classes of similar robustness, and the images of each that feedback learning starts from."""

    name: str
    samples: int


#: From the most robust classes to the least (slides).
LEVELS = (Level("high", 20), Level("medium", 100), Level("low", 150))
#: The share of classes in the first level and in the last (slides).
_HIGH, _LOW = 0.2, 0.5
#: Images of each class by which classes are ranked.
_RANKED_BY = 20
#: By how many margins an image is moved (slides).
_BEYOND = (1.5, 2.0)
_NONE = torch.zeros(0, dtype=torch.int64)
#: Precision of the margins.
_TOLERANCE = 0.05
#: About the forward passes that a margin takes at this precision.
_PASSES = 12


def levels(means: Tensor) -> list[Level]:
    """The level of each class by its mean margin, (classes,): the top 20 % are high, the bottom 50 % low, the rest medium.

    Shares are rounded, halves to even numbers. So of two classes one is low and one medium.
    """
    order = means.argsort(descending=True, stable=True).tolist()
    high, low = round(_HIGH * len(order)), round(_LOW * len(order))
    ranks = {c: rank for rank, c in enumerate(order)}
    return [LEVELS[0 if ranks[c] < high else 2 if ranks[c] >= len(order) - low else 1] for c in range(len(order))]


class FeedbackLearning(Defence):
    """Trains on images beside their own that were moved across the decision boundary, with the label that they had.

    Each round, before training and after every ``epochs`` epochs:

    1. Margins of 20 images of each class that are classified correctly are searched along random orthogonal directions. Their
       mean is the robustness of the class, and gives its level. A class without such images is the least robust one.
    2. Of each class 20, 100 or 150 images are taken, by its level.
    3. Each is moved along the ``nearest`` directions with the smallest margins, by 1.5 to 2.0 margins, and clipped to [0, 1].

    Every training step adds the cross-entropy of as many of these images as the batch has, drawn at random. They pass the
    network as a batch of their own. Training ends where the mean margin has grown by less than ``stall`` since the round before.

    It starts from a trained network. :meth:`told` gives, for each round, the margins that it began with.

    :param epochs: of a round.
    :param directions: tried for each image; at most the numbers of an image. The source tries 1000.
    :param nearest: of these, those with the smallest margins. An image with fewer margins has fewer.
    :param largest: the largest margin that is searched, in L2. By default the diagonal of the pixel cube, 28 for MNIST.
    :param weight: of their cross-entropy.
    :param stall: relative growth of the mean margin; 0 trains all epochs, also where it shrinks.
    :param batch_size: images of a batch of the search.
    """

    def __init__(
        self,
        epochs: int = 1,
        directions: int = 100,
        nearest: int = 40,
        largest: float | None = None,
        weight: float = 1.0,
        stall: float = 0.01,
        batch_size: int = 128,
    ) -> None:
        FEEDBACK_LEARNING.check_arguments(locals())
        #: The arguments by name.
        self.options = {name: value for name, value in locals().items() if name in FEEDBACK_LEARNING.options}
        self.epochs, self.directions, self.nearest, self.largest = epochs, directions, nearest, largest
        self.weight, self.stall, self.batch_size = weight, stall, batch_size
        #: What each round measured as it began: ``epochs`` done, the ``mean`` of the classes, and of each class ``level`` and ``mean``.
        self.rounds: list[dict[str, Any]] = []
        self._moved: _Moved | None = None

    def passes(self) -> tuple[float, float]:
        return 1.0, 1.0

    def start(self, model: nn.Module) -> None:
        self.rounds, self._moved = [], None

    @property
    def enough(self) -> bool:
        means = [told["mean"] for told in self.rounds[-2:]]
        if not self.stall or len(means) < 2 or None in means:
            return False
        return bool(means[1] < (1 + self.stall) * means[0])

    def told(self) -> Mapping[str, Any]:
        return {"feedback_learning": self.rounds}

    def look(self, model: nn.Module, data: Images, epochs: int, tell: Callable[[str], None]) -> None:
        if epochs % self.epochs:
            return
        search = _Search(self, model, data, lambda done, of: tell(f"margins {done / of:.0%}"))
        ranked = search.found([_RANKED_BY] * search.classes)
        means = ranked.by_class(search.classes)
        of = levels(means)
        each = [{"level": level.name, "mean": _number(mean)} for level, mean in zip(of, means, strict=True)]
        self.rounds.append({"epochs": epochs, "mean": _number(means[means.isfinite()].mean()), "classes": each})
        if not self.enough:
            more = search.found([level.samples - _RANKED_BY for level in of])
            self._moved = ranked.joined(more).moved(search.directions, self.nearest)
            if not len(self._moved.image):
                classes = int((means > 0).sum())
                raise InputError(
                    f"feedback-learning: no image can be moved across the boundary; images of {classes} of {len(means)} classes are "
                    "answered right, and none has a margin; start from a trained network, or give a larger option largest"
                )

    def look_passes(self, classes: int, epochs: int) -> float:
        images = sum(level.samples for level in levels(torch.zeros(classes)))
        rounds = math.ceil(epochs / self.epochs)
        return (rounds * images + _RANKED_BY * classes) * self.directions * _PASSES

    def state(self) -> Mapping[str, Tensor]:
        rounds = torch.frombuffer(bytearray(json.dumps(self.rounds).encode()), dtype=torch.uint8)
        return {"rounds": rounds, **({} if self._moved is None else vars(self._moved))}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        moved = dict(state)
        self.rounds = json.loads(moved.pop("rounds").cpu().numpy().tobytes())
        self._moved = _Moved(**moved) if moved else None

    def term(self, model: nn.Module, x: Tensor, y: Tensor, logits: Tensor) -> Tensor | float:
        if not self.weight:
            return 0.0
        assert self._moved is not None, "look() comes before the first step"
        images, labels = self._moved.some(len(x))
        return self.weight * nn.functional.cross_entropy(model(images), labels)


def _number(value: Tensor) -> float | None:
    """As JSON has it."""
    return float(value) if bool(value.isfinite()) else None


@dataclass(frozen=True)
class _Moved:
    """Images and how they are moved. Only those of a batch are in memory as images.

    :ivar images: (images, C, H, W), ``labels`` (images,) and ``directions`` (directions, C, H, W).
    :ivar image: (moved,) the row of each in ``images``; ``direction`` that in ``directions``, and ``margin`` its margin.
    """

    images: Tensor
    labels: Tensor
    directions: Tensor
    image: Tensor
    direction: Tensor
    margin: Tensor

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """So many of them, drawn at random, and their labels."""
        rows = torch.randint(len(self.image), (count,), device=self.image.device)
        image = self.image[rows]
        low, high = _BEYOND
        length = self.margin[rows] * torch.empty_like(self.margin[rows]).uniform_(low, high)
        moved = torch.addcmul(self.images[image], self.directions[self.direction[rows]], length.view(-1, 1, 1, 1))
        return moved.clamp_(0, 1), self.labels[image]


@dataclass(frozen=True)
class _Found:
    """Images, their labels, and their margins (images, directions)."""

    images: Tensor
    labels: Tensor
    distance: Tensor

    def by_class(self, classes: int) -> Tensor:
        """The mean margin of each class, (classes,): ``inf`` where no margin was found, 0 without an image."""
        known = self.distance.isfinite()
        of = nn.functional.one_hot(self.labels, classes).T.to(self.distance)
        total, count = of @ self.distance.where(known, 0.0).sum(1), of @ known.sum(1).float()
        none = torch.where(of.sum(1) > 0, math.inf, 0.0)
        means: Tensor = torch.where(count > 0, total / count, none)
        return means

    def joined(self, other: _Found) -> _Found:
        return _Found(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))

    def moved(self, directions: Tensor, nearest: int) -> _Moved:
        """Along the nearest directions of each image."""
        margin, direction = self.distance.topk(min(nearest, self.distance.shape[1]), largest=False)
        image, place = margin.isfinite().nonzero(as_tuple=True)
        return _Moved(self.images, self.labels, directions, image, direction[image, place], margin[image, place])


class _Search:
    """Margins of images that are classified correctly, each image once."""

    def __init__(
        self, defence: FeedbackLearning, model: nn.Module, data: Images, progress: Callable[[int, int], None]
    ) -> None:
        self._defence, self._model, self._data, self._progress = defence, model, data, progress
        self._device = next(model.parameters()).device
        self.classes = int(data.y.max()) + 1
        self._rows = [rows[torch.randperm(len(rows))] for c in range(self.classes) for rows in (self._of(c),)]
        shape = tuple(data.at(torch.zeros(1, dtype=torch.int64), self._device)[0].shape[1:])
        seed = int(torch.randint(2**62, ()))
        self.directions = random_directions(min(defence.directions, math.prod(shape)), shape, seed=seed).to(
            self._device
        )
        self._largest = math.sqrt(math.prod(shape)) if defence.largest is None else defence.largest

    def _of(self, c: int) -> Tensor:
        rows = (self._data.y == c).nonzero().flatten()
        if not len(rows):
            raise InputError(f"feedback-learning: class {c} has no image to train on; number the classes without gaps")
        return rows

    def found(self, counts: Sequence[int]) -> _Found:
        """Of each class so many images, or as many as there still are."""
        parts = [self._data.at(self._right(c, count), self._device) for c, count in enumerate(counts) if count]
        x, y = (torch.cat(part) for part in zip(*parts, strict=True)) if parts else self._data.at(_NONE, self._device)
        if not len(x):
            return _Found(x, y, x.new_zeros(0, len(self.directions)))
        found = margins(
            self._model,
            x,
            y,
            self.directions,
            largest=self._largest,
            tolerance=_TOLERANCE,
            batch_size=self._defence.batch_size,
            progress=self._progress,
        )
        return _Found(x, y, found.distance)

    @torch.no_grad()
    def _right(self, c: int, count: int) -> Tensor:
        """The rows of the next ``count`` images of a class that the network answers right."""
        chosen: list[Tensor] = []
        missing = count
        while missing and len(self._rows[c]):
            rows, self._rows[c] = self._rows[c][:count], self._rows[c][count:]
            x, y = self._data.at(rows, self._device)
            with evaluating(self._model):
                right = rows[(self._model(x).argmax(1) == y).cpu()]
            chosen.append(right[:missing])
            self._rows[c] = torch.cat([right[missing:], self._rows[c]])
            missing -= len(chosen[-1])
        return torch.cat(chosen) if chosen else _NONE
