"""Robust accuracy for few gradients, and an audit of it: full AutoAttack on a random sample of the images that stand.

With ``until`` the audit is sequential. It looks after a sample, after twice as many images, and so on, and may stop after each
look. Look j is at the level 0.05 / (j (j + 1)). The sum of these is 0.05, so the bound holds however many looks there were.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.api import evaluate
from art_qplugins.attacks import ATTACKS
from art_qplugins.attacks.catalogue.artq import EFFORTS
from art_qplugins.domains import COUNT, POSITIVE, SEED, Domain, Is, Maybe, Number, OneOf, check_all
from art_qplugins.errors import InputError, shown
from art_qplugins.evaluation.cost import expected_cost
from art_qplugins.evaluation.outcome import legal_at, worst_images
from art_qplugins.evaluation.outcome import worst_case as worst_case_over
from art_qplugins.evaluation.records import Audit
from art_qplugins.runner.audit import AUDITOR, audited, unfit
from art_qplugins.runner.progress import Progress
from art_qplugins.runner.run import Run
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["Audit", "WorstCase", "worst_case"]

_ATTACK = "artq:worst-case"
_ARGUMENTS: dict[str, Domain] = {
    "threat": Is(Threat, "a Threat, e.g. Threat('Linf', 8 / 255)"),
    "effort": Maybe(OneOf(EFFORTS)),
    "budget": ATTACKS[_ATTACK].options["budget"].domain,
    "audit": Maybe(Number(1, 10_000_000, whole=True)),
    "until": Maybe(POSITIVE),
    "seed": SEED,
    "batch_size": COUNT,
    "progress": Maybe(Is(Progress, "a Progress")),
}
#: The share of wrong bounds, over all looks.
_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """The robust accuracy of one model under one threat, an upper bound under the attacks that ran.

    :ivar accuracy: in [0, 1], with its 95 % interval over images, of ``n`` images. What the audit broke counts.
    :ivar gradients: backward passes per image, without audits.
    :ivar x_adv: (N, C, H, W) in [0, 1], the strongest legal adversarial image of each.
    :ivar audit: ``None`` where none was asked for, or no image stood.
    :ivar runs: the evaluations behind it.
    """

    accuracy: float
    interval: tuple[float, float]
    n: int
    gradients: float
    x_adv: NDArray[np.float32] = field(repr=False)
    audit: Audit | None
    runs: Sequence[Run] = field(repr=False)

    def __str__(self) -> str:
        low, high = self.interval
        told = f"worst-case leaves {100 * self.accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {self.n} images"
        return told if self.audit is None else f"{told}; {self.audit}"


def worst_case(
    estimator: PyTorchClassifier,
    x: Any,
    y: Any,
    threat: Threat = Threat("Linf", 8 / 255),
    *,
    effort: str | None = None,
    budget: float | None = None,
    audit: int | None = None,
    until: float | None = None,
    seed: int = 0,
    batch_size: int = 250,
    progress: Progress | None = None,
) -> WorstCase:
    """What AutoAttack would leave, for a few percent of its gradients, and on request how sure that is.

    :param estimator: an ART classifier around a torch module.
    :param x: (N, C, H, W) in [0, 1]; ``y`` integer labels (N,).
    :param threat: in Linf or L2.
    :param effort: ``"quick"``, ``"standard"`` or ``"thorough"``. By default it is "standard", and "quick" with ``until``.
    :param budget: gradients per image, at least 1, of each effort, without audits.
    :param audit: run AutoAttack ``standard`` on this many of the images that stand, drawn at random, or on all if there are
        fewer. It costs about 1,900 gradients and 5,000 queries for each. A random model is not audited.
    :param until: percentage points of all images. Audits in growing samples, with more effort where one breaks too many, until
        full AutoAttack would break less than this of the images that stand. That holds with 95 % confidence.
    :param progress: told before each sample of ``until`` what it may cost.
    :raises InputError: where an argument cannot be used; the message names it.
    """
    check_all(locals(), _ARGUMENTS)
    if not isinstance(estimator, PyTorchClassifier):
        raise InputError(f"estimator: it is {shown(estimator)}; give one ART PyTorchClassifier")
    if audit is not None and until is not None:
        raise InputError("audit: until chooses the size of the samples; leave one of them out")
    found = _Evaluation(estimator, x, y, threat, seed=seed, batch_size=batch_size)
    efforts = [effort or "standard"] if until is None else EFFORTS[EFFORTS.index(effort or EFFORTS[0]) :]
    model = found.first({"effort": efforts[0], "budget": budget}, audit=audit).models[0]
    if until is None:
        return found.result(model.audits[0] if model.audits else None)
    sequential, last = _Sequential(found, until, progress or Progress()), None
    for name in efforts:
        if name != efforts[0]:
            found.attack(_ATTACK, {"effort": name, "budget": budget}, found.standing)
        if not sequential.possible():
            break
        last, enough = sequential.audit(final=name == efforts[-1])
        if enough:
            break
    return found.result(last)


class _Evaluation:
    """What stands of the images, and the runs that broke the others."""

    def __init__(
        self, estimator: PyTorchClassifier, x: Any, y: Any, threat: Threat, *, seed: int, batch_size: int
    ) -> None:
        self.estimator, self.given, self.threat = estimator, (x, y), threat
        self.seed, self.batch_size = seed, batch_size
        self.runs: list[Run] = []

    def first(self, options: dict[str, Any], *, audit: int | None = None) -> Run:
        """Attack every image. The images and labels are checked here."""
        run = self._run(self.given, _ATTACK, options, audit)
        arrays = (v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for v in self.given)
        self.x, self.y = (np.asarray(v) for v in arrays)
        self.x_adv, self.correct = self._worst(run, self.x.astype(np.float32))
        return run

    def attack(self, attack: str, options: dict[str, Any], rows: NDArray[np.int64]) -> Run:
        """Attack some of the images that stand."""
        run = self._run((self.x[rows], self.y[rows]), attack, options)
        x_adv, left = self._worst(run, self.x_adv[rows])
        lower = left < self.correct[rows]
        self.x_adv[rows[lower]], self.correct[rows[lower]] = x_adv[lower], left[lower]
        return run

    @property
    def standing(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.correct > 0)

    def _run(self, data: tuple[Any, Any], attack: str, options: dict[str, Any], audit: int | None = None) -> Run:
        recipe = {"diagnose": False, "audit": audit}
        settings: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size, "recipe": recipe}
        run = evaluate(self.estimator, data, self.threat, [(attack, options)], **settings)
        if failed := [o.cell for o in run.outcomes if not o.ok]:
            raise InputError(f"{failed[0].label}: {failed[0].error_line}")
        self.runs.append(run)
        return run

    def _worst(self, run: Run, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The strongest image of each, and how often it is classified correctly."""
        legal = legal_at(run.outcomes, self.threat.norm, self.threat.eps)
        return worst_images(legal, run.store, x)[1].copy(), worst_case_over(legal).copy()

    def result(self, audit: Audit | None) -> WorstCase:
        accuracy, interval = metrics.accuracy(self.correct)
        cells = [cell for run in self.runs for cell in run.cells if cell.attack == _ATTACK]
        n = len(self.correct)
        gradients = sum(cell.backward_samples for cell in cells) / n
        return WorstCase(
            accuracy=accuracy,
            interval=interval,
            n=n,
            gradients=gradients,
            x_adv=self.x_adv,
            audit=audit,
            runs=self.runs,
        )


