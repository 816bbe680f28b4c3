"""A network fitted to the answers of another one, whose gradient stands for that of a model without any.

Papernot et al. 2017, "Practical black-box attacks against machine learning". The attack ``artq:substitute`` fits the same
network, and asks where it needs the boundary.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from art_qplugins.deployment.module import Answering
from art_qplugins.domains import COUNT, POSITIVE, SEED, Is, Maybe, check_all
from art_qplugins.errors import InputError
from art_qplugins.seeds import derive_seed
from art_qplugins.torch_domains import IMAGES, MODULE

__all__ = ["Scaled", "distil", "fit_answers", "small_network"]

_BATCH = 128
_ASKED = 250  # images in one question
_VALUES = 2**27  # pixels of all questions together
_RATE = 2e-3  # of Adam
_LARGEST = 1e4  # in place of infinite answers


def distil(
    model: Answering,
    x: Tensor,
    *,
    queries: int = 5000,
    radius: float = 0.1,
    steps: int = 1000,
    network: nn.Module | None = None,
    seed: int = 0,
) -> Answering:
    """The same deployed model with a twin fitted to its answers: to its scores, or to its labels where it gives nothing else.

    It is asked for the images, and for points in cubes around them: corners and places within, by turns.

    :param model: a deployed model without a twin.
    :param x: (N, C, H, W) in [0, 1].
    :param queries: number of its answers, at most.
    :param radius: half the side of the largest cube.
    :param steps: steps of Adam with batches of 128.
    :param network: the untrained twin, from pixels to logits; a copy of it is fitted. ``None``: :func:`small_network`.
    :param seed: fixes the points, the weights of the small network, and the order of the batches.
    :raises InputError: where the model has a twin, or images have another shape.
    """
    check_all(
        locals(),
        {
            "model": Is(Answering, "an Answering, the model of a DeployedClassifier"),
            **{
                "x": IMAGES,
                "queries": COUNT,
                "radius": POSITIVE,
                "steps": COUNT,
                "network": Maybe(MODULE),
                "seed": SEED,
            },
        },
    )
    if model.twin is not None:
        raise InputError("distil: the model has a twin; leave one of the two out")
    if tuple(x.shape[1:]) != model.input_shape:
        raise InputError(f"x: images are {tuple(x.shape[1:])}, and the model takes {model.input_shape}")
    seed = derive_seed(seed, "distil")
    random = torch.Generator().manual_seed(seed)
    points = _points(x.detach().cpu().float(), min(queries, max(1, _VALUES // x[0].numel())), float(radius), random)
    with torch.no_grad():
        answers = torch.cat([model(part) for part in points.split(_ASKED)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chosen = small_network(model.input_shape, model.nb_classes) if network is None else copy.deepcopy(network)
        scale = fit_answers(chosen, points, answers, steps=steps, random=random)
    return model.with_twin(Scaled(chosen, scale).eval(), distilled_from=len(points))


def _points(x: Tensor, queries: int, radius: float, random: torch.Generator) -> Tensor:
    """So many questions: the images, or some of them, then points around them."""
    order = torch.randperm(len(x), generator=random)
    first = x[order[:queries]]
    rows = order[torch.arange(queries - len(first)) % len(x)]
    noise = torch.rand(len(rows), *x.shape[1:], generator=random) * 2 - 1
    corners = (torch.arange(len(rows)) % 2 == 0)[:, None, None, None]
    size = radius * torch.rand(len(rows), 1, 1, 1, generator=random)
    around = (x[rows] + size * torch.where(corners, noise.sign(), noise)).clamp(0, 1)
    return torch.cat([first, around])


class Scaled(nn.Module):
    """A network fitted to scores at a common scale, with its answers at theirs."""

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits * self.scale


def fit_answers(network: nn.Module, x: Tensor, answers: Tensor, *, steps: int, random: torch.Generator) -> float:
    """Fit a network in place to answers (N, K): to the scores at a common scale, and to the decisions.

    The scale makes one rate fit all networks. Answers that are decisions alone (one-hot) are fitted in the same way.

    :param random: chooses the batches.
    :return: the scale, by which the network's answers are smaller.
    """
    z = answers.nan_to_num(0.0, _LARGEST, -_LARGEST)
    z = z - z.mean(1, keepdim=True)
    scale = z.std().clamp_min(1e-12)
    z = z / scale
    network.train().requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(x), (_BATCH,), generator=random)
            found = network(x[rows])
            loss = nn.functional.mse_loss(found, z[rows]) + nn.functional.cross_entropy(2 * found, z[rows].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval().requires_grad_(False)
    return float(scale)


def small_network(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A convolutional network that halves the image until it is at most 8 pixels high and wide."""
    channels, *side = shape
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()]
    width = 16
    while width == 16 or max(side) > 8:
        layers += [nn.Conv2d(width, min(2 * width, 64), 3, stride=2, padding=1), nn.ReLU()]
        width, side = min(2 * width, 64), [(length + 1) // 2 for length in side]
    flat = width * side[0] * side[1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, classes))
