"""Proofs (class P): another legal attack breaks the same images.

The other attack may be the same one after a change that alters no prediction. Each proof is a control experiment for one
way in which a gradient can hide adversarial images. All compare attacks on the same images by
:meth:`ModelRecords.accuracy_gap`. Sources are in the rows.
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
        f"Other attacks at the same eps break {int(broke.sum())} of {records.n} images that "
        f"{records.claimed.cell.label} does not break: {percent(gap)} of all images, at least {percent(bound)} with 95 % "
        "confidence.",
        broke=broke,
    )


def ordinary_attack_gap(records: ModelRecords, threshold: float) -> Measurement:
    if not records.reference:
        return Measurement(None, None, "Not run: 20-step PGD on cross-entropy was not run at this eps.")
    gap, bound, broke = records.accuracy_gap([records.claimed, *records.reference], records.legal)
    return Measurement(
        bound > threshold,
        gap,
        f"Other attacks break {int(broke.sum())} of {records.n} images that neither the claimed attack nor 20-step PGD "
        f"breaks (at least {percent(bound)} with 95 % confidence).",
        broke=broke,
    )


def logit_scale(records: ModelRecords, threshold: float) -> Measurement:
    if ATTACKS[records.claimed.cell.attack].ignores_scale:
        return Measurement(
            False, None, "Does not apply: the loss of the claimed attack does not depend on the scale of the logits."
        )
    if not records.rescaled:
        return _not_rescaled(records)
    gap, bound, broke = records.accuracy_gap([records.claimed], records.rescaled)
    best = min(records.rescaled, key=lambda o: o.cell.accuracy or 0.0)
    return Measurement(
        bound > threshold,
        gap,
        f"Dividing the logits by {best.cell.params['temperature']:.3g} changes no prediction. The same attack with the "
        f"same seed then breaks {int(broke.sum())} more of {records.n} images (at least {percent(bound)} with 95 % "
        "confidence).",
        broke=broke,
    )


def _not_rescaled(records: ModelRecords) -> Measurement:
    if records.logit_gap <= LARGE_GAP:
        return Measurement(
            False, None, f"Does not apply: the gap of the two largest logits, {records.logit_gap:.3g}, is not large."
        )
    if not (records.worst_case([records.claimed]) > 0).any():
        return Measurement(False, 0.0, "The claimed attack breaks every image, so no image is left to attack.")
    return Measurement(None, None, "Not run: the claimed attack was not repeated on divided logits.")


def _beyond(attack: str, pick: Callable[[ModelRecords], Sequence[Outcome]]) -> Measure:
    """How many images the picked attacks break that no attack along the model's own gradient breaks.

    :param attack: names the picked attacks in the evidence.
    """

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        picked = pick(records)
        if not picked and not (records.worst_case(records.as_is) > 0).any():
            return Measurement(
                False, 0.0, "Attacks along the model's own gradient break every image, so no image is left to attack."
            )
        if not picked:
            return Measurement(None, None, f"Not run: there is no {attack} at this eps.")
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
    """A proof and its own mechanism, if targeted attacks along the model's own gradient ran: only the gradient differs."""
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
        return Measurement(None, None, "Not run: no multi-step attack was run at this eps.")
    gap, bound, broke = records.accuracy_gap([records.claimed], many)
    return Measurement(
        bound > threshold,
        gap,
        f"Multi-step attacks along the same gradient break {int(broke.sum())} of {records.n} images that the one-step "
        f"attack does not break (at least {percent(bound)} with 95 % confidence).",
        broke=broke,
    )


_ATHALYE = "Athalye, Carlini & Wagner 2018; Carlini et al. 2019"

