"""``evaluate``, ``diagnose`` and ``run``: the Python interface for estimators in memory and for recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray

from art_qplugins.data import Dataset, from_arrays
from art_qplugins.domains import TEXT, check, check_all
from art_qplugins.errors import InputError, did_you_mean, shown
from art_qplugins.estimators import Deployed, QuantizedClassifier, deployed
from art_qplugins.evaluation.fields import Verdict
from art_qplugins.evaluation.outcome import legal_at, worst_images
from art_qplugins.evaluation.records import Claim, Finding
from art_qplugins.quantizers import activation_quantizers, is_stochastic
from art_qplugins.recipes.load import parse_recipe, read_tables, whole_tables
from art_qplugins.runner.arguments import DIAGNOSE, EVALUATE, RUN
from art_qplugins.runner.progress import Progress
from art_qplugins.runner.run import Run
from art_qplugins.runner.runner import Execution, Runner
from art_qplugins.threat import Threat

__all__ = ["Diagnosis", "Run", "diagnose", "evaluate", "run"]

Estimators: TypeAlias = "PyTorchClassifier | Sequence[PyTorchClassifier] | Mapping[str, PyTorchClassifier]"
Images: TypeAlias = "Dataset | tuple[Any, Any]"  # a data set, or (x, y) as arrays or tensors
Tables: TypeAlias = "Mapping[str, Any]"


@dataclass(frozen=True)
class Diagnosis:
    """The answer to "can this number be believed?".

    ``x_adv`` holds the strongest legal adversarial image for every image. It is the proof, which can be replayed.
    """

    verdict: Verdict
    claim: Claim
    findings: Sequence[Finding]
    summary: str
    x_adv: NDArray[np.float32] = field(repr=False)
    run: Run = field(repr=False)

    @property
    def claimed_accuracy(self) -> float | None:
        return self.claim.accuracy

    @property
    def corrected_accuracy(self) -> float | None:
        return self.claim.corrected

    def __str__(self) -> str:
        return f"{self.verdict}: {self.summary}"


def run(
    recipe: str | Path | Tables,
    *,
    profile: str | Sequence[str] = (),
    estimators: Estimators | None = None,
    data: Images | None = None,
    out: str | Path | None = None,
    data_root: str | None = None,
    download: bool = False,
    executor: Literal["serial", "ray"] = "serial",
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run a recipe, as ``artq run`` does.

    :param recipe: the path of a TOML file, or its tables.
    :param profile: the name of one of the recipe's profiles, or of several; each wins over those before it.
    :param estimators: ART classifiers by name, in addition to the models of the recipe. The recipe's attacks and claims
        can use these names.
    :param data: images to attack instead of the test split that the recipe names.
    :param out: a folder for records and report. The same call again reuses finished cells there.
    :param data_root: the data folder. ``download`` fetches a missing data set.
    :param executor: ``"ray"`` uses ``workers`` processes of the Ray cluster at ``address``, or of one started here.
    :raises InputError: where the recipe or an argument cannot be used.
    """
    check_all(locals(), RUN)
    profiles = [profile] if isinstance(profile, str) else profile
    if isinstance(recipe, Mapping):
        where, tables = "run", whole_tables(recipe, profiles)
    else:
        where, tables = str(recipe), read_tables(Path(recipe), profiles)
    execution = Execution(executor=executor, workers=workers, address=address)
    return _run(where, tables, estimators, data, out, execution, progress, data_root=data_root, download=download)


