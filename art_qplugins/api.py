"""``evaluate`` and ``diagnose``: the harness for estimators and images that are in Python already."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import nn

from art_qplugins import diagnostics
from art_qplugins.attacks.catalogue import ATTACKS, current_id
from art_qplugins.checkpoint import load_checkpoint
from art_qplugins.data import Dataset, from_arrays, load
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier, SQEnsembleClassifier, check_inside
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.outcome import Outcome, legal_at, worst_images
from art_qplugins.evaluation.records import Cell, Claim, Finding, ModelResult, Results, Verdict
from art_qplugins.evaluation.store import CellStore, Memory, Store
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import is_stochastic
from art_qplugins.recipes.factory import make_module
from art_qplugins.runner import ModelUnderTest, Progress, Work, distinct, environment
from art_qplugins.threat import Threat

__all__ = ["Diagnosis", "Run", "diagnose", "diagnose_module", "evaluate"]

Estimators = PyTorchClassifier | Sequence[PyTorchClassifier] | Mapping[str, PyTorchClassifier]
Images = Dataset | tuple[Any, Any]  # a data set, or (x, y) as arrays or tensors


@dataclass(frozen=True)
class Run:
    """A finished evaluation. ``models`` and ``cells`` are the records of ``results.json``."""

    results: Results
    outcomes: Sequence[Outcome] = field(repr=False)
    store: CellStore = field(repr=False)

    @property
    def models(self) -> list[ModelResult]:
        return self.results.models

    @property
    def cells(self) -> list[Cell]:
        return self.results.cells

    def x_adv(self, cell: Cell) -> NDArray[np.float32]:
        """The adversarial images of a cell, (N, C, H, W) in [0, 1]."""
        return self.store.images(cell.id)

    def __str__(self) -> str:
        rows = [("model", "clean", "budget", "robust at most", "verdict")]
        for m in self.models:
            for r in m.robust or [None]:
                budget = "" if r is None else f"{r.norm} {r.eps:.4g}"
                bound = "" if r is None else _interval(r.accuracy, r.interval)
                rows.append((m.name, _interval(m.clean_accuracy, m.clean_interval), budget, bound, m.verdict))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


@dataclass(frozen=True)
class Diagnosis:
    """The answer to "can this number be believed?".

    ``x_adv`` holds, for every image, the legal one that left the model worst off: the proof, to be replayed.
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
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Attack estimators, check every adversarial image, and say how accurate the models remain at worst.

    :param estimators: one ART classifier, several, or several by name.
    :param data: (x, y) with x (N, C, H, W) in [0, 1] and integer labels (N,), or a data set.
    :param threat: one budget or several of one norm.
    :param attacks: ids, or (id, options); ``art_qplugins.ATTACKS`` lists them.
    :param claim: the attack whose accuracy at the largest budget is put to the test by the diagnostics.
    :param claimed_accuracy: the number claimed, in [0, 1], where it is another than what this attack leaves here.
    :param level: how far the diagnosis of the claim goes, 0 to 3; by default as far as what it finds asks for.
    :param budget: gradient evaluations per image that the diagnosis may spend.
    :param out: a folder for the records; the same call again then reuses what is finished.
    :raises InputError: where an argument cannot be used; the message names it.
    """
    named = _named(estimators)
    images = data if isinstance(data, Dataset) else from_arrays(*data, classes=_classes(named))
    threats = sorted([threat] if isinstance(threat, Threat) else threat, key=lambda t: t.eps)
    wanted = [(current_id(a), {}) if isinstance(a, str) else (current_id(a[0]), dict(a[1])) for a in attacks]
    claim = None if claim is None else current_id(claim)
    if not threats or not wanted:
        raise InputError("evaluate: give at least one threat and one attack")
    if len(norms := sorted({t.norm for t in threats})) > 1:
        raise InputError(f"evaluate: the threats have the norms {' and '.join(norms)}; call it once for each norm")
    for attack, options in wanted:
        ATTACKS[attack].resolve(options)
    if claimed_accuracy is not None and not 0 <= claimed_accuracy <= 1:
        raise InputError(f"claimed is {claimed_accuracy}; give an accuracy in [0, 1], e.g. {claimed_accuracy / 100:g}")
    if claim is not None and claim not in (ids := [a for a, _ in wanted]):
        raise InputError(f"evaluate: claim {claim!r} is not among the attacks {ids}")

    def cell(model: str, attack: str, options: Mapping[str, Any], budget: Threat) -> CellSpec:
        return CellSpec(
            model=model, source=model, attack=attack, norm=budget.norm, eps=budget.eps, seed=seed, options=options
        )

    subjects, cells = [], []
    for name, estimator in named.items():
        claimed = None
        if claim is not None:
            claimed = cell(name, claim, next(o for a, o in wanted if a == claim), threats[-1])
        clean = diagnostics.clean_cell(
            name, norm=threats[-1].norm, seed=seed, eps=threats[-1].eps if claim is not None else None
        )
        stochastic = is_stochastic(estimator.model)
        subjects.append(ModelUnderTest(name, type(estimator).__name__, stochastic, clean, claimed, claimed_accuracy))
        cells += [clean, *(cell(name, attack, options, t) for attack, options in wanted for t in threats)]
    store: CellStore = Memory() if out is None else Store(Path(out))
    work = Work(Evaluator(named, images.x(), images.y(), images.ids, batch_size), store, progress or Progress())
    work.run(distinct(cells))
    others = [n for n, e in named.items() if not is_stochastic(e.model)]
    models = [work.diagnose(s, others, level=level, budget=budget) for s in subjects]
    return _finish(work, models, images, named)


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
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Put a robustness claim to the test.

    :param estimator: an ART classifier around a torch module.
    :param x: (N, C, H, W) in [0, 1]; 200 images or more, or the verdict may be INCONCLUSIVE.
    :param y: integer labels (N,).
    :param claimed: the accuracy claimed, in [0, 1]; or the attack that the claim rests on, an id or (id, options). By
        default ``art:pgd``.
    :param level: how far to go, 0 to 3; by default to 2, and to 3 where something was found until then.
    :param budget: gradient evaluations per image to spend beyond the claimed attack; what it leaves out is said.
    :param out: a folder for the records and the adversarial images; the same call again reuses what is finished.
    """
    attack: str | tuple[str, Mapping[str, Any]] = "art:pgd"
    if isinstance(claimed, (str, tuple)):
        attack, claimed = claimed, None
    run = evaluate(
        estimator,
        (x, y),
        threat,
        [attack],
        claim=attack if isinstance(attack, str) else attack[0],
        claimed_accuracy=claimed,
        level=level,
        budget=budget,
        seed=seed,
        batch_size=batch_size,
        out=out,
        progress=progress,
    )
    result = run.models[0]
    images = np.asarray(x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x, dtype=np.float32)
    legal = legal_at(run.outcomes, threat.norm, threat.eps)
    x_adv = worst_images(legal, run.store, images)[1] if legal else images
    return Diagnosis(result.verdict, result.claim, result.findings, result.summary, x_adv, run)


