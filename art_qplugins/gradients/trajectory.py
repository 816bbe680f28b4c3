"""Records the points that an attack of any library visits, by a hook on the module.

An attack has a silent success if it visits an adversarial image and returns another one. An attack was stopped too early if
its loss still falls at the end. These are the indicators I3 and I4 of Pintor et al. 2022, "Indicators of Attack Failure".
Nothing is judged here, and no output is changed. To prove a success, evaluate the target on :attr:`Path.best_image` again.
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
from art_qplugins.gradients.operations import unseen
from art_qplugins.quantizers.noise import is_stochastic
from art_qplugins.threat import Threat

__all__ = ["Path", "progress", "tracking"]

#: A path is flat if its margins change by less than this share of the largest margin. The change is then rounding.
_FLAT = 1e-4
#: Number of points that count as the end of a path.
_END = 10


class Path:
    """The legal iterates of each image that were recorded so far.

    :ivar best_margin: (N,) the lowest logit margin, on the device of ``x``. It is infinite without iterates.
    :ivar best_image: (N, C, H, W) the iterate with that margin, or the clean image without iterates. Of several calls with
        the same margin it is that of the first.
    :ivar last: (N,) margin of the last iterate; NaN without iterates.
    :ivar calls: (N,) number of iterates.
    :ivar one_draw: whether the margins are those of single draws of a random module.
    """

    def __init__(self, x: Tensor, y: Tensor, threat: Threat, *, one_draw: bool, abstain: int | None = None) -> None:
        self.x, self.y, self.threat, self.one_draw, self.abstain = x.detach(), y, threat, one_draw, abstain
        self.best_image = self.x.clone()
        self.best_margin = torch.full((len(x),), torch.inf, device=x.device)
        self.last = torch.full((len(x),), torch.nan, device=x.device)
        self.calls = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self._visits: list[tuple[Tensor, Tensor]] = []  # for each call, rows of x and the margins of their iterates
        self._assigned: dict[int, Tensor] = {}  # for each length of a batch, the rows of x in the last such batch
        self._next = 0  # the row of x after the last one of the previous call

    def silent(self, margin: Tensor) -> Tensor:
        """For each image, whether an iterate was adversarial and the returned image is not.

        :param margin: (N,) margins of the images that the attack returned.
        """
        return (margin.to(self.best_margin) >= 0) & (self.best_margin < 0)

    def margins(self) -> list[NDArray[np.float64]]:
        """For each image, the margins of its iterates in the order of the calls."""
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
        """Record one call of the module.

        :param points: (B, C, H, W) the inputs.
        :param logits: (B, K) the outputs.
        """
        points = points.detach().to(self.x)
        images, legal = self._recognized(points)
        rows = legal.nonzero()[:, 0]
        if not len(rows):
            return
        images, points = images[rows], points[rows]
        margin = logit_margin(logits.detach()[rows].to(self.best_margin), self.y[images], self.abstain)
        self._visits.append((images, margin))
        self.calls.index_add_(0, images, torch.ones_like(images))
        # An image may be in a batch more than once. Its last row is its latest iterate, below its lowest one.
        latest = _last_of_each(images, torch.arange(len(images)))
        self.last[images[latest]] = margin[latest]
        order = margin.argsort(descending=True)
        better = order[margin[order] < self.best_margin[images[order]]]
        lowest = _last_of_each(images[better], better)
        self.best_margin[images[lowest]] = margin[lowest]
        self.best_image[images[lowest]] = points[lowest]

    def _recognized(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The row of x to which each point belongs, (B,), and whether the point is legal, (B,) bool."""
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
        """The same under the usual orders of batches. The order with the most legal iterates is used."""
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
    """The share of a path's total decrease that falls on its end, in [0, 1]. It is 0 for a path that has converged.

    This is I4 of Pintor et al. 2022: scale the loss to [0, 1], take its running minimum, and compute its decrease over the
    last ten points. Two things differ. A flat path gives 0 and is not scaled. The end is at most half of the path, because a
    path of ten points lies entirely within its last ten. A single point gives NaN.

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
def tracking(module: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, abstain: int | None = None) -> Iterator[Path]:
    """Record every call of ``module`` in the :class:`Path` within the context. Outputs and gradients do not change.

    A point counts as an iterate of an image if it is in the image's ball. So batches may come in any order, shrink, or
    repeat images.

    :param x: (N, C, H, W) in [0, 1], the images that the attack starts from.
    :param y: (N,) labels.
    :param abstain: index of the rejection class, for the margins.
    """
    path = Path(x, y, threat, one_draw=is_stochastic(module), abstain=abstain)

    @unseen
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
