"""The records of one model, as indicators read them: its cells, sorted by what their attacks follow.

Nothing is judged here. ``evaluation/records.py`` documents what a record holds.
"""

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

__all__ = ["ModelRecords", "records_of"]


@dataclass(frozen=True)
class ModelRecords:
    """Every cell of one model, and the claimed one among them.

    Arrays over images are in the order of the clean cell.

    :ivar clean: the cell without an attack.
    :ivar claimed: the cell whose accuracy is claimed; the clean one where that failed.
    :ivar legal: finished cells whose images count at the claim's norm and eps, ``clean`` and ``claimed`` among them.
    :ivar other_threats: finished cells of another norm or a larger eps.
    :ivar failed: cells without a result.
    :ivar tests: cells that test the claimed attack, finished or not.
    """

    clean: Outcome
    claimed: Outcome
    legal: Sequence[Outcome]
    other_threats: Sequence[Outcome] = ()
    failed: Sequence[Outcome] = ()
    tests: Sequence[Outcome] = ()

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.clean.ids)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was found of the model as a whole."""
        return self.clean.cell.facts

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(images,) whether the model answers the clean image correctly; a random one in half of its draws or more."""
        return np.asarray(self.clean.column("correct") >= 0.5)

    @cached_property
    def logit_gap(self) -> float:
        """Median gap of the label's logit to the next largest, over correct images; 0 where it was not measured."""
        margin = self.clean.column("margin")[self.correct]
        return 0.0 if np.isnan(margin).all() else float(np.nanmedian(margin))

    @cached_property
    def as_is(self) -> list[Outcome]:
        """White-box attacks along the gradient that the model gives, the claimed one first."""
        return [self.claimed, *self.where(lambda o: _own(o) and _white(o) and self._follows(o) == "own")]

    @cached_property
    def reference(self) -> list[Outcome]:
        """The ordinary attack: PGD on cross-entropy as this package runs it by default. Empty where it was not run."""
        return [o for o in self.as_is if _plain_pgd(o)]

    @cached_property
    def longer(self) -> list[Outcome]:
        """The attack on the margin with more than twice the steps of level 1."""
        return [o for o in self.as_is if _on_margin(o) and o.cell.params["max_iter"] > 20]

    @cached_property
    def restarted(self) -> list[Outcome]:
        """The attack on the margin of level 1 from another random start."""
        return [o for o in self.as_is if _on_margin(o) and "restart" in o.cell.params]

    @cached_property
    def targeted(self) -> list[Outcome]:
        """Attacks that aim at each class."""
        return [o for o in self.as_is if ATTACKS[o.cell.attack].targeted]

    @cached_property
    def first(self) -> list[Outcome]:
        """Attacks along the model's gradient that are neither longer, nor restarted, nor targeted; and the claimed one."""
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
        return self.where(lambda o: _own(o) and self._follows(o) == "repaired")

    @cached_property
    def averaged(self) -> list[Outcome]:
        """Attacks along a mean over draws."""
        return self.where(lambda o: _own(o) and self._follows(o) == "mean")

    @property
    def claim_averages(self) -> bool:
        """Whether the claimed attack follows a mean over draws, beyond what the model itself averages."""
        return self._follows(self.claimed) == "mean"

    def _follows(self, o: Outcome) -> str:
        """The gradient that an attack follows: "own", "repaired" or "mean". Of a deterministic model a mean is its own."""
        gradient = ATTACKS[o.cell.attack].follows(o.cell.params)
        return "own" if gradient == "mean" and self.facts.get("random") is False else gradient

    @cached_property
    def black_box(self) -> list[Outcome]:
        """Attacks without gradients."""
        return self.where(lambda o: _own(o) and ATTACKS[o.cell.attack].knowledge == "black-box")

    @cached_property
    def transferred(self) -> list[Outcome]:
        """Attacks that were crafted on another model."""
        return self.where(lambda o: not _own(o))

    def where(self, keep: Callable[[Outcome], bool]) -> list[Outcome]:
        """The legal cells for which ``keep`` holds, without the clean and the claimed one."""
        return [o for o in self.legal if o is not self.clean and o is not self.claimed and keep(o)]

    def worst_case(self, outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
        """(images,) correctness in [0, 1] under the worst of these attacks and without any."""
        return worst_case([self.clean, *outcomes])

    def accuracy_gap(
        self, weaker: Sequence[Outcome], stronger: Sequence[Outcome]
    ) -> tuple[float, float, NDArray[np.bool_]]:
        """What ``stronger`` attacks break beyond ``weaker`` ones, on the same images.

        :return: the gap in accuracy, its one-sided 95 % lower bound, and (images,) those that are newly broken.
        """
        before, after = self.worst_case(weaker), self.worst_case([*weaker, *stronger])
        gap, bound = metrics.gap_lower_bound(before, after)
        return gap, bound, np.asarray((before >= 0.5) & (after < 0.5))


def records_of(outcomes: Sequence[Outcome], claimed: Outcome) -> ModelRecords:
    """The records of one model, sorted by what counts at the norm and eps of the claim.

    :param outcomes: all its cells, one of them with the role "clean".
    :param claimed: one of ``outcomes``.
    """
    clean = next(o for o in outcomes if o.cell.role == "clean")
    tests = [o for o in outcomes if _is_test(o)]
    outcomes = [o for o in outcomes if not _is_test(o)]
    legal = legal_at(outcomes, claimed.cell.norm, claimed.cell.eps)
    other_threats = [o for o in outcomes if o.ok and not any(o is chosen for chosen in legal)]
    return ModelRecords(clean, claimed, legal, other_threats, [o for o in outcomes if not o.ok], tests)


def _is_test(o: Outcome) -> bool:
    """Whether it tests an attack. It crafts no image of the model, so one that failed leaves no number unknown."""
    return "check" in o.cell.params


def _plain_pgd(o: Outcome) -> bool:
    params = o.cell.params
    return o.cell.attack == "art:pgd" and params.get("max_iter") == 20 and params.get("rel_eps_step") is None


def _on_margin(o: Outcome) -> bool:
    return o.cell.role == "probe" and o.cell.attack == "artq:apgd-margin"


def _own(o: Outcome) -> bool:
    return o.cell.source == o.cell.model


def _white(o: Outcome) -> bool:
    scaled = "temperature" in o.cell.params
    return ATTACKS[o.cell.attack].knowledge == "white-box" and not scaled
