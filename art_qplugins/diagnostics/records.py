"""What the indicators read: all the records of one model, grouped by what an attack could see of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.evaluation.outcome import Outcome, legal_at, worst_case
from art_qplugins.evaluation.records import Finding, FindingClass

__all__ = [
    "CONTROL",
    "MATERIAL",
    "ORDINARY",
    "Indicator",
    "Measurement",
    "ModelRecords",
    "beats",
    "percent",
    "records_of",
]

#: Accuracy by which a number must be off, beyond doubt, to count: the lower confidence bound exceeds it.
MATERIAL = 0.02
#: The same for a control experiment, whose attacks try more often than those that it is held against.
CONTROL = 0.04
#: And for all attacks against an ordinary one: honest models of half A of the zoo stay below it.
ORDINARY = 0.12


@dataclass(frozen=True)
class ModelRecords:
    """Every cell of one model, and the claimed one among them.

    :param legal: finished cells whose images count at the claim's budget.
    :param other: finished cells beyond that budget or at another.
    :param tests: cells that put the claimed attack to a test.
    """

    clean: Outcome
    claimed: Outcome
    legal: Sequence[Outcome]
    other: Sequence[Outcome] = ()
    failed: Sequence[Outcome] = ()
    tests: Sequence[Outcome] = ()

    @property
    def n(self) -> int:
        return len(self.clean.ids)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was found of the model as a whole."""
        return self.clean.cell.facts

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """The images that the model answers correctly when nobody attacks."""
        return np.asarray(self.clean.column("correct") >= 0.5)

    @cached_property
    def gap(self) -> float:
        """Median distance between the logit of the answer and the next, over right images."""
        margin = self.clean.column("margin")[self.right]
        return 0.0 if np.isnan(margin).all() else float(np.nanmedian(margin))

    @cached_property
    def as_is(self) -> list[Outcome]:
        """White-box attacks along the gradient that the model gives, the claimed one first."""
        return [
            self.claimed,
            *self.where(lambda o: _own(o) and _white(o) and _gradient(o) == "own"),
        ]

    @cached_property
    def reference(self) -> list[Outcome]:
        """PGD as this package runs it by default: what an ordinary attack does. None where only others were run."""
        return [o for o in self.as_is if _plain_pgd(o)]

    @cached_property
    def longer(self) -> list[Outcome]:
        """More than twice the steps of a probe of level 1."""
        return [o for o in self.as_is if _again(o) and o.cell.params["max_iter"] > 20]

    @cached_property
    def restarted(self) -> list[Outcome]:
        """A probe of level 1 from another random start."""
        return [o for o in self.as_is if _again(o) and "restart" in o.cell.params]

    @cached_property
    def targeted(self) -> list[Outcome]:
        """Attacks that aim at each class."""
        return [o for o in self.as_is if ATTACKS[o.cell.attack].targeted]

    @cached_property
    def first(self) -> list[Outcome]:
        """Attacks along the model's gradient, before any of these three goes further."""
        further = [*self.longer, *self.restarted, *self.targeted]
        return [o for o in self.as_is if not any(o is f for f in further) or o is self.claimed]

    @cached_property
    def rescaled(self) -> list[Outcome]:
        """The claimed attack on the same network with its logits divided."""
        same = self.claimed.cell.attack
        return self.where(lambda o: _own(o) and o.cell.attack == same and o.cell.params.get("temperature", 0) > 1)

    @cached_property
    def repaired(self) -> list[Outcome]:
        """White-box attacks along another gradient than the one that the model gives."""
        return self.where(lambda o: _own(o) and _gradient(o) == "repaired")

    @cached_property
    def averaged(self) -> list[Outcome]:
        """Attacks along a mean over draws."""
        return self.where(lambda o: _own(o) and _gradient(o) == "mean")

    @property
    def claim_averages(self) -> bool:
        """Whether the claimed attack follows a mean over draws, beyond what the model itself averages."""
        return _gradient(self.claimed) == "mean"

    @cached_property
    def black_box(self) -> list[Outcome]:
        return self.where(lambda o: _own(o) and ATTACKS[o.cell.attack].knowledge == "black-box")

    @cached_property
    def transferred(self) -> list[Outcome]:
        return self.where(lambda o: not _own(o))

    def where(self, keep: Callable[[Outcome], bool]) -> list[Outcome]:
        """Legal cells other than the clean and the claimed one."""
        return [o for o in self.legal if o is not self.clean and o is not self.claimed and keep(o)]

    def left(self, outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
        """Per image, what the worst of these attacks leaves; the clean answer where none was run on it."""
        return worst_case([self.clean, *outcomes])


def records_of(outcomes: Sequence[Outcome], claimed: Outcome) -> ModelRecords:
    """The records of one model, sorted by what counts at the claim's budget."""
    clean = next(o for o in outcomes if o.cell.role == "clean")
    tests = [o for o in outcomes if _is_test(o)]
    outcomes = [o for o in outcomes if not _is_test(o)]
    legal = legal_at(outcomes, claimed.cell.norm, claimed.cell.eps)
    other = [o for o in outcomes if o.ok and not any(o is chosen for chosen in legal)]
    return ModelRecords(clean, claimed, legal, other, [o for o in outcomes if not o.ok], tests)


def _is_test(o: Outcome) -> bool:
    """A test of an attack: it crafts no image of the model, and one that failed leaves no number unknown."""
    return "check" in o.cell.params


def _plain_pgd(o: Outcome) -> bool:
    params = o.cell.params
    return o.cell.attack == "art:pgd" and params.get("max_iter") == 20 and params.get("rel_eps_step") is None


def _again(o: Outcome) -> bool:
    return o.cell.role == "probe" and o.cell.attack == "artq:apgd-margin"


def _own(o: Outcome) -> bool:
    return o.cell.source == o.cell.model


def _gradient(o: Outcome) -> str:
    """The gradient that its attack follows: "own", "repaired" or "mean"."""
    return ATTACKS[o.cell.attack].follows(o.cell.params)


def _white(o: Outcome) -> bool:
    scaled = "temperature" in o.cell.params
    return ATTACKS[o.cell.attack].knowledge == "white-box" and not scaled


@dataclass(frozen=True)
class Measurement:
    """What an indicator measured.

    ``present``: the images on which a mechanism is at work. ``broke``: those that a proof newly broke.
    """

    fired: bool | None
    value: float | None
    evidence: str
    present: NDArray[np.bool_] | None = None
    broke: NDArray[np.bool_] | None = None
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Indicator:
    """One check, with what a reader has to know of it.

    :param cost: what its records cost an image, in gradient evaluations (B) and forward passes (F).
    :param proof: of a mechanism: the ids of the control experiments that show that it hides adversarial images;
        its own, where nothing but the mechanism is exchanged.
    :param group: of a symptom: those that go together count once.
    """

    id: str
    title: str
    class_: FindingClass
    threshold: float
    formula: str
    cost: str
    shows: str
    shows_not: str
    source: str
    mitigation: str
    read: Callable[[ModelRecords, float], Measurement]
    proof: tuple[str, ...] = ()
    group: str | None = None

    def __call__(self, case: ModelRecords) -> tuple[Finding, Measurement]:
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
            p_value=reading.p_value,
            group=self.group,
            shows_not=self.shows_not,
            source=self.source,
        )
        return finding, reading


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def beats(
    case: ModelRecords, weaker: Sequence[Outcome], stronger: Sequence[Outcome]
) -> tuple[float, float, NDArray[np.bool_]]:
    """What ``stronger`` adds to ``weaker`` on the same images: the gap, its one-sided 95 % lower bound, the images."""
    before, after = case.left(weaker), case.left([*weaker, *stronger])
    gap, bound = metrics.gap_lower_bound(before, after)
    return gap, bound, np.asarray((before >= 0.5) & (after < 0.5))