class _Sequential:
    """Audits in growing samples until few enough images are left for AutoAttack to break."""

    def __init__(self, found: _Evaluation, until: float, progress: Progress) -> None:
        self.found, self.progress = found, progress
        self.most = until / 100 * len(found.correct)  # images
        self.looks = 0

    def possible(self) -> bool:
        """Whether images stand, and AutoAttack can attack the model."""
        found = self.found
        return bool(len(found.standing)) and not unfit(found.estimator, found.runs[-1].outcomes, found.threat)

    def audit(self, *, final: bool) -> tuple[Audit, bool]:
        """The audit after one effort, and whether it was enough. Without further efforts it goes on to the end."""
        found, population = self.found, len(self.found.standing)
        order = np.random.default_rng(derive_seed(found.seed, f"until/{self.looks}")).permutation(found.standing)
        asked = broke = spent = 0
        while True:
            rows = np.sort(order[asked : asked + self._size(asked, population)])
            cost = expected_cost(AUDITOR)
            assert cost is not None
            share = len(rows) / len(found.correct)
            name = found.runs[-1].models[0].name
            self.progress.step(name, f"audit of {len(rows)} images", cost.gradients * share, cost.queries * share)
            cells = found.attack(AUDITOR, {}, rows).cells
            asked, broke = asked + len(rows), broke + int((found.correct[rows] == 0).sum())
            spent += sum(cell.backward_samples for cell in cells)
            self.looks += 1
            level = _LEVEL / (self.looks * (self.looks + 1))
            most = metrics.most_in_population(broke, drawn=asked, population=population, confidence=1 - level)
            enough = most - broke <= self.most
            hopeless = broke / asked * (population - asked) > self.most and not final
            if enough or hopeless or asked == population:
                audit = audited(
                    norm=found.threat.norm,
                    eps=found.threat.eps,
                    standing=population,
                    asked=asked,
                    broke=broke,
                    n=len(found.correct),
                    level=level,
                    gradients=spent / asked,
                )
                return audit, enough

    def _size(self, asked: int, population: int) -> int:
        """Images in the next sample: as many as before, and at first the fewest that could be enough."""
        if asked:
            return asked
        level = _LEVEL / ((self.looks + 1) * (self.looks + 2))

        def could_be(drawn: int) -> bool:
            most = metrics.most_in_population(0, drawn=drawn, population=population, confidence=1 - level)
            return most <= self.most

        return bisect.bisect_left(range(1, population), True, key=could_be) + 1
