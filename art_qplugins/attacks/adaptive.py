"""Adaptive attacks on quantized and random networks: one loop, Auto-PGD, over objectives that no library has.

The loop is that of Croce & Hein 2020 ("Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", algorithm 1), image by image: a deterministic network's image leaves it with the first point
that is misclassified. A random network's does not, since one draw proves nothing; there the image with the best mean
margin over draws that no step saw is kept. What is climbed lives in ``objectives``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.attacks.objectives import Answer, Objective, direct, drawing, margin_loss, targeted_loss
from art_qplugins.attacks.registry import Attack
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.estimators.fidelity import logit_margin, stream
from art_qplugins.quantizers.stochastic import is_stochastic
from art_qplugins.threat import Threat

__all__ = ["ascend", "run"]

_MOMENTUM = 0.75  # alpha of algorithm 1
_RHO = 0.75  # the share of steps that must improve the loss between two checkpoints
_SELECTION = 16  # calls of a random network that decide which image is kept
_TRIED = 8  # images on which a network is found to be random


# --- The loop


@dataclass
class _Climb:
    """The images that are still climbed; every field has one row for each."""

    rows: Tensor
    x: Tensor
    point: Tensor
    before: Tensor  # the point one step earlier
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    size: Tensor  # of the step
    ups: Tensor  # steps since the checkpoint that improved the loss
    halved: Tensor  # whether the last checkpoint halved the step
    checked: Tensor  # the best loss at the last checkpoint

    @classmethod
    def begin(cls, answer: Answer, x: Tensor, start: Tensor, rows: Tensor, size: float) -> _Climb:
        loss, gradient = answer.loss, answer.gradient
        return cls(
            rows=rows,
            x=x,
            point=start,
            before=start,
            gradient=gradient,
            loss=loss,
            best=start,
            best_loss=loss,
            best_gradient=gradient,
            size=torch.full_like(loss, size),
            ups=torch.zeros_like(loss),
            halved=torch.ones_like(loss, dtype=torch.bool),
            checked=loss,
        )

    def select(self, mask: Tensor | None) -> _Climb:
        if mask is None or bool(mask.all()):
            return self
        return _Climb(**{f.name: getattr(self, f.name)[mask] for f in dataclasses.fields(self)})

    def move(self, threat: Threat, momentum: float) -> None:
        """Equations of algorithm 1, lines 7 and 8; every point is in the ball and in [0, 1]."""
        toward = _project(self.point + _wide(self.size) * _direction(self.gradient, threat.norm), self.x, threat)
        path = self.point + momentum * (toward - self.point) + (1 - momentum) * (self.point - self.before)
        self.point, self.before = _project(path, self.x, threat), self.point

    def take(self, answer: Answer) -> None:
        self.ups = self.ups + (answer.loss > self.loss)
        self.loss, self.gradient = answer.loss, answer.gradient
        better = answer.loss > self.best_loss
        self.best_loss = torch.where(better, answer.loss, self.best_loss)
        self.best = torch.where(_wide(better), self.point, self.best)
        self.best_gradient = torch.where(_wide(better), answer.gradient, self.best_gradient)

    def check(self, steps: int) -> None:
        """Halve the step, and go back to the best point, where one of the two conditions of section 3.1 holds."""
        stuck = ~self.halved & (self.checked >= self.best_loss)
        self.halved = (self.ups < _RHO * steps) | stuck
        self.checked, self.ups = self.best_loss, torch.zeros_like(self.ups)
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.point = torch.where(_wide(self.halved), self.best, self.point)
        self.gradient = torch.where(_wide(self.halved), self.best_gradient, self.gradient)


def ascend(
    objective: Objective,
    x: Tensor,
    start: Tensor,
    rows: Tensor,
    *,
    threat: Threat,
    max_iter: int,
    note: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Auto-PGD on a batch: the rows that are left at the end, and the best point of each by the loss.

    At most ``max_iter`` gradients an image, and one forward pass more.

    :param x: (n, C, H, W) in [0, 1], the centres of the balls.
    :param start: legal images.
    :param rows: (n,) which images of the run these are.
    :param note: called as ``note(rows, points, margin)`` wherever the objective knows the deployed network's margin;
        says (n,) bool which images go on. ``None``: all go on to the end.
    """

    def standing(answer: Answer) -> Tensor | None:
        return None if note is None or answer.margin is None else note(state.rows, state.point, answer.margin)

    answer = objective(start, rows, step=0)
    state = _Climb.begin(answer, x, start, rows, 2 * threat.eps)
    state = state.select(standing(answer))
    checkpoints, last = _checkpoints(max_iter), 0
    for step in range(1, max_iter + 1):
        if not len(state.rows):
            break
        state.move(threat, 1.0 if step == 1 else _MOMENTUM)
        answer = objective(state.point, state.rows, step=step, slope=step < max_iter)
        state.take(answer)
        mask = standing(answer)
        if step in checkpoints:
            state.check(step - last)
            last = step
        state = state.select(mask)
    return state.rows, state.best


