"""The models and the images of a run, and the ids of its cells. Every cell needs them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from art_qplugins.data import Dataset
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier, deployed
from art_qplugins.evaluation.cell import CellSpec, Shard, cell_id
from art_qplugins.evaluation.outputs import as_logits
from art_qplugins.evaluation.store import Storage
from art_qplugins.fingerprint import fingerprint
from art_qplugins.gradients.counting import passes
from art_qplugins.gradients.probe import answer
from art_qplugins.guard import restoring
from art_qplugins.plugins import Plugin
from art_qplugins.recipes.packages import packages_of_model
from art_qplugins.recipes.schema import SCORE_DRAWS, Recipe

__all__ = ["Evaluator", "evaluator_of"]

#: Images whose answers enter the hash of a module that holds what cannot be read: at least 16, and up to 256 of few pixels. The
#: answers of integer networks are coarse, so that a weight that changes by one level changes few of them.
_ASKED, _MOST_ASKED, _PIXELS = 16, 256, 2**18


@dataclass(frozen=True)
class Evaluator:
    """Models by name, images and labels.

    Each model is all that its estimator's ``predict`` does. One that answers with probabilities or votes is attacked and
    scored through their logarithm.

    :param x: (N, C, H, W) float32 in [0, 1]. ``y`` are (N,) int64 labels. ``ids`` has an id for every image.
    :param batch_size: images per batch. Batches are smaller if the memory does not suffice.
    :param shard: images that are crafted and scored together with their own seeds; ``None`` for ``batch_size``.
    :param score_draws: predictions of a random model that score an image, and as many that choose the worst attack.
    :param packages: by model, the installed packages that take part in it. Their versions enter the ids of cells.
    :ivar fingerprints: hash of each module as it is scored.
    :ivar attacked: hash of each estimator as an attack sees it, with its loss and bounds.
    :ivar data: hash of images, labels and their order.
    """

    estimators: Mapping[str, QuantizedClassifier]
    x: Tensor
    y: Tensor
    ids: Sequence[str]
    batch_size: int = 250
    shard: int | None = None
    score_draws: int = SCORE_DRAWS
    packages: Mapping[str, Sequence[Plugin]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(init=False, repr=False)
    attacked: Mapping[str, str] = field(init=False, repr=False)
    data: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "estimators", {n: as_logits(deployed(e), self.x) for n, e in self.estimators.items()})
        prints = {n: fingerprint(e.model, partial(_answers, e, self.x)) for n, e in self.estimators.items()}
        prints |= {name: f"{prints[name]} {list(map(str, used))}" for name, used in self.packages.items() if used}
        prints |= {n: f"{prints[n]} abstain {e.abstain}" for n, e in self.estimators.items() if e.abstain is not None}
        attacked = {n: f"{prints[n]} {fingerprint(e._loss)} {e.clip_values}" for n, e in self.estimators.items()}
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for part in (self.x, self.y):
            digest.update(part.cpu().contiguous().numpy().tobytes())
        object.__setattr__(self, "fingerprints", prints)
        object.__setattr__(self, "attacked", attacked)
        object.__setattr__(self, "data", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: Sequence[int] | None) -> list[int]:
        """Positions of images. ``None`` means all."""
        return list(range(len(self))) if rows is None else list(rows)

    def id_of(self, spec: CellSpec) -> str:
        return cell_id(
            spec,
            target=self.fingerprints[spec.model],
            source=self.attacked[spec.source],
            data=f"{self.data} in shards of {self.shard or self.batch_size}",
            batch_size=self.batch_size,
            score_draws=None if self.score_draws == SCORE_DRAWS else self.score_draws,
        )

    def passes(self, spec: CellSpec) -> int:
        """Passes through the network of a cell's source for one gradient of an image. A random model has several draws."""
        return passes(self.estimators[spec.source].model, requires_grad=True)

    def shards(self, spec: CellSpec) -> list[Shard]:
        """The shards of a cell. The binarization test has few images and is one shard."""
        rows = tuple(self.rows(spec.rows))
        size = len(rows) if spec.check else self.shard or self.batch_size
        pieces = [rows[i : i + size] for i in range(0, len(rows), size)]
        name = self.id_of(spec)
        return [Shard(cell=name, spec=spec, number=i, of=len(pieces), rows=piece) for i, piece in enumerate(pieces)]

    def start(self, spec: CellSpec, rows: Sequence[int], store: Storage) -> NDArray[np.float32]:
        """For each image, the image with the lowest margin among the cells in ``spec.start``, (len(rows), C, H, W)."""
        start, lowest = self.x[list(rows)].cpu().numpy(), np.full(len(rows), np.inf)
        for name in spec.start:
            outcome = store.load(name)
            if outcome is None:
                raise InputError(f"cell {name}: its files were damaged or removed; run the same command again")
            images, margins = store.images(name), outcome.columns["margin"]
            where = {row: i for i, row in enumerate(self.rows(outcome.cell.rows))}
            for i, row in enumerate(rows):
                if row in where and margins[where[row]] < lowest[i]:
                    start[i], lowest[i] = images[where[row]], margins[where[row]]
        return start


def _answers(estimator: QuantizedClassifier, images: Tensor) -> Tensor:
    """The logits of some images of noise, always the same for the shape of ``images``. Nothing of the module changes."""
    number = max(_ASKED, min(_MOST_ASKED, _PIXELS // images[0].numel()))
    noise = torch.rand((number, *images.shape[1:]), generator=torch.Generator().manual_seed(0))
    with restoring(estimator.model):
        return answer(estimator.model, noise.to(estimator.device), 0, 0)


def evaluator_of(recipe: Recipe, estimators: Mapping[str, QuantizedClassifier], images: Dataset) -> Evaluator:
    """The evaluator of a recipe's models on these images."""
    packages = {model.name: packages_of_model(recipe, model) for model in recipe.models}
    settings: dict[str, Any] = {name: getattr(recipe, name) for name in ("batch_size", "shard", "score_draws")}
    return Evaluator(estimators, images.x(), images.y(), images.ids, packages=packages, **settings)
