"""Proofs (class P): the same images, broken by another legal attack, or by the same attack after a change that alters no
answer. Each is a control experiment for one way in which a gradient can hide adversarial images.

All compare attacks on the same images and share :meth:`ModelRecords.accuracy_gap`. Sources are in the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics.indicator import Indicator, Measure, Measurement, percent
from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.diagnostics.thresholds import CONTROL, LARGE_GAP, MATERIAL, ORDINARY
from art_qplugins.evaluation.outcome import Outcome

__all__ = ["PROOFS"]


def attack_gap(records: ModelRecords, threshold: float) -> Measurement:
    gap, bound, broke = records.accuracy_gap([records.claimed], records.legal)
    return Measurement(
        bound > threshold,
        gap,
        f"Other attacks at the same budget break {int(broke.sum())} of {records.n} images that "
        f"{records.claimed.cell.label} leaves: {percent(gap)} of all, at least {percent(bound)} with 95 % confidence.",
        broke=broke,
    )


def ordinary_attack_gap(records: ModelRecords, threshold: float) -> Measurement:
    if not records.reference:
        return Measurement(None, None, "Not run: there is no PGD of 20 steps on cross-entropy at this budget.")
    gap, bound, broke = records.accuracy_gap([records.claimed, *records.reference], records.legal)
    return Measurement(
        bound > threshold,
        gap,
        f"Other attacks break {int(broke.sum())} of {records.n} images that the claimed attack and 20 steps of PGD leave "
        f"(at least {percent(bound)} with 95 % confidence).",
        broke=broke,
    )


def logit_scale(records: ModelRecords, threshold: float) -> Measurement:
    if ATTACKS[records.claimed.cell.attack].ignores_scale:
        return Measurement(
            False, None, "Does not apply: the claimed attack's loss does not change with the logits' scale."
        )
    if not records.rescaled:
        return _not_rescaled(records)
    gap, bound, broke = records.accuracy_gap([records.claimed], records.rescaled)
    best = min(records.rescaled, key=lambda o: o.cell.accuracy or 0.0)
    return Measurement(
        bound > threshold,
        gap,
        f"Dividing the logits by {best.cell.params['temperature']:.3g} changes no answer of the network, and makes the "
        f"same attack with the same seed break {int(broke.sum())} more of {records.n} images (at least {percent(bound)} "
        "with 95 % confidence).",
        broke=broke,
    )


def _not_rescaled(records: ModelRecords) -> Measurement:
    if records.logit_gap <= LARGE_GAP:
        return Measurement(
            False, None, f"Does not apply: the two largest logits are {records.logit_gap:.3g} apart; nothing to undo."
        )
    if not (records.worst_case([records.claimed]) > 0).any():
        return Measurement(False, 0.0, "The claimed attack breaks every image: nothing is left to find.")
    return Measurement(None, None, "Not run: the claimed attack was not repeated with its logits divided.")


def _beyond(attack: str, pick: Callable[[ModelRecords], Sequence[Outcome]]) -> Measure:
    """What the picked attacks break beyond all attacks along the model's own gradient. ``attack`` names them."""

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        picked = pick(records)
        if not picked and not (records.worst_case(records.as_is) > 0).any():
            return Measurement(
                False, 0.0, "Attacks along the model's own gradient break every image: nothing is left to find."
            )
        if not picked:
            return Measurement(None, None, f"Not run: there is no {attack} at this budget.")
        gap, bound, broke = records.accuracy_gap(records.as_is, picked)
        return Measurement(
            bound > threshold,
            gap,
            f"{attack[0].upper()}{attack[1:]} breaks {int(broke.sum())} of {records.n} images that no attack along the "
            f"model's own gradient breaks ({len(records.as_is)} tried): at least {percent(bound)} with 95 % confidence.",
            broke=broke,
        )

    return measure


def surrogate_gradient(records: ModelRecords, threshold: float) -> Measurement:
    """Its own mechanism too, where attacks along the model's own gradient aimed at each class: the gradient alone differs."""
    found = _beyond("attack through surrogate gradients", lambda records: records.repaired)(records, threshold)
    return replace(found, present=found.broke) if records.targeted else found


mean_gradient = _beyond("attack along the mean over draws", lambda records: records.averaged)
black_box_search = _beyond("black-box search", lambda records: records.black_box)
transfer = _beyond("transfer from other models", lambda records: records.transferred)


def single_step(records: ModelRecords, threshold: float) -> Measurement:
    if not ATTACKS[records.claimed.cell.attack].one_step:
        return Measurement(False, None, "Does not apply: the claimed attack takes more than one step.")
    many = [o for o in records.as_is[1:] if not ATTACKS[o.cell.attack].one_step]
    if not many:
        return Measurement(None, None, "Not run: no attack of many steps at this budget.")
    gap, bound, broke = records.accuracy_gap([records.claimed], many)
    return Measurement(
        bound > threshold,
        gap,
        f"Attacks of many steps along the same gradient break {int(broke.sum())} of {records.n} images that one step "
        f"leaves (at least {percent(bound)} with 95 % confidence).",
        broke=broke,
    )


_ATHALYE = "Athalye, Carlini & Wagner 2018; Carlini et al. 2019"