def evaluate(
    estimators: Estimators,
    data: Images,
    threat: Threat | Sequence[Threat] = Threat("Linf", 8 / 255),
    attacks: Sequence[str | tuple[str, Mapping[str, Any]]] = ("art:fgsm", "art:pgd"),
    *,
    claim: str | None = None,
    claimed_accuracy: float | None = None,
    level: int | None = None,
    budget: float | None = None,
    seed: int = 0,
    batch_size: int = 250,
    abstain: int | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    recipe: Tables | None = None,
    **execution: Any,
) -> Run:
    """Attack estimators, check every adversarial image, and report the worst-case accuracy of each model.

    :param estimators: one ART classifier, several, or several by name.
    :param data: (x, y) with x (N, C, H, W) in [0, 1] and integer labels (N,), or a data set.
    :param threat: one threat or several. An attack runs at those whose norm it has.
    :param attacks: ids, or (id, options); ``art_qplugins.ATTACKS`` lists them.
    :param claim: the attack of the claim. The diagnosis tests the accuracy under it at the largest eps of the first norm.
    :param claimed_accuracy: the claimed number in [0, 1], if it differs from the accuracy under this attack here.
    :param level: level of the diagnosis, 0 to 3. By default it is 2, and 3 if level 2 found something.
    :param budget: gradient evaluations per image that the diagnosis may spend.
    :param abstain: the output with which the models reject an image, from 0. An adversarial image that is rejected counts
        as robust, and attacks aim past both. The share of clean images that are rejected is shown beside the clean
        accuracy, which does not count them.
    :param out: a folder for records and report. The same call again reuses finished cells there.
    :param recipe: further keys of a recipe, e.g. ``{"strategy": "cascade", "grid": 256, "transfer":
        {"attack": "art:pgd"}, "budget": {"gradients": 500}}``.
    :param execution: ``executor``, ``workers`` and ``address``, as in :func:`run`.
    :raises InputError: where an argument cannot be used; the message names it.
    """
    check_all(locals(), EVALUATE)
    if claimed_accuracy is not None and claim is None:
        raise InputError(
            "claimed_accuracy: it is given without a claim; give the claimed attack too, e.g. claim='art:pgd'"
        )
    named = _named(estimators)
    if abstain is not None:
        named = {name: estimator.rejecting(abstain) for name, estimator in named.items()}
    by_norm: dict[str, list[float]] = {}
    for one in [threat] if isinstance(threat, Threat) else threat:
        by_norm.setdefault(one.norm, []).append(one.eps)
    threats: list[dict[str, Any]] = [{"norm": norm, "eps": sorted(several)} for norm, several in by_norm.items()]
    wanted = [(a, {}) if isinstance(a, str) else (a[0], dict(a[1])) for a in attacks]
    tables: dict[str, Any] = {
        "name": "evaluation",
        "seed": seed,
        "batch_size": batch_size,
        "threat": threats[0] if len(threats) == 1 else threats,
        "attacks": [{"id": attack, "options": options} for attack, options in wanted],
        "diagnosis": {"level": level, "budget": budget},
    }
    if claim is not None:
        first = threats[0]
        tables["claim"] = {
            "attack": claim,
            "norm": first["norm"],
            "eps": first["eps"][-1],
            "accuracy": claimed_accuracy,
        }
    tables |= recipe or {}
    return _run("evaluate", tables, named, data, out, _execution(execution), progress)


def diagnose(
    estimator: PyTorchClassifier,
    x: Any,
    y: Any,
    threat: Threat = Threat("Linf", 8 / 255),
    claimed: float | str | tuple[str, Mapping[str, Any]] | None = None,
    *,
    level: int | None = None,
    budget: float | None = None,
    seed: int = 0,
    batch_size: int = 250,
    abstain: int | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    recipe: Tables | None = None,
    **execution: Any,
) -> Diagnosis:
    """Test a robustness claim.

    :param estimator: an ART classifier around a torch module.
    :param x: (N, C, H, W) in [0, 1]; 200 images or more, or the verdict may be INCONCLUSIVE.
    :param y: integer labels (N,).
    :param claimed: the claimed accuracy in [0, 1], or the claimed attack, an id or (id, options). The default is
        ``art:pgd``.
    :param level: level of the diagnosis, 0 to 3. By default it is 2, and 3 if level 2 found something.
    :param budget: gradient evaluations per image to spend beyond the claimed attack. Skipped steps are reported.
    :param out: a folder for records, report and adversarial images. The same call again reuses finished cells there.
    :param recipe: as in :func:`evaluate`, and so are ``abstain`` and ``execution``.
    """
    check_all(locals(), DIAGNOSE)
    if not isinstance(estimator, PyTorchClassifier):
        raise InputError(f"estimator: it is {shown(estimator)}; give one ART PyTorchClassifier")
    attack: str | tuple[str, Mapping[str, Any]] = "art:pgd"
    accuracy: float | None = None
    if isinstance(claimed, (str, tuple)):
        attack = claimed
    else:
        accuracy = claimed
    finished = evaluate(
        estimator,
        (x, y),
        threat,
        [attack],
        claim=attack if isinstance(attack, str) else attack[0],
        claimed_accuracy=accuracy,
        level=level,
        budget=budget,
        seed=seed,
        batch_size=batch_size,
        abstain=abstain,
        out=out,
        progress=progress,
        recipe=recipe,
        **execution,
    )
    result = finished.models[0]
    images = np.asarray(x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x, dtype=np.float32)
    legal = legal_at(finished.outcomes, threat.norm, threat.eps)
    x_adv = worst_images(legal, finished.store, images)[1] if legal else images
    return Diagnosis(result.verdict, result.claim, result.findings, result.summary, x_adv, finished)


