"""The run of one attack: passes of Auto-PGD over its images, and the best adversarial image so far for each image.

For a deterministic network an image is finished at its first misclassified point. One draw of a random network proves
nothing. There the run keeps the image with the lowest mean margin over draws that no step used. An image is finished at the
end of a pass, if every one of these draws is wrong and their mean margin is clearly below 0. It leaves no pass before,
because the noise of the others would change with the batch, and their losses could not be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.attacks.adaptive.auto_pgd import auto_pgd, project, steepest
from art_qplugins.attacks.adaptive.objectives import Objective, drawing
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.quantizers.noise import is_stochastic
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["AttackRun", "answers_at_random", "other_classes"]

#: A loop that maximizes an objective, as :func:`~art_qplugins.attacks.adaptive.auto_pgd.auto_pgd` does.
Ascent = Callable[..., tuple[Tensor, Tensor]]

_SELECTION = 16  # forward passes of a random network that decide which image is kept
_CLEAR = 2.0  # standard deviations of a draw by which a mean margin is clearly below 0
_TRIED = 8  # images used to find out whether a network is random


def other_classes(logits: Tensor, y: Tensor) -> Tensor:
    """(N, K - 1) the classes other than the label, the one with the largest logit first."""
    return logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)[:, :-1]


@dataclass(kw_only=True)
class AttackRun:
    """The images of one attack, and for each the best adversarial image so far.

    :ivar name: the attack's id, for messages.
    :ivar module: the network as it is deployed.
    :ivar x: (N, C, H, W) in [0, 1]; ``y`` (N,) labels.
    :ivar max_iter: gradient evaluations per image in one pass.
    :ivar start: legal images to start from instead of random ones.
    :ivar random: whether the network is random.
    :ivar certainty: standard errors, over draws, by which another point of a random network must be better to be kept. Of many
        points that are equally good, noise would choose one that is good for these draws alone.
    :ivar image: the best images so far, like ``x``.
    :ivar margin: (N,) margin of the deployed network at ``image``, for a random network the mean margin. It is infinite
        where it is not known yet.
    :ivar broken: (N,) which images are finished.
    """

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    batch_size: int
    seed: int
    max_iter: int
    start: Tensor | None = None
    random: bool = False
    certainty: float = 0.0
    image: Tensor = field(init=False)
    margin: Tensor = field(init=False)
    broken: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.image = (self.x if self.start is None else self.start).clone()
        self.margin = torch.full(self.y.shape, torch.inf, device=self.x.device)
        self.broken = torch.zeros_like(self.y, dtype=torch.bool)
        self._drawn = self.margin.repeat(_SELECTION, 1)  # the margins of single draws at the best points
        if self.random and self.start is not None:  # the attack may end worse than it began
            self.judge(self.all_rows(), self.start)

    def all_rows(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)

    def robust_rows(self) -> Tensor:
        """Rows of the images that are still robust."""
        return self.all_rows()[~self.broken]

    def nearest(self, share: float) -> Tensor:
        """Rows of this share of the images that are still robust, those with the lowest margins, the lowest first."""
        rows = self.robust_rows()
        return rows[self.margin[rows].argsort(stable=True)[: math.ceil(share * len(rows))]]

    @property
    def draws(self) -> int:
        """Forward passes that judge a point."""
        return _SELECTION if self.random else 1

    def pixel_step(self) -> float:
        """The change per pixel of a step of eps / 4. In L2 the step changes all pixels alike."""
        return self.threat.eps / 4 / (1 if self.threat.norm == "Linf" else math.sqrt(self.x[0].numel()))

    def starts(self, purpose: str) -> Tensor:
        """The given starting points, or random ones."""
        return self.random_starts(purpose) if self.start is None else self.start

    def random_starts(self, purpose: str) -> Tensor:
        """Random starting points: uniform in the cube (Linf) or on the sphere (L2)."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, f"start/{purpose}"))
        if self.threat.norm == "Linf":
            noise = torch.rand(self.x.shape, generator=generator) * 2 - 1
        else:
            noise = steepest(torch.randn(self.x.shape, generator=generator), "L2")
        return project(self.x + self.threat.eps * noise.to(self.x), self.x, self.threat)

    def maximize(
        self,
        objective: Objective,
        start: Tensor,
        *,
        deployed: bool = True,
        max_iter: int | None = None,
        step_size: float = 2.0,
        rows: Tensor | None = None,
        ascent: Ascent = auto_pgd,
    ) -> Tensor:
        """One pass over the robust rows. Returns the points (N, C, H, W). The other rows keep ``start``.

        :param deployed: whether the module is the deployed network, so that its outputs decide which points are kept.
        :param max_iter: by default that of the run.
        :param step_size: the first step size in units of eps.
        :param rows: some of the robust rows. By default it is all of them.
        :param ascent: the loop.
        """
        reached = start.clone()
        record = self.record if deployed and not self.random else None
        settings: dict[str, Any] = {"threat": self.threat, "max_iter": max_iter or self.max_iter}
        chosen = self.robust_rows() if rows is None else rows
        for part in chosen.split(self.batch_size) if len(chosen) else ():
            last, best = ascent(
                objective, self.x[part], start[part], part, record=record, step_size=step_size, **settings
            )
            reached[last] = best
            if deployed and self.random and len(last):
                self._select(last, best)
        return reached

    def record(self, rows: Tensor, points: Tensor, margin: Tensor) -> Tensor:
        """Keep these points where they are the best so far. Returns (n,) which images they do not break."""
        better = margin < self.margin[rows]
        self.image[rows[better]] = points[better]
        self.margin[rows[better]] = margin[better]
        self.broken[rows] |= margin < 0
        return ~(margin < 0)

    def judge(self, rows: Tensor, points: Tensor) -> Tensor:
        """Ask the deployed network about points (n, C, H, W) of these rows, and keep them where they are the best so far.

        :return: (n,) their margins.
        """
        if self.random:
            parts = zip(rows.split(self.batch_size), points.split(self.batch_size), strict=True)
            return torch.cat([self._select(part, image) for part, image in parts])
        margin = logit_margin(self.logits(points), self.y[rows])
        self.record(rows, points, margin)
        return margin

    def nearest_classes(self) -> Tensor:
        """(N, K - 1) the other classes at the best points so far, the nearest first. The margins there are kept."""
        logits = self.logits(self.image)
        if not self.random:
            self.record(self.all_rows(), self.image, logit_margin(logits, self.y))
        return other_classes(logits, self.y)

    def logits(self, points: Tensor) -> Tensor:
        """Logits (N, classes), computed in batches without gradients."""
        with torch.no_grad():
            return torch.cat([self.module(part) for part in points.split(self.batch_size)])

    def _select(self, rows: Tensor, points: Tensor) -> Tensor:
        """Keep these points of a random network where their mean margin is the lowest so far, or where all draws are wrong.

        :return: (n,) that margin.
        """
        with torch.no_grad(), drawing(self.module, derive_seed(self.seed, "selection"), points.device):
            margins = torch.stack([logit_margin(self.module(points), self.y[rows]) for _ in range(_SELECTION)])
        gain, mean = self._drawn[:, rows] - margins, margins.mean(0)
        errors, wrong = gain.std(0) / math.sqrt(_SELECTION), _clearly_wrong(margins)
        kept = self.margin[rows].isinf() | (gain.mean(0) > self.certainty * errors) | wrong
        self.image[rows[kept]] = points[kept]
        self.margin[rows[kept]] = mean[kept]
        self._drawn[:, rows[kept]] = margins[:, kept]
        self.broken[rows] |= wrong
        return mean


def _clearly_wrong(margins: Tensor) -> Tensor:
    """(n,) whether every draw is wrong and the mean margin is below 0 by more than the spread of the draws explains.

    :param margins: (draws, n).
    """
    return (margins < 0).all(0) & (margins.mean(0) < -_CLEAR * margins.std(0))


def answers_at_random(module: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether the module has stochastic layers, or gives other outputs under another seed of the global generators."""
    if is_stochastic(module):
        return True
    answers = []
    for purpose in ("tried", "tried again"):
        with torch.no_grad(), drawing(module, derive_seed(seed, purpose), x.device):
            answers.append(module(x[:_TRIED]))
    tolerance = 1e-4 * float(answers[0].abs().amax()) if len(x) else 0.0
    return not torch.allclose(answers[0], answers[1], rtol=0, atol=tolerance, equal_nan=True)
