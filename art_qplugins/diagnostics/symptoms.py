"""Symptoms of the model (class S): comparisons that healthy gradients pass.

A symptom proves nothing. Two of them are strong enough for a suspicion (``rules.py``). The others are notes, which help to
find out why a claim is too high. Symptoms that are statistical tests are corrected for multiple testing (Holm 1979). Symptoms of the claimed attack alone are in ``attack_health.py``. Sources
are in the rows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import binom

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics.controls import material
from art_qplugins.diagnostics.indicator import Indicator, Measure, Measurement, percent
from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.diagnostics.thresholds import MATERIAL, MISLED, SIGNIFICANT, SMALL_GAP
from art_qplugins.evaluation.outcome import Outcome

__all__ = ["SYMPTOMS"]

_Pick = Callable[[ModelRecords], Sequence[Outcome]]


def _more(comparison: str, weaker: _Pick, stronger: _Pick) -> Measure:
    """Whether the stronger attacks newly break more than a share of all images, the threshold."""

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        before, after = weaker(records), stronger(records)
        if not before or not after:
            return Measurement.not_run(f"there is no pair of attacks to compare for {comparison}.")
        gap, _, broke = records.accuracy_gap(before, after)
        p = float(binom.sf(int(broke.sum()) - 1, records.n, threshold))
        evidence = f"{comparison[0].upper()}{comparison[1:]} breaks {int(broke.sum())} more of {records.n} images."
        return Measurement(p < SIGNIFICANT, gap, evidence, p_value=p)

    return measure


def _one_step(records: ModelRecords) -> list[Outcome]:
    eps = records.claimed.cell.eps
    return [o for o in records.as_is if ATTACKS[o.cell.attack].one_step and o.cell.eps == eps]


one_step_beats_many = _more("one step", lambda records: records.reference, _one_step)
more_steps = _more(
    "an attack with 50 steps instead of 20", lambda records: records.first, lambda records: records.longer
)
another_start = _more(
    "the same attack from another random start", lambda records: records.first, lambda records: records.restarted
)
targeted_attack = _more(
    "a targeted attack on every other class",
    lambda records: [*records.first, *records.longer, *records.restarted],
    lambda records: records.targeted,
)


def unbounded_attack_fails(records: ModelRecords, threshold: float) -> Measurement:
    """Whether too many images are robust at an unbounded eps: more than chance and the threshold together explain."""
    found = records.at_larger_eps({"artq:apgd-margin"})
    if not found:
        return Measurement.not_run("no attack was run at an unbounded eps.")
    if records.clean.cell.rejected is not None:
        return Measurement.does_not_apply("a model that may reject can be robust at any eps, by rejecting.")
    correct = found[0].column("correct")
    correct = correct[~np.isnan(correct)]
    classes = max(2, int(records.clean.column("label").max()) + 1)
    robust, chance = int((correct >= 0.5).sum()), 1 / classes
    p = float(binom.sf(robust - 1, len(correct), chance + threshold))
    return Measurement(
        p < SIGNIFICANT,
        float(correct.mean()),
        f"At {found[0].cell.norm} eps = {found[0].cell.eps:.3g} every image can become grey, yet {robust} of "
        f"{len(correct)} images are still robust (chance is {percent(chance)}).",
        p_value=p,
    )


def accuracy_rises_with_eps(records: ModelRecords, threshold: float) -> Measurement:
    curve = _curve(records)
    if len({o.cell.eps for o in curve}) < 2:
        return Measurement.not_run("the claimed attack was run at only one eps.")
    rise, p = 0.0, 1.0
    for small, large in itertools.pairwise(curve):
        a, b = small.column("correct"), large.column("correct")
        worse = int(((a < 0.5) & (b >= 0.5)).sum())
        rise = max(rise, float(b.mean() - a.mean()))
        p = min(p, float(binom.sf(worse - 1, len(a), threshold)))
    evidence = f"From one eps to the next larger one, accuracy rises by at most {percent(rise)}."
    return Measurement(p < SIGNIFICANT, rise, evidence, p_value=p)


def _curve(records: ModelRecords) -> list[Outcome]:
    """The claimed attack with the same options, on all images, by increasing eps."""
    same = records.claimed.cell
    curve = [
        o
        for o in [*records.legal, *records.other_threats]
        if (o.cell.attack, o.cell.source, o.cell.norm) == (same.attack, same.source, same.norm)
        and o.cell.rows is None
        and o.cell.params == same.params
        and o.cell.eps > 0
    ]
    return sorted(curve, key=lambda o: o.cell.eps)


def misled_loss(records: ModelRecords, threshold: float) -> Measurement:
    if not records.reference:
        return Measurement.not_run("20-step PGD on cross-entropy was not run at this eps.")
    if records.logit_gap < SMALL_GAP:
        return Measurement.does_not_apply("with logits this small, cross-entropy is nearly flat.")
    weaker = [records.claimed, *records.reference]
    fired, gap, bound, _ = material(records, weaker, records.white_box, threshold)
    return Measurement(
        fired,
        gap,
        f"Other white-box attacks break {percent(gap)} of all images that neither the claimed attack nor 20-step PGD breaks, at least "
        f"{percent(bound)} with 95 % confidence.",
    )


def _surface(column: str, words: str) -> Measure:
    """The median of a measure of the clean cell over correctly classified images. It fires above the threshold."""

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        values = records.clean.column(column)[records.correct]
        if not len(values) or np.isnan(values).all():
            why = records.facts.get("skipped", {}).get(column, "no " + column)
            return Measurement(None, None, f"Not measured: {why}.")
        middle = float(np.nanmedian(values))
        return Measurement(middle > threshold, middle, words.format(middle))

    return measure


unstable_margin = _surface(
    "instability", "Random steps of eps / 4 change the logit margin by {:.2f} of itself (median)."
)
gradient_imbalance = _surface(
    "imbalance", "The gradients of the two largest logits differ by a factor of {:.3g} in norm (median)."
)

_CARLINI = "Carlini et al. 2019; Athalye et al. 2018"
_PINTOR = "Pintor et al. 2022"

_symptom = functools.partial(
    Indicator,
    class_="S",
    threshold=MATERIAL,
    formula="exact binomial test of b/n against the threshold, b: newly broken images",
    cost="20 B on the images that are still robust",
    shows="The attack or the loss surface does not behave as expected.",
    shows_not="That gradients are masked: weak attacks and curved loss surfaces do the same.",
    source=_CARLINI,
    mitigation="Use more steps, restarts and other step sizes.",
)

SYMPTOMS: tuple[Indicator, ...] = (
    _symptom(
        name="one-step-beats-many",
        target=f"{__name__}:one_step_beats_many",
        help="One step breaks images that many steps do not break",
        cost="1 B",
        mitigation="Find out why more steps do worse: the step size, the random start, or training against one attack.",
    ),
    _symptom(
        name="unbounded-attack-fails",
        target=f"{__name__}:unbounded_attack_fails",
        help="An attack with unbounded eps does not break every image",
        threshold=0.05,
        formula="binomial test of the accuracy at eps = 0.5 against chance",
        mitigation="The attack does not work on this model. Use another loss or gradient.",
    ),
    _symptom(
        name="accuracy-rises-with-eps",
        target=f"{__name__}:accuracy_rises_with_eps",
        help="Accuracy rises with eps",
        cost="0 if a recipe has several eps",
    ),
    _symptom(
        name="more-steps",
        target=f"{__name__}:more_steps",
        help="More than twice the steps break more images",
        cost="50 B on the images that are still robust",
    ),
    _symptom(
        name="another-start",
        target=f"{__name__}:another_start",
        help="Another random start breaks more images",
        source="Mosbach et al. 2018; " + _CARLINI,
    ),
    _symptom(
        name="targeted-attack",
        target=f"{__name__}:targeted_attack",
        help="A targeted attack breaks images that untargeted attacks do not break",
        cost="180 B on the images that are still robust",
        mitigation="Report targeted attacks on every class (APGD-T, multi-targeted).",
    ),
    _symptom(
        name="misled-loss",
        target=f"{__name__}:misled_loss",
        help="20-step PGD on cross-entropy misses many images",
        threshold=MISLED,
        cost="0 beyond the attacks themselves",
        formula="share that all white-box attacks break beyond the claimed one and 20-step PGD; logits not tiny",
        source="this package; honest models of the zoo stay below",
        shows="Cross-entropy misleads attacks on this model.",
    ),
    _symptom(
        name="unstable-margin",
        target=f"{__name__}:unstable_margin",
        help="The margin is unstable around the image",
        threshold=0.5,
        cost="20 F",
        source=_PINTOR + ", I2, on the margin",
        formula="median of mean |m(x) - m(x + d)| / |m(x)|",
    ),
    _symptom(
        name="gradient-imbalance",
        target=f"{__name__}:gradient_imbalance",
        help="The gradients of the two largest logits differ much in norm",
        threshold=5.0,
        cost="2 B",
        source="Jiang et al. 2020; the formula was not checked against the paper",
        formula="median of the larger of ||dz_y|| / ||dz_other|| and its inverse",
        mitigation="Attack single logits in turn (MD attack), or use a targeted attack on every class.",
    ),
)
