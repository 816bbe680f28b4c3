"""The indicators: pure functions from the records of one model to findings.

Classes: P proof (the same images, broken by another legal attack, or by the same attack after a change that cannot alter
any answer), M mechanism (why gradients fail), S symptom, V validity of the evaluation. Sources and formulas are with each
indicator; thresholds are starting values, calibrated on few models so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.attacks.registry import ATTACKS
from art_qplugins.evaluation.outcome import Outcome, worst_case
from art_qplugins.evaluation.records import Finding, FindingClass

__all__ = ["FLOAT32_LOSS_GAP", "INDICATORS", "MATERIAL", "SCALE_FREE", "Case", "Indicator"]

#: Accuracy by which a number must be off, beyond doubt, to count: the lower confidence bound exceeds it.
MATERIAL = 0.02
#: Suites with a loss that does not depend on the scale of the logits, and attacks that see no gradient.
SCALE_FREE = (
    "autoattack:standard",
    "autoattack:rand",
    "artq:pgd-margin",
    *tuple(name for name, attack in ATTACKS.items() if attack.knowledge == "black-box"),
)
#: Above this distance of the top two logits, 1 - p_y rounds to 0 in float32: -log2(eps / 2) * ln 2 = 24 ln 2.
FLOAT32_LOSS_GAP = 24 * np.log(2)


@dataclass(frozen=True)
class Case:
    """What is known of one model: its clean cell, the claimed one, and all cells legal at the claim's budget."""

    clean: Outcome
    claimed: Outcome
    legal: Sequence[Outcome]
    failed: Sequence[Outcome] = field(default_factory=tuple)

    @property
    def right(self) -> NDArray[np.bool_]:
        """The images that the model answers correctly when nobody attacks."""
        return np.asarray(self.clean.column("correct") >= 0.5)

    @property
    def newly_broken(self) -> NDArray[np.bool_]:
        """The images that the claimed attack leaves and another legal attack breaks."""
        return np.asarray((self.claimed.column("correct") >= 0.5) & (worst_case(self.legal) < 0.5))

    def where(self, keep: Callable[[Outcome], bool]) -> list[Outcome]:
        return [o for o in self.legal if o is not self.clean and o is not self.claimed and keep(o)]


@dataclass(frozen=True)
class Reading:
    """What an indicator measured; ``present`` marks the images on which a mechanism is at work."""

    fired: bool | None
    value: float | None
    evidence: str
    present: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True)
class Indicator:
    id: str
    title: str
    class_: FindingClass
    threshold: float
    mitigation: str
    read: Callable[[Case, float], Reading]

    def __call__(self, case: Case) -> tuple[Finding, Reading]:
        reading = self.read(case, self.threshold)
        finding = Finding(
            id=self.id,
            title=self.title,
            class_=self.class_,
            fired=reading.fired,
            value=reading.value,
            threshold=self.threshold,
            evidence=reading.evidence,
            mitigation=self.mitigation,
        )
        return finding, reading


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _failures(case: Case, threshold: float) -> Reading:
    n = len(case.failed)
    if not n:
        return Reading(False, 0.0, "Every cell of this model ran, and every adversarial image was legal.")
    names = ", ".join(sorted({o.cell.label for o in case.failed}))
    return Reading(True, float(n), f"{n} cells failed ({names}); what they would have found is unknown.")


def _gap(case: Case, threshold: float) -> Reading:
    gap, bound = metrics.gap_lower_bound(case.claimed.column("correct"), worst_case(case.legal))
    n, broken = len(case.clean.samples), int(case.newly_broken.sum())
    return Reading(
        bound > threshold,
        gap,
        f"Other attacks at the same budget break {broken} of {n} images that {case.claimed.cell.label} leaves: "
        f"{_percent(gap)} of all, at least {_percent(bound)} with 95 % confidence.",
    )


def _invariance(case: Case, threshold: float) -> Reading:
    scaled = case.where(lambda o: o.cell.attack == case.claimed.cell.attack and "temperature" in o.cell.params)
    if case.claimed.cell.attack in SCALE_FREE:
        return Reading(False, None, "Does not apply: the claimed suite has losses that no scale of the logits changes.")
    if not scaled:
        return Reading(
            None, None, "Not run: the claimed attack was not repeated with its logits divided by a constant."
        )
    best = min(scaled, key=lambda o: o.cell.accuracy or 0.0)
    gap, bound = metrics.gap_lower_bound(case.claimed.column("correct"), best.column("correct"))
    return Reading(
        bound > threshold,
        gap,
        f"Dividing the logits by {best.cell.params['temperature']:.3g} changes no answer of the network, and takes the same "
        f"attack with the same seed from {_percent(case.claimed.cell.accuracy or 0)} to "
        f"{_percent(best.cell.accuracy or 0)} accuracy (a drop of at least {_percent(bound)} with 95 % confidence).",
    )


def _beats_claim(name: str, keep: Callable[[Outcome], bool]) -> Callable[[Case, float], Reading]:
    def read(case: Case, threshold: float) -> Reading:
        found = case.where(keep)
        if not found:
            return Reading(None, None, f"Not run: there is no {name} cell at this budget.")
        both = worst_case([case.claimed, *found])
        gap, bound = metrics.gap_lower_bound(case.claimed.column("correct"), both)
        return Reading(
            bound > threshold,
            gap,
            f"{name[0].upper()}{name[1:]} breaks {_percent(gap)} of all images beyond those that "
            f"{case.claimed.cell.label} breaks (at least {_percent(bound)} with 95 % confidence).",
        )

    return read


