"""Distances between images, and random points of a threat's ball."""

from __future__ import annotations

import torch
from torch import Tensor

from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["ORDERS", "TOLERANCE", "distances", "random_noise", "random_point"]

#: Tolerance by which a distance may exceed eps. It is relative to eps if eps is above 1. Attacks compute in float32,
#: and distances are compared in float64.
TOLERANCE = 1e-6

#: The order of each norm for ``torch.linalg.vector_norm``. L0 counts pixels and has none.
ORDERS: dict[str, float] = {"Linf": torch.inf, "L2": 2, "L1": 1}


def distances(x: Tensor, x_adv: Tensor, norm: str) -> Tensor:
    """Distance of each image to its adversarial image, (N,) float64.

    :param x: (N, C, H, W), and so is ``x_adv``.
    :param norm: a key of :data:`ORDERS`, or ``"L0"``, the number of pixels in which any channel differs.
    """
    delta = (x_adv.double() - x.double()).abs()
    if norm == "L0":
        return (delta.amax(1) > 0).flatten(1).sum(1).double()
    lengths: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=ORDERS[norm], dim=1)
    return lengths


def random_point(x: Tensor, threat: Threat, seed: int) -> Tensor:
    """A random legal image for each image, (N, C, H, W) in [0, 1].

    For Linf it is uniform in the cube. For L2 and L1 its direction is normally distributed, and its radius to the power
    of the number of values is uniform. For L0 it has new values in eps random pixels.

    :param x: (N, C, H, W) in [0, 1].
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "start"))
    if threat.norm == "Linf":
        move = (torch.rand(x.shape, generator=generator) * 2 - 1) * threat.eps
        return (x + move.to(x)).clamp(0, 1)
    if threat.norm == "L0":  # the chosen pixels change in all channels
        score = torch.rand((len(x), x[0, 0].numel()), generator=generator)
        chosen = score.argsort(1).argsort(1) < int(threat.eps)
        return torch.where(
            chosen.view(len(x), 1, *x.shape[2:]).to(x.device), torch.rand(x.shape, generator=generator).to(x), x
        )
    move = torch.randn(x.shape, generator=generator)
    length: Tensor = torch.linalg.vector_norm(move.reshape(len(x), -1), ord=ORDERS[threat.norm], dim=1)
    radius = threat.eps * torch.rand(len(x), generator=generator) ** (1 / x[0].numel())
    return (x + (move * (radius / length).view(-1, *[1] * (x.dim() - 1))).to(x)).clamp(0, 1)


def random_noise(x: Tensor, threat: Threat, seed: int) -> Tensor:
    """Each image with random noise of length eps, (N, C, H, W) clipped to [0, 1].

    For Linf every value moves by eps, up or down. For L2 and L1 the direction is normally distributed. For L0 the image has new
    values in eps random pixels.

    :param x: (N, C, H, W) in [0, 1].
    """
    if threat.norm == "L0":
        return random_point(x, threat, seed)
    move = torch.randn(x.shape, generator=torch.Generator().manual_seed(derive_seed(seed, "noise")))
    if threat.norm == "Linf":
        return (x + threat.eps * move.sign().to(x)).clamp(0, 1)
    length: Tensor = torch.linalg.vector_norm(move.flatten(1), ord=ORDERS[threat.norm], dim=1)
    return (x + (move * (threat.eps / length).view(-1, 1, 1, 1)).to(x)).clamp(0, 1)
