"""Control experiments (class P): another legal attack breaks the same images.

The other attack may be the same one after a change that alters no prediction. Each control takes away one way in which a
gradient can hide adversarial images. All compare attacks on the same images. Further attacks break a few images of every
model, so a control counts only beyond what as many further tries of one attack break. Sources are in the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics import applicable
from art_qplugins.diagnostics.indicator import Indicator, Measure, Measurement, percent
from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.diagnostics.thresholds import CONTROL, MATERIAL, POWER, by_trying_again
from art_qplugins.evaluation.outcome import Outcome

__all__ = ["CONTROLS", "material"]

_Pick = Callable[[ModelRecords], Sequence[Outcome]]
_Applies = Callable[[ModelRecords], str]


def material(
    records: ModelRecords, weaker: Sequence[Outcome], stronger: Sequence[Outcome], threshold: float
) -> tuple[bool, float, float, NDArray[np.bool_]]:
    """Whether ``stronger`` attacks break more than trying again does, by more than the threshold.

    The gap is a point estimate, so its size does not depend on the number of images. A one-sided exact test at 5 % holds
    it against what trying again breaks.

    :return: the answer, the gap, its 95 % lower bound, and (images,) which images are newly broken.
    """
    gap, bound, broke = records.accuracy_gap(weaker, stronger)
    again = by_trying_again(records.tries(stronger))
    return gap > again + threshold and bound > again, gap, bound, broke


def attack_gap(records: ModelRecords, threshold: float) -> Measurement:
    gap, bound, broke = records.accuracy_gap([records.claimed], records.legal)
    return Measurement(
        gap > threshold and bound > 0,
        gap,
        f"Other attacks at the same eps break {int(broke.sum())} of {records.n} images that "
        f"{records.claimed.cell.label} does not break: {percent(gap)} of all images, at least {percent(bound)} with 95 % "
        "confidence.",
        broke=broke,
    )


def logit_scale(records: ModelRecords, threshold: float) -> Measurement:
    if not records.rescaled:
        if why := applicable.scale(records):
            return Measurement.does_not_apply(f"{why}.")
        if not (records.worst_case([records.claimed]) > 0).any():
            return Measurement(False, 0.0, "The claimed attack breaks every image, so no image is left to attack.")
        return Measurement.not_run("the claimed attack was not repeated on rescaled logits or gradients.")
    fired, gap, bound, broke = material(records, [records.claimed], records.rescaled, threshold)
    best = min(records.rescaled, key=lambda o: o.cell.accuracy or 0.0)
    params = best.cell.params
    if "temperature" in params:
        change = f"Dividing the logits by {params['temperature']:.3g} changes no prediction."
    else:
        change = f"A gradient times {params['gradient_scale']:.3g} keeps its direction, unless its numbers underflow."
    return Measurement(
        fired,
        gap,
        f"{change} The same attack with the same seed then breaks {int(broke.sum())} more of {records.n} images (at least "
        f"{percent(bound)} with 95 % confidence).",
        broke=broke,
    )


def _beyond(attack: str, pick: _Pick, applies: _Applies = lambda records: "") -> Measure:
    """How many images the picked attacks break that no attack along the model's own gradient breaks.

    :param attack: names the picked attacks in the evidence.
    :param applies: the reason why they cannot be run on this model.
    """

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        picked = pick(records)
        if not picked and not (records.worst_case(records.as_is) > 0).any():
            return Measurement(
                False, 0.0, "Attacks along the model's own gradient break every image, so no image is left to attack."
            )
        if not picked:
            why = applies(records)
            return (
                Measurement.does_not_apply(f"{why}.")
                if why
                else Measurement.not_run(f"there is no {attack} at this eps.")
            )
        fired, gap, bound, broke = material(records, records.as_is, picked, threshold)
        settles, power = _power(records, picked, threshold)
        return Measurement(
            fired,
            gap,
            f"{attack[0].upper()}{attack[1:]} breaks {int(broke.sum())} of {records.n} images that no attack along the "
            f"model's own gradient breaks ({len(records.as_is)} tried): at least {percent(bound)} with 95 % confidence."
            f"{'' if fired else power}",
            broke=broke,
            settles=settles,
        )

    return measure


def _power(records: ModelRecords, picked: Sequence[Outcome], threshold: float) -> tuple[bool, str]:
    """Whether these attacks could have found something, and the sentence that says so.

    They could where a larger eps breaks the images that they did not break. With a limit they never saw the other images. Where
    so few images are left that even all of them would be no material effect, nothing is hidden.
    """
    if (records.worst_case([*records.as_is, *picked]) > 0).mean() <= threshold:
        return True, ""
    if all(o.cell.limit is not None for o in picked):
        return False, " It ran with a limit, so nothing is known of the other images."
    larger = records.at_larger_eps({o.cell.attack for o in picked})
    if not larger:
        return False, " Whether it could have found something was not tried."
    best = min(larger, key=lambda o: o.cell.accuracy if o.cell.accuracy is not None else 1.0)
    broken = 1 - (best.cell.accuracy or 0.0)
    return broken >= POWER, f" At eps = {best.cell.eps:.3g} it breaks {percent(broken)} of {best.cell.n} of the others."


def surrogate_gradient(records: ModelRecords, threshold: float) -> Measurement:
    """A control and its own mechanism, if targeted attacks along the model's own gradient ran: only the gradient differs."""
    found = _repaired(records, threshold)
    return replace(found, present=found.broke) if records.targeted else found


