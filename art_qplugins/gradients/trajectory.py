"""The points that an attack of any library visits on its way, noted by a hook on the module.

An attack may visit an adversarial image and return another one, which is a silent success. An attack whose loss still
falls when it stops was stopped too early. These are the indicators I3 and I4 of Pintor et al. 2022, "Indicators of
Attack Failure". Nothing is judged here and no answer is changed. To prove a success, ask the target about
:attr:`Path.best_image` again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.geometry import TOLERANCE, distances
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.quantizers.stochastic import is_stochastic
from art_qplugins.threat import Threat

__all__ = ["Path", "progress", "tracking"]

#: A path whose margins change by less than this share of the largest one is flat: the change is rounding.
_FLAT = 1e-4
#: Number of points that count as the end of a path.
_END = 10


class Path:
    """The legal iterates of each image that were recognized so far.

    :ivar best_margin: (N,) the lowest logit margin, on the device of ``x``; infinite where no iterate was recognized.
    :ivar best_image: (N, C, H, W) the iterate with that margin; the image itself where there is none.
    :ivar last: (N,) margin of the last iterate; NaN where there is none.
    :ivar calls: (N,) number of iterates.
    :ivar one_draw: whether the margins are of single draws of a random module, which may answer otherwise next time.
    """

    def __init__(self, x: Tensor, y: Tensor, threat: Threat, *, one_draw: bool) -> None:
        self.x, self.y, self.threat, self.one_draw = x.detach(), y, threat, one_draw
        self.best_image = self.x.clone()
        self.best_margin = torch.full((len(x),), torch.inf, device=x.device)
        self.last = torch.full((len(x),), torch.nan, device=x.device)
        self.calls = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self._visits: list[tuple[Tensor, Tensor]] = []  # for each call, rows of x and the margins of their iterates
        self._assigned: dict[int, Tensor] = {}  # for each length of a batch, the rows of x in the last such batch
        self._next = 0  # the row of x after the last one of the previous call

    def silent(self, margin: Tensor) -> Tensor:
        """Per image, whether an iterate was adversarial and the returned image is not.

        :param margin: (N,) margins of the images that the attack returned.
        """
        return (margin.to(self.best_margin) >= 0) & (self.best_margin < 0)

    def margins(self) -> list[NDArray[np.float64]]:
        """Per image, the margins of its iterates in the order of the calls."""
        if not self._visits:
            return [np.empty(0)] * len(self.x)
        images = torch.cat([rows for rows, _ in self._visits]).cpu().numpy()
        values = torch.cat([m for _, m in self._visits]).double().cpu().numpy()
        order = np.argsort(images, kind="stable")
        counts = np.bincount(images, minlength=len(self.x))
        return np.split(values[order], np.cumsum(counts)[:-1])

    def measures(self) -> dict[str, NDArray[np.float64]]:
        """``path_best``, ``path_last``, ``path_progress`` and ``path_calls``, (N,); NaN where there is no iterate."""
        best = self.best_margin.double().cpu().numpy()
        return {
            "path_best": np.where(np.isinf(best), np.nan, best),
            "path_last": self.last.double().cpu().numpy(),
            "path_progress": np.array([progress(m) for m in self.margins()]),
            "path_calls": self.calls.double().cpu().numpy(),
        }

    @torch.no_grad()
    def see(self, points: Tensor, logits: Tensor) -> None:
        """Note one call of the module.

        :param points: (B, C, H, W) what went in.
        :param logits: (B, K) what came out.
        """
        points = points.detach().to(self.x)
        images, legal = self._recognized(points)
        rows = legal.nonzero()[:, 0]
        if not len(rows):
            return
        images, points = images[rows], points[rows]
        margin = logit_margin(logits.detach()[rows].to(self.best_margin), self.y[images])
        self._visits.append((images, margin))
        self.calls.index_add_(0, images, torch.ones_like(images))
        # An image may be in a batch more than once. Its last row is the latest, or the lowest if rows are sorted
        # downwards.
        latest = _last_of_each(images, torch.arange(len(images)))
        self.last[images[latest]] = margin[latest]
        order = margin.argsort(descending=True)
        better = order[margin[order] < self.best_margin[images[order]]]
        lowest = _last_of_each(images[better], better)
        self.best_margin[images[lowest]] = margin[lowest]
        self.best_image[images[lowest]] = points[lowest]

    def _recognized(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The row of x that each point is an iterate of, (B,), and whether it is a legal one, (B,) bool."""
        images, legal = self._best_guess(points)
        if not legal.all():
            missing = (~legal).nonzero()[:, 0]
            near = torch.cdist(points[missing].flatten(1), self.x.flatten(1)).argmin(1)
            images, legal = images.clone(), legal.clone()
            images[missing], legal[missing] = near, self._legal(points[missing], near)
        self._assigned[len(points)] = images
        self._next = int(images[-1]) + 1
        return images, legal

    def _best_guess(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The same, by the order in which batches usually come; of several orders the one with most legal iterates."""
        n, size = len(self.x), len(points)
        position = torch.arange(size, device=self.x.device)
        guesses = [self._assigned[size]] if size in self._assigned else []
        guesses += [position + start for start in dict.fromkeys((self._next % n, 0)) if start + size <= n]
        images, legal = position.clamp(max=n - 1), torch.zeros(size, dtype=torch.bool, device=self.x.device)
        for guess in guesses:
            fits = self._legal(points, guess)
            if fits.sum() > legal.sum():
                images, legal = guess, fits
            if legal.all():
                break
        return images, legal

    def _legal(self, points: Tensor, images: Tensor) -> Tensor:
        distance = distances(self.x[images], points, self.threat.norm)
        low, high = points.flatten(1).aminmax(dim=1)
        return (distance <= self.threat.eps + TOLERANCE * max(1.0, self.threat.eps)) & (low >= 0) & (high <= 1)


def _last_of_each(images: Tensor, rows: Tensor) -> list[int]:
    """The last of the rows that belong to each image."""
    return list(dict(zip(images.tolist(), rows.tolist(), strict=True)).values())


def progress(margins: NDArray[np.float64]) -> float:
    """The share of a path's whole fall that its end makes, in [0, 1]. It is 0 for a path that has converged.

    This is I4 of Pintor et al. 2022: scale the loss to [0, 1], take its running minimum, and see by how much that falls
    over the last ten points. Two things differ. A path that is flat but for rounding gives 0 and is not scaled up. The
    end is at most half of the path, since any path of ten points falls within its last ten. A single point gives NaN.

    :param margins: (T,) margins in the order of the path; those that are not finite do not count.
    """
    m = margins[np.isfinite(margins)]
    if len(m) < 2:
        return float("nan")
    spread = float(m.max() - m.min())
    if spread <= _FLAT * float(np.abs(m).max()):
        return 0.0
    lowest = np.minimum.accumulate((m - m.min()) / spread)
    return float(lowest[-1 - min(_END, len(m) // 2)] - lowest[-1])


@contextlib.contextmanager
def tracking(module: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Iterator[Path]:
    """Within, every call of ``module`` is noted in the :class:`Path`. Answers and gradients are as without it.

    A point is an iterate of an image if it is in the image's ball. So batches may come in any order, shrink, or repeat
    images.

    :param x: (N, C, H, W) in [0, 1], the images that the attack starts from.
    :param y: (N,) labels.
    """
    path = Path(x, y, threat, one_draw=is_stochastic(module))

    def look(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        points = inputs[0] if inputs else None
        if (
            isinstance(points, Tensor)
            and isinstance(output, Tensor)
            and points.shape[1:] == x.shape[1:]
            and output.dim() == 2
            and len(output) == len(points) > 0
        ):
            path.see(points, output)

    handle = module.register_forward_hook(look)
    try:
        yield path
    finally:
        handle.remove()
