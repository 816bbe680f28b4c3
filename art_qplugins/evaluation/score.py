"""Scores adversarial images: are they legal, and what does the deployed model predict? Attacks do not score themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from art_qplugins.recipes.schema import SCORE_DRAWS
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = [
    "IllegalImage",
    "NoAnswer",
    "check_legal",
    "finite_columns",
    "lower_margin",
    "on_grid",
    "over_images",
    "score",
]

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
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    abstain: int | None = None,
    batch_size: int = 250,
    draws: int = SCORE_DRAWS,
) -> dict[str, NDArray[np.float64]]:
    """Score images (N, C, H, W) on the deployed module.

    With a rejection class, ``correct`` counts labelled and rejected images: neither is a success of an attack. A clean
    image that is rejected is therefore no failure of robustness. It is a cost: ``rejected`` has it, and the clean accuracy
    does not count it. The robust accuracy of Tramer 2022, which does not either, is lower by at most the share of clean
    images that are rejected.

    The columns ``prediction``, ``correct``, ``selection``, ``margin`` and ``loss`` are those of
    :class:`~art_qplugins.evaluation.records.Sample`, (N,) each, and ``confidence`` is the probability of the prediction by
    the softmax of the mean logits. A random module is scored on two banks of draws that no attack saw: ``correct`` has the
    share of right predictions in one, ``selection`` in the other. Each draw is a whole prediction with noise of its own for
    every image, so that the draws of an image are independent. There is then a column ``draws``, their number in a bank. A
    module is random if it has stochastic layers, or if its outputs depend on the seed of the global generators. Global
    random states are restored. Memory does not grow with the number of draws.

    :param abstain: index of the rejection class. There is then a column ``rejected``, the share of draws that reject.
    :param draws: predictions of a random module in each bank.
    :raises InputError: where the module gives one logit for two classes, or a label is none of its classes.
    :raises NoAnswer: where a logit is NaN, or the module gives no logits for each image.
    """
    random = is_stochastic(module)
    scored = _ask(module, x, derive_seed(seed, "judge"), draws if random else 1, batch_size)
    _check_labels(module, y, scored.logits.shape[1], abstain)
    if not random:
        again = _ask(module, x[:batch_size], derive_seed(seed, "select"), 1, batch_size)
        random = not same_answers(scored.logits[:batch_size], again.logits)
        if random:  # a module that draws from the global generators
            scored = _ask(module, x, derive_seed(seed, "judge"), draws, batch_size)
    selecting = _ask(module, x, derive_seed(seed, "select"), draws, batch_size) if random else scored
    logits = scored.logits
    seen = (logits, y) if abstain is None else rejection_as_label(logits, y, abstain)
    found = {
        "prediction": scored.votes.argmax(1),
        "correct": scored.right(y, abstain),
        "selection": selecting.right(y, abstain),
        "margin": logit_margin(*seen),
        "loss": nn.functional.cross_entropy(*seen, reduction="none"),
    }
    found["confidence"] = logits.double().softmax(1).gather(1, found["prediction"][:, None])[:, 0]
    if abstain is not None:
        found["rejected"] = scored.share(torch.full_like(y, abstain))
    if random:
        found["draws"] = torch.full(y.shape, scored.draws)
    return {name: values.double().cpu().numpy() for name, values in found.items()}


@dataclass(frozen=True)
class _Answers:
    """What a module answered to N images in several draws.

    :ivar logits: (N, C), the mean over draws.
    :ivar votes: (N, C), how many draws gave each class.
    """

    logits: Tensor
    votes: Tensor
    draws: int

    def share(self, classes: Tensor) -> Tensor:
        """(N,) the share of draws that gave these classes (N,)."""
        return self.votes.gather(1, classes[:, None])[:, 0].double() / self.draws

    def right(self, y: Tensor, abstain: int | None) -> Tensor:
        """(N,) the share of draws that gave the label, or rejected."""
        if abstain is None:
            return self.share(y)
        both = self.votes.gather(1, torch.stack([y, torch.full_like(y, abstain)], 1))
        return both.sum(1).double() / self.draws


def over_images(tried: Sequence[Columns]) -> Columns:
    """The scores of several images of each clean image as one: shares are means over all draws, the rest is of the image with the
    lowest margin.

    :param tried: the columns of each, as :func:`score` gives them.
    """
    if len(tried) == 1:
        return tried[0]
    lowest = np.stack([_margin(columns) for columns in tried]).argmin(0)
    stacked = {name: np.stack([columns[name] for columns in tried]) for name in tried[0]}
    result = {name: v[lowest, np.arange(len(lowest))] for name, v in stacked.items()}
    result |= {name: stacked[name].mean(0) for name in _SHARES if name in stacked}
    return result | ({"draws": stacked["draws"].sum(0)} if "draws" in stacked else {})


def lower_margin(scored: Columns, before: Sequence[Columns]) -> NDArray[np.bool_]:
    """(N,) whether an image has a lower margin than all images of the same clean image before it."""
    return np.asarray(_margin(scored) < np.min([_margin(columns) for columns in before], axis=0))


def _margin(scored: Columns) -> NDArray[np.float64]:
    return np.nan_to_num(scored["margin"], nan=np.inf)


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


def _ask(module: nn.Module, x: Tensor, seed: int, times: int, batch_size: int) -> _Answers:
    """The answers in so many draws."""
    with isolated(module, seed), torch.no_grad(), draws_from(module, seed):
        first = total = _drawn(module, x, batch_size)
        undefined, votes = first.isnan().any(1), torch.zeros_like(first, dtype=torch.int64)
        for draw in range(times):
            logits = _drawn(module, x, batch_size) if draw else first
            if logits.shape != first.shape:
                raise _uneven(module, {first.shape[1], logits.shape[1]})
            undefined |= logits.isnan().any(1)
            votes.scatter_add_(1, logits.argmax(1, keepdim=True), torch.ones_like(votes[:, :1]))
            total = total + logits.double() if draw else total
    if undefined.any():
        raise NoAnswer(f"{type(module).__name__} gives NaN for {int(undefined.sum())} of {len(x)} images")
    return _Answers(first if times == 1 else (total / times).to(first), votes, times)


def _drawn(module: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Logits (N, C) of one draw."""
    parts = [_asked(module, part) for part in x.split(batch_size)]
    if len(widths := {part.shape[1] for part in parts}) > 1:
        raise _uneven(module, widths)
    logits = torch.cat(parts)
    if logits.shape[1] == 1:
        raise InputError(
            f"model: {type(module).__name__} gives one logit z, and scores compare those of all classes; "
            "end it with torch.cat([0 * z, z], 1)"
        )
    return logits


def _uneven(module: nn.Module, widths: set[int]) -> NoAnswer:
    few, many = min(widths), max(widths)
    return NoAnswer(f"{type(module).__name__} gives {few} logits for some batches and {many} for others")


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