def _checkpoints(max_iter: int) -> set[int]:
    """The steps w_j = ceil(p_j max_iter) of section 3.1: p_1 = 0.22, then intervals shorter by 0.03, at least 0.06."""
    share, interval, steps = 0.22, 0.22, set()
    while share < 1:
        steps.add(math.ceil(share * max_iter))
        interval = max(interval - 0.03, 0.06)
        share += interval
    return steps


def _wide(values: Tensor) -> Tensor:
    """(n,) to broadcast over images (n, C, H, W)."""
    return values[:, None, None, None]


def _length(images: Tensor) -> Tensor:
    """L2 norm of each image, (n, 1, 1, 1)."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest direction of length 1 in the norm; zero where the gradient is."""
    if norm == "Linf":
        return gradient.sign()
    # First by the largest entry, so that squares neither overflow nor underflow.
    scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / _length(scaled).clamp_min(1e-12)


def _project(points: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Into the ball around ``x`` and into [0, 1]. In L2 one after the other, which is legal though not the nearest."""
    change = points - x
    if threat.norm == "Linf":
        change = change.clamp(-threat.eps, threat.eps)
    else:
        change = change * (threat.eps / _length(change).clamp_min(1e-12)).clamp_max(1)
    return (x + change).clamp(0, 1)


# --- A run: several passes of the loop over the images that still stand


@dataclass
class _Run:
    """The images of one attack, and for each the best adversarial image so far."""

    module: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    batch_size: int
    seed: int
    max_iter: int
    start: Tensor | None
    random: bool
    image: Tensor = field(init=False)
    margin: Tensor = field(init=False)  # the deployed network's at ``image``; of a random one, its mean

    def __post_init__(self) -> None:
        self.image = (self.x if self.start is None else self.start).clone()
        self.margin = torch.full(self.y.shape, torch.inf, device=self.x.device)

    def standing(self) -> Tensor:
        """Rows of the images that are not broken. Of a random network, all: no number of draws proves a break."""
        everything = torch.arange(len(self.x), device=self.x.device)
        return everything if self.random else everything[~(self.margin < 0)]

    def starts(self, purpose: str) -> Tensor:
        """The images to start from that were given, or random ones, uniform in the cube or on the sphere."""
        if self.start is not None:
            return self.start
        generator = torch.Generator().manual_seed(stream(self.seed, f"start/{purpose}"))
        if self.threat.norm == "Linf":
            noise = torch.rand(self.x.shape, generator=generator) * 2 - 1
        else:
            noise = _direction(torch.randn(self.x.shape, generator=generator), "L2")
        return _project(self.x + self.threat.eps * noise.to(self.x), self.x, self.threat)

    def ascend(self, objective: Objective, start: Tensor) -> Tensor:
        """One pass of the loop over what stands; gives the points (N, C, H, W), ``start`` where there is no other."""
        reached = start.clone()
        note = None if self.random else self.note
        for rows in self.standing().split(self.batch_size):
            left, best = ascend(
                objective, self.x[rows], start[rows], rows, threat=self.threat, max_iter=self.max_iter, note=note
            )
            reached[left] = best
            if self.random:
                self.note(left, best, self._selected(left, best))
        return reached

    def note(self, rows: Tensor, points: Tensor, margin: Tensor) -> Tensor:
        """Keep these points where they are the best so far; says (n,) which images still stand."""
        better = margin < self.margin[rows]
        self.image[rows[better]] = points[better]
        self.margin[rows[better]] = margin[better]
        return ~(margin < 0)

    def logits(self, points: Tensor) -> Tensor:
        """(N, classes), in batches, without a gradient."""
        with torch.no_grad():
            return torch.cat([self.module(part) for part in points.split(self.batch_size)])

    def _selected(self, rows: Tensor, points: Tensor) -> Tensor:
        """The mean margin over draws that are the same for all candidates, and that no step of the loop saw."""
        with torch.no_grad(), drawing(self.module, stream(self.seed, "selection"), points.device):
            margins = [logit_margin(self.module(points), self.y[rows]) for _ in range(_SELECTION)]
        return torch.stack(margins).mean(0)


def _is_random(module: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether it has stochastic layers, or answers otherwise when the global generators are seeded otherwise."""
    if is_stochastic(module):
        return True
    answers = []
    for purpose in ("tried", "tried again"):
        with torch.no_grad(), drawing(module, stream(seed, purpose), x.device):
            answers.append(module(x[:_TRIED]))
    tolerance = 1e-4 * float(answers[0].abs().amax()) if len(x) else 0.0
    return not torch.allclose(*answers, rtol=0, atol=tolerance, equal_nan=True)


# --- The attacks


def _apgd_margin(run: _Run, options: dict[str, Any]) -> None:
    run.ascend(direct(run.module, run.y, margin_loss(run.y)), run.starts("margin"))


def _multi_targeted(run: _Run, options: dict[str, Any]) -> None:
    """Each of the nearest classes is the target once, of the images that still stand (Gowal et al. 2019)."""
    wanted = options["targets"]
    if wanted < 1:
        raise InputError(f"artq:multi-targeted: targets is {wanted}; give at least 1, e.g. 9")
    logits = run.logits(run.image)
    run.note(torch.arange(len(run.x), device=run.x.device), run.image, logit_margin(logits, run.y))
    order = logits.scatter(1, run.y[:, None], -torch.inf).argsort(1, descending=True)
    for index in range(min(wanted, logits.shape[1] - 1)):
        loss = targeted_loss(run.y, order[:, index])
        run.ascend(direct(run.module, run.y, loss), run.starts(f"target {index}"))


_ATTACKS: dict[str, Callable[[_Run, dict[str, Any]], None]] = {
    "apgd_margin": _apgd_margin,
    "multi_targeted": _multi_targeted,
}


def run(
    estimator: QuantizedClassifier,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    options: dict[str, Any],
    batch_size: int,
    seed: int,
    start: Tensor | None = None,
) -> Tensor:
    """Images as close to misclassification as the attack got; each is legal.

    :param start: legal images to start from in place of random ones.
    """
    if options["max_iter"] < 1:
        raise InputError(f"{attack.name}: max_iter is {options['max_iter']}; give at least 1, e.g. 20")
    if start is not None and start.shape != x.shape:
        raise InputError(f"{attack.name}: start is {tuple(start.shape)} and the images {tuple(x.shape)}; give one each")
    state = _Run(
        estimator.model,
        x,
        y,
        threat,
        batch_size,
        seed,
        options["max_iter"],
        start,
        _is_random(estimator.model, x, seed),
    )
    _ATTACKS[attack.upstream](state, options)
    return state.image
