"""Runs shards of cells on the processes, accelerators and machines of a Ray cluster.

Workers of a recipe get the paths and hashes of its checkpoints, and the name and hash of its data set. They load and verify
both. So the folder of the run and the data sets must be at the same place on every machine, as on a shared file system.
Estimators and images in memory are sent as they are. Every shard carries the id of its cell, which is a hash of weights,
images, settings and versions. A worker that computes another id refuses the shard.

A shard that crashes its worker every time makes its cell fail.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from art_qplugins.data import load
from art_qplugins.errors import InputError
from art_qplugins.estimators.devices import accelerator
from art_qplugins.evaluation.cell import Shard
from art_qplugins.evaluation.cluster import Cluster, LostWorker, check_packages, here
from art_qplugins.evaluation.evaluator import Evaluator, evaluator_of
from art_qplugins.evaluation.worker import Attempt, attempt, failed
from art_qplugins.files import is_exported
from art_qplugins.plugins import Plugin
from art_qplugins.recipes.build import build_estimators
from art_qplugins.recipes.packages import packages_of
from art_qplugins.recipes.schema import Recipe

__all__ = ["GivenJob", "Job", "RayExecutor", "RecipeJob"]


class Job(Protocol):
    """Everything that workers need to set up the models and images of a run."""

    @property
    def key(self) -> str: ...

    def evaluator(self) -> Evaluator:
        """:raises InputError: where something is missing on this machine, or differs from the start of the run."""
        ...


@dataclass(frozen=True)
class GivenJob:
    """Estimators and images that are in memory."""

    given: Evaluator

    @property
    def key(self) -> str:
        return json.dumps([self.given.data, dict(self.given.fingerprints)])

    def evaluator(self) -> Evaluator:
        return self.given


@dataclass(frozen=True)
class RecipeJob:
    """Models and images that a recipe names.

    :param recipe: the recipe, with the absolute checkpoint path of every trained model.
    :param checkpoints: SHA-256 by path. ``data`` is the SHA-256 of the whole test split.
    :param packages: other packages that the recipe uses.
    """

    recipe: Recipe
    checkpoints: Mapping[str, str]
    data: str
    data_root: str | None
    packages: Sequence[Plugin]

    @classmethod
    def of(
        cls, recipe: Recipe, modules: Mapping[str, nn.Module], folder: Path, data: str, root: str | None
    ) -> RecipeJob:
        """The job of a recipe. Its trained modules are stored in ``folder`` or where the recipe says."""
        paths = {m.name: Path(m.checkpoint).resolve() for m in recipe.models if m.checkpoint}
        for m in recipe.models:
            if m.checkpoint is None and m.trained:
                paths[m.name] = _stored(modules[m.name], m.name, folder.resolve())
        exported = {m.name: Path(m.factory).resolve() for m in recipe.models if m.factory and is_exported(m.factory)}
        places = {name: {"checkpoint": str(path)} for name, path in paths.items()}
        for name, path in exported.items():
            places[name] = {**places.get(name, {}), "factory": str(path)}
        models = [m.model_copy(update=places.get(m.name, {})) for m in recipe.models]
        files = [*paths.values(), *exported.values()]
        hashes = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        where = None if root is None else str(Path(root).resolve())
        return cls(recipe.model_copy(update={"models": models}), hashes, data, where, packages_of(recipe))

    @property
    def key(self) -> str:
        return json.dumps([self.recipe.model_dump(mode="json"), dict(self.checkpoints), self.data, self.data_root])

    def evaluator(self) -> Evaluator:
        check_packages(self.packages)
        data = load(self.recipe.data.name, "test", root=self.data_root, options=self.recipe.data.options)
        if data.sha256 != self.data:
            raise InputError(
                f"{here()}: data set {data.name!r} has other content there; copy the same files to every machine"
            )
        for path, sha256 in self.checkpoints.items():
            _verify(Path(path), sha256)
        estimators = build_estimators(self.recipe, data, Path(), device=accelerator(self.recipe.accelerator))
        used = data if self.recipe.data.limit is None else data.take(self.recipe.data.limit, seed=self.recipe.data.seed)
        return evaluator_of(self.recipe, estimators, used)


def _verify(path: Path, sha256: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(
            f"{here()}: checkpoint {path} cannot be read ({error.strerror}); give --out a folder that all machines see"
        ) from None
    if found != sha256:
        raise InputError(
            f"{here()}: checkpoint {path} is not the one that the run began with; run the same command again"
        )


def _stored(module: nn.Module, name: str, folder: Path) -> Path:
    """The checkpoint that holds exactly this module."""
    from safetensors.torch import save

    weights = save({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()})
    sha256 = hashlib.sha256(weights).hexdigest()
    for about in sorted(folder.glob("*.json")):
        description = json.loads(about.read_bytes())
        if description.get("sha256") == sha256 and description.get("model", {}).get("name") == name:
            return about.with_suffix(".safetensors")
    raise InputError(f"{folder}: the checkpoint of {name} was removed; run the same command again")


# --- In a worker


#: The evaluator of this process by the key of its job. A worker serves one run.
_ready: dict[str, Evaluator] = {}


def _run_shard(job: Job, threads: int, shard: Shard) -> Attempt:
    """Run a shard in a worker.

    :raises InputError: where it cannot take part.
    """
    torch.set_num_threads(threads)
    if (key := job.key) not in _ready:
        _ready.clear()
        _ready[key] = job.evaluator()
    evaluator = _ready[key]
    if evaluator.id_of(shard.spec) != shard.cell:
        raise InputError(
            f"{here()}: has other versions of art_qplugins, torch or an attack library; install the same everywhere"
        )
    return attempt(evaluator, shard)


# --- In the process that runs the recipe


class RayExecutor:
    """Runs shards on a Ray cluster."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self._cluster, self._job = cluster, cluster.put(job)

    def map(self, shards: Iterable[Shard]) -> Iterator[Attempt]:
        """See :class:`~art_qplugins.evaluation.executor.Executor`. For every running shard one other shard is queued."""
        cluster, coming = self._cluster, iter(shards)
        waiting: dict[Any, Shard] = {}
        try:
            while True:
                while len(waiting) < 2 * cluster.workers and (shard := next(coming, None)) is not None:
                    waiting[cluster.start(_run_shard, self._job, cluster.threads, shard)] = shard
                if not waiting:
                    return
                ended = cluster.first_of(waiting)
                yield self._result(ended, waiting.pop(ended))
        finally:
            cluster.cancel(waiting)

    def _result(self, task: Any, shard: Shard) -> Attempt:
        try:
            found: Attempt = self._cluster.result(task)
        except LostWorker as error:
            return failed(shard, str(error))
        return found
