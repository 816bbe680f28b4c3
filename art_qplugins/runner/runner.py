"""One run of a recipe: data, models, cells, diagnosis, records, report."""

from __future__ import annotations

import contextlib
import datetime
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError

from art_qplugins.data import Dataset
from art_qplugins.deployment.parity import answering
from art_qplugins.domains import Domain, Maybe, Number, OneOf, Text, check_all
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.estimators.devices import accelerator
from art_qplugins.evaluation.cluster import Cluster
from art_qplugins.evaluation.compare import differences
from art_qplugins.evaluation.evaluator import Evaluator, evaluator_of
from art_qplugins.evaluation.executor import Executor, Serial
from art_qplugins.evaluation.network_records import Curve
from art_qplugins.evaluation.pooled import pooled_cells
from art_qplugins.evaluation.ray import GivenJob, Job, RayExecutor, RecipeJob
from art_qplugins.evaluation.records import ModelResult, Results
from art_qplugins.evaluation.remote_training import TrainingJob, train_side_by_side
from art_qplugins.evaluation.scheduler import Scheduler
from art_qplugins.evaluation.store import Memory, Storage, Store, check_folder
from art_qplugins.evaluation.strategy import Attacks
from art_qplugins.models.ensemble import trained_network
from art_qplugins.recipes.build import build_estimators, training_curves, with_factories
from art_qplugins.recipes.packages import packages_of
from art_qplugins.recipes.rehearse import rehearse
from art_qplugins.recipes.schema import Recipe
from art_qplugins.report import write_report
from art_qplugins.runner.assess import assess_model
from art_qplugins.runner.costs import Work, costs
from art_qplugins.runner.deployment import deployment
from art_qplugins.runner.environment import environment
from art_qplugins.runner.information import information
from art_qplugins.runner.plan import plan
from art_qplugins.runner.prepare import Images, Prepared, prepare
from art_qplugins.runner.progress import Progress
from art_qplugins.runner.run import Run
from art_qplugins.runner.sensitivity import bases, sensitivity
from art_qplugins.training.ranks import rank

__all__ = ["Execution", "Runner"]


