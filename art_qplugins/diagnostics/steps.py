"""What a diagnosis tries, in the order of its cost, and when it stops.

Level 0 measures the model and runs the claimed attack, level 1 are cheap attacks, level 2 controls every way in which a
gradient can mislead, level 3 is for numbers that were found to be wrong or suspect: what is left of them really? Every
step attacks only the images on which its comparison can change: those that the attacks it is compared with have left.

Steps are cells like any other. This module says which; it runs nothing itself but through the function it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics.proofs import LARGE_GAP
from art_qplugins.diagnostics.records import ModelRecords, records_of
from art_qplugins.diagnostics.verdict import verdict_of
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Step

__all__ = ["STEPS", "DiagnosisStep", "Situation", "clean_cell", "climb"]

#: Median distances of the top two logits at which the claimed attack is tried again (the network's answers stay).
_GAPS = (5.0, 1.0)
#: Images of the test with a budget that allows every image.
_FEW = 50
#: Images around which the claimed attack is tested.
_TESTED = 32

#: Fidelity, and cosine of two gradients in the ball, above which no surrogate can be expected to do better.
_FAITHFUL, _ALIGNED = 0.8, 0.75
#: Cosine of two single gradients above which more draws than the split-half cosine asks for change little.
_COHERENT = 0.8

Run = Callable[[CellSpec], Outcome]


def clean_cell(model: str, *, norm: str, seed: int, eps: float | None) -> CellSpec:
    """No attack. With a claim at ``eps``, what its attack can see within that radius is measured."""
    return CellSpec(
        model=model,
        source=model,
        attack="artq:clean",
        role="clean",
        norm=norm,
        eps=0.0,
        seed=seed,
        options={"radius": eps or 0.0},
    )


@dataclass(frozen=True)
class Situation:
    """Where a diagnosis stands: the claim, the records so far, other models to transfer from."""

    claim: CellSpec
    case: ModelRecords
    others: Sequence[str] = ()

    def left_by(self, outcomes: Sequence[Outcome]) -> NDArray[np.int64]:
        """Positions of the images that none of these attacks breaks for certain."""
        left = self.case.left(outcomes)
        return np.flatnonzero(left > 0)

    def cell(self, attack: str, rows: NDArray[np.int64], *, source: str | None = None, **more: object) -> CellSpec:
        claim = self.claim
        settings = {"norm": claim.norm, "eps": claim.eps, "seed": claim.seed, **more}
        # A larger budget is never on all images: it is no cell of this evaluation, and counts in none of its numbers.
        everything = len(rows) == self.case.n and settings["eps"] == claim.eps
        return CellSpec(
            model=claim.model,
            source=source or claim.model,
            attack=attack,
            role="probe",
            rows=None if everything else tuple(int(r) for r in rows),
            **settings,  # type: ignore[arg-type]
        )

    def nearest(self) -> tuple[str, ...]:
        """The cells to start from: everything that is legal and attacked the model."""
        return tuple(o.cell.id for o in self.case.legal if o.cell.role != "clean")


@dataclass(frozen=True, kw_only=True)
class DiagnosisStep:
    """One step of the ladder.

    :param plan: the cells to run, or the reason why there are none.
    :param cost: gradient evaluations for every image that it attacks, to be held against a budget.
    """

    id: str
    level: int
    title: str
    plan: Callable[[Situation], list[CellSpec] | str]
    cost: float = 20.0


def _on(now: Situation, attack: str, rows: NDArray[np.int64], *variants: dict[str, object]) -> list[CellSpec] | str:
    """A cell of this attack on these images for each variant of its settings, or why there is none."""
    if now.claim.norm not in ATTACKS[attack].norms:
        return f"{attack} has no norm {now.claim.norm}"
    if not len(rows):
        return "no image is left to attack"
    return [now.cell(attack, rows, **variant) for variant in variants or ({},)]  # type: ignore[arg-type]


def _attack(attack: str, against: str, **options: object) -> Callable[[Situation], list[CellSpec] | str]:
    """One attack on the images that are left by the claimed attack, by gradients as they are, or by everything."""

    def plan(now: Situation) -> list[CellSpec] | str:
        rows = now.left_by({"claim": [now.case.claimed], "as-is": now.case.as_is, "all": now.case.legal}[against])
        start = now.nearest() if against == "all" and ATTACKS[attack].takes_start else ()
        return _on(now, attack, rows, {"options": options, "start": start})

    return plan


def _cross_entropy(now: Situation) -> list[CellSpec] | str:
    if now.claim.attack == "art:pgd" and ATTACKS["art:pgd"].resolve(now.claim.options) == ATTACKS["art:pgd"].options:
        return "the claim is made by this attack"
    return _attack("art:pgd", "claim")(now)


def _scale(now: Situation) -> list[CellSpec] | str:
    if ATTACKS[now.claim.attack].ignores_scale:
        return "the claimed attack's loss does not change with the logits' scale"
    if now.case.gap <= LARGE_GAP:
        return f"the two largest logits are {now.case.gap:.3g} apart: nothing to undo"
    gaps = [gap for gap in _GAPS if now.case.gap > 3 * gap or gap == _GAPS[0]]
    variants: list[dict[str, object]] = [{"options": now.claim.options, "gap": gap} for gap in gaps]
    return _on(now, now.claim.attack, now.left_by([now.case.claimed]), *variants)


def _again(**change: object) -> Callable[[Situation], list[CellSpec] | str]:
    """The steps on the margin once more, with this changed."""
    return lambda now: _on(now, "artq:apgd-margin", now.left_by(now.case.first), change)


def _unbounded(now: Situation) -> list[CellSpec] | str:
    claim, rows = now.claim, now.left_by([now.case.claimed])[:_FEW]
    if claim.norm not in ("Linf", "L2"):
        return f"no budget that allows every image is known for {claim.norm}"
    pixels = now.case.facts.get("pixels", 0)
    eps = 0.5 if claim.norm == "Linf" else 0.5 * float(np.sqrt(pixels))
    return _on(now, "artq:apgd-margin", rows, {"eps": eps}) if eps > claim.eps else "eps allows it already"


def _surrogates(now: Situation) -> list[CellSpec] | str:
    facts = now.case.facts
    odd = facts.get("quantizers") or facts.get("blocking") or facts.get("replaceable")
    faithful = _median(now, "fidelity") >= _FAITHFUL and _median(now, "alignment") >= _ALIGNED
    if not odd and faithful and facts.get("reaches_pixels", True):
        return "there is no quantizer and no operation with a gradient of its own, and the gradient is faithful"
    return _attack("artq:surrogates", "as-is")(now)


def _median(now: Situation, column: str) -> float:
    """Over all images; infinite where it was not measured."""
    values = now.case.clean.column(column)
    return float(np.nanmedian(values)) if not np.isnan(values).all() else np.inf


def _quantized(attack: str) -> Callable[[Situation], list[CellSpec] | str]:
    def plan(now: Situation) -> list[CellSpec] | str:
        if not now.case.facts.get("quantizers"):
            return "the model has no activation quantizer with a surrogate gradient"
        return _attack(attack, "all" if attack != "artq:full-precision" else "as-is")(now)

    return plan


def _averaging(now: Situation) -> list[CellSpec] | str:
    if not now.case.facts.get("random"):
        return "the model is not random"
    coherence = now.case.clean.column("coherence")
    noisy = bool(np.isnan(coherence).all() or np.nanmedian(coherence) < _COHERENT)
    return _attack("artq:eot", "as-is", eot_iter=8 if noisy else None)(now)


def _transfer(now: Situation) -> list[CellSpec] | str:
    sources = [name for name in now.others if name != now.claim.model]
    if not sources:
        return "there is no other deterministic model in this run"
    return _on(now, "art:pgd", now.left_by(now.case.as_is), *({"source": source} for source in sources))


def _repaired(now: Situation) -> list[CellSpec] | str:
    planned = _surrogates(now)
    return planned if isinstance(planned, str) else _attack("artq:surrogates", "all", max_iter=30, targets=9)(now)


def _rescaled(now: Situation) -> list[CellSpec] | str:
    if now.case.gap <= LARGE_GAP:
        return f"the two largest logits are {now.case.gap:.3g} apart: nothing to undo"
    return _attack("artq:rescaled", "all")(now)


def _binarization(now: Situation) -> list[CellSpec] | str:
    if ATTACKS[now.claim.attack].needs_classes > 2:
        return "the claimed attack needs more than two classes"
    rows = np.flatnonzero(now.case.right)[:_TESTED]
    if not len(rows):
        return "no image is answered correctly"
    return [now.cell(now.claim.attack, rows, options=now.claim.options, check="binarization")]


STEPS: tuple[DiagnosisStep, ...] = (
    DiagnosisStep(id="one-step", level=1, title="one step (FGSM)", plan=_attack("art:fgsm", "claim"), cost=1),
    DiagnosisStep(id="cross-entropy", level=1, title="PGD on cross-entropy", plan=_cross_entropy),
    DiagnosisStep(id="margin", level=1, title="20 steps on the margin", plan=_attack("artq:apgd-margin", "claim")),
    DiagnosisStep(id="scale", level=1, title="the claimed attack on divided logits", plan=_scale),
    DiagnosisStep(
        id="doubling", level=2, title="50 steps in place of 20", plan=_again(options={"max_iter": 50}), cost=50
    ),
    DiagnosisStep(id="restart", level=2, title="another random start", plan=_again(restart=1)),
    DiagnosisStep(id="unbounded", level=2, title="a budget that allows every image", plan=_unbounded, cost=10),
    DiagnosisStep(
        id="targeted",
        level=2,
        title="aiming at every other class",
        plan=_attack("artq:multi-targeted", "as-is"),
        cost=90,
    ),
    DiagnosisStep(id="surrogates", level=2, title="surrogate gradients", plan=_surrogates, cost=60),
    DiagnosisStep(
        id="full-precision",
        level=2,
        title="the full-precision shadow, then on from there",
        plan=_quantized("artq:full-precision"),
        cost=40,
    ),
    DiagnosisStep(id="averaging", level=2, title="the mean over draws", plan=_averaging, cost=200),
    DiagnosisStep(id="transfer", level=2, title="images crafted on the other models", plan=_transfer),
    DiagnosisStep(
        id="search",
        level=2,
        title="search without gradients",
        plan=_attack("autoattack:square", "as-is", n_queries=1000),
        cost=0,
    ),
    DiagnosisStep(id="rescaled", level=3, title="logits rescaled per image", plan=_rescaled),
    DiagnosisStep(
        id="bits", level=3, title="other bit widths, then on from there", plan=_quantized("artq:bits"), cost=100
    ),
    DiagnosisStep(
        id="joint", level=3, title="the shadow's loss and its own together", plan=_quantized("artq:joint"), cost=40
    ),
    DiagnosisStep(
        id="search-long",
        level=3,
        title="5000 queries",
        plan=_attack("autoattack:square", "all", n_queries=5000),
        cost=0,
    ),
    DiagnosisStep(id="binarization", level=3, title="adversarial images put in by hand", plan=_binarization, cost=20),
    DiagnosisStep(
        id="closing-repaired",
        level=3,
        title="aiming at every other class by the most faithful surrogate",
        plan=_repaired,
        cost=400,
    ),
    DiagnosisStep(
        id="closing",
        level=3,
        title="aiming at every other class, from the nearest image so far",
        plan=_attack("artq:multi-targeted", "all", max_iter=50),
        cost=300,
    ),
)


def climb(
    claim: CellSpec,
    claimed: Outcome,
    outcomes: Sequence[Outcome],
    run: Run,
    *,
    others: Iterable[str] = (),
    level: int | None = None,
    budget: float | None = None,
) -> tuple[list[Outcome], list[Step]]:
    """Run the ladder for one claim.

    :param claim: what the claimed cell was asked for; ``claimed`` what came of it.
    :param outcomes: all cells of the model so far, with the claimed and the clean one.
    :param level: the highest level to go to; ``None`` goes to 2, and to 3 where something was found until then.
    :param budget: gradient evaluations per image (of the whole set) to spend on steps beyond the claimed attack.
    :return: all outcomes, and what was done or skipped and why.
    """
    known, steps, spent, top = list(outcomes), [], 0.0, 2 if level is None else level
    for rung in STEPS:
        if rung.level == 3 and level is None and top == 2 and verdict_of(known, claimed) in ("MASKED", "SUSPECT"):
            top = 3
        now = Situation(claim, records_of(known, claimed), tuple(others))
        if rung.level > top:
            reason = "nothing was found that it could settle" if level is None else f"the diagnosis ends at level {top}"
            steps.append(Step(id=rung.id, level=rung.level, title=rung.title, status="skipped", reason=reason))
            continue
        step, found = _take(rung, now, run, None if budget is None else budget - spent)
        steps.append(step)
        spent += step.backward
        known += found
    return known, steps


def _take(rung: DiagnosisStep, now: Situation, run: Run, budget: float | None) -> tuple[Step, list[Outcome]]:
    about = {"id": rung.id, "level": rung.level, "title": rung.title}
    planned = rung.plan(now)
    if isinstance(planned, str):
        return Step(**about, status="skipped", reason=planned), []
    n = now.case.n
    attacked = sum(n if spec.rows is None else len(spec.rows) for spec in planned)
    expected = rung.cost * attacked / n
    if budget is not None and expected > budget:
        reason = (
            f"it may take {expected:.0f} gradient evaluations an image and {max(budget, 0):.0f} are left of the budget"
        )
        return Step(**about, status="skipped", reason=reason, robust=attacked), []
    found = [run(spec) for spec in planned]
    failed = [o for o in found if not o.ok]
    step = Step(
        **about,
        status="failed" if len(failed) == len(found) else "run",
        reason=failed[0].cell.error_line if failed else "",
        cells=[o.cell.id for o in found],
        robust=attacked // len(planned),
        forward=sum(o.cell.forward_samples for o in found) / n,
        backward=sum(o.cell.backward_samples for o in found) / n,
    )
    return step, found