def _one_step(case: Case, threshold: float) -> Reading:
    found = case.where(lambda o: ATTACKS[o.cell.attack].one_step and o.cell.source == o.cell.model)
    found = [o for o in found if o.cell.eps == case.claimed.cell.eps]
    if ATTACKS[case.claimed.cell.attack].one_step:
        return Reading(False, None, "Does not apply: the claimed attack is a one-step attack itself.")
    if not found:
        return Reading(None, None, "Not run: there is no one-step attack at the claim's eps.")
    best = min(found, key=lambda o: o.cell.accuracy or 0.0)
    gap, bound = metrics.gap_lower_bound(case.claimed.column("correct"), best.column("correct"))
    return Reading(
        bound > threshold,
        gap,
        f"One step ({best.cell.label}) leaves {_percent(best.cell.accuracy or 0)}, many steps "
        f"({case.claimed.cell.label}) leave {_percent(case.claimed.cell.accuracy or 0)}.",
    )


def _share(
    describe: str, present: Callable[[Case], NDArray[np.bool_]], *, column: str
) -> Callable[[Case, float], Reading]:
    def read(case: Case, threshold: float) -> Reading:
        if not case.right.any() or np.isnan(case.clean.column(column)).all():
            return Reading(None, None, f"Not measured: the clean cell has no {column}.")
        here = present(case)
        share = float(here[case.right].mean())
        return Reading(
            share >= threshold,
            share,
            f"On {_percent(share)} of the correctly answered images {describe}.",
            here,
        )

    return read


def _float32_band(case: Case, threshold: float) -> Reading:
    margin = case.clean.column("margin")
    if not case.right.any():
        return Reading(None, None, "Not measured: no image is answered correctly.")
    middle = float(np.median(margin[case.right]))
    return Reading(
        middle > threshold,
        middle,
        f"Half of the correctly answered images have their two largest logits more than {middle:.3g} apart; above "
        f"{threshold:.1f} float32 rounds the loss to 0, above 103 its whole gradient.",
        np.asarray(margin > threshold),
    )


def _fidelity(case: Case, threshold: float) -> Reading:
    fidelity = case.clean.column("fidelity")
    if np.isnan(fidelity).all() or not case.right.any():
        return Reading(None, None, "Not measured: it needs a claim in the L-infinity norm.")
    middle = float(np.median(fidelity[case.right]))
    return Reading(
        middle < threshold,
        middle,
        f"Over small random steps, what the gradient predicts of the logit margin and what happens correlate with "
        f"{middle:.2f} (median over correctly answered images; 1 is a faithful gradient).",
        np.asarray(fidelity < threshold),
    )


INDICATORS: tuple[Indicator, ...] = (
    Indicator(
        id="V1",
        title="Cells of this model failed",
        class_="V",
        threshold=0.0,
        mitigation="Read the errors in the table of cells, mend their cause and run the same command again.",
        read=_failures,
    ),
    Indicator(
        id="GAP",
        title="Other attacks break what the claimed attack leaves",
        class_="P",
        threshold=MATERIAL,
        mitigation="Report the corrected accuracy, and evaluate with the attacks that found it.",
        read=_gap,
    ),
    Indicator(
        id="INV-T",
        title="The claimed accuracy depends on the scale of the logits",
        class_="P",
        threshold=MATERIAL,
        mitigation="Attack the logits divided by a constant, or use a margin or DLR loss (Gupta & Ajanthan 2022).",
        read=_invariance,
    ),
    Indicator(
        id="P1",
        title="An attack without gradients beats the claimed attack",
        class_="P",
        threshold=MATERIAL,
        mitigation="Do not trust this gradient: use other surrogate gradients, transfer and black-box attacks "
        "(Athalye et al. 2018; Carlini et al. 2019).",
        read=_beats_claim(
            "black-box search",
            lambda o: ATTACKS[o.cell.attack].knowledge == "black-box",
        ),
    ),
    Indicator(
        id="P2",
        title="Images crafted on another model beat the claimed attack",
        class_="P",
        threshold=MATERIAL,
        mitigation="Start the white-box attack from transferred images, or attack through the other model's gradient.",
        read=_beats_claim("transfer", lambda o: o.cell.source != o.cell.model),
    ),
    Indicator(
        id="M2",
        title="The gradient is exactly zero",
        class_="M",
        threshold=0.10,
        mitigation="Use a margin or DLR loss, or divide the logits by a constant; if it stays zero, a layer blocks it.",
        read=_share(
            "the gradient of cross-entropy is exactly zero, so every attack that follows it stands still",
            lambda case: np.asarray(case.clean.column("gradient") == 0),
            column="gradient",
        ),
    ),
    Indicator(
        id="M3",
        title="Cross-entropy underflows to zero",
        class_="M",
        threshold=0.25,
        mitigation="Use a margin or DLR loss, or divide the logits by a constant.",
        read=_share(
            "cross-entropy is exactly 0 in float32",
            lambda case: np.asarray(case.clean.column("loss") == 0),
            column="loss",
        ),
    ),
    Indicator(
        id="M4",
        title="Logit margins exceed what float32 can resolve",
        class_="M",
        threshold=float(FLOAT32_LOSS_GAP),
        mitigation="Divide the logits by a constant before the loss.",
        read=_float32_band,
    ),
    Indicator(
        id="M7",
        title="The gradient does not predict what small steps do",
        class_="M",
        threshold=0.5,
        mitigation="Use other surrogate gradients for the quantizers, the full-precision twin's gradient, or a "
        "black-box attack.",
        read=_fidelity,
    ),
    Indicator(
        id="S1",
        title="One step is stronger than many",
        class_="S",
        threshold=0.0,
        mitigation="More steps, smaller steps, more restarts.",
        read=_one_step,
    ),
)
