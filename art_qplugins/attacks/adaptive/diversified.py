"""Diversified restarts along the network's own gradient, for surfaces on which a single descent gets stuck.

Logit pairing and its relatives make the loss rugged without making the network robust (Mosbach et al. 2018). Three remedies
are combined, each restart on the images that are still robust:

* Output-diversified starts (Tashiro et al. 2020, equation 2): a few steps along w . z, with w random in [-1, 1]^K.
* Margin decomposition (Jiang et al. 2020, section 3): climb -z_y alone, or max z alone, before the margin, so that the
  larger of the two gradients does not hide the other.
* A grid of step sizes (Mosbach et al. 2018, section 4): restarts take turns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from art_qplugins.attacks.adaptive.auto_pgd import project, steepest
from art_qplugins.attacks.adaptive.objectives import (
    direct,
    evaluate,
    margin_loss,
    other_alone,
    own_alone,
    targeted_loss,
)
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.seeds import derive_seed

__all__ = ["diversified", "diversify", "random_mix"]

_STEPS = 2  # of a start, each of eps
_SIZES = (2.0, 0.5, 0.125)  # first steps in units of eps: 4, 1 and 1/4 times eps / 2
_SHARE = 4  # one step in four climbs a part of the margin


def diversified(run: AttackRun, restarts: int) -> None:
    """Attack the images that are still robust ``restarts`` times.

    The first restart is untargeted, from the given start if there is one. Each other one aims at one of the nearest classes.
    Every second direction w also rises with the target's logit and falls with the label's.
    """
    module, y = run.module, run.y
    order = run.nearest_classes()
    for index in range(restarts):
        rows = run.robust_rows()
        if not len(rows):
            return
        target = order[:, (index - 1) % order.shape[1]] if index else None
        w = random_mix(run, f"diversified {index}", order.shape[1] + 1, target if index % 2 == 0 else None)
        start = run.starts(f"diversified {index}")
        if index or run.start is None:
            start = diversify(run, start, rows, w)
        part = own_alone(y) if index % 2 else other_alone(y, target)
        start = run.maximize(direct(module, y, part), start, max_iter=max(1, run.max_iter // _SHARE))
        whole = margin_loss(y) if target is None else targeted_loss(y, target)
        run.maximize(direct(module, y, whole), start, step_size=_SIZES[index % len(_SIZES)])


def random_mix(run: AttackRun, purpose: str, classes: int, target: Tensor | None) -> Tensor:
    """(N, K) random directions w in [-1, 1]^K. Towards a target (N,) they rise with its logit and fall with the label's."""
    generator = torch.Generator().manual_seed(derive_seed(run.seed, purpose))
    w = torch.rand(len(run.x), classes, generator=generator).to(run.x) * 2 - 1
    return w if target is None else w.scatter(1, target[:, None], 1.0).scatter(1, run.y[:, None], -1.0)


def diversify(
    run: AttackRun, start: Tensor, rows: Tensor, w: Tensor, *, steps: int = _STEPS, view: nn.Module | None = None
) -> Tensor:
    """``start`` with full steps along w . z in these rows.

    :param view: whose logits z are. By default it is the network's.
    """
    start = start.clone()
    for part in rows.split(run.batch_size):
        point, mix = start[part], _mix(w[part])
        for _ in range(steps):
            gradient = evaluate(view or run.module, point, mix)[2]
            point = project(point + run.threat.eps * steepest(gradient, run.threat.norm), run.x[part], run.threat)
        start[part] = point
    return start


def _mix(w: Tensor) -> Callable[[Tensor], Tensor]:
    """w . z."""
    return lambda logits: (w * logits).sum(1)
