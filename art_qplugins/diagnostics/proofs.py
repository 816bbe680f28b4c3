"""Proofs (class P): the same images, broken by another legal attack, or by the same one after a change that alters no
answer. Each is a control experiment for one way in which a gradient can hide adversarial images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics.records import (
    CONTROL,
    MATERIAL,
    ORDINARY,
    Indicator,
    Measurement,
    ModelRecords,
    beats,
    percent,
)
from art_qplugins.evaluation.outcome import Outcome

__all__ = ["LARGE_GAP", "PROOFS"]

#: Median distance of the top two logits up to which cross-entropy in float32 has nothing to lose.
LARGE_GAP = 7.5


def _gap(case: ModelRecords, threshold: float) -> Measurement:
    gap, bound, broke = beats(case, [case.claimed], case.legal)
    return Measurement(
        bound > threshold,
        gap,
        f"Other attacks at the same budget break {int(broke.sum())} of {case.n} images that {case.claimed.cell.label} "
        f"leaves: {percent(gap)} of all, at least {percent(bound)} with 95 % confidence.",
        broke=broke,
    )


def _scale(case: ModelRecords, threshold: float) -> Measurement:
    if ATTACKS[case.claimed.cell.attack].ignores_scale:
        return Measurement(
            False, None, "Does not apply: the claimed attack's loss does not change with the logits' scale."
        )
    if not case.rescaled:
        if case.gap <= LARGE_GAP:
            return Measurement(
                False, None, f"Does not apply: the two largest logits are {case.gap:.3g} apart; nothing to undo."
            )
        if not (case.left([case.claimed]) > 0).any():
            return Measurement(False, 0.0, "The claimed attack breaks every image: nothing is left to find.")
        return Measurement(None, None, "Not run: the claimed attack was not repeated with its logits divided.")
    gap, bound, broke = beats(case, [case.claimed], case.rescaled)
    best = min(case.rescaled, key=lambda o: o.cell.accuracy or 0.0)
    return Measurement(
        bound > threshold,
        gap,
        f"Dividing the logits by {best.cell.params['temperature']:.3g} changes no answer of the network, and makes the "
        f"same attack with the same seed break {int(broke.sum())} more of {case.n} images (at least {percent(bound)} "
        "with 95 % confidence).",
        broke=broke,
    )


def _ordinary(case: ModelRecords, threshold: float) -> Measurement:
    if not case.reference:
        return Measurement(None, None, "Not run: there is no PGD of 20 steps on cross-entropy at this budget.")
    gap, bound, broke = beats(case, [case.claimed, *case.reference], case.legal)
    return Measurement(
        bound > threshold,
        gap,
        f"Other attacks break {int(broke.sum())} of {case.n} images that the claimed attack and 20 steps of PGD leave (at "
        f"least {percent(bound)} with 95 % confidence).",
        broke=broke,
    )


def _beyond(
    what: str, pick: Callable[[ModelRecords], Sequence[Outcome]]
) -> Callable[[ModelRecords, float], Measurement]:
    def read(case: ModelRecords, threshold: float) -> Measurement:
        found = pick(case)
        if not found and not (case.left(case.as_is) > 0).any():
            return Measurement(
                False, 0.0, "Attacks along the model's own gradient break every image: nothing is left to find."
            )
        if not found:
            return Measurement(None, None, f"Not run: there is no {what} at this budget.")
        gap, bound, broke = beats(case, case.as_is, found)
        return Measurement(
            bound > threshold,
            gap,
            f"{what[0].upper()}{what[1:]} breaks {int(broke.sum())} of {case.n} images that no attack along the model's "
            f"own gradient breaks ({len(case.as_is)} tried): at least {percent(bound)} with 95 % confidence.",
            broke=broke,
        )

    return read


def _repaired(case: ModelRecords, threshold: float) -> Measurement:
    """It is its own mechanism: where each class was aimed at along the model's own gradient too, that alone differs."""
    reading = _beyond("attack through surrogate gradients", lambda case: case.repaired)(case, threshold)
    return replace(reading, present=reading.broke) if case.targeted else reading


def _iterated(case: ModelRecords, threshold: float) -> Measurement:
    if not ATTACKS[case.claimed.cell.attack].one_step:
        return Measurement(False, None, "Does not apply: the claimed attack takes more than one step.")
    many = [o for o in case.as_is[1:] if not ATTACKS[o.cell.attack].one_step]
    if not many:
        return Measurement(None, None, "Not run: no attack of many steps at this budget.")
    gap, bound, broke = beats(case, [case.claimed], many)
    return Measurement(
        bound > threshold,
        gap,
        f"Attacks of many steps along the same gradient break {int(broke.sum())} of {case.n} images that one step leaves "
        f"(at least {percent(bound)} with 95 % confidence).",
        broke=broke,
    )


_ATHALYE = "Athalye, Carlini & Wagner 2018; Carlini et al. 2019"

