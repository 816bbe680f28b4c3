"""How far an image can go along a direction before the network takes it for another class: the margins of feedback learning.

Song, Wang & Li (arXiv 1909.05443) and the slides of Song et al. (2021) define a margin as the distance at which a sample that
moves in one direction is misclassified. How they search for it is not said; the search here is a reconstruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from art_qplugins.domains import COUNT, POSITIVE, SEED, Domain, Is, ListOf, Maybe, Number, check_all
from art_qplugins.errors import InputError
from art_qplugins.guard import evaluating
from art_qplugins.torch_domains import IMAGES, LABELS, MODULE

__all__ = ["Margins", "margins", "random_directions"]

#: Each distance that is tried is so many times the one before, until an image is misclassified.
_GROWTH = math.sqrt(2.0)
#: The first distance that is tried is the largest one by this.
_RANGE = 64

_ARGUMENTS: dict[str, Domain] = {
    "model": MODULE,
    "x": IMAGES,
    "y": LABELS,
    "directions": IMAGES,
    "largest": POSITIVE,
    "tolerance": Number(1e-6, 1),  # float32 has no more digits
    "batch_size": COUNT,
    "progress": Maybe(Is(Callable, "a function")),
}


@dataclass(frozen=True)
class Margins:
    """The margins of some images along some directions.

    :ivar distance: (images, directions) L2 distances in [0, inf], on the device of the images. ``inf`` where no
        misclassification was found up to the largest distance, 0 where the image itself is misclassified.
    :ivar passes: the images that the network saw in the search, one forward pass each.
    """

    distance: Tensor
    passes: int


def random_directions(count: int, shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    """(count, \\*shape) float32 unit directions that are orthogonal to each other, uniform over all such sets.

    :raises InputError: where there are more than the space has dimensions.
    """
    dimensions = ListOf(COUNT, least=1, different=False)
    check_all(locals(), {"count": COUNT, "shape": dimensions, "seed": SEED})
    size = math.prod(shape)
    if count > size:
        raise InputError(f"count: it is {count}; images of {size} numbers have at most {size} orthogonal directions")
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))
    directions: Tensor = (q * r.diagonal().sign()).T.float().reshape(count, *shape)
    return directions


@torch.no_grad()
def margins(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    directions: Tensor,
    *,
    largest: float,
    tolerance: float = 1e-3,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Margins:
    """The margin of every image along every direction.

    The distance grows by a factor of sqrt(2) from ``largest / 64`` until the answer is no longer the label. Then the last
    interval is halved until it is shorter than ``tolerance`` times its end. A stretch of another class that is shorter than a
    step can be missed. Images are not clipped on the way. What is done makes room in the batch for other pairs of image and
    direction, so the network always sees full batches, and memory is that of one batch.

    :param model: it answers in eval mode, and does not change.
    :param x: (N, C, H, W) in [0, 1].
    :param y: (N,) labels.
    :param directions: (J, C, H, W), the same for every image. A margin is a distance, however long they are.
    :param largest: the largest distance that is tried, in L2.
    :param tolerance: relative, of the margin.
    :param progress: called after each batch with the number of margins that are known, and of all.
    :raises InputError: where a direction has length 0 or is not finite, or a value is out of range.
    """
    check_all(locals(), _ARGUMENTS)
    if directions.shape[1:] != x.shape[1:]:
        raise InputError(
            f"directions: their shape is {tuple(directions.shape[1:])}, and images have {tuple(x.shape[1:])}"
        )
    with evaluating(model):
        return _Search(model, x, y, _units(directions.to(x)), largest, tolerance, batch_size).run(progress)


def _units(directions: Tensor) -> Tensor:
    length = directions.flatten(1).norm(dim=1)
    wrong = ~(length.isfinite() & (length > 0))
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        raise InputError(
            f"directions: the length of direction {first} is {float(length[first]):g}; a margin needs a direction"
        )
    units: Tensor = directions / length.view(-1, 1, 1, 1)
    return units


class _Search:
    """Pairs of image and direction in the slots of a batch, each at its own stage of the search."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, units: Tensor, largest: float, tolerance: float, batch_size: int
    ) -> None:
        self._model, self._x, self._y, self._units = model, x, y, units
        self._largest, self._tolerance, self._batch_size = largest, tolerance, batch_size
        self._passes = 0

    def run(self, progress: Callable[[int, int], None] | None) -> Margins:
        batches = zip(self._x.split(self._batch_size), self._y.split(self._batch_size), strict=True)
        right = torch.cat([self._right(x, y) for x, y in batches])
        found = torch.where(right, math.inf, 0.0)[:, None].repeat(1, len(self._units))
        pairs = torch.arange(found.numel(), device=found.device).view_as(found)[right].flatten()
        self._search(pairs, found.view(-1), progress)
        return Margins(found, self._passes)

    def _search(self, pairs: Tensor, found: Tensor, progress: Callable[[int, int], None] | None) -> None:
        """Write the margins of the pairs, which number images times directions, into ``found``."""
        pair, begun = pairs[: self._batch_size].clone(), min(self._batch_size, len(pairs))
        low = torch.zeros(len(pair), device=pairs.device)
        high = torch.full_like(low, math.inf)
        while len(pair):
            at = torch.where(
                high.isinf(), (low * _GROWTH).clamp(self._largest / _RANGE, self._largest), (low + high) / 2
            )
            image = pair // len(self._units)
            moved = torch.addcmul(self._x[image], self._units[pair % len(self._units)], at.view(-1, 1, 1, 1))
            right = self._right(moved, self._y[image])
            high, low = torch.where(right, high, at), torch.where(right, at, low)
            narrow = high.isfinite() & (high - low <= self._tolerance * high)
            found[pair[narrow]] = high[narrow]
            done = (narrow | (right & (at >= self._largest))).nonzero().flatten()
            following = pairs[begun : begun + len(done)]
            begun += len(following)
            refilled = done[: len(following)]
            pair[refilled], low[refilled], high[refilled] = following, 0.0, math.inf
            if progress is not None:
                progress(begun - len(pair) + len(done) - len(following), len(pairs))
            if len(following) < len(done):  # no pair is left to begin with
                kept = torch.ones_like(narrow)
                kept[done[len(following) :]] = False
                pair, low, high = pair[kept], low[kept], high[kept]

    def _right(self, x: Tensor, y: Tensor) -> Tensor:
        self._passes += len(x)
        answers: Tensor = self._model(x)
        return answers.argmax(1) == y