def _finish(work: Work, models: list[ModelResult], images: Dataset, named: Mapping[str, QuantizedClassifier]) -> Run:
    outcomes, store = work.outcomes, work.store
    device = next(iter(named.values())).device
    results = Results(
        status="success" if all(o.ok for o in outcomes) else "error",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        spec={"given": {}, "resolved": {"cells": len(outcomes), "batch_size": work.bench.batch_size}},
        data={
            "name": images.name,
            "split": images.split,
            "n": len(images),
            "sha256": images.sha256,
            "classes": list(images.classes),
            "shape": list(images.shape),
        },
        environment=environment(torch.device(device)),
        models=models,
        cells=work.cells,
    )
    if isinstance(store, Store):
        store.write_samples(outcomes)
        store.write_results(results)
    return Run(results, outcomes, store)


def _named(estimators: Estimators) -> dict[str, QuantizedClassifier]:
    if not isinstance(estimators, (Mapping, Sequence)):
        estimators = [estimators]
    if not isinstance(estimators, Mapping):
        names = [type(e).__name__ for e in estimators]
        estimators = {
            n if names.count(n) == 1 else f"{n}-{i}": e for i, (n, e) in enumerate(zip(names, estimators, strict=True))
        }
    if not estimators:
        raise InputError("evaluate: give at least one estimator")
    return {name: _ours(name, e) for name, e in estimators.items()}


def _ours(name: str, estimator: Any) -> QuantizedClassifier:
    """A plain ``PyTorchClassifier`` is wrapped; what ART would apply outside the module is refused."""
    if isinstance(estimator, QuantizedClassifier):
        return estimator
    if not isinstance(estimator, PyTorchClassifier):
        raise InputError(f"{name}: {type(estimator).__name__} is not an ART PyTorchClassifier; wrap the module in one")
    check_inside(name, estimator)
    return QuantizedClassifier(
        estimator.model,
        estimator._loss,
        estimator.input_shape,
        estimator.nb_classes,
        device_type="cpu" if estimator.device.type == "cpu" else "gpu",
    )


def _classes(named: Mapping[str, QuantizedClassifier]) -> list[str]:
    return [str(i) for i in range(next(iter(named.values())).nb_classes)]


def _interval(accuracy: float, interval: tuple[float, float]) -> str:
    return f"{100 * accuracy:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def diagnose_module(
    name: str,
    *,
    checkpoint: Path | None,
    data: str,
    norm: str,
    eps: str,
    attack: str,
    claimed: float | None,
    limit: int,
    out: Path,
    level: int | None = None,
    budget: float | None = None,
    data_root: str | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Diagnose the module that ``name`` makes on ``limit`` test images; records and images go to ``out``."""
    try:
        threat = Threat(norm, float(Fraction(eps)))
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--eps {eps}: not a number; write e.g. 0.1 or 8/255") from None
    module = make_module(name)
    if checkpoint is not None:
        load_checkpoint(checkpoint, module)
    images = load(data, "test", root=data_root, download=download).take(limit, seed=0)
    estimator = _estimator(module, images)
    return evaluate(
        {name: estimator},
        images,
        threat,
        [attack],
        claim=attack,
        claimed_accuracy=claimed,
        level=level,
        budget=budget,
        out=out,
        progress=progress,
    ).results


def _estimator(module: nn.Module, images: Dataset) -> QuantizedClassifier:
    cls = QuantizedClassifier
    if is_stochastic(module) or isinstance(module, StochasticEnsemble):
        cls = SQEnsembleClassifier
    return cls(module.eval(), nn.CrossEntropyLoss(), images.shape, images.nb_classes)
