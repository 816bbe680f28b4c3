"""Replays evidence: do these images still break this module?

Only ``evidence/MODEL.npz`` of a diagnosis is read. The records and the attacks of the run are not needed. Anyone with the
network can check the proof without trusting its author.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.arrays import read_arrays
from art_qplugins.domains import COUNT, MOST, PATH, SEED, check, check_all
from art_qplugins.errors import InputError
from art_qplugins.estimators.adapted import adapted_module
from art_qplugins.evaluation.score import IllegalImage, check_legal, score
from art_qplugins.files import printable
from art_qplugins.foreign import foreign
from art_qplugins.quantizers.noise import is_stochastic
from art_qplugins.recipes.schema import SCORE_DRAWS
from art_qplugins.threat import Threat, diameter
from art_qplugins.torch_domains import MODULE

__all__ = ["Evidence", "Replay", "read_evidence", "replay"]


#: The arrays that are read of a file. It may lack some.
_NAMES = ("x", "x_adv", "y", "ids", "norm", "eps", "abstain")
_MAY_MISS = ("ids", "abstain")
_HINT = "give the evidence/MODEL.npz of a diagnosis"
_AGAIN = "run artq diagnose again to rewrite it"

#: An image of a random module counts as broken from this share of wrong draws on: 5 of 20.
_NOT_REFUTED = 0.25


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The content of an evidence file: adversarial images, their clean images and the threat."""

    x: Tensor  # (N, C, H, W) float32 in [0, 1]
    x_adv: Tensor  # like x
    y: Tensor  # (N,) int64
    ids: list[str]
    threat: Threat
    abstain: int | None = None  # the output with which the model rejects an image


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The predictions of the module on the images of an evidence file.

    ``wrong`` is the share of deployments that misclassify each image and do not reject it. It is 0 or 1 unless
    ``stochastic``. ``before`` is the same for the clean image. ``distance`` is the recomputed distance from the clean
    image; ``None`` where an image is not legal.
    """

    wrong: NDArray[np.float64]
    before: NDArray[np.float64]
    ids: list[str]
    threat: Threat
    distance: NDArray[np.float64] | None
    illegal: str | None  # which rule an image breaks
    stochastic: bool

    @property
    def n(self) -> int:
        return len(self.wrong)

    @property
    def broken(self) -> int:
        """The number of misclassified images. A random module misclassifies an image if most deployments do."""
        return int((self.wrong > 0.5).sum())

    @property
    def legal(self) -> bool:
        """Whether all pixels, also of the clean images, are in [0, 1], and every image is within eps."""
        return self.illegal is None

    @property
    def share(self) -> float:
        """The share of wrong predictions over all images and, for a random module, over all deployments."""
        return float(self.wrong.mean())

    @property
    def holds(self) -> bool:
        """Whether every image is legal and breaks the module.

        A random module is evaluated on fresh draws, so an image that breaks half of the draws may fall on either side. It
        counts as broken if at least a quarter of the draws are wrong. A fair coin fails this with probability 0.6 %.
        """
        return self.legal and bool((self.wrong >= _NOT_REFUTED).all())

    def __str__(self) -> str:
        before = int((self.before > 0.5).sum())
        lines = [f"{self.broken} of {self.n} images are misclassified; of their clean images, {before} are"]
        if self.stochastic:
            few = int((self.wrong < _NOT_REFUTED).sum())
            lines.append(
                f"over {SCORE_DRAWS} draws {100 * self.share:.1f} % of the predictions are wrong; {few} images withstand most"
            )
        if self.illegal is not None or self.distance is None:
            lines.append(f"NOT LEGAL: {self.illegal}")
        else:
            most = float(self.distance.max())
            lines.append(f"legal: at most {most:.6g} away in {self.threat.norm}, eps = {self.threat.eps:.6g}")
        return "\n".join(lines)


def replay(path: str | Path, module: nn.Module, *, seed: int = 0, batch_size: int = 250) -> Replay:
    """Evaluate ``module`` on the images of an evidence file, after their distances are measured again.

    :param path: an ``.npz`` file of a diagnosis with ``x``, ``x_adv``, ``y``, ``norm``, ``eps`` and, if known, ``ids``
        and ``abstain``, the output with which the module rejects an image.
    :param module: takes (N, C, H, W) float32 in [0, 1] and gives logits. It runs in eval mode. Its modes are restored.
    :param seed: seed of the 20 draws on which a random module is scored, as in a diagnosis.
    :raises InputError: where the file cannot be read, or the module cannot take its images.
    """
    check_all(locals(), {"module": MODULE, "seed": SEED, "batch_size": COUNT})
    evidence = read_evidence(path)
    illegal, distance = None, None
    try:
        distance = check_legal(evidence.x, evidence.x_adv, evidence.threat).numpy()
    except IllegalImage as error:
        illegal = str(error)
    module = adapted_module(module, evidence.x[:2].nan_to_num().to(_device(module)))
    wrong, before = (
        _wrong(path, module, images, evidence, seed, batch_size) for images in (evidence.x_adv, evidence.x)
    )
    return Replay(
        wrong=wrong,
        before=before,
        ids=evidence.ids,
        threat=evidence.threat,
        distance=distance,
        illegal=illegal,
        stochastic=is_stochastic(module) or not np.isin(np.concatenate([wrong, before]), (0.0, 1.0)).all(),
    )


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _wrong(
    path: str | Path, module: nn.Module, x: Tensor, evidence: Evidence, seed: int, batch_size: int
) -> NDArray[np.float64]:
    y, abstain = evidence.y, evidence.abstain
    device = _device(module)
    where = f"{path}: {type(module).__name__} cannot take its images {tuple(x.shape[1:])}, labels up to {int(y.max())}"
    with foreign(where, hint="give the network that was diagnosed"):
        # Illegal images are reported as such. The output of a network for NaN means nothing.
        images = x.nan_to_num().to(device)
        scored = score(module, images, y.to(device), seed=seed, abstain=abstain, batch_size=batch_size)
    return 1.0 - scored["correct"]


def read_evidence(path: str | Path) -> Evidence:
    """Read and check an evidence file. Nothing in it is unpickled, and nothing is allocated before its headers are checked.

    Whether its images are legal is asked later: :func:`replay` says by how much they are not.

    :raises InputError: where it is missing, damaged or too large, lacks an array, or its arrays do not belong together.
    """
    arrays = read_arrays(check("path", path, PATH), names=_NAMES, hint=_HINT)
    try:
        return _checked(arrays)
    except ValueError as error:
        raise InputError(f"{printable(path)}: {error}") from None


def _checked(arrays: Mapping[str, NDArray[Any]]) -> Evidence:
    if missing := [name for name in _NAMES if name not in arrays and name not in _MAY_MISS]:
        raise ValueError(f"has no {', '.join(missing)}; {_HINT}")
    x, x_adv, y = arrays["x"], arrays["x_adv"], arrays["y"]
    if x.ndim != 4 or not all(images.dtype.kind == "f" for images in (x, x_adv)):
        raise ValueError(f"x is {x.shape} {x.dtype}; images are (N, C, H, W) floats in [0, 1]")
    if x_adv.shape != x.shape or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"x {x.shape}, x_adv {x_adv.shape} and y {y.shape} {y.dtype} do not belong together; {_AGAIN}")
    if not x.size:
        raise ValueError(
            "holds no images to replay, because no attack broke the model; run artq diagnose with more attacks"
        )
    if not (y.min() >= 0 and y.max() <= MOST):
        raise ValueError(f"labels go from {y.min()} to {y.max()}, and classes count from 0; {_AGAIN}")
    ids = arrays.get("ids", np.arange(len(x)).astype(str))
    if ids.shape != y.shape or ids.dtype.kind != "U" or len(np.unique(ids)) != len(ids):
        raise ValueError(f"{ids.size} ids {ids.dtype} for {len(x)} images; each needs a text of its own; {_AGAIN}")
    threat = _threat(arrays)
    if not threat.eps <= (widest := diameter(threat.norm, x.shape[1:])):
        raise ValueError(
            f"eps = {threat.eps:g} in {threat.norm} excludes no image, as the widest distance is {widest:.3g}"
        )
    return Evidence(
        x=_images(x),
        x_adv=_images(x_adv),
        y=torch.from_numpy(y.astype(np.int64)),
        ids=ids.tolist(),
        threat=threat,
        abstain=_abstain(arrays),
    )


def _abstain(arrays: Mapping[str, NDArray[Any]]) -> int | None:
    if "abstain" not in arrays:
        return None
    index = arrays["abstain"]
    if index.shape or index.dtype.kind not in "iu" or not 0 <= int(index) <= MOST:
        raise ValueError(f"abstain {index.shape} {index.dtype}: give the index of an output; {_AGAIN}")
    return int(index.item())


def _images(images: NDArray[Any]) -> Tensor:
    with np.errstate(over="ignore"):  # what no float32 holds becomes infinite, and is not legal
        return torch.from_numpy(images.astype(np.float32))


def _threat(arrays: Mapping[str, NDArray[Any]]) -> Threat:
    norm, eps = arrays["norm"], arrays["eps"]
    if norm.shape or norm.dtype.kind != "U" or eps.shape or eps.dtype.kind not in "iuf":
        raise ValueError(f"norm {norm.shape} {norm.dtype} and eps {eps.shape} {eps.dtype}: give a text and a number")
    return Threat(norm.item(), float(eps))
