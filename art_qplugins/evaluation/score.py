"""Scores adversarial images: are they legal, and what does the deployed model predict? Attacks do not score themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.evaluation.outcome import Columns
from art_qplugins.geometry import TOLERANCE, distances
from art_qplugins.gradients.margin import logit_margin, rejection_as_label
from art_qplugins.gradients.probe import same_answers
from art_qplugins.guard import isolated
from art_qplugins.quantizers.noise import draws_from, is_stochastic
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = [
    "DEPLOYMENTS",
    "IllegalImage",
    "NoAnswer",
    "check_legal",
    "finite_columns",
    "lower_margin",
    "on_grid",
    "over_images",
    "score",
]

#: Number of fresh deployments of a stochastic model that score an image, on each of two independent sets of draws.
DEPLOYMENTS = 20
#: The columns that are shares of draws.
_SHARES = ("correct", "selection", "rejected")
# A pixel this near to a level of a grid is on it: more than float32 rounds, less than a distance may exceed eps.
_ROUNDING = 0.4 * TOLERANCE


class IllegalImage(ValueError):
    """An attack returned an image that the threat does not allow. The image is not clipped: the cell fails."""


class NoAnswer(ValueError):
    """The model gives no logits for an image."""


def check_legal(x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
    """Distances (N,). NaN passes no comparison, in the clean images neither.

    :raises IllegalImage: where an image is not legal. The message says which image breaks which rule, and by how much.
    """
    if x_adv.shape != x.shape or not x.numel():
        raise IllegalImage(f"the attack returned shape {tuple(x_adv.shape)} for images {tuple(x.shape)}")
    for kind, images in (("", x_adv), ("clean ", x)):
        finite = torch.isfinite(images)
        if not finite.all():
            raise IllegalImage(f"{int((~finite).flatten(1).any(1).sum())} {kind}images are not finite")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise IllegalImage(f"{kind}pixels are in [{low:.6g}, {high:.6g}], outside [0, 1]")
    distance = distances(x, x_adv, threat.norm)
    worst = int(distance.argmax())  # of NaN and numbers, NaN
    if not distance[worst] <= threat.eps + TOLERANCE * max(1.0, threat.eps):
        raise IllegalImage(
            f"image {worst} is {float(distance[worst]):.6g} away in {threat.norm}, more than eps = {threat.eps:g}"
        )
    return distance


def on_grid(x: Tensor, x_adv: Tensor, threat: Threat, levels: int) -> Tensor:
    """``x_adv`` rounded to the pixels {0, 1/(levels - 1), ..., 1} of an image file, and still legal.

    Every changed pixel is rounded to the nearest level. If that leaves the ball, it is rounded towards ``x``. In Linf this
    applies to the single pixel, in the other norms to all pixels of the image. A pixel keeps the value of ``x`` if it was
    not changed, and if no level lies between the two values.

    :param x: (N, C, H, W) in [0, 1]. It need not be on the grid.
    :param x_adv: legal images for ``threat``.
    :return: (N, C, H, W) float32.
    """
    scale = levels - 1
    clean, moved = x.double(), x_adv.double()
    nearest = (moved * scale).round() / scale
    inward = (
        torch.where(moved > clean, ((moved + _ROUNDING) * scale).floor(), ((moved - _ROUNDING) * scale).ceil()) / scale
    )
    between = (inward - clean) * (moved - clean) > 0
    inward = torch.where(between, inward, clean)
    limit = threat.eps + TOLERANCE * max(1.0, threat.eps) / 2
    if threat.norm == "Linf":
        outside = ~((nearest - clean).abs() <= limit)
    else:
        inside = distances(x, torch.where(moved == clean, clean, nearest), threat.norm) <= limit
        outside = ~inside[:, None, None, None]
    rounded = torch.where(outside, inward, nearest)
    return torch.where(moved == clean, clean, rounded).to(x)


def score(
    module: nn.Module, x: Tensor, y: Tensor, *, seed: int, abstain: int | None = None, batch_size: int = 250
) -> dict[str, NDArray[np.float64]]:
    """Score images (N, C, H, W) on the deployed module.

    With a rejection class, ``correct`` counts labelled and rejected images: neither is a success of an attack. A clean
    image that is rejected is therefore no failure of robustness. It is a cost: ``rejected`` has it, and the clean accuracy
    does not count it. The robust accuracy of Tramer 2022, which does not either, is lower by at most the share of clean
    images that are rejected.

    The columns ``prediction``, ``correct``, ``selection``, ``margin`` and ``loss`` are those of
    :class:`~art_qplugins.evaluation.records.Sample`, (N,) each, and ``confidence`` is the probability of the prediction by
    the softmax of the mean logits. A random module is scored on two sets of draws that no attack saw. A module is random
    if it has stochastic layers, or if its outputs depend on the seed of the global generators. Global random states are
    restored.

    :param abstain: index of the rejection class. There is then a column ``rejected``, the share of draws that reject.
    :raises InputError: where the module gives one logit for two classes, or a label is none of its classes.
    :raises NoAnswer: where a logit is NaN, or the module gives no logits for each image.
    """
    random = is_stochastic(module)
    first = _ask(module, x, derive_seed(seed, "judge"), DEPLOYMENTS if random else 1, batch_size)
    _check_labels(module, y, first.shape[-1], abstain)
    if not random:
        again = _ask(module, x[:batch_size], derive_seed(seed, "select"), 1, batch_size)
        random = not same_answers(first[:, :batch_size], again)
        if random:  # a module that draws from the global generators
            first = _ask(module, x, derive_seed(seed, "judge"), DEPLOYMENTS, batch_size)
    answers = first.argmax(-1)
    selection = correct = _right(answers, y, abstain)
    if random:
        second = _ask(module, x, derive_seed(seed, "select"), DEPLOYMENTS, batch_size)
        selection = _right(second.argmax(-1), y, abstain)
    logits = first.mean(0)
    seen = (logits, y) if abstain is None else rejection_as_label(logits, y, abstain)
    found = {
        "prediction": answers.mode(0).values,
        "correct": correct,
        "selection": selection,
        "margin": logit_margin(*seen),
        "loss": nn.functional.cross_entropy(*seen, reduction="none"),
    }
    found["confidence"] = logits.double().softmax(1).gather(1, found["prediction"][:, None])[:, 0]
    if abstain is not None:
        found["rejected"] = (answers == abstain).double().mean(0)
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def over_images(tried: Sequence[Columns]) -> Columns:
    """The scores of several images of each clean image as one: shares are means, the rest is of the image with the lowest margin.

    :param tried: the columns of each, as :func:`score` gives them.
    """
    if len(tried) == 1:
        return tried[0]
    lowest = np.stack([_margin(columns) for columns in tried]).argmin(0)
    stacked = {name: np.stack([columns[name] for columns in tried]) for name in tried[0]}
    one = np.arange(len(lowest))
    return {name: v.mean(0) if name in _SHARES else v[lowest, one] for name, v in stacked.items()}


def lower_margin(scored: Columns, before: Sequence[Columns]) -> NDArray[np.bool_]:
    """(N,) whether an image has a lower margin than all images of the same clean image before it."""
    return np.asarray(_margin(scored) < np.min([_margin(columns) for columns in before], axis=0))


def _margin(scored: Columns) -> NDArray[np.float64]:
    return np.nan_to_num(scored["margin"], nan=np.inf)


def _right(answers: Tensor, y: Tensor, abstain: int | None) -> Tensor:
    """(N,) the share of answers (times, N) that are the label, or reject."""
    right = answers == y
    return (right if abstain is None else right | (answers == abstain)).double().mean(0)


def _check_labels(module: nn.Module, y: Tensor, classes: int, abstain: int | None) -> None:
    """A label without an output counts as misclassified by every image, and stops a GPU."""
    if abstain is not None and not abstain < classes:
        raise InputError(f"abstain: it is {abstain}, and {type(module).__name__} gives {classes} outputs; count from 0")
    if abstain is not None and bool((y == abstain).any()):
        raise InputError(f"abstain: it is {abstain}, and images have this label; give the index of the rejection class")
    low, high = int(y.min()), int(y.max())
    if not (low >= 0 and high < classes):
        wrong = low if low < 0 else high
        raise InputError(
            f"label {wrong} is none of the {classes} classes of {type(module).__name__}; give labels from 0 on"
        )


def finite_columns(columns: Columns) -> dict[str, NDArray[np.float64]]:
    """The same columns with NaN for infinite values, because records cannot hold infinity."""
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in columns.items()}


def _ask(module: nn.Module, x: Tensor, seed: int, times: int, batch_size: int) -> Tensor:
    """Logits (times, N, C)."""
    with isolated(module, seed), torch.no_grad(), draws_from(module, seed):
        parts = [[_asked(module, part) for part in x.split(batch_size)] for _ in range(times)]
    widths = {part.shape[1] for draw in parts for part in draw}
    if len(widths) > 1:
        few, many = min(widths), max(widths)
        raise NoAnswer(f"{type(module).__name__} gives {few} logits for some batches and {many} for others")
    logits = torch.stack([torch.cat(draw) for draw in parts])
    if logits.shape[-1] == 1:
        raise InputError(
            f"model: {type(module).__name__} gives one logit z, and scores compare those of all classes; "
            "end it with torch.cat([0 * z, z], 1)"
        )
    if logits.isnan().any():
        rows = int(logits.isnan().any(-1).any(0).sum())
        raise NoAnswer(f"{type(module).__name__} gives NaN for {rows} of {len(x)} images")
    return logits


def _asked(module: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, C) of one batch."""
    found = module(x)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(x) or not found.is_floating_point():
        kind = f" of {found.dtype}" if isinstance(found, Tensor) else ""
        raise NoAnswer(
            f"{type(module).__name__} gives {shape}{kind} for {len(x)} images; it must give one row of floating-point "
            "logits for each"
        )
    return found
