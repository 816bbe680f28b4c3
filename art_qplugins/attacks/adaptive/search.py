"""Random search that goes on from the best images so far.

A square of pixels moves to the border of the ball (Andriushchenko et al. 2020), and the move is kept where the margin does not
grow. The squares shrink from half the height of the image to a pixel. Square itself starts from stripes; this search starts
where other attacks ended. Behind steps in the network it finds what gradients and Square miss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from art_qplugins.attacks.adaptive.auto_pgd import project
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.saturation import BeforeSaturation
from art_qplugins.seeds import derive_seed

__all__ = ["search"]

_LARGEST = 0.5  # side of the first squares, relative to the shorter side of the image
_BORDER = 8.0  # a move in units of eps / 4: across the ball


def search(
    run: AttackRun,
    n_queries: int,
    view: BeforeSaturation | None = None,
    *,
    among: Tensor | None = None,
    purpose: str = "search",
    varied: bool = False,
) -> None:
    """Search from the best points of a run, on its images that are still robust.

    :param n_queries: forward passes per image. A random network is asked several times about each point.
    :param view: the tensor before a saturation. Its margin leads where that of the logits is flat. Of a random network it is
        not used.
    :param among: some of its rows. By default it is all of them.
    :param purpose: another one gives other squares.
    :param varied: every second move has a random length, up to that across the ball. Of few pixels the worst point may lie
        inside it.
    """
    random = torch.Generator().manual_seed(derive_seed(run.seed, purpose))
    height, width = run.x.shape[2:]
    row, column = torch.arange(height)[:, None], torch.arange(width)
    tries = n_queries // run.draws
    best, lowest = run.image.clone(), torch.full_like(run.margin, torch.inf)
    for index in range(tries):
        rows = run.robust_rows() if among is None else among[~run.broken[among]]
        if not len(rows):
            return
        points = best[rows]
        if index:  # the first question is about where it starts
            size = max(1, round(min(height, width) * _LARGEST * (1 - index / tries) ** 2))
            top = torch.randint(height - size + 1, (len(rows), 1, 1, 1), generator=random)
            left = torch.randint(width - size + 1, (len(rows), 1, 1, 1), generator=random)
            inside = (row >= top) & (row < top + size) & (column >= left) & (column < left + size)
            signs = torch.randint(2, (len(rows), run.x.shape[1], 1, 1), generator=random) * 2 - 1
            length = torch.rand((len(rows), 1, 1, 1), generator=random) if varied and index % 2 else 1.0
            change = _BORDER * run.pixel_step() * (length * inside * signs).to(points)
            points = project(points + change, run.x[rows], run.threat)
        margin = _margin(run, rows, points, view)
        better = margin <= lowest[rows]
        best[rows[better]], lowest[rows[better]] = points[better], margin[better]


def _margin(run: AttackRun, rows: Tensor, points: Tensor, view: BeforeSaturation | None) -> Tensor:
    """(n,) the margin that leads the search at points (n, C, H, W) of these rows. The run keeps the points that are its best."""
    if view is None or run.random:
        return run.judge(rows, points)
    margins = []
    for part, image in zip(rows.split(run.batch_size), points.split(run.batch_size), strict=True):
        with torch.no_grad():
            margins.append(logit_margin(view(image), run.y[part]))
        assert view.answer is not None
        run.record(part, image, logit_margin(view.answer, run.y[part]))
    return torch.cat(margins)
