"""Steps whose size falls along a cosine, from the first step to none: strong for few gradients.

For a random network a step follows a mean of gradients over steps (momentum, as MI-FGSM: Dong et al. 2018, equation 6), and the
last point counts. The point with the highest loss would be chosen by the noise of its draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from art_qplugins.attacks.adaptive.auto_pgd import Record, project, steepest
from art_qplugins.attacks.adaptive.objectives import Objective
from art_qplugins.threat import Threat

__all__ = ["cosine_ascent"]


def cosine_ascent(
    objective: Objective,
    x: Tensor,
    start: Tensor,
    rows: Tensor,
    *,
    threat: Threat,
    max_iter: int,
    record: Record | None,
    step_size: float = 2.0,
    noisy: bool = False,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Maximize ``objective`` on a batch, as :func:`~art_qplugins.attacks.adaptive.auto_pgd.auto_pgd` does.

    Step t of T has size ``step_size`` eps (1 + cos(pi t / T)) / 2. It takes at most ``max_iter`` gradients and one further
    forward pass per image. Parameters and results are those of Auto-PGD.

    :param noisy: the loss is that of a random network, so the last point is returned.
    :param momentum: the share of the earlier direction in each step. Directions are gradients divided by their L1 norm.
    """
    answer = objective(start, rows, step=0)
    point, best, top, direction = start, start, answer.loss, torch.zeros_like(start)
    for step in range(max_iter + 1):
        if record is not None and answer.margin is not None:
            stay = record(rows, point, answer.margin)
            rows, x, point, best, top, direction = (t[stay] for t in (rows, x, point, best, top, direction))
            gradient = answer.gradient[stay]
        else:
            gradient = answer.gradient
        if step == max_iter or not len(rows) or (step == 0 and not bool(gradient.any())):
            break
        size = step_size * threat.eps * (1 + math.cos(math.pi * step / max_iter)) / 2
        if momentum:
            length = gradient.abs().flatten(1).sum(1).clamp_min(1e-30)
            gradient = direction = momentum * direction + gradient / length[:, None, None, None]
        point = project(point + size * steepest(gradient, threat.norm), x, threat)
        answer = objective(point, rows, step=step + 1, backward=step + 1 < max_iter)
        better = answer.loss > top
        top = torch.where(better, answer.loss, top)
        best = torch.where(better[:, None, None, None], point, best)
    return rows, point if noisy else best