PROOFS: tuple[Indicator, ...] = (
    Indicator(
        id="attack-gap",
        title="Other attacks break what the claimed attack leaves",
        class_="P",
        threshold=MATERIAL,
        formula="Clopper-Pearson 95 % lower bound of b/n, b: images right under the claimed attack, wrong under another",
        cost="0 beyond the attacks themselves",
        shows="The claimed number is too high.",
        shows_not="That gradients are masked: a weak attack on a healthy model leaves the same gap.",
        source="Carlini et al. 2019, per-example worst case",
        mitigation="Report the corrected accuracy, and evaluate with the attacks that found it.",
        read=_gap,
    ),
    Indicator(
        id="ordinary-attack-gap",
        title="Other attacks break what an ordinary attack leaves",
        class_="P",
        threshold=ORDINARY,
        formula="as GAP, the claimed attack and PGD of 20 steps together against all others",
        cost="20 B on the images that the claimed attack leaves",
        shows="The gap is not only that of a claimed attack with too few or too small steps.",
        shows_not="That gradients are masked: 20 steps on cross-entropy leave a few images of any model.",
        source="here; the control for a weak claim",
        mitigation="Evaluate with several losses and targets.",
        read=_ordinary,
    ),
    Indicator(
        id="logit-scale",
        title="The claimed accuracy depends on the scale of the logits",
        class_="P",
        threshold=MATERIAL,
        formula="the claimed attack on z/T, T = median gap of the top two logits / 5 and / 1, against itself on z",
        cost="the claimed attack again, on the images that it left",
        shows="The claimed attack fails for numerical reasons: z/T has the same answers.",
        shows_not="Anything about attacks whose loss does not depend on the scale.",
        source="invariance; Gupta & Ajanthan 2022 use it to attack",
        mitigation="Attack the logits divided by a constant, or use a margin or DLR loss (Gupta & Ajanthan 2022).",
        read=_scale,
    ),
    Indicator(
        id="surrogate-gradient",
        title="A repaired gradient breaks what the model's own gradient leaves",
        class_="P",
        threshold=CONTROL,
        formula="as GAP, all attacks along the model's gradient against those through surrogate gradients",
        cost="20 B per surrogate on the images that are left",
        shows="The model's own backward pass hides adversarial images.",
        shows_not="Its silence proves nothing: the right surrogate may not be among those tried.",
        source=_ATHALYE,
        mitigation="Evaluate with several surrogate gradients and report the worst case per image.",
        read=_repaired,
        proof=("surrogate-gradient",),
    ),
    Indicator(
        id="mean-gradient",
        title="Averaging over draws breaks what single draws leave",
        class_="P",
        threshold=CONTROL,
        formula="as GAP, all attacks along single gradients against those along means over draws, scored on fresh draws",
        cost="20 B times the draws, on the images that are left",
        shows="The gradient of one draw hides adversarial images.",
        shows_not="Its silence proves nothing where the mean still had a low split-half cosine.",
        source=_ATHALYE,
        mitigation="Attack the mean over draws, as many as the split-half cosine asks for.",
        read=_beyond("attack along the mean over draws", lambda case: case.averaged),
    ),
    Indicator(
        id="black-box-search",
        title="An attack without gradients breaks what gradients leave",
        class_="P",
        threshold=CONTROL,
        formula="as GAP, all attacks along the model's gradient against black-box search",
        cost="1000 F or more on the images that are left",
        shows="The model's own gradient hides adversarial images.",
        shows_not="Its silence proves nothing: black-box search is weak (adv-eval-paper issue 22).",
        source=_ATHALYE,
        mitigation="Do not trust this gradient: use other surrogate gradients, transfer and black-box attacks.",
        read=_beyond("black-box search", lambda case: case.black_box),
    ),
    Indicator(
        id="transfer",
        title="Images crafted on another model break what gradients leave",
        class_="P",
        threshold=CONTROL,
        formula="as GAP, all attacks along the model's gradient against transferred images",
        cost="20 B per source, of the source",
        shows="The model's own gradient hides adversarial images.",
        shows_not="Its silence proves nothing: transfer between bit widths is weak (Bernhard et al. 2019).",
        source=_ATHALYE,
        mitigation="Start the white-box attack from transferred images, or attack through the other model's gradient.",
        read=_beyond("transfer from other models", lambda case: case.transferred),
    ),
    Indicator(
        id="single-step",
        title="Many steps break what the claimed single step leaves",
        class_="P",
        threshold=MATERIAL,
        formula="as GAP, the claimed one-step attack against all attacks of many steps along the same gradient",
        cost="0 beyond the attacks themselves",
        shows="One step is not enough for this model.",
        shows_not="That gradients are masked: it is so on every model; see L2 for whether the surface is to blame.",
        source="Tramèr et al. 2018; Andriushchenko & Flammarion 2020",
        mitigation="Never claim by a one-step attack.",
        read=_iterated,
    ),
)
