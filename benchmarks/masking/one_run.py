"""One run: a row of the zoo on one data set with one seed, diagnosed or only checked, as a record.

Runs over the whole zoo, and where their records are kept, are in ``measure.py``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from networks import CLASSES, Site
from references import Scores, base_network, scores_of, strongest
from rows import Row, classifier
from zoo import ROWS

import art_qplugins
from art_qplugins import InputError, evaluate, metrics
from art_qplugins.attacks.craft import craft
from art_qplugins.data import from_arrays
from art_qplugins.evaluation.outcome import legal_at
from art_qplugins.evaluation.score import score

__all__ = ["IMAGES", "Job", "Key", "Record", "check", "diagnosed", "measure", "row_named"]

Record = dict[str, Any]
#: Row, data set, seed, number of images.
Key = tuple[str, str, int, int]

#: Test images of a run.
IMAGES = 200
#: The attacks of ``--check``: cheap, and strong where the gradient is honest.
_CHEAP: tuple[tuple[str, dict[str, Any]], ...] = (
    ("artq:pgd-margin", {"max_iter": 50}),
    ("autoattack:apgd-t", {}),
    ("autoattack:square", {"n_queries": 500}),
)


@dataclass(frozen=True)
class Job:
    """:ivar n: test images.
    :ivar reference: whether to add the strongest attack known.
    """

    row: str
    site: Site
    n: int = IMAGES
    reference: bool = False

    @property
    def key(self) -> Key:
        return self.row, self.site.dataset, self.site.seed, self.n


def row_named(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def measure(job: Job) -> Record:
    """The record of a diagnosis."""
    return diagnosed(row_named(job.row), job.site, n=job.n, reference=job.reference)


def diagnosed(row: Row, site: Site, *, n: int = IMAGES, reference: bool = False) -> Record:
    """Diagnose one row. All rows of a data set get the same images; the seed is that of the network and the attacks."""
    seed = site.seed
    x, y = site.test(n)
    started = time.perf_counter()
    built = row.build(site)
    trained = time.perf_counter()
    threat = row.threat(site.dataset)
    estimator = built.estimator or classifier(built.model, x, CLASSES + (row.abstain is not None))
    claimed = None if row.claim is None else row.claim(built.model, x, y, threat, seed)
    record = {
        "row": row.name,
        "dataset": site.dataset,
        "seed": seed,
        "n": n,
        "half": row.half,
        "kind": row.kind,
        "family": row.family,
        "network": base_network(built),
        "mechanism": row.mechanism,
        "expected": sorted(row.expected),
        "must_fire": sorted(row.must_fire),
        "training_seconds": trained - started,
    }
    try:
        run = evaluate(
            estimator,
            from_arrays(x, y, classes=[str(i) for i in range(10)]),
            threat,
            [(row.attack, row.options)],
            claim=row.attack,
            claimed_accuracy=claimed,
            seed=seed,
            **({} if row.abstain is None else {"abstain": row.abstain}),
        )
    except InputError as refusal:  # to refuse a number and say why is a verdict too
        return record | _refused(str(refusal), time.perf_counter() - trained)
    record |= _result(run, n) | {"seconds": time.perf_counter() - trained}
    if reference and row.kind != "invalid":
        legal = legal_at([o for o in run.outcomes if o.ok], row.norm, threat.eps)
        scores = [(o.column("correct"), o.column("selection")) for o in legal]
        started = time.perf_counter()
        found = strongest(row, built, x, y, threat, seed)
        record |= {
            "reference": _worst([*scores, found.scores]),
            "autoattack": float(found.scores[0].mean()),
            "autoattack_forward": found.forward / n,
            "autoattack_backward": found.backward / n,
            "autoattack_seconds": time.perf_counter() - started,
        }
    return record


def _result(run: art_qplugins.Run, n: int) -> Record:
    result = run.models[0]
    levels: dict[str, dict[str, float]] = {}
    for step in result.steps:
        spent = levels.setdefault(str(step.level), {"forward": 0.0, "backward": 0.0})
        spent["forward"] += step.forward
        spent["backward"] += step.backward
    return {
        "verdict": result.verdict,
        "claim": result.claim.status,
        "clean": result.clean_accuracy,
        "claimed": result.claim.accuracy,
        "corrected": result.claim.corrected,
        "fired": [f.id for f in result.findings if f.fired],
        "not_run": [f.id for f in result.findings if f.fired is None],
        "values": {f.id: f.value for f in result.findings},
        "cells": {o.cell.label: o.cell.accuracy for o in run.outcomes},
        "errors": {o.cell.label: o.cell.error for o in run.outcomes if not o.ok},
        "forward": sum(c.forward_samples for c in run.cells) / n,
        "backward": sum(c.backward_samples for c in run.cells) / n,
        "levels": levels,
        "summary": result.summary,
    }


def _refused(message: str, seconds: float) -> Record:
    return {
        "verdict": "INVALID",
        "claim": "NONE",
        **dict.fromkeys(("clean", "claimed", "corrected")),
        **{key: [] for key in ("fired", "not_run")},
        **{key: {} for key in ("values", "cells", "errors", "levels")},
        **dict.fromkeys(("forward", "backward"), 0.0),
        "summary": message,
        "seconds": seconds,
    }


def _worst(scores: Sequence[Scores]) -> float:
    return float(metrics.worst_case([c for c, _ in scores], [s for _, s in scores]).mean())


def check(job: Job) -> Record:
    """Clean accuracy, the number claimed, and the worst case of cheap attacks through the honest twin. No diagnosis."""
    row, site = row_named(job.row), job.site
    x, y = site.test(job.n)
    started = time.perf_counter()
    built = row.build(site)
    trained = time.perf_counter()
    threat = row.threat(site.dataset)
    record = {
        "row": row.name,
        "dataset": site.dataset,
        "seed": site.seed,
        "kind": row.kind,
        "training_seconds": trained - started,
        "clean": float(score(built.model, x, y, seed=site.seed)["correct"].mean()),
        "claimed": None,
        "strongest": None,
    }
    if row.kind == "invalid":
        return record

    def attacked(model: torch.nn.Module, attack: str, options: Any) -> Scores:
        estimator = classifier(model, x, CLASSES + (row.abstain is not None))
        crafted = craft(estimator, attack, x, y, threat=threat, options=options, seed=site.seed)
        return scores_of(row, built, x, y, threat, crafted.x_adv, site.seed)

    scores = []
    try:
        if row.claim is None:
            scores.append(attacked(built.model, row.attack, row.options))
            record["claimed"] = float(scores[0][0].mean())
        else:
            record["claimed"] = row.claim(built.model, x, y, threat, site.seed)
    except (InputError, RuntimeError, ValueError) as error:  # e.g. no gradient reaches the pixels
        record["error"] = str(error).splitlines()[0]
    if row.abstain is not None:
        scores.append(strongest(row, built, x, y, threat, site.seed).scores)
    for attack, options in () if row.abstain is not None else _CHEAP:
        scores.append(attacked(built.twin or built.model, attack, options))
    record["strongest"] = _worst(scores)
    return record | {"seconds": time.perf_counter() - trained}
