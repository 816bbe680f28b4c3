"""What an attack climbs: a loss in each image with its gradient, and what the deployed network answered on the way.

An objective is asked for a batch of points and says which images of the run they belong to, so that images that are
done can leave the batch. It takes no gradient in parameters, and its own randomness is keyed by the step, never by the
batch that an image happens to be in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from art_qplugins.gradients.margin import logit_margin
from art_qplugins.quantizers.stochastic import draws_from
from art_qplugins.seeds import derive_seed

__all__ = [
    "Answer",
    "Loss",
    "Objective",
    "averaged",
    "direct",
    "drawing",
    "margin_loss",
    "mixed",
    "rescaled",
    "targeted_loss",
]

#: Logits (n, classes) and the rows (n,) that they belong to, to a loss (n,) that the attack makes large.
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Answer:
    """``margin`` is that of the deployed network at these very points, or ``None`` where it was not asked there."""

    loss: Tensor  # (n,)
    gradient: Tensor  # like the points; zero where the graph does not reach back to the pixels, or is not a number
    margin: Tensor | None  # (n,) z_y - max z_j


class Objective(Protocol):
    def __call__(self, points: Tensor, rows: Tensor, *, step: int, slope: bool = True) -> Answer:
        """:param points: (n, C, H, W) in [0, 1].
        :param rows: (n,) which images of the run these are.
        :param step: which step of the loop asks.
        :param slope: whether the gradient is wanted; without it, it is zero.
        """
        ...


def evaluate(
    module: nn.Module, points: Tensor, score: Callable[[Tensor], Tensor], *, slope: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, score (n,) and its gradient in the points, from one forward and at most one backward pass."""
    if not slope:
        with torch.no_grad():
            logits = module(points)
            return logits, score(logits), torch.zeros_like(points)
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        logits = module(leaf)
        value = score(logits)
        found = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    gradient = torch.zeros_like(points) if found is None else found.nan_to_num(nan=0.0)
    return logits.detach(), value.detach(), gradient


@contextlib.contextmanager
def drawing(module: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Within, whatever is random in ``module``, in its own layers or from torch's generators, draws from ``seed``."""
    with draws_from(module, seed), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def direct(module: nn.Module, y: Tensor, loss: Loss, *, deployed: bool = True) -> Objective:
    """The loss of the module's own answer and its own gradient; one forward and backward pass a step.

    :param y: (N,) labels of all images of the run.
    :param deployed: whether the module answers as the deployed one does, so that its margin decides.
    """

    def objective(points: Tensor, rows: Tensor, *, step: int, slope: bool = True) -> Answer:
        logits, value, gradient = evaluate(module, points, lambda z: loss(z, rows), slope=slope)
        return Answer(value, gradient, logit_margin(logits, y[rows]) if deployed else None)

    return objective


def margin_loss(y: Tensor) -> Loss:
    """max_{j != y} z_j - z_y: linear in the logits, so that no scale of theirs saturates it (Carlini & Wagner 2017)."""
    return lambda logits, rows: -logit_margin(logits, y[rows])


def targeted_loss(y: Tensor, target: Tensor) -> Loss:
    """z_t - z_y for one target an image (Gowal et al. 2019, equation 5).

    :param target: (N,) a class other than ``y`` for each image of the run.
    """

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        pair = torch.stack([target[rows], y[rows]], 1)
        return logits.gather(1, pair) @ logits.new_tensor([1.0, -1.0])

    return loss


def mixed(parts: Sequence[tuple[float, Callable[[], AbstractContextManager[Any]], Objective]]) -> Objective:
    """The weighted sum of objectives, each asked within its own context: of one network in several states.

    :param parts: (weight, context, objective); the margin is that of the first objective that knows it.
    """

    def objective(points: Tensor, rows: Tensor, *, step: int, slope: bool = True) -> Answer:
        loss, gradient, margin = torch.zeros_like(points[:, 0, 0, 0]), torch.zeros_like(points), None
        for weight, context, part in parts:
            with context():
                answer = part(points, rows, step=step, slope=slope)
            loss, gradient = loss + weight * answer.loss, gradient + weight * answer.gradient
            margin = answer.margin if margin is None else margin
        return Answer(loss, gradient, margin)

    return objective


def rescaled(module: nn.Module, y: Tensor, scale: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """The gradient of cross-entropy at ``scale(logits, rows)`` times the logits; steps are judged by the margin.

    A scale that follows the logits makes the loss itself say nothing of progress, and a fixed one may saturate it.

    :param scale: (n,) above 0, constant for the gradient.
    """

    def objective(points: Tensor, rows: Tensor, *, step: int, slope: bool = True) -> Answer:
        def loss(logits: Tensor) -> Tensor:
            scaled = logits * scale(logits.detach(), rows)[:, None]
            return nn.functional.cross_entropy(scaled, y[rows], reduction="none")

        logits, _, gradient = evaluate(module, points, loss, slope=slope)
        margin = logit_margin(logits, y[rows])
        return Answer(-margin, gradient, margin)

    return objective


def averaged(module: nn.Module, y: Tensor, *, draws: int, seed: int) -> Objective:
    """Of a random network: the mean margin and its mean gradient (EOT, Athalye et al. 2018, section 4.2).

    Gradients come from fresh draws at each step. The loss comes from one bank of draws that is the same at every step,
    so that a difference between two points is one of the points.

    :param draws: forward passes for a gradient; as many, and at least 8, are in the bank.
    """
    loss = margin_loss(y)

    def objective(points: Tensor, rows: Tensor, *, step: int, slope: bool = True) -> Answer:
        def score(logits: Tensor) -> Tensor:
            return loss(logits, rows)

        gradient = torch.zeros_like(points)
        if slope:
            with drawing(module, derive_seed(seed, f"eot/{step}"), points.device):
                for _ in range(draws):
                    gradient += evaluate(module, points, score)[2] / draws
        bank = max(draws, 8)
        with drawing(module, derive_seed(seed, "bank"), points.device):
            losses = [evaluate(module, points, score, slope=False)[1] for _ in range(bank)]
        return Answer(torch.stack(losses).mean(0), gradient, None)

    return objective
