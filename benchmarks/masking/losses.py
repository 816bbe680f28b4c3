"""The losses that the zoo's networks are trained by.

Each is made with its settings. It takes the network, x (N, C, H, W), y (N,), a generator and the share of the training that
is over, in [0, 1). Schedules and optimizers are in ``training.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "LOSSES",
    "Loss",
    "adversarial",
    "cross_entropy",
    "imitating",
    "mixup",
    "pairing",
    "pgd",
    "squeezing",
    "trades",
]

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator, float], Tensor]


def cross_entropy(*, gain: float = 1.0, smoothing: float = 0.0, noise: float = 0.0) -> Loss:
    """Cross-entropy.

    :param gain: factor on the logits in the loss alone; the trained logits are smaller by about this factor.
    :param noise: standard deviation of Gaussian noise on the pixels.
    """

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        x = x + noise * torch.randn(x.shape, generator=random) if noise else x
        return F.cross_entropy(gain * model(x), y, label_smoothing=smoothing)

    return loss


def mixup(*, alpha: float = 1.0) -> Loss:
    """Mixup (Zhang et al. 2018), with one ratio for a batch."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        share = float(torch._sample_dirichlet(torch.tensor([alpha, alpha]), generator=random)[0])
        other = torch.randperm(len(x), generator=random)
        logits = model(share * x + (1 - share) * x[other])
        value: Tensor = share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[other])
        return value

    return loss


def adversarial(*, eps: float, steps: int = 5, random_start: bool = True, warm: float = 0.3) -> Loss:
    """Cross-entropy at the images of an L-infinity PGD against the network in eval mode (Madry et al. 2018).

    :param warm: the share of the training in which eps grows to its value. Small networks do not learn with a large eps at
        once.
    """

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        current = eps * min(1.0, (done + 0.05) / warm) if warm else eps

        def worse(z: Tensor) -> Tensor:
            return F.cross_entropy(z, y)

        x_adv = pgd(model.eval(), x, worse, current, steps, random if random_start else None)
        return F.cross_entropy(model.train()(x_adv), y)

    return loss


def trades(*, eps: float, beta: float, steps: int = 5, warm: float = 0.3) -> Loss:
    """TRADES: cross-entropy plus ``beta`` times the divergence from clean to adversarial answers (Zhang et al. 2019, eq. 5)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        current = eps * min(1.0, (done + 0.05) / warm)
        with torch.no_grad():
            clean = model.eval()(x).softmax(1)

        def apart(z: Tensor) -> Tensor:
            return F.kl_div(z.log_softmax(1), clean, reduction="batchmean")

        x_adv = pgd(model, x, apart, current, steps, random)
        logits = model.train()(torch.cat([x, x_adv]))
        here, there = logits[: len(x)], logits[len(x) :]
        divergence = F.kl_div(there.log_softmax(1), here.softmax(1), reduction="batchmean")
        return F.cross_entropy(here, y) + beta * divergence

    return loss


def pairing(*, strength: float, noise: float) -> Loss:
    """Clean logit pairing: random pairs of noisy images are trained to the same logits (Kannan et al. 2018, sec. 3.2)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        logits = model(x + noise * torch.randn(x.shape, generator=random))
        half = len(x) // 2
        apart: Tensor = (logits[:half] - logits[half : 2 * half]).norm(dim=1).mean()
        return F.cross_entropy(logits, y) + strength * apart

    return loss


def squeezing(*, strength: float, noise: float) -> Loss:
    """Logit squeezing: the norm of the logits of noisy images is penalized (Kannan et al. 2018, sec. 3.3)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        logits = model(x + noise * torch.randn(x.shape, generator=random))
        size: Tensor = logits.norm(dim=1).mean()
        return F.cross_entropy(logits, y) + strength * size

    return loss


def imitating(teacher: nn.Module, temperature: float) -> Loss:
    """Defensive distillation: a student is trained to the teacher's answers at a temperature (Papernot et al. 2016)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        with torch.no_grad():
            soft = (teacher(x) / temperature).softmax(1)
        return F.cross_entropy(model(x) / temperature, soft)

    return loss


def pgd(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    eps: float,
    steps: int,
    random: torch.Generator | None,
) -> Tensor:
    start = torch.zeros_like(x) if random is None else (2 * torch.rand(x.shape, generator=random) - 1) * eps
    x_adv, step = (x + start).clamp(0, 1), min(1.0, 2.5 / steps) * eps
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(leaf)), leaf)
        x_adv = torch.clamp(torch.min(torch.max(leaf + step * gradient.sign(), x - eps), x + eps), 0, 1).detach()
    return x_adv


LOSSES: dict[str, Callable[..., Loss]] = {
    f.__name__: f for f in (cross_entropy, mixup, adversarial, trades, pairing, squeezing)
}
