"""Runs this package's own attacks: the adaptive attacks, PGD, ART's PGD on the margin loss, noise, and no attack."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from art_qplugins.attacks.adapters import art
from art_qplugins.attacks.adapters.options import eps_step
from art_qplugins.attacks.adaptive.attacks import ADAPTIVE
from art_qplugins.attacks.adaptive.draws import one_member
from art_qplugins.attacks.adaptive.run import AttackRun, answers_at_random
from art_qplugins.attacks.catalogue import Attack
from art_qplugins.attacks.views import MarginLoss
from art_qplugins.defences.crafting import STARTS, ascend
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.geometry import random_point
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["clean", "pgd", "pgd_margin", "random", "run", "single_draw"]


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
    """Run an adaptive attack. It returns the legal image with the lowest margin that it found for each image.

    :param start: legal images to start from instead of random ones.
    :raises InputError: where the start cannot be used, or an option with this model.
    """
    if start is not None and start.shape != x.shape:
        raise InputError(
            f"{attack.name}: start has shape {tuple(start.shape)} and the images {tuple(x.shape)}; give one start per image"
        )
    state = AttackRun(
        name=attack.name,
        module=estimator.model,
        x=x,
        y=y,
        threat=threat,
        batch_size=batch_size,
        seed=seed,
        max_iter=options.get("max_iter", 0),  # a search has no steps, and the worst case its own
        start=start,
        random=answers_at_random(estimator.model, x, seed),
    )
    ADAPTIVE[attack.upstream](state, options)
    return state.image


def pgd(
    estimator: QuantizedClassifier,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    options: dict[str, Any],
    batch_size: int,
    seed: int,
) -> Tensor:
    """PGD on cross-entropy, from one random start: anywhere in the ball, or as R+FGSM begins. The last point counts.

    In float64 the gradient of cross-entropy underflows at a logit gap of about 745 and not of 104.
    """
    step = eps_step(threat, options["rel_eps_step"], options["max_iter"])
    if options["start"] == "signs":
        generator = torch.Generator().manual_seed(derive_seed(seed, "signs"))
        start = STARTS["sign"](x, threat.eps, generator).clamp(0, 1)
    else:
        start = random_point(x, threat, seed)

    module = estimator.model
    if options["precision"] == "float64":
        module, start = copy.deepcopy(module).double(), start.double()

    def climbed(x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        def loss(points: Tensor) -> Tensor:
            return cross_entropy(module(points), y, reduction="sum")

        return ascend(loss, x, start, eps=threat.eps, steps=options["max_iter"], step_size=step)

    parts = zip(x.to(start).split(batch_size), y.split(batch_size), start.split(batch_size), strict=True)
    return torch.cat([climbed(*part) for part in parts]).to(x)


def single_draw(
    estimator: QuantizedClassifier, attack: Attack, x: Tensor, y: Tensor, *, options: dict[str, Any], **settings: Any
) -> Tensor:
    """PGD on cross-entropy of one member of a random model, with fresh noise at each step.

    It is the white-box attack of papers that differentiate one draw of a random network. Of an ensemble it sees one member
    a step where the model has the mean of several.
    """
    if not answers_at_random(estimator.model, x, settings["seed"]):
        raise InputError(f"{attack.name}: {type(estimator.model).__name__} is deterministic; use artq:pgd")
    with one_member(estimator.model):
        return pgd(estimator, attack, x, y, options=options | {"start": "uniform", "precision": "float32"}, **settings)


def pgd_margin(estimator: QuantizedClassifier, attack: Attack, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """ART's PGD on the logit margin instead of cross-entropy."""
    return art.run(estimator.with_model(estimator.model, MarginLoss()), attack, x, y, **settings)


def random(
    estimator: QuantizedClassifier,
    attack: Attack,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    options: dict[str, Any],
    batch_size: int,
    seed: int,
) -> Tensor:
    """Noise on every value, clipped to [0, 1]: one draw for each image."""
    if options["distribution"] == "uniform":
        return random_point(x, threat, seed)
    generator = torch.Generator().manual_seed(derive_seed(seed, "noise"))
    noise = torch.randn(x.shape, generator=generator).to(x)
    return (x + float(options["std"]) * noise).clamp(0, 1)


def clean(estimator: QuantizedClassifier, attack: Attack, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
    """The clean images. ``evaluation`` makes the measurements that the options ask for."""
    return x.clone()
