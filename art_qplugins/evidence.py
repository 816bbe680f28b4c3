"""Replays evidence: do these images still break this module?

Only ``evidence/MODEL.npz`` of a diagnosis is read. The records and the attacks of the run are not needed. Anyone with the
network can check the proof without trusting its author.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.domains import COUNT, PATH, SEED, check, check_all
from art_qplugins.errors import InputError
from art_qplugins.evaluation.score import DEPLOYMENTS, IllegalImage, check_legal, score
from art_qplugins.foreign import foreign
from art_qplugins.quantizers.stochastic import is_stochastic
from art_qplugins.threat import Threat
from art_qplugins.torch_domains import MODULE

__all__ = ["Evidence", "Replay", "read_evidence", "replay"]


#: An image of a random module counts as broken from this share of wrong draws on: 5 of 20.
_NOT_REFUTED = 0.25


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The content of an evidence file: adversarial images, their clean images and the threat."""

    x: Tensor  # (N, C, H, W) float32 in [0, 1]
    x_adv: Tensor  # like x
    y: Tensor  # (N,) int64
    ids: list[str]
    threat: Threat | None  # None where the file states no eps


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The predictions of the module on the images of an evidence file.

    ``wrong`` is the share of deployments that misclassify each image. It is 0 or 1 unless ``stochastic``. ``before`` is
    the same for the clean image. ``distance`` is the recomputed distance from the clean image; ``None`` where the file
    states no eps.
    """

    wrong: NDArray[np.float64]
    before: NDArray[np.float64]
    ids: list[str]
    threat: Threat | None
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
        """Whether pixels are in [0, 1] and, if eps is stated, every image is within eps."""
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
        return self.legal and bool((self.wrong >= _NOT_REFUTED).all() if self.stochastic else self.broken == self.n)

    def __str__(self) -> str:
        before = int((self.before > 0.5).sum())
        lines = [f"{self.broken} of {self.n} images are misclassified; of their clean images, {before} are"]
        if self.stochastic:
            few = int((self.wrong < _NOT_REFUTED).sum())
            lines.append(
                f"over {DEPLOYMENTS} draws {100 * self.share:.1f} % of the predictions are wrong; {few} images withstand most"
            )
        if self.illegal is not None:
            lines.append(f"NOT LEGAL: {self.illegal}")
        elif self.threat is None or self.distance is None:
            lines.append("pixels are in [0, 1]; the file states no eps, so distances were not checked")
        else:
            most = float(self.distance.max())
            lines.append(f"legal: at most {most:.6g} away in {self.threat.norm}, eps = {self.threat.eps:.6g}")
        return "\n".join(lines)


def replay(path: str | Path, module: nn.Module, *, seed: int = 0, batch_size: int = 250) -> Replay:
    """Evaluate ``module`` on the images of an evidence file, after their distances are measured again.

    :param path: an ``.npz`` file of a diagnosis with ``x``, ``x_adv``, ``y`` and, if known, ``ids``, ``norm``, ``eps``.
    :param module: takes (N, C, H, W) float32 in [0, 1] and gives logits. It runs in eval mode. Its modes are restored.
    :param seed: seed of the 20 draws on which a random module is scored, as in a diagnosis.
    :raises InputError: where the file cannot be read, or the module cannot take its images.
    """
    check_all(locals(), {"module": MODULE, "seed": SEED, "batch_size": COUNT})
    evidence = read_evidence(path)
    illegal, distance = None, None
    try:
        # Without eps every distance is allowed. Shape, finiteness and pixel range are still checked.
        measured = check_legal(evidence.x, evidence.x_adv, evidence.threat or Threat("L0", evidence.x[0].numel()))
        distance = None if evidence.threat is None else measured.numpy()
    except IllegalImage as error:
        illegal = str(error)
    wrong, before = (
        _wrong(path, module, images, evidence.y, seed, batch_size) for images in (evidence.x_adv, evidence.x)
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


def _wrong(
    path: str | Path, module: nn.Module, x: Tensor, y: Tensor, seed: int, batch_size: int
) -> NDArray[np.float64]:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    where = f"{path}: {type(module).__name__} cannot take its images {tuple(x.shape[1:])}, labels up to {int(y.max())}"
    with foreign(where, hint="give the network that was diagnosed"):
        # Illegal images are reported as such. The output of a network for NaN means nothing.
        asked = score(module, x.nan_to_num().to(device), y.to(device), seed=seed, batch_size=batch_size)
    return 1.0 - asked["correct"]


def read_evidence(path: str | Path) -> Evidence:
    """Read and check an evidence file. Nothing in it is unpickled.

    :raises InputError: where it is missing or damaged, or lacks a required array.
    """
    arrays = _arrays(Path(check("path", path, PATH)))
    missing = [name for name in ("x", "x_adv", "y") if name not in arrays]
    if missing:
        raise InputError(f"{path}: has no {', '.join(missing)}; give the evidence/MODEL.npz of a diagnosis")
    x, x_adv, y = arrays["x"], arrays["x_adv"], arrays["y"]
    if x.ndim != 4 or not all(np.issubdtype(images.dtype, np.floating) for images in (x, x_adv)):
        raise InputError(f"{path}: x is {x.shape} {x.dtype}; images are (N, C, H, W) floats in [0, 1]")
    if x_adv.shape != x.shape or y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise InputError(
            f"{path}: x {x.shape}, x_adv {x_adv.shape} and y {y.shape} {y.dtype} do not belong together; "
            "run artq diagnose again to rewrite it"
        )
    if not len(x) or not x[0].size:
        raise InputError(
            f"{path}: holds no images to replay, because no attack broke the model; run artq diagnose with more attacks"
        )
    if y.min() < 0:
        raise InputError(f"{path}: label {int(y.min())} is negative; run artq diagnose again to rewrite it")
    ids = arrays.get("ids", np.arange(len(x)))
    if ids.shape != y.shape:
        raise InputError(f"{path}: {ids.size} ids for {len(x)} images; run artq diagnose again to rewrite it")
    return Evidence(
        x=torch.from_numpy(x.astype(np.float32)),
        x_adv=torch.from_numpy(x_adv.astype(np.float32)),
        y=torch.from_numpy(y.astype(np.int64)),
        ids=[str(name) for name in ids],
        threat=_threat(path, arrays),
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        # Open the file here, because np.load leaves it open if it is not a zip file.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: a single array; give the evidence/MODEL.npz of a diagnosis")
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        why = error.strerror or "damaged"
        raise InputError(f"{path}: cannot be read ({why}); give the evidence/MODEL.npz of a diagnosis") from None
    except InputError:
        raise
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path}: no evidence file ({said}); give the evidence/MODEL.npz of a diagnosis") from None


def _threat(path: str | Path, arrays: dict[str, NDArray[Any]]) -> Threat | None:
    if "norm" not in arrays or "eps" not in arrays:
        return None
    try:
        return Threat(str(arrays["norm"].item()), float(arrays["eps"].item()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}; run artq diagnose again to rewrite it") from None