PROOFS: tuple[Indicator, ...] = (
    Indicator(
        name="attack-gap",
        target=f"{__name__}:attack_gap",
        help="Other attacks break images that the claimed attack does not break",
        class_="P",
        threshold=MATERIAL,
        formula="Clopper-Pearson 95 % lower bound of b/n, b: images robust to the claimed attack and broken by another",
        cost="0 beyond the attacks themselves",
        shows="The claimed number is too high.",
        shows_not="That gradients are masked: a weak attack on a model without masking leaves the same gap.",
        source="Carlini et al. 2019, per-example worst case",
        mitigation="Report the corrected accuracy, and evaluate with the attacks that found it.",
        required=True,
    ),
    Indicator(
        name="ordinary-attack-gap",
        target=f"{__name__}:ordinary_attack_gap",
        help="Other attacks break images that 20-step PGD does not break",
        class_="P",
        threshold=ORDINARY,
        formula="as attack-gap, the claimed attack and 20-step PGD together against all others",
        cost="20 B on the images that the claimed attack does not break",
        shows="The gap has another cause than too few or too small steps of the claimed attack.",
        shows_not="That gradients are masked: 20 steps on cross-entropy miss a few images of any model.",
        source="this package; the control for a weak claim",
        mitigation="Evaluate with several losses and targets.",
    ),
    Indicator(
        name="logit-scale",
        target=f"{__name__}:logit_scale",
        help="The claimed accuracy depends on the scale of the logits",
        class_="P",
        threshold=MATERIAL,
        formula="the claimed attack on z/T, T = median gap of the top two logits / 5 and / 1, against itself on z",
        cost="the claimed attack again, on the images that it did not break",
        shows="The claimed attack fails for numerical reasons: z/T gives the same predictions.",
        shows_not="Anything about attacks whose loss does not depend on the scale.",
        source="invariance; Gupta & Ajanthan 2022 use it to attack",
        mitigation="Attack the logits divided by a constant, or use a margin or DLR loss (Gupta & Ajanthan 2022).",
        required=True,
    ),
    Indicator(
        name="surrogate-gradient",
        target=f"{__name__}:surrogate_gradient",
        help="A repaired gradient breaks images that the model's own gradient does not break",
        class_="P",
        threshold=CONTROL,
        formula="as attack-gap, all attacks along the model's gradient against attacks through surrogate gradients",
        cost="20 B per surrogate on the images that are still robust",
        shows="The model's own backward pass hides adversarial images.",
        shows_not="Anything where it does not fire: the right surrogate may not be among those tried.",
        source=_ATHALYE,
        mitigation="Evaluate with several surrogate gradients and report the worst case per image.",
        alone="SUSPECT",
        proof=("surrogate-gradient",),
    ),
    Indicator(
        name="mean-gradient",
        target=f"{__name__}:mean_gradient",
        help="A mean gradient over draws breaks images that single draws do not break",
        class_="P",
        threshold=CONTROL,
        formula="as attack-gap, attacks along single gradients against attacks along means over draws, scored on fresh draws",
        cost="20 B times the draws, on the images that are still robust",
        shows="The gradient of one draw hides adversarial images.",
        shows_not="Anything where it does not fire and the mean still had a low split-half cosine.",
        source=_ATHALYE,
        mitigation="Attack the mean over draws (EOT), with as many draws as the split-half cosine requires.",
        alone="SUSPECT",
    ),
    Indicator(
        name="black-box-search",
        target=f"{__name__}:black_box_search",
        help="A black-box attack breaks images that gradient attacks do not break",
        class_="P",
        threshold=CONTROL,
        formula="as attack-gap, all attacks along the model's gradient against black-box attacks",
        cost="1000 F or more on the images that are still robust",
        shows="The model's own gradient hides adversarial images.",
        shows_not="Anything where it does not fire: black-box attacks are weak (adv-eval-paper issue 22).",
        source=_ATHALYE,
        mitigation="Do not trust this gradient. Use other surrogate gradients, transfer attacks and black-box attacks.",
        alone="SUSPECT",
        required=True,
    ),
    Indicator(
        name="transfer",
        target=f"{__name__}:transfer",
        help="A transfer attack breaks images that gradient attacks do not break",
        class_="P",
        threshold=CONTROL,
        formula="as attack-gap, all attacks along the model's gradient against images crafted on other models",
        cost="20 B of the source model, for each source",
        shows="The model's own gradient hides adversarial images.",
        shows_not="Anything where it does not fire: transfer between bit widths is weak (Bernhard et al. 2019).",
        source=_ATHALYE,
        mitigation="Start the white-box attack from the transferred images, or use the gradient of the other model.",
        alone="SUSPECT",
    ),
    Indicator(
        name="single-step",
        target=f"{__name__}:single_step",
        help="A multi-step attack breaks images that the claimed one-step attack does not break",
        class_="P",
        threshold=MATERIAL,
        formula="as attack-gap, the claimed one-step attack against all multi-step attacks along the same gradient",
        cost="0 beyond the attacks themselves",
        shows="One step is not enough for this model.",
        shows_not="That gradients are masked: this happens on every model. See gradient-alignment for the cause.",
        source="Tramèr et al. 2018; Andriushchenko & Flammarion 2020",
        mitigation="Base no claim on a one-step attack.",
    ),
)