_CHECKPOINTS = "checkpoints"
#: More workers than any cluster has are a mistake, and Ray would start them all.
_EXECUTION: dict[str, Domain] = {
    "executor": OneOf(("serial", "ray")),
    "workers": Maybe(Number(1, 4096, whole=True)),
    "address": Maybe(Text()),
}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Who trains models and attacks them. It does not change the records.

    :param executor: ``"serial"`` is this process. ``"ray"`` uses ``workers`` processes of the Ray cluster at
        ``address``, or of a cluster that is started here.
    """

    executor: Literal["serial", "ray"] = "serial"
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        check_all(vars(self), _EXECUTION)
        if self.executor == "serial" and (self.workers is not None or self.address is not None):
            raise InputError("workers and an address are for the executor 'ray'; add --executor ray")


class Runner:
    """Trains models without a checkpoint, attacks, scores, diagnoses, and writes records and report.

    Finished cells in the folder are reused. A failed cell is a row with its error.

    :param recipe: the settings, as :func:`~art_qplugins.recipes.load.parse_recipe` gives them.
    :param asked: the recipe as it was written, for the records.
    :param out: the folder; ``None`` keeps everything in memory.
    :param estimators: the given models of the recipe, by name.
    :param data: images to attack instead of the test split that the recipe names.
    :param data_root: the data folder. ``download`` fetches a missing data set.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        asked: Mapping[str, Any] | None = None,
        out: Path | None = None,
        estimators: Mapping[str, QuantizedClassifier] | None = None,
        data: Dataset | None = None,
        data_root: str | None = None,
        download: bool = False,
        execution: Execution = Execution(),
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.asked, self.out = recipe, dict(asked or {}), out
        self.given = dict(estimators or {})
        self.images = Images(given=data, root=data_root, download=download)
        self.execution, self.progress = execution, progress or Progress()
        self.curves: dict[str, Curve] = {}  # of the models that were trained by a recipe
        for model in recipe.models:
            if (model.given is not None) != (model.name in self.given):
                found = (
                    "no estimator of this name was given"
                    if model.given is not None
                    else "the recipe takes no estimator of this name"
                )
                raise InputError(f"models.{model.name}: {found}; see art_qplugins.evaluate")

    def prepare(self) -> Prepared:
        """Get ready for a run without training or writing: what a dry run does. Its warnings are those of a run.

        :raises InputError: where the run would raise it before it trains.
        """
        accelerator(self.recipe.accelerator)  # a GPU that is not there is said before anything is loaded
        if self.out is not None:
            check_folder(self.out, self.recipe.name)
        return prepare(self.recipe, self.images, self.given)

    def costs(self, prepared: Prepared) -> list[Work]:
        """What the run may take, by model and part. Each network is timed here, for a second at most."""
        with _threads(self.recipe.threads):
            return costs(self.recipe, prepared, *plan(self.recipe, prepared.order))

    def train(self) -> Path:
        """Train the models and return the folder of their checkpoints.

        :raises InputError: where there is no folder, or it cannot be written.
        """
        if self.out is None:
            raise InputError("train: give a folder for the checkpoints")
        folder = self.out / _CHECKPOINTS
        data, validation = self.images.training(self.recipe)
        ready = with_factories(self.recipe, data, self.given)
        self.progress.warn(rehearse(self.recipe, data, ready))
        with self._cluster() as cluster, _threads(self.recipe.threads):
            self._build((data, validation), folder, ready, cluster)
        return folder

    def run(self) -> Run:
        """:return: the records, as in ``results.json``; ``status`` is ``"error"`` where a cell failed.
        :raises InputError: also where the folder holds results of another recipe, or where another run is writing
            there.
        """
        if rank() > 0:  # it was started to train with the first process, which goes on alone
            self.train()
            sys.exit(0)
        prepared = self.prepare()
        self.progress.warn(prepared.warnings)
        with self._cluster() as cluster:
            return self._run(prepared, self._storage(), cluster)

    # -- Stages

    def _run(self, prepared: Prepared, store: Storage, cluster: Cluster | None) -> Run:
        recipe = self.recipe
        with store.alone(recipe.name), _threads(recipe.threads), _checkpoints(store) as folder:
            draft = _draft(recipe, self.asked, prepared)
            if not store.has_results:
                store.write_results(draft)  # earlier results stay until this run has results
            attacks: Attacks | None = None
            try:
                estimators = self._build((prepared.train, prepared.validation), folder, prepared.ready, cluster)
                draft = draft.model_copy(update={"training": self.curves})
                evaluator = evaluator_of(recipe, estimators, prepared.used)
                executor = self._executor(evaluator, estimators, store, prepared.whole, cluster)
                scheduler = Scheduler(evaluator, store, self.progress, executor, grid=recipe.grid)
                models, cells = plan(recipe, prepared.order)
                claims = [model.claim for model in models if model.claim is not None]
                attacks = Attacks(
                    scheduler, claims=claims, strategy=recipe.strategy, budget=recipe.budget, order=recipe.order
                )
                store.write_results(draft)
                diagnosis = recipe.diagnosis if recipe.diagnose else None
                attacks.run(cells, until="diagnosis" if diagnosis and claims else "end")
                found = [
                    assess_model(
                        scheduler,
                        model,
                        covered=attacks.covered,
                        diagnosis=diagnosis,
                        audit=recipe.audit,
                        progress=self.progress,
                    )
                    for model in models
                ]
                names = [model.name for model in models]
                draft = draft.model_copy(update=self._measured(scheduler, names, prepared.used))
            except BaseException as error:
                if attacks is not None or not isinstance(error, InputError):
                    _record_end(error, attacks, draft, store)
                raise
            return self._finish(attacks, found, draft, store)

    def _measured(self, scheduler: Scheduler, models: Sequence[str], data: Dataset) -> dict[str, Any]:
        """What is measured after the last cell."""
        recipe, told, found = self.recipe, self.progress, dict[str, Any]()
        if (n := recipe.sensitivity) is not None:
            found["sensitivity"] = sensitivity(scheduler, models, bases(recipe), n=n, progress=told)
        if (n := recipe.information) is not None:
            found["information"] = information(scheduler, models, n=n, progress=told)
        return found | {"deployment": deployment(scheduler, recipe, models, data, progress=told)}

    def _storage(self) -> Storage:
        return Memory() if self.out is None else Store(self.out)

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[Cluster | None]:
        """The Ray cluster that trains and attacks; ``None`` for this process."""
        if self.execution.executor == "serial":
            yield None
            return
        if self.recipe.devices > 1:
            raise InputError("devices: on a Ray cluster each model is trained by one process; leave devices out")
        workers, address = self.execution.workers, self.execution.address
        with Cluster(workers=workers, address=address, threads=self.recipe.threads) as cluster:
            yield cluster

    def _build(
        self,
        images: tuple[Dataset, Dataset | None],
        folder: Path,
        ready: Mapping[str, QuantizedClassifier],
        cluster: Cluster | None,
    ) -> dict[str, QuantizedClassifier]:
        """The estimators of all models.

        :param images: those to train on, and those to validate on.
        :param folder: of the checkpoints.
        """
        data, validation = images
        progress = self.progress.training
        if cluster is not None:
            job = TrainingJob(self.recipe, data, validation, folder.resolve())
            made = {name: trained_network(estimator.model) for name, estimator in ready.items()}
            train_side_by_side(cluster, job, made, progress=progress)
        estimators = build_estimators(
            self.recipe,
            data,
            folder,
            device=accelerator(self.recipe.accelerator),
            given=ready,
            validation=validation,
            progress=progress,
        )
        modules = {name: trained_network(estimator.model) for name, estimator in estimators.items()}
        if rank() == 0:  # the others do not wait until all is stored
            self.curves = _checked(training_curves(self.recipe, data, folder, modules))
        return estimators

    def _executor(
        self,
        evaluator: Evaluator,
        estimators: Mapping[str, QuantizedClassifier],
        store: Storage,
        data: Dataset,
        cluster: Cluster | None,
    ) -> Executor:
        if cluster is None:
            return Serial(evaluator)
        job: Job
        deployed = any(answering(estimator.model) for estimator in estimators.values())  # with a twin that is here
        if self.given or deployed or self.images.given is not None or store.folder is None:
            job = GivenJob(evaluator)
        else:
            modules = {name: trained_network(estimator.model) for name, estimator in estimators.items()}
            job = RecipeJob.of(self.recipe, modules, store.folder / _CHECKPOINTS, data.sha256, self.images.root)
        return RayExecutor(cluster, job)

    def _finish(self, attacks: Attacks, models: Sequence[ModelResult], draft: Results, store: Storage) -> Run:
        outcomes = attacks.scheduler.outcomes()
        status = "success" if all(o.ok for o in outcomes) else "error"
        results = draft.model_copy(update={"status": status, "models": list(models), "cells": attacks.cells()})
        across = {"pooled": pooled_cells(results, outcomes), "differences": differences(results, outcomes)}
        results = results.model_copy(update=across)
        store.write_samples(outcomes)
        store.write_results(results)
        report = None if store.folder is None else write_report(store.folder)[-1]
        return Run(results, outcomes, store, report)


