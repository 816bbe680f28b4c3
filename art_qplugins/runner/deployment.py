"""What deployed files cost, and where they differ from the networks that they were exported from."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from art_qplugins.data import Dataset
from art_qplugins.deployment.export import export
from art_qplugins.deployment.files import DeployedFile, open_deployed
from art_qplugins.deployment.parity import Agreement, answering, parity
from art_qplugins.deployment.speed import speeds, vnni
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.network_records import Agreed, Deployment, Flips, Speed
from art_qplugins.evaluation.scheduler import Scheduler
from art_qplugins.gradients.attempt import Attempt
from art_qplugins.recipes.exported import fixed, told_of
from art_qplugins.recipes.model import ModelSettings
from art_qplugins.recipes.networks import blank
from art_qplugins.recipes.schema import Recipe
from art_qplugins.runner.progress import Progress
from art_qplugins.runner.stored import on_all_images, pairs

__all__ = ["deployment"]

#: Images on which a file and its twin are compared, clean and adversarial.
_IMAGES = 1000


def deployment(
    scheduler: Scheduler, recipe: Recipe, models: Iterable[str], data: Dataset, *, progress: Progress = Progress()
) -> dict[str, Deployment]:
    """The measurements of each model that is a file.

    Files of one architecture are timed in turn with its float32 export. It has untrained weights: time does not depend on them.
    """
    settings = {model.name: model for model in recipe.models}
    found, files = {}, dict[str, DeployedFile]()
    for name in models:
        estimator = scheduler.evaluator.estimators[name]
        module = answering(estimator.model)
        if module is not None and isinstance(module.predict, DeployedFile):
            files[name] = module.predict
            found[name] = _of_file(scheduler, settings[name], estimator, module.predict)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in files:
        groups[_architecture(settings[name], settings)].append(name)
    for names in progress.over("files", "speed", list(groups.values())):
        timed = {name: files[name] for name in names}
        for name, changes in _speed(_float32(settings[names[0]], settings), timed, data).items():
            found[name] = found[name].model_copy(update=changes)
    return found


def _of_file(
    scheduler: Scheduler, settings: ModelSettings, estimator: QuantizedClassifier, file: DeployedFile
) -> Deployment:
    evaluator, attempt = scheduler.evaluator, Attempt()
    x, adversarial = evaluator.x[:_IMAGES], None
    cells = [o.cell for o in scheduler.outcomes(settings.name) if o.ok and on_all_images(o.cell)]
    if cells:  # the strongest attack that saw all images
        worst = min(cells, key=lambda cell: 1.0 if cell.accuracy is None else cell.accuracy)
        adversarial = pairs(evaluator, scheduler.store, worst, _IMAGES)[1]
    both = attempt("parity", lambda: parity(estimator, None, x, adversarial))
    told = {} if settings.export is None else told_of(file.path)
    return Deployment(
        of=settings.base,
        file=file.path.name,
        size=sum(path.stat().st_size for path in type(file.runtime).files(file.path)),
        draws=told.get("draws", 0),
        notes=told.get("notes", []),
        vnni=vnni(),
        clean=None if both is None else _agreed(both.clean),
        adversarial=None if both is None or both.adversarial is None else _agreed(both.adversarial),
        skipped=attempt.skipped,
    )


def _agreed(found: Agreement) -> Agreed:
    layers = [Flips(layer=one.layer, flips=one.flips, far=one.far) for one in found.layers]
    return Agreed(n=found.n, same=found.same, interval=found.interval, layers=layers)


def _speed(whole: ModelSettings | None, files: Mapping[str, DeployedFile], data: Dataset) -> dict[str, dict[str, Any]]:
    """What changes in the record of each file: its speed, and the size of the network in float32 with ``whole``'s layers."""
    attempt = Attempt()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float32.onnx"
        reference = None if whole is None else attempt("float32", lambda: _written(whole, path, data))
        timed = files if reference is None else {"": reference, **files}
        found = attempt("speed", lambda: speeds(timed, data.shape)) or {}
        size = None if reference is None else path.stat().st_size
    changes: dict[str, dict[str, Any]] = {}
    for name in files:
        rows = [
            Speed(**asdict(one) | ({} if reference else {"ratio": None, "energy": None})) for one in found.get(name, [])
        ]
        changes[name] = {"speeds": rows, "float_size": size}
    return changes


def _written(settings: ModelSettings, path: Path, data: Dataset) -> DeployedFile:
    """The network as an ONNX file in float32, with untrained weights: time does not depend on them."""
    export(fixed(blank(settings, data, 0), data.shape), path, data.shape)
    return open_deployed(path, input_shape=data.shape, nb_classes=data.nb_classes)[0]


def _float32(settings: ModelSettings, models: Mapping[str, ModelSettings]) -> ModelSettings | None:
    """The network that was exported, without its quantizers; ``None`` where it was not built here."""
    base = None if settings.export is None else models[str(settings.base)]
    return base.model_copy(update={"quantize": None}) if base is not None and base.trained else None


def _architecture(settings: ModelSettings, models: Mapping[str, ModelSettings]) -> str:
    """What files share that are compared with the same network in float32."""
    whole = _float32(settings, models)
    return settings.name if whole is None else repr(whole.model_dump(include={"architecture", "normalize", "defences"}))