PROOFS: tuple[Indicator, ...] = (
    Indicator(
        name="attack-gap",
        target=f"{__name__}:attack_gap",
        help="Other attacks break what the claimed attack leaves",
        class_="P",
        threshold=MATERIAL,
        formula="Clopper-Pearson 95 % lower bound of b/n, b: images right under the claimed attack, wrong under another",
        cost="0 beyond the attacks themselves",
        shows="The claimed number is too high.",
        shows_not="That gradients are masked: a weak attack on a healthy model leaves the same gap.",
        source="Carlini et al. 2019, per-example worst case",
        mitigation="Report the corrected accuracy, and evaluate with the attacks that found it.",
        required=True,
    ),
    Indicator(
        name="ordinary-attack-gap",
        target=f"{__name__}:ordinary_attack_gap",
        help="Other attacks break what an ordinary attack leaves",
        class_="P",
        threshold=ORDINARY,
        formula="as GAP, the claimed attack and PGD of 20 steps together against all others",
        cost="20 B on the images that the claimed attack leaves",
        shows="The gap is not only that of a claimed attack with too few or too small steps.",
        shows_not="That gradients are masked: 20 steps on cross-entropy leave a few images of any model.",
        source="here; the control for a weak claim",
        mitigation="Evaluate with several losses and targets.",
    ),
    Indicator(
        name="logit-scale",
        target=f"{__name__}:logit_scale",
        help="The claimed accuracy depends on the scale of the logits",
        class_="P",
        threshold=MATERIAL,
        formula="the claimed attack on z/T, T = median gap of the top two logits / 5 and / 1, against itself on z",
        cost="the claimed attack again, on the images that it left",
        shows="The claimed attack fails for numerical reasons: z/T has the same answers.",
        shows_not="Anything about attacks whose loss does not depend on the scale.",
        source="invariance; Gupta & Ajanthan 2022 use it to attack",
        mitigation="Attack the logits divided by a constant, or use a margin or DLR loss (Gupta & Ajanthan 2022).",
        required=True,
    ),
    Indicator(
        name="surrogate-gradient",
        target=f"{__name__}:surrogate_gradient",
        help="A repaired gradient breaks what the model's own gradient leaves",
        class_="P",
        threshold=CONTROL,
        formula="as GAP, all attacks along the model's gradient against those through surrogate gradients",
        cost="20 B per surrogate on the images that are left",
        shows="The model's own backward pass hides adversarial images.",
        shows_not="Its silence proves nothing: the right surrogate may not be among those tried.",
        source=_ATHALYE,
        mitigation="Evaluate with several surrogate gradients and report the worst case per image.",
        alone="SUSPECT",
        proof=("surrogate-gradient",),
    ),
    Indicator(
        name="mean-gradient",
        target=f"{__name__}:mean_gradient",
        help="Averaging over draws breaks what single draws leave",
        class_="P",
        threshold=CONTROL,
        formula="as GAP, all attacks along single gradients against those along means over draws, scored on fresh draws",
        cost="20 B times the draws, on the images that are left",
        shows="The gradient of one draw hides adversarial images.",
        shows_not="Its silence proves nothing where the mean still had a low split-half cosine.",
        source=_ATHALYE,
        mitigation="Attack the mean over draws, as many as the split-half cosine asks for.",
        alone="SUSPECT",
    ),
    Indicator(
        name="black-box-search",
        target=f"{__name__}:black_box_search",
        help="An attack without gradients breaks what gradients leave",
        class_="P",
        threshold=CONTROL,
        formula="as GAP, all attacks along the model's gradient against black-box search",
        cost="1000 F or more on the images that are left",
        shows="The model's own gradient hides adversarial images.",
        shows_not="Its silence proves nothing: black-box search is weak (adv-eval-paper issue 22).",
        source=_ATHALYE,
        mitigation="Do not trust this gradient: use other surrogate gradients, transfer and black-box attacks.",
        alone="SUSPECT",
        required=True,
    ),
    Indicator(
        name="transfer",
        target=f"{__name__}:transfer",
        help="Images crafted on another model break what gradients leave",
        class_="P",
        threshold=CONTROL,
        formula="as GAP, all attacks along the model's gradient against transferred images",
        cost="20 B per source, of the source",
        shows="The model's own gradient hides adversarial images.",
        shows_not="Its silence proves nothing: transfer between bit widths is weak (Bernhard et al. 2019).",
        source=_ATHALYE,
        mitigation="Start the white-box attack from transferred images, or attack through the other model's gradient.",
        alone="SUSPECT",
    ),
    Indicator(
        name="single-step",
        target=f"{__name__}:single_step",
        help="Many steps break what the claimed single step leaves",
        class_="P",
        threshold=MATERIAL,
        formula="as GAP, the claimed one-step attack against all attacks of many steps along the same gradient",
        cost="0 beyond the attacks themselves",
        shows="One step is not enough for this model.",
        shows_not="That gradients are masked: it is so on every model; see L2 for whether the surface is to blame.",
        source="Tramèr et al. 2018; Andriushchenko & Flammarion 2020",
        mitigation="Never claim by a one-step attack.",
    ),
)