def _checked(curves: Mapping[str, Sequence[Any]]) -> dict[str, Curve]:
    """Curves as records. One that a file of unknown origin tells and that is none is left out."""
    found: dict[str, Curve] = {}
    for name, curve in curves.items():
        with contextlib.suppress(ValidationError):
            found[name] = TypeAdapter(Curve).validate_python(curve)
    return found


def _draft(recipe: Recipe, asked: Mapping[str, Any], prepared: Prepared) -> Results:
    """The records before any cell is computed."""
    used, whole = prepared.used, prepared.whole
    return Results(
        status="started",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        spec={"given": dict(asked), "resolved": recipe.model_dump(mode="json")},
        data={
            "name": used.name,
            **({"source": used.source} if used.source else {}),
            "split": used.split,
            "n": len(used),
            "of": len(whole),
            "sha256": whole.sha256,
            "classes": list(used.classes),
            "shape": list(used.shape),
        },
        environment=environment(accelerator(recipe.accelerator), recipe.threads, packages_of(recipe)),
        warnings=prepared.warnings,
        models=[],
        cells=[],
    )


def _record_end(error: BaseException, attacks: Attacks | None, draft: Results, store: Storage) -> None:
    """Write the records of a run that ends early. An error while writing does not hide the reason of the end."""
    status = "cancelled" if isinstance(error, KeyboardInterrupt) else "error"
    cells = [] if attacks is None else attacks.cells()
    if attacks is not None:
        with contextlib.suppress(OSError, InputError):
            store.write_samples(attacks.scheduler.outcomes())
    with contextlib.suppress(OSError):
        store.write_results(draft.model_copy(update={"status": status, "cells": cells}))


@contextlib.contextmanager
def _checkpoints(store: Storage) -> Iterator[Path]:
    """The folder of trained weights and exported files; a temporary one where nothing is stored."""
    if store.folder is not None:
        yield store.folder / _CHECKPOINTS
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
