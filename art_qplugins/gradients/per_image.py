"""Measurements of gradients at single images, which :func:`~art_qplugins.gradients.measure.measure` defines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from art_qplugins.geometry import ORDERS
from art_qplugins.gradients.attempt import Attempt
from art_qplugins.gradients.fidelity import agreement, sign_moves
from art_qplugins.gradients.margin import logit_margin, rejection_as_label
from art_qplugins.gradients.probe import gradient, margins
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["MEASUREMENTS", "Batch", "cosine", "measure_batch"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch of images with the intermediate results that measurements share, computed once.

    :param x: (N, C, H, W) in [0, 1].
    :param y: (N,) labels.
    :param start: (N, C, H, W), a random point of the ball around each image.
    :param directions: number of random directions.
    :param calls: number of calls of a random module over which a margin is averaged.
    :param is_random: whether the module is random; ``None`` where that could not be measured.
    :param abstain: index of the rejection class, if there is one. The label then also wins where the module rejects.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    start: Tensor
    threat: Threat
    directions: int
    seed: int
    calls: int
    is_random: bool | None
    abstain: int | None = None

    def seen(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels as an attack sees them."""
        return (logits, self.y) if self.abstain is None else rejection_as_label(logits, self.y, self.abstain)

    def margin(self, logits: Tensor) -> Tensor:
        return logit_margin(*self.seen(logits))

    def loss(self, logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(*self.seen(logits), reduction="none")

    def slope(self, score: Callable[[Tensor], Tensor], at: Tensor, *, calls: int) -> Tensor:
        return gradient(self.module, at, score, seed=self.seed, calls=calls)

    @cached_property
    def loss_slope(self) -> Tensor:
        """dL/dx of one call, as an attack computes it."""
        return self.slope(self.loss, self.x, calls=1)

    @cached_property
    def g(self) -> Tensor:
        """dm/dx."""
        return self.slope(self.margin, self.x, calls=self.calls)

    @cached_property
    def g_start(self) -> Tensor:
        """dm/dx at the random points."""
        return self.slope(self.margin, self.start, calls=self.calls)

    @cached_property
    def moves(self) -> Tensor:
        """Random moves of length eps, (directions, C, H, W)."""
        signs = sign_moves(self.x, self.threat.eps, self.directions, self.seed)
        if self.threat.norm == "Linf":
            return signs
        if self.threat.norm == "L0":
            raise ValueError("steps of eps are not defined in L0")
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "directions"))
        ways = torch.randn(signs.shape, generator=generator).to(signs)
        lengths: Tensor = torch.linalg.vector_norm(ways, ord=ORDERS[self.threat.norm], dim=(1, 2, 3), keepdim=True)
        return self.threat.eps * ways / lengths

    @cached_property
    def walked(self) -> tuple[Tensor, Tensor]:
        """Margins at the images and after moves of eps / 4, and the same for moves of eps; (1 + directions, N) each."""
        moves = torch.cat([self.moves / 4, self.moves])
        m = margins(self.module, self.x, self.y, moves, seed=self.seed, calls=self.calls, abstain=self.abstain)
        return m[: 1 + self.directions], torch.cat([m[:1], m[1 + self.directions :]])


def measure_batch(batch: Batch, attempt: Attempt) -> dict[str, Tensor]:
    """Every measurement, (N,) float64 on the CPU. A measurement that failed here or in an earlier batch is NaN."""
    found = {}
    for name, measurement in MEASUREMENTS.items():
        value = None if name in attempt.skipped else attempt(name, partial(measurement, batch))
        missing = torch.full((len(batch.x),), torch.nan, dtype=torch.float64)
        found[name] = missing if value is None else value.detach().double().cpu()
    return found


def _gradient(batch: Batch) -> Tensor:
    return _largest(batch.loss_slope)


def _gradient_start(batch: Batch) -> Tensor:
    return _largest(batch.slope(batch.loss, batch.start, calls=1))


def _gradient_l2(batch: Batch) -> Tensor:
    return batch.loss_slope.float().flatten(1).square().sum(1).sqrt()


def _gradient_ratio(batch: Batch) -> Tensor:
    return _length(batch.loss_slope) / _length(batch.g)


def _fidelity(batch: Batch) -> Tensor:
    return agreement(batch.g, batch.moves / 4, batch.walked[0])


def _fidelity_eps(batch: Batch) -> Tensor:
    return agreement(batch.g, batch.moves, batch.walked[1])


def _instability(batch: Batch) -> Tensor:
    m = batch.walked[0].double()
    return ((m[1:] - m[0]).abs().mean(0) / m[0].abs().clamp_min(1e-30)).clamp_max(1)


def _alignment(batch: Batch) -> Tensor:
    return cosine(batch.g, batch.g_start)


def _imbalance(batch: Batch) -> Tensor:
    def own(logits: Tensor) -> Tensor:
        seen, y = batch.seen(logits)
        return (seen - seen.mean(1, keepdim=True)).gather(1, y[:, None])[:, 0]

    of_own = batch.slope(own, batch.x, calls=batch.calls)
    lengths = torch.stack([_length(of_own), _length(of_own.double() - batch.g.double())])
    return lengths.amax(0) / lengths.amin(0)


def _coherence(batch: Batch) -> Tensor:
    if not batch.is_random:
        raise ValueError("the module gives the same outputs with other draws")
    seeds = [derive_seed(batch.seed, f"coherence/{i}") for i in range(2)]
    one, other = (gradient(batch.module, batch.x, batch.margin, seed=seed) for seed in seeds)
    return cosine(one, other)


#: Keys are the names that :func:`~art_qplugins.gradients.measure.measure` documents.
MEASUREMENTS: dict[str, Callable[[Batch], Tensor]] = {
    "gradient": _gradient,
    "gradient_start": _gradient_start,
    "gradient_l2": _gradient_l2,
    "gradient_ratio": _gradient_ratio,
    "fidelity": _fidelity,
    "fidelity_eps": _fidelity_eps,
    "instability": _instability,
    "alignment": _alignment,
    "imbalance": _imbalance,
    "coherence": _coherence,
}


def _largest(gradients: Tensor) -> Tensor:
    return gradients.abs().flatten(1).amax(1)


def _length(gradients: Tensor) -> Tensor:
    lengths: Tensor = gradients.double().flatten(1).norm(dim=1)
    return lengths


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(N,) the cosines of two gradients of each image. They are 0 if either is zero, and NaN if one is not finite."""
    return (a.double() * b.double()).flatten(1).sum(1) / (_length(a) * _length(b)).clamp_min(1e-300)
