"""Helpers that adapters share: options under the names of a library, and eps for attacks that do not take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from art_qplugins.attacks.catalogue.row import Attack
from art_qplugins.geometry import TOLERANCE, distances
from art_qplugins.threat import Threat

__all__ = ["eps_step", "translated", "within"]


def eps_step(threat: Threat, relative: float | None, max_iter: int) -> float:
    """The step size: ``relative`` times eps. By default all steps together have length 2.5 eps."""
    return threat.eps * (min(1.0, 2.5 / max_iter) if relative is None else relative)


def translated(attack: Attack, options: Mapping[str, Any], threat: Threat, names: Mapping[str, str]) -> dict[str, Any]:
    """``options`` as arguments of the library's constructor.

    :param names: the library's name of each option. The names of the row take precedence.
    """
    names = {**names, **attack.names}
    settings = dict(attack.fixed)
    for option, value in options.items():
        if option == "rel_eps_step":
            value = eps_step(threat, value, options.get("max_iter", 1))
        settings[names.get(option, option)] = value
    return settings


def within(x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """``x_adv`` where it is finite, in [0, 1] and at most eps from ``x``. Other images are replaced by the clean image.

    Values that differ only by rounding are reset first, because L0 would count them as changed.

    :param x: (N, C, H, W) in [0, 1].
    """
    x_adv = torch.where((x_adv.double() - x.double()).abs() <= TOLERANCE, x, x_adv)
    low, high = x_adv.flatten(1).aminmax(dim=1)
    found = (distances(x, x_adv, threat.norm) <= threat.eps) & (low >= 0) & (high <= 1)  # false for NaN
    return torch.where(found[:, None, None, None], x_adv, x)