_repaired = _beyond("attack through surrogate gradients", lambda records: records.repaired, applicable.repair)
mean_gradient = _beyond("attack along the mean over draws", lambda records: records.averaged, applicable.mean_gradient)
black_box_search = _beyond("black-box search", lambda records: records.black_box)
transfer = _beyond("transfer from other models", lambda records: records.transferred)


def single_step(records: ModelRecords, threshold: float) -> Measurement:
    if not ATTACKS[records.claimed.cell.attack].one_step:
        return Measurement.does_not_apply("the claimed attack takes more than one step.")
    many = [o for o in records.as_is[1:] if not ATTACKS[o.cell.attack].one_step]
    if not many:
        return Measurement.not_run("no multi-step attack was run at this eps.")
    fired, gap, bound, broke = material(records, [records.claimed], many, threshold)
    return Measurement(
        fired,
        gap,
        f"Multi-step attacks along the same gradient break {int(broke.sum())} of {records.n} images that the one-step "
        f"attack does not break (at least {percent(bound)} with 95 % confidence).",
        broke=broke,
    )


_ATHALYE = "Athalye, Carlini & Wagner 2018; Carlini et al. 2019"

CONTROLS: tuple[Indicator, ...] = (
    Indicator(
        name="attack-gap",
        target=f"{__name__}:attack_gap",
        help="Other attacks break images that the claimed attack does not break",
        class_="P",
        threshold=MATERIAL,
        formula="b/n, b: images robust to the claimed attack and broken by another; exact one-sided test beside it",
        cost="0 beyond the attacks themselves",
        shows="The claimed number is too high.",
        shows_not="That gradients are masked: a weak attack on a model without masking leaves the same gap.",
        source="Carlini et al. 2019, per-example worst case",
        mitigation="Report the corrected accuracy, and evaluate with the attacks that found it.",
    ),
    Indicator(
        name="logit-scale",
        target=f"{__name__}:logit_scale",
        help="The claimed accuracy depends on the scale of logits or gradients",
        class_="P",
        threshold=MATERIAL,
        formula="the claimed attack on z/T, T = median gap of the top two logits / 5 and / 1, and with its gradient times a power "
        "of two, against itself on z, beyond what trying again breaks",
        cost="the claimed attack again, on the images that it did not break",
        shows="The claimed attack fails for numerical reasons: the predictions are the same.",
        shows_not="Anything about attacks whose loss does not depend on the scale.",
        source="invariance; Gupta & Ajanthan 2022 use it to attack",
        mitigation="Attack the logits divided by a constant, use a margin or DLR loss (Gupta & Ajanthan 2022), or multiply the loss.",
    ),
    Indicator(
        name="surrogate-gradient",
        target=f"{__name__}:surrogate_gradient",
        help="A repaired gradient breaks images that the model's own gradient does not break",
        class_="P",
        threshold=CONTROL,
        formula="beyond what trying again breaks, all attacks along the model's gradient against attacks through surrogate gradients",
        cost="20 B per surrogate on the images that are still robust",
        shows="The model's own backward pass hides adversarial images.",
        shows_not="Anything where it does not fire: the right surrogate may not be among those tried.",
        source=_ATHALYE,
        mitigation="Evaluate with several surrogate gradients and report the worst case per image.",
    ),
    Indicator(
        name="mean-gradient",
        target=f"{__name__}:mean_gradient",
        help="A mean gradient over draws breaks images that single draws do not break",
        class_="P",
        threshold=CONTROL,
        formula="beyond what trying again breaks, attacks along single gradients against attacks along means over draws, scored on fresh draws",
        cost="20 B times the draws, on the images that are still robust",
        shows="The gradient of one draw hides adversarial images.",
        shows_not="Anything where it does not fire and the mean still had a low split-half cosine.",
        source=_ATHALYE,
        mitigation="Attack the mean over draws (EOT), with as many draws as the split-half cosine requires.",
    ),
    Indicator(
        name="black-box-search",
        target=f"{__name__}:black_box_search",
        help="A black-box attack breaks images that gradient attacks do not break",
        class_="P",
        threshold=CONTROL,
        formula="beyond what trying again breaks, all attacks along the model's gradient against black-box attacks",
        cost="1000 F or more on the images that are still robust",
        shows="The model's own gradient hides adversarial images.",
        shows_not="Anything where it does not fire: black-box attacks are weak (adv-eval-paper issue 22).",
        source=_ATHALYE,
        mitigation="Do not trust this gradient. Use other surrogate gradients, transfer attacks and black-box attacks.",
    ),
    Indicator(
        name="transfer",
        target=f"{__name__}:transfer",
        help="A transfer attack breaks images that gradient attacks do not break",
        class_="P",
        threshold=CONTROL,
        formula="beyond what trying again breaks, all attacks along the model's gradient against images crafted on other models",
        cost="20 B of the source model, for each source",
        shows="The model's own gradient hides adversarial images.",
        shows_not="Anything where it does not fire: transfer between bit widths is weak (Bernhard et al. 2019).",
        source=_ATHALYE,
        mitigation="Start the white-box attack from the transferred images, or use the gradient of the other model.",
    ),
    Indicator(
        name="single-step",
        target=f"{__name__}:single_step",
        help="A multi-step attack breaks images that the claimed one-step attack does not break",
        class_="P",
        threshold=MATERIAL,
        formula="beyond what trying again breaks, the claimed one-step attack against all multi-step attacks along the same gradient",
        cost="0 beyond the attacks themselves",
        shows="One step is not enough for this model.",
        shows_not="That gradients are masked: this happens on every model. See gradient-alignment for the cause.",
        source="Tramèr et al. 2018; Andriushchenko & Flammarion 2020",
        mitigation="Base no claim on a one-step attack.",
    ),
)
