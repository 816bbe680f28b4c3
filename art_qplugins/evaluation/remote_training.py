"""Trains the models of a recipe on a Ray cluster, several at a time.

Workers get the recipe and the images, and write the checkpoints that a training in one process would write. So the folder of
the run must be at the same place on every machine. The weights are the same, bit by bit, where torch has as many threads in
the workers as in that process.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from art_qplugins.data import Dataset
from art_qplugins.errors import InputError
from art_qplugins.estimators.devices import resolve_device
from art_qplugins.evaluation.cluster import Cluster, LostWorker, check_packages, here
from art_qplugins.files import printable
from art_qplugins.recipes.build import build_model, is_stored, stored_at
from art_qplugins.recipes.model import ModelSettings
from art_qplugins.recipes.packages import packages_of
from art_qplugins.recipes.schema import Recipe

__all__ = ["TrainingJob", "train_side_by_side"]


@dataclass(frozen=True)
class TrainingJob:
    """The trainings of a recipe, for this process and its workers.

    :param data: the images to train on, and ``validation`` those to validate on.
    :param checkpoints: the folder, as an absolute path.
    """

    recipe: Recipe
    data: Dataset
    validation: Dataset | None
    checkpoints: Path

    def path(self, settings: ModelSettings, bases: Mapping[str, nn.Module]) -> Path:
        """Where the weights of a model will be.

        :param bases: its base by name, and any others.
        """
        return stored_at(self.recipe, settings, self.data, self.checkpoints, bases)

    def model(self, settings: ModelSettings, bases: Mapping[str, nn.Module], device: str, **how: Any) -> nn.Module:
        """See :func:`~art_qplugins.recipes.build.build_model`."""
        where = resolve_device(device)
        return build_model(
            self.recipe, settings, self.data, self.checkpoints, bases, device=where, validation=self.validation, **how
        )

    def takes_long(self, settings: ModelSettings, bases: Mapping[str, nn.Module]) -> bool:
        """Whether a model is still to be trained."""
        if not settings.trained or settings.checkpoint is not None or settings.train.epochs == 0:
            return False
        return not is_stored(self.path(settings, bases))


def train_side_by_side(
    cluster: Cluster, job: TrainingJob, made: Mapping[str, nn.Module], *, progress: Callable[..., None] | None = None
) -> None:
    """Train the models that are not stored yet. :func:`~art_qplugins.recipes.build.build_models` finds them afterwards.

    A model waits for its parents. Where one cannot be trained, those that are finished stay.

    :param made: modules that are not built here, by name.
    :param progress: called after each training with the last that was told of it.
    :raises InputError: as a training in this process does, and where a worker is lost or stores elsewhere.
    """
    models = {model.name: model for model in job.recipe.models}
    bases: dict[str, nn.Module] = {}
    order = TopologicalSorter({m.name: m.parents for m in models.values()})
    order.prepare()
    sent = functools.cache(lambda: cluster.put(job))
    running: dict[Any, ModelSettings] = {}

    def start(settings: ModelSettings) -> None:
        own = {name: bases[name] for name in settings.parents}
        task = cluster.start(_train, sent(), settings, own, job.path(settings, own), cluster.threads)
        running[task] = settings

    def finish(settings: ModelSettings) -> None:
        name = settings.name
        if any(name in model.parents for model in models.values()):
            bases[name] = copy.deepcopy(made[name]).cpu() if name in made else job.model(settings, bases, "cpu")
        order.done(name)

    try:
        while order.is_active():
            while ready := order.get_ready():  # what is finished at once makes others ready
                for name in ready:
                    (start if job.takes_long(models[name], bases) else finish)(models[name])
            if running:
                ended = cluster.first_of(running)
                settings = running.pop(ended)
                told = _result(cluster, ended, settings)
                if job.takes_long(settings, bases):
                    raise InputError(
                        f"{printable(job.checkpoints)}: a worker stored {settings.name!r} there, and it is not here; give "
                        "--out a folder that all machines see"
                    )
                if progress is not None and told:
                    progress(*told)
                finish(settings)
    finally:
        cluster.cancel(running)


def _result(cluster: Cluster, task: Any, settings: ModelSettings) -> tuple[Any, ...]:
    try:
        told: tuple[Any, ...] = cluster.result(task)
    except LostWorker as error:
        raise InputError(f"models.{settings.name}: {error}; try fewer --workers") from None
    return told


# --- In a worker


def _train(
    job: TrainingJob, settings: ModelSettings, bases: Mapping[str, nn.Module], path: Path, threads: int
) -> tuple[Any, ...]:
    """Train a model and store it in ``path``. What was told of it last, for the one who waits."""
    torch.set_num_threads(threads)
    check_packages(packages_of(job.recipe))
    if job.path(settings, bases) != path:
        raise InputError(
            f"{here()}: has other versions of art_qplugins or torch, or other packages; install the same everywhere"
        )
    told: list[tuple[Any, ...]] = [()]
    job.model(
        settings, bases, "cpu" if job.recipe.accelerator == "cpu" else "gpu", progress=lambda *said: told.append(said)
    )
    return told[-1]