# --- Estimators and images in memory as tables of a recipe


def _run(
    where: str,
    tables: Tables,
    estimators: Estimators | None,
    data: Images | None,
    out: str | Path | None,
    execution: Execution,
    progress: Progress | None,
    **source: Any,
) -> Run:
    named = {} if estimators is None else _named(estimators)
    images = _images(data, named)
    return Runner(
        parse_recipe(_with_given(tables, named, images), where=where),
        asked=tables,
        out=None if out is None else Path(out),
        estimators=named,
        data=images,
        execution=execution,
        progress=progress,
        **source,
    ).run()


def _execution(given: Mapping[str, Any]) -> Execution:
    known = [field.name for field in fields(Execution)]
    for name in given:
        if name not in known:
            raise InputError(f"evaluate: unknown argument {name!r}{did_you_mean(name, known)}")
    return Execution(**given)


def _with_given(tables: Tables, named: Mapping[str, QuantizedClassifier], images: Dataset | None) -> dict[str, Any]:
    """The tables with the given estimators as models, before those of the recipe, and with the given images."""
    result = {"name": "run", **tables}
    if named:
        models = result.get("models", [])
        given = [
            {
                "name": name,
                "given": {
                    "estimator": type(estimator).__name__,
                    "stochastic": is_stochastic(estimator.model),
                    "quantized": bool(activation_quantizers(estimator.model)),
                },
                **({} if estimator.abstain is None else {"abstain": estimator.abstain}),
            }
            for name, estimator in named.items()
        ]
        result["models"] = [*given, *models] if isinstance(models, Sequence) else models
    if images is not None:
        asked = result.get("data", {})
        result["data"] = {**asked, "name": images.name, "given": True} if isinstance(asked, Mapping) else asked
    return result


def _images(data: Images | None, named: Mapping[str, QuantizedClassifier]) -> Dataset | None:
    if data is None:
        return None
    if not isinstance(data, Dataset):
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise InputError(f"data: it is {shown(data)}; give a data set or (x, y): images and labels")
        classes = [str(i) for i in range(next(iter(named.values())).nb_classes)] if named else None
        data = from_arrays(*data, name="data", classes=classes)
    for name, estimator in named.items():
        if tuple(estimator.input_shape) == data.shape:
            continue
        if isinstance(estimator.model, Deployed) and estimator.model.takes(data.shape):
            estimator._input_shape = data.shape  # ART's was that of the network behind a preprocessor
        else:
            raise InputError(
                f"data: images are {data.shape}, and {name} takes {tuple(estimator.input_shape)}; give images of that shape"
            )
    return data


def _named(estimators: Estimators) -> dict[str, QuantizedClassifier]:
    if not isinstance(estimators, (Mapping, list, tuple)):
        estimators = [estimators]
    if not isinstance(estimators, Mapping):
        names = [type(e).__name__ for e in estimators]
        estimators = {
            n if names.count(n) == 1 else f"{n}-{i}": e for i, (n, e) in enumerate(zip(names, estimators, strict=True))
        }
    if not estimators:
        raise InputError("estimators: there is none; give at least one")
    return {check("estimators: a name", name, TEXT): _ours(name, e) for name, e in estimators.items()}


def _ours(name: str, estimator: Any) -> QuantizedClassifier:
    """The estimator whose module does all that its ``predict`` does. A plain ``PyTorchClassifier`` is wrapped."""
    if not isinstance(estimator, PyTorchClassifier):
        raise InputError(
            f"estimators: {name} is {shown(estimator)}, not an ART PyTorchClassifier; wrap the module in one, or what "
            "only answers in a DeployedClassifier"
        )
    return deployed(estimator)
