"""Objectives that Auto-PGD maximizes. Each gives the loss of each image, its gradient and the deployed margin.

An objective is called with a batch of points and their rows in the run, so that finished images can leave the batch. It
computes no gradients of parameters. Its randomness depends on the step and never on the batch that an image is in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from art_qplugins.gradients.bridges import Twin
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.gradients.saturation import BeforeSaturation
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.seeds import derive_seed

__all__ = [
    "Answer",
    "Loss",
    "Objective",
    "averaged",
    "direct",
    "drawing",
    "evaluate",
    "frozen",
    "margin_loss",
    "mixed",
    "other_alone",
    "own_alone",
    "rescaled",
    "targeted_loss",
    "through",
    "watched",
]

#: From logits (n, classes) and their rows (n,) to a loss (n,), which the attack maximizes.
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Answer:
    """The values of an objective at n points.

    :ivar loss: (n,).
    :ivar gradient: like the points. It is zero where the graph does not reach the pixels and where it would be NaN.
    :ivar margin: (n,) z_y - max_{j != y} z_j of the deployed network; ``None`` where it was not evaluated.
    """

    loss: Tensor
    gradient: Tensor
    margin: Tensor | None


class Objective(Protocol):
    """A function that Auto-PGD maximizes."""

    def __call__(self, points: Tensor, rows: Tensor, *, step: int, backward: bool = True) -> Answer:
        """Loss, gradient and margin.

        :param points: (n, C, H, W) in [0, 1].
        :param rows: (n,) the rows of these images in the run.
        :param step: number of the step in the loop.
        :param backward: whether to compute the gradient. Otherwise it is zero.
        """
        ...


def evaluate(
    module: nn.Module, points: Tensor, score: Callable[[Tensor], Tensor], *, backward: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, classes), score (n,) and its gradient in the points, from one forward and at most one backward pass.

    :param score: maps logits to one number for each point.
    :param backward: whether to compute the gradient. Otherwise it is zero.
    """
    if not backward:
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
    """Within the context, ``seed`` fixes all randomness of ``module``: its stochastic layers and torch's generators."""
    with draws_from(module, seed), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def direct(module: nn.Module, y: Tensor, loss: Loss, *, deployed: bool = True) -> Objective:
    """A loss of the module's logits, and its own gradient: one forward and one backward pass a step.

    :param y: (N,) labels of all images of the run.
    :param deployed: whether the module has the outputs of the deployed network, so that its margin counts.
    """

    def objective(points: Tensor, rows: Tensor, *, step: int, backward: bool = True) -> Answer:
        logits, value, gradient = evaluate(module, points, lambda z: loss(z, rows), backward=backward)
        return Answer(value, gradient, logit_margin(logits, y[rows]) if deployed else None)

    return objective


def watched(view: BeforeSaturation | Twin, y: Tensor, loss: Loss) -> Objective:
    """A loss of another tensor or of a twin of the network, with the margin of the network itself."""

    def objective(points: Tensor, rows: Tensor, *, step: int, backward: bool = True) -> Answer:
        _, value, gradient = evaluate(view, points, lambda z: loss(z, rows), backward=backward)
        return Answer(value, gradient, None if view.answer is None else logit_margin(view.answer, y[rows]))

    return objective


def through(view: nn.Module, y: Tensor, loss: Loss) -> Objective:
    """A loss along the gradient of a view: of its own outputs where these are not those of the network."""
    return watched(view, y, loss) if isinstance(view, BeforeSaturation | Twin) else direct(view, y, loss)


def margin_loss(y: Tensor) -> Loss:
    """max_{j != y} z_j - z_y (Carlini & Wagner 2017). It is linear in the logits, so no logit scale saturates it."""
    return lambda logits, rows: -logit_margin(logits, y[rows])


def targeted_loss(y: Tensor, target: Tensor) -> Loss:
    """z_t - z_y for one target class t of each image (Gowal et al. 2019, equation 5).

    :param target: (N,) a class other than ``y`` for each image of the run.
    """

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        pair = torch.stack([target[rows], y[rows]], 1)
        return logits.gather(1, pair) @ logits.new_tensor([1.0, -1.0])

    return loss


