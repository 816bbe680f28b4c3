"""Symptoms (class S): comparisons that healthy gradients pass. None proves anything; two of different groups make a
suspicion. Those about the model are corrected for their number (Holm 1979); those about the claimed attack alone, group
``claimed attack``, explain an overstated claim and say nothing about the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binom

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics.records import MATERIAL, Indicator, Measurement, ModelRecords, beats, percent
from art_qplugins.evaluation.outcome import Outcome

__all__ = ["ATTACK_HEALTH", "SYMPTOMS"]

ATTACK_HEALTH = "claimed attack"
#: Share of its whole fall that a path makes at its end, where it was stopped too early. The paper's 5 % are met by every
#: sound attack of 20 steps.
_FALL = 0.25


def _more(
    what: str,
    weaker: Callable[[ModelRecords], Sequence[Outcome]],
    stronger: Callable[[ModelRecords], Sequence[Outcome]],
) -> Callable[[ModelRecords, float], Measurement]:
    def read(case: ModelRecords, threshold: float) -> Measurement:
        before, after = weaker(case), stronger(case)
        if not before or not after:
            return Measurement(None, None, f"Not run: there is nothing to compare for {what}.")
        gap, _, broke = beats(case, before, after)
        p = float(binom.sf(int(broke.sum()) - 1, case.n, threshold))
        return Measurement(
            p < 0.05, gap, f"{what[0].upper()}{what[1:]} breaks {int(broke.sum())} of {case.n} images more.", p_value=p
        )

    return read


def _pick(case: ModelRecords, keep: Callable[[Outcome], bool]) -> list[Outcome]:
    return [o for o in case.as_is if keep(o)]


def _one_step(case: ModelRecords) -> list[Outcome]:
    return _pick(case, lambda o: ATTACKS[o.cell.attack].one_step and o.cell.eps == case.claimed.cell.eps)


def _unbounded(case: ModelRecords, threshold: float) -> Measurement:
    found = [o for o in case.other if o.cell.role == "probe" and o.cell.eps > case.claimed.cell.eps]
    if not found:
        return Measurement(None, None, "Not run: no attack with a budget that allows every image.")
    left = found[0].column("correct")
    left = left[~np.isnan(left)]
    classes = max(2, int(case.clean.column("label").max()) + 1)
    standing, chance = int((left >= 0.5).sum()), 1 / classes
    p = float(binom.sf(standing - 1, len(left), chance + threshold))
    return Measurement(
        p < 0.05,
        float(left.mean()),
        f"With {found[0].cell.norm} eps = {found[0].cell.eps:.3g}, where every image can become grey, {standing} of "
        f"{len(left)} images still stand (chance is {percent(chance)}).",
        p_value=p,
    )


def _curve(case: ModelRecords, threshold: float) -> Measurement:
    same = case.claimed.cell
    curve = [
        o
        for o in [*case.legal, *case.other]
        if (o.cell.attack, o.cell.source, o.cell.norm) == (same.attack, same.source, same.norm)
        and o.cell.rows is None
        and o.cell.params == same.params
        and o.cell.eps > 0
    ]
    if len({o.cell.eps for o in curve}) < 2:
        return Measurement(None, None, "Not run: the claimed attack was run at one eps.")
    curve.sort(key=lambda o: o.cell.eps)
    rise, p = 0.0, 1.0
    for small, large in itertools.pairwise(curve):
        a, b = small.column("correct"), large.column("correct")
        worse = int(((a < 0.5) & (b >= 0.5)).sum())
        rise = max(rise, float(b.mean() - a.mean()))
        p = min(p, float(binom.sf(worse - 1, len(a), threshold)))
    return Measurement(
        p < 0.05, rise, f"From one eps to the next larger one, accuracy rises by at most {percent(rise)}.", p_value=p
    )


def _silent(case: ModelRecords, threshold: float) -> Measurement:
    best, left = case.claimed.column("path_best"), case.claimed.column("margin")
    if case.facts.get("random"):
        return Measurement(False, None, "Does not apply: one draw of a random model says nothing of the next.")
    if np.isnan(best).all():
        return Measurement(None, None, "Not measured: the claimed attack's path was not recorded.")
    share = float(np.mean((best < 0) & (left >= 0)))
    return Measurement(
        share > threshold,
        share,
        f"On {percent(share)} of the images the attack passed an adversarial image and returned another.",
    )


def _unfinished(case: ModelRecords, threshold: float) -> Measurement:
    progress, left = case.claimed.column("path_progress"), case.claimed.column("correct") >= 0.5
    if np.isnan(progress).all() or not left.any():
        return Measurement(None, None, "Not measured: no path of an image that the claimed attack leaves.")
    share = float(np.nanmean(progress[left] > _FALL))
    return Measurement(
        share > threshold,
        share,
        f"On {percent(share)} of the images that it leaves, the claimed attack was still getting closer when it stopped.",
    )


def _planted(case: ModelRecords, threshold: float) -> Measurement:
    found = [o for o in case.tests if o.ok and o.cell.facts.get("used")]
    if not found:
        failed = [o.cell.error_line for o in case.tests if not o.ok]
        return Measurement(None, None, f"Not run: {failed[0] if failed else 'the diagnosis did not go that far'}.")
    facts = found[0].cell.facts
    return Measurement(
        facts["success"] < threshold,
        facts["success"],
        f"Of adversarial images put in by hand around {facts['used']} images, the claimed attack finds "
        f"{percent(facts['success'])}; as many random points find {percent(facts['random'])}.",
    )


def _transfer_failure(case: ModelRecords, threshold: float) -> Measurement:
    if case.claimed.cell.source == case.claimed.cell.model:
        return Measurement(False, None, "Does not apply: the claimed attack was crafted on the model itself.")
    left = float(case.claimed.cell.accuracy or 0.0)
    return Measurement(left > threshold, left, f"Crafted on {case.claimed.cell.source}, {percent(left)} still stand.")


def _fooled(case: ModelRecords, threshold: float) -> Measurement:
    if not case.reference:
        return Measurement(None, None, "Not run: there is no PGD of 20 steps on cross-entropy at this budget.")
    gap, bound, _ = beats(case, [case.claimed, *case.reference], case.legal)
    if case.gap < 1:
        return Measurement(False, gap, "Does not apply: with logits this small, cross-entropy is a blunt loss.")
    return Measurement(
        bound > threshold, gap, f"Beyond an ordinary attack, others break at least {percent(bound)} of all images."
    )


def _surface(column: str, words: str, *, above: bool = True) -> Callable[[ModelRecords, float], Measurement]:
    def read(case: ModelRecords, threshold: float) -> Measurement:
        values = case.clean.column(column)[case.right]
        if not len(values) or np.isnan(values).all():
            return Measurement(
                None, None, f"Not measured: {case.facts.get('skipped', {}).get(column, 'no ' + column)}."
            )
        middle = float(np.nanmedian(values))
        return Measurement(middle > threshold if above else middle < threshold, middle, words.format(middle))

    return read


_CARLINI = "Carlini et al. 2019; Athalye et al. 2018"
_PINTOR = "Pintor et al. 2022"


def _symptom(
    id: str, title: str, group: str, read: Callable[[ModelRecords, float], Measurement], **more: object
) -> Indicator:
    settings = {"threshold": MATERIAL, "cost": "20 B on the images that are left", "source": _CARLINI, **more}
    settings.setdefault("formula", "exact binomial test of b/n against the threshold, b: newly broken images")
    settings.setdefault("shows", "The attack, or the surface that it climbs, is not what it seems.")
    settings.setdefault("shows_not", "That gradients are masked: weak attacks and curved models do it too.")
    settings.setdefault("mitigation", "More steps, restarts, and other step sizes.")
    return Indicator(id=id, title=title, class_="S", group=group, read=read, **settings)  # type: ignore[arg-type]


SYMPTOMS: tuple[Indicator, ...] = (
    _symptom(
        "one-step-beats-many",
        "One step breaks what many steps leave",
        "direction",
        _more("one step", lambda case: case.reference, _one_step),
        cost="1 B",
        mitigation="Find out why more steps do worse: step size, random start, or a surface trained against one of them.",
    ),
    _symptom(
        "unbounded-attack-fails",
        "A budget that allows every image is not enough",
        "eps-curve",
        _unbounded,
        threshold=0.05,
        formula="binomial test of what stands at eps = 0.5 against chance",
        mitigation="The attack is broken on this model; use another loss or gradient.",
    ),
    _symptom(
        "accuracy-rises-with-eps",
        "Accuracy rises with eps",
        "eps-curve",
        _curve,
        cost="0 where a recipe asks for several eps",
    ),
    _symptom(
        "more-steps",
        "More than twice the steps break more",
        "step-count",
        _more(
            "an attack of 50 steps in place of 20",
            lambda case: case.first,
            lambda case: case.longer,
        ),
        cost="50 B on the images that are left",
    ),
    _symptom(
        "another-start",
        "Another random start breaks more",
        "restarts",
        _more(
            "the same attack from another start",
            lambda case: case.first,
            lambda case: case.restarted,
        ),
        source="Mosbach et al. 2018; " + _CARLINI,
    ),
    _symptom(
        "targeted-attack",
        "Aiming at each class breaks what aiming away leaves",
        "direction",
        _more(
            "aiming at every other class",
            lambda case: [*case.first, *case.longer, *case.restarted],
            lambda case: case.targeted,
        ),
        cost="180 B on the images that are left",
        mitigation="Report attacks that aim at each class (APGD-T, multi-targeted).",
    ),
    _symptom(
        "misled-loss",
        "An ordinary attack is fooled on many images",
        "ordinary attack",
        _fooled,
        threshold=0.20,
        cost="0 beyond the attacks themselves",
        formula="lower 95 % bound of what all attacks break beyond the claimed one and 20 steps of PGD; logits not tiny",
        source="here; honest models of the zoo stay below 12 % of the images",
        shows="Cross-entropy leads an attack astray on this model.",
    ),
    _symptom(
        "unstable-margin",
        "The margin is unstable around the image",
        "surface",
        _surface("instability", "Random steps of 4/255 change the logit margin by {:.2f} of itself (median)."),
        threshold=0.5,
        cost="20 F",
        source=_PINTOR + ", I2, on the margin",
        formula="median of mean |m(x) - m(x + d)| / |m(x)|",
    ),
    _symptom(
        "gradient-imbalance",
        "The gradients of the two largest logits are out of balance",
        "surface",
        _surface("imbalance", "The gradients of the two largest logits differ by a factor of {:.3g} in norm (median)."),
        threshold=5.0,
        cost="2 B",
        source="Jiang et al. 2020, from memory",
        formula="median of the larger of ||dz_y|| / ||dz_other|| and its inverse",
        mitigation="Attack single logits in turn (MD attack), or aim at each class.",
    ),
    _symptom(
        "silent-success",
        "The claimed attack returns a worse image than it had",
        ATTACK_HEALTH,
        _silent,
        threshold=0.01,
        cost="0",
        source=_PINTOR + ", I3",
        formula="share of images with an adversarial iterate and a returned image that is none",
        shows="The attack's implementation gives successes away.",
        mitigation="Return the best iterate, not the last.",
    ),
    _symptom(
        "not-converged",
        "The claimed attack had not converged",
        ATTACK_HEALTH,
        _unfinished,
        threshold=0.9,
        cost="0",
        source=_PINTOR + ", I4, on the margin, with a floor for flat paths",
        formula="share of images left with a fall of more than a quarter of the path's range in its last 10 points, or its last half",
        shows="The claimed attack needed more steps or larger ones.",
    ),
    _symptom(
        "binarization",
        "The claimed attack misses adversarial images put in by hand",
        ATTACK_HEALTH,
        _planted,
        threshold=0.8,
        cost="the claimed attack and 100 F, on 32 images",
        source="Zimmermann et al. 2022, with the range of the model's own logits",
        formula="share of binary networks around images on which the attack succeeds",
        shows="The attack does not work on this network.",
        shows_not="Robustness, where it passes.",
        mitigation="Use an attack that passes it before any number is believed.",
    ),
    _symptom(
        "failed-transfer",
        "The claimed attack was crafted on another model and does not transfer",
        ATTACK_HEALTH,
        _transfer_failure,
        threshold=0.5,
        cost="0",
        source=_PINTOR + ", I5",
        formula="what is left of images crafted on another model",
        mitigation="Attack the model itself.",
    ),
)
