"""Auto-PGD. Each image leaves the loop on its own as soon as the caller says so.

This is algorithm 1 of Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from art_qplugins.attacks.adaptive.objectives import Answer, Objective
from art_qplugins.threat import Threat

__all__ = ["auto_pgd", "checkpoints", "project", "steepest"]

#: Called with (rows, points, margin) whenever the margin of the deployed network is known. Returns (n,) bool: which
#: images continue.
Record = Callable[[Tensor, Tensor, Tensor], Tensor]

_MOMENTUM = 0.75  # alpha of algorithm 1
_RHO = 0.75  # the share of steps that must improve the loss between two checkpoints


def auto_pgd(
    objective: Objective,
    x: Tensor,
    start: Tensor,
    rows: Tensor,
    *,
    threat: Threat,
    max_iter: int,
    record: Record | None,
    step_size: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Maximize ``objective`` on a batch. Return the rows that stayed until the end, and their points of highest loss.

    It takes at most ``max_iter`` gradients and one further forward pass per image. It ends at the start where
    no image has a gradient, because none can move.

    :param x: (n, C, H, W) in [0, 1], the centres of the balls.
    :param start: legal images.
    :param rows: (n,) which images of the run these are.
    :param record: decides after each step which images continue. ``None`` keeps all images until the end.
    :param step_size: the first step size in units of eps, above 0. The paper's is 2.
    """

    def active(answer: Answer) -> Tensor | None:
        return None if record is None or answer.margin is None else record(state.rows, state.point, answer.margin)

    answer = objective(start, rows, step=0)
    state = _State.begin(answer, x, start, rows, step_size * threat.eps)
    state = state.select(active(answer))
    if not bool(answer.gradient.any()):
        return state.rows, state.best
    halvings, last = checkpoints(max_iter), 0
    for step in range(1, max_iter + 1):
        if not len(state.rows):
            break
        state.move(threat, 1.0 if step == 1 else _MOMENTUM)
        answer = objective(state.point, state.rows, step=step, backward=step < max_iter)
        state.update(answer)
        mask = active(answer)
        if step in halvings:
            state.adapt(step - last)
            last = step
        state = state.select(mask)
    return state.rows, state.best


@dataclass
class _State:
    """The images that are still in the loop. Every field has one row per image."""

    rows: Tensor
    x: Tensor
    point: Tensor
    previous: Tensor  # the point one step earlier
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    step_size: Tensor
    improved: Tensor  # steps since the last checkpoint that improved the loss
    halved: Tensor  # whether the last checkpoint halved the step
    checkpoint_loss: Tensor  # the best loss at the last checkpoint

    @classmethod
    def begin(cls, answer: Answer, x: Tensor, start: Tensor, rows: Tensor, step_size: float) -> _State:
        loss, gradient = answer.loss, answer.gradient
        return cls(
            rows=rows,
            x=x,
            point=start,
            previous=start,
            gradient=gradient,
            loss=loss,
            best=start,
            best_loss=loss,
            best_gradient=gradient,
            step_size=torch.full_like(loss, step_size),
            improved=torch.zeros_like(loss),
            halved=torch.ones_like(loss, dtype=torch.bool),
            checkpoint_loss=loss,
        )

    def select(self, mask: Tensor | None) -> _State:
        """The rows where ``mask`` is true."""
        if mask is None or bool(mask.all()):
            return self
        return _State(**{f.name: getattr(self, f.name)[mask] for f in dataclasses.fields(self)})

    def move(self, threat: Threat, momentum: float) -> None:
        """Lines 7 and 8 of algorithm 1. Every point is in the ball and in [0, 1]."""
        target = project(self.point + _wide(self.step_size) * steepest(self.gradient, threat.norm), self.x, threat)
        moved = self.point + momentum * (target - self.point) + (1 - momentum) * (self.point - self.previous)
        self.point, self.previous = project(moved, self.x, threat), self.point

    def update(self, answer: Answer) -> None:
        """Store the loss and the gradient at the new point."""
        self.improved = self.improved + (answer.loss > self.loss)
        self.loss, self.gradient = answer.loss, answer.gradient
        better = answer.loss > self.best_loss
        self.best_loss = torch.where(better, answer.loss, self.best_loss)
        self.best = torch.where(_wide(better), self.point, self.best)
        self.best_gradient = torch.where(_wide(better), answer.gradient, self.best_gradient)

    def adapt(self, steps: int) -> None:
        """At a checkpoint, halve the step size and restart from the best point if a condition of section 3.1 holds.

        :param steps: number of steps since the last checkpoint.
        """
        stuck = ~self.halved & (self.checkpoint_loss >= self.best_loss)
        self.halved = (self.improved < _RHO * steps) | stuck
        self.checkpoint_loss, self.improved = self.best_loss, torch.zeros_like(self.improved)
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.point = torch.where(_wide(self.halved), self.best, self.point)
        self.gradient = torch.where(_wide(self.halved), self.best_gradient, self.gradient)


def checkpoints(max_iter: int) -> set[int]:
    """The steps w_j = ceil(p_j max_iter) of section 3.1: p_1 = 0.22, then intervals shorter by 0.03, at least 0.06."""
    percent, interval, steps = 22, 22, set()  # integers, so that no rounding error moves a checkpoint
    while percent < 100:
        steps.add(-(-percent * max_iter // 100))
        interval = max(interval - 3, 6)
        percent += interval
    return steps


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """The steepest direction of length 1 in the norm, Linf or L2. It is zero where the gradient is zero."""
    if norm == "Linf":
        return gradient.sign()
    # Divide by the largest entry first, so that squares neither overflow nor underflow.
    scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / _length(scaled).clamp_min(1e-12)


def project(points: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Project into the ball around ``x`` and into [0, 1]. In L2 the two steps give a legal point, not the nearest one."""
    change = points - x
    if threat.norm == "Linf":
        change = change.clamp(-threat.eps, threat.eps)
    else:
        change = change * (threat.eps / _length(change).clamp_min(1e-12)).clamp_max(1)
    return (x + change).clamp(0, 1)


def _wide(values: Tensor) -> Tensor:
    """(n,) to broadcast over images (n, C, H, W)."""
    return values[:, None, None, None]


def _length(images: Tensor) -> Tensor:
    """L2 norm of each image, (n, 1, 1, 1)."""
    lengths: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
    return lengths