def own_alone(y: Tensor) -> Loss:
    """A part of the margin: -z_y, where y are (N,) all labels of the run."""
    return lambda logits, rows: -logits.gather(1, y[rows, None])[:, 0]


def other_alone(y: Tensor, target: Tensor | None) -> Loss:
    """The other part of the margin: the largest logit of another class than y (N,), or that of the target (N,)."""

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        if target is not None:
            return logits.gather(1, target[rows, None])[:, 0]
        return logits.scatter(1, y[rows, None], -torch.inf).amax(1)

    return loss


def mixed(parts: Sequence[tuple[float, Callable[[], AbstractContextManager[Any]], Objective]]) -> Objective:
    """The weighted sum of objectives. Each is evaluated within its own context, which puts the network into a state.

    :param parts: (weight, context, objective). The margin is that of the first objective that returns one.
    """

    def objective(points: Tensor, rows: Tensor, *, step: int, backward: bool = True) -> Answer:
        loss, gradient, margin = torch.zeros_like(points[:, 0, 0, 0]), torch.zeros_like(points), None
        for weight, context, part in parts:
            with context():
                answer = part(points, rows, step=step, backward=backward)
            loss, gradient = loss + weight * answer.loss, gradient + weight * answer.gradient
            margin = answer.margin if margin is None else margin
        return Answer(loss, gradient, margin)

    return objective


def rescaled(module: nn.Module, y: Tensor, scale: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """The gradient is that of cross-entropy of the logits times ``scale(logits, rows)``. The loss is minus the margin.

    Cross-entropy itself does not show progress: a scale that follows the logits hides it, and a fixed scale may saturate.

    :param scale: returns (n,) above 0. The gradient treats it as constant.
    """

    def objective(points: Tensor, rows: Tensor, *, step: int, backward: bool = True) -> Answer:
        def loss(logits: Tensor) -> Tensor:
            scaled = logits * scale(logits.detach(), rows)[:, None]
            return nn.functional.cross_entropy(scaled, y[rows], reduction="none")

        logits, _, gradient = evaluate(module, points, loss, backward=backward)
        margin = logit_margin(logits, y[rows])
        return Answer(-margin, gradient, margin)

    return objective


def averaged(module: nn.Module, loss: Loss, *, draws: int, seed: int, compared: bool = True) -> Objective:
    """The mean loss of a random network and its mean gradient (EOT, Athalye et al. 2018, section 4.2).

    Gradients come from fresh draws at each step. The loss comes from the same draws at every step, so that the losses
    of two points can be compared.

    :param draws: number of forward passes for a gradient. The loss is the mean over the same number, and at least 8.
    :param compared: whether losses of points are compared. Otherwise the loss is that of the draws of the gradient, and zero
        without a backward pass.
    """

    def objective(points: Tensor, rows: Tensor, *, step: int, backward: bool = True) -> Answer:
        def score(logits: Tensor) -> Tensor:
            return loss(logits, rows)

        gradient, mean = torch.zeros_like(points), torch.zeros_like(points[:, 0, 0, 0])
        if backward:
            with drawing(module, derive_seed(seed, f"eot/{step}"), points.device):
                for _ in range(draws):
                    _, one_loss, one_gradient = evaluate(module, points, score)
                    mean += one_loss / draws
                    gradient += one_gradient / draws
        if not compared:
            return Answer(mean, gradient, None)
        with drawing(module, derive_seed(seed, "bank"), points.device):
            losses = [evaluate(module, points, score, backward=False)[1] for _ in range(max(draws, 8))]
        return Answer(torch.stack(losses).mean(0), gradient, None)

    return objective


def frozen(module: nn.Module, loss: Loss, *, seed: int) -> Objective:
    """A loss of one call of a random network, and its gradient, with the same noise at every step."""

    def objective(points: Tensor, rows: Tensor, *, step: int, backward: bool = True) -> Answer:
        with drawing(module, derive_seed(seed, "frozen"), points.device):
            _, value, gradient = evaluate(module, points, lambda logits: loss(logits, rows), backward=backward)
        return Answer(value, gradient, None)

    return objective
