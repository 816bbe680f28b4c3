"""Mechanisms (class M): why a gradient fails, measured at the clean images and in their neighbourhood.

A mechanism alone proves nothing. Together with a control experiment that its row names in ``proof``, on the same images,
it explains a gap. What is measured is in ``gradients/measure.py``; here it is only compared. Sources are in the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics.indicator import Indicator, Measure, Measurement, percent
from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.diagnostics.thresholds import FLOAT32_LOSS_GAP

__all__ = ["MECHANISMS"]

_BACKWARD = ("surrogate-gradient", "black-box-search", "transfer")
_UNFAITHFUL = (*_BACKWARD, "ordinary-attack-gap")


def _share(words: str, column: str, at_work: Callable[[ModelRecords], NDArray[np.bool_]]) -> Measure:
    """The share of correct images on which a mechanism is at work, against the threshold.

    :param column: the measure of the clean cell without which there is no answer.
    """

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        if not records.correct.any() or np.isnan(records.clean.column(column)).all():
            return _not_measured(records, column)
        present = at_work(records)
        share = float(present[records.correct].mean())
        evidence = f"On {percent(share)} of the correctly answered images {words}."
        return Measurement(share >= threshold, share, evidence, present)

    return measure


def _low(column: str, words: str) -> Measure:
    """The median over correct images of a measure of the clean cell; it fires below the threshold."""

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        values = records.clean.column(column)
        if _lacking(records, values):
            return _not_measured(records, column)
        middle = float(np.nanmedian(values[records.correct]))
        return Measurement(middle < threshold, middle, words.format(middle), np.asarray(values < threshold))

    return measure


def _lacking(records: ModelRecords, values: NDArray[np.float64]) -> bool:
    """Whether no correct image has a value."""
    return not records.correct.any() or bool(np.isnan(values[records.correct]).all())


def _not_measured(records: ModelRecords, column: str) -> Measurement:
    why = str(records.facts.get("skipped", {}).get(column, f"the clean cell has no {column}"))
    if not records.correct.any():
        why = "no image is answered correctly"
    return Measurement(None, None, f"Not measured: {why}.")


def no_gradient(records: ModelRecords, threshold: float) -> Measurement:
    reaches = records.facts.get("reaches_pixels")
    if reaches is None:
        return Measurement(None, None, "Not measured.")
    if reaches:
        return Measurement(False, 0.0, "The graph of the backward pass reaches the pixels.")
    at = records.facts.get("ends_at") or "somewhere in the model"
    everywhere = np.ones(records.n, dtype=bool)
    return Measurement(True, 1.0, f"No gradient reaches the pixels: the graph ends at {at}.", everywhere)


def _exactly_zero(records: ModelRecords) -> NDArray[np.bool_]:
    start = records.clean.column("gradient_start")
    return np.asarray((records.clean.column("gradient") == 0) | (start == 0))


def _about_to_vanish(records: ModelRecords) -> NDArray[np.bool_]:
    ratio, squared = records.clean.column("gradient_ratio"), records.clean.column("gradient_l2")
    if records.claimed.cell.norm == "Linf":
        return np.asarray(ratio < 1e-6)
    return np.asarray((ratio < 1e-6) | (squared == 0))


def zero_gradient(records: ModelRecords, threshold: float) -> Measurement:
    """Counted where the gradient is exactly zero. At work also where it is about to vanish, a few steps away or in a mean."""
    words = "the gradient that an attack on cross-entropy starts from is exactly zero"
    found = _share(words, "gradient", _exactly_zero)(records, threshold)
    return found if found.present is None else replace(found, present=found.present | _about_to_vanish(records))


loss_underflow = _share(
    "cross-entropy is exactly 0 in float32", "loss", lambda records: records.clean.column("loss") == 0
)


def large_logits(records: ModelRecords, threshold: float) -> Measurement:
    margin = records.clean.column("margin")
    if _lacking(records, margin):
        return _not_measured(records, "margin")
    middle = float(np.nanmedian(margin[records.correct]))
    return Measurement(
        middle > threshold,
        middle,
        f"Half of the correctly answered images have their two largest logits more than {middle:.3g} apart; above "
        f"{threshold:.1f} float32 rounds the loss to 0, above 103 its whole gradient.",
        np.asarray(margin > threshold),
    )


gradient_underflow = _share(
    "the gradient of cross-entropy is below 1e-6 of that of the margin", "gradient_ratio", _about_to_vanish
)


def blocking_operation(records: ModelRecords, threshold: float) -> Measurement:
    if "blocking" not in records.facts:
        return Measurement(None, None, "Not measured: there is no ledger of this model.")
    blocking = records.facts["blocking"]
    if blocking is None:
        return Measurement(False, 0.0, "No operation takes the gradient of most images to exactly zero.")
    share = float(blocking["share"])
    return Measurement(
        share > threshold,
        share,
        f"The gradient of {percent(share)} of the images is exactly zero behind {blocking['op']} in {blocking['layer']} "
        "and was not before it.",
        np.ones(records.n, dtype=bool),
    )


def unfaithful_gradient(records: ModelRecords, threshold: float) -> Measurement:
    """The better of two step lengths counts: on a staircase, small steps may cross no step, or too many.

    An attack of one step takes a large one, so only large ones count for it.
    """
    small, large = records.clean.column("fidelity"), records.clean.column("fidelity_eps")
    if _lacking(records, small):
        return _not_measured(records, "fidelity")
    best = large if ATTACKS[records.claimed.cell.attack].one_step else np.fmax(small, large)
    middle = float(np.nanmedian(best[records.correct]))
    a, b = (float(np.nanmedian(v[records.correct])) if not np.isnan(v).all() else np.nan for v in (small, large))
    return Measurement(
        middle < threshold,
        middle,
        f"Over random steps of eps / 4 and of eps, what the gradient predicts of the logit margin and what happens "
        f"correlate with {a:.2f} and {b:.2f} (medians over correctly answered images; 1 is a faithful gradient).",
        np.asarray(best < threshold),
    )


gradient_alignment = _low(
    "alignment", "The gradient at an image and at a random point of its ball have a cosine of {:.2f} (median)."
)


def noisy_gradient(records: ModelRecords, threshold: float) -> Measurement:
    """It does not fire for a claimed attack that averages over draws."""
    words = "Two gradients of the same image, from other draws, have a cosine of {:.2f} (median)."
    found = _low("coherence", words)(records, threshold)
    if not (found.fired and records.claim_averages):
        return found
    return replace(found, fired=False, evidence=f"{found.evidence} The claimed attack averages over draws.")


MECHANISMS: tuple[Indicator, ...] = (
    Indicator(
        name="no-gradient",
        target=f"{__name__}:no_gradient",
        help="No gradient reaches the pixels",
        class_="M",
        threshold=0.0,
        formula="the graph of d margin / d x has no path to x",
        cost="1 B",
        shows="There is no white-box number for this model.",
        shows_not="That the model is or is not robust.",
        source="Pintor et al. 2022, I1",
        mitigation="Give the layer a surrogate gradient (BPDA), or claim by black-box and transfer attacks.",
        proof=_BACKWARD,
        alone="SUSPECT",
    ),
    Indicator(
        name="zero-gradient",
        target=f"{__name__}:zero_gradient",
        help="The gradient of the loss is exactly zero",
        class_="M",
        threshold=0.10,
        formula="share of right images with max |d CE / d x| = 0 in float32, at x or at a random point of the ball",
        cost="2 B",
        shows="Attacks along this loss do not move on those images.",
        shows_not="Whether the loss (see M3) or a layer (see M6) is to blame.",
        source="Pintor et al. 2022, I1; AutoAttack's and ART's flags without their blind spots",
        mitigation="Use a margin or DLR loss, or divide the logits by a constant; if it stays zero, a layer blocks it.",
        proof=("logit-scale", *_BACKWARD),
        alone="SUSPECT",
        required=True,
    ),
    Indicator(
        name="loss-underflow",
        target=f"{__name__}:loss_underflow",
        help="The loss underflows to zero",
        class_="M",
        threshold=0.25,
        formula="share of right images with cross-entropy = 0 in float32",
        cost="1 F",
        shows="The loss has no slope left in its first term.",
        shows_not="That an attack by the gradient's sign fails: it often survives.",
        source="numerics of softmax in float32; Lee et al. 2020",
        mitigation="Use a margin or DLR loss, or divide the logits by a constant.",
        proof=("logit-scale",),
        alone="SUSPECT",
        required=True,
    ),
    Indicator(
        name="large-logits",
        target=f"{__name__}:large_logits",
        help="The logits are too large for float32",
        class_="M",
        threshold=FLOAT32_LOSS_GAP,
        formula="median over right images of z_y - max other z",
        cost="1 F",
        shows="Which band of float32 underflow the model works in.",
        shows_not="That an attack by the gradient's sign fails: it often survives.",
        source="arithmetic: 24 ln 2 = 16.6",
        mitigation="Divide the logits by a constant: no answer changes.",
        proof=("logit-scale",),
        alone="SUSPECT",
        required=True,
    ),
    Indicator(
        name="gradient-underflow",
        target=f"{__name__}:gradient_underflow",
        help="The gradient of the loss is about to underflow",
        class_="M",
        threshold=0.50,
        formula="share of right images with ||d CE|| / ||d margin|| < 1e-6; for L2 also with a squared norm of 0",
        cost="2 B",
        shows="Normalised steps (L2, L1) divide by what is lost already.",
        shows_not="Anything for steps by the sign while the gradient is not exactly zero.",
        source="numerics of softmax in float32",
        mitigation="Normalise per image in float64, or use a margin loss.",
        proof=("logit-scale",),
    ),
    Indicator(
        name="blocking-operation",
        target=f"{__name__}:blocking_operation",
        help="One operation takes the gradient to zero",
        class_="M",
        threshold=0.90,
        formula="ledger of gradient norms before and behind every node of the backward pass",
        cost="1 B",
        shows="Which layer is to blame.",
        shows_not="That another gradient gets further; see BPDA.",
        source="here; idea of Athalye et al. 2018",
        mitigation="Replace that operation's backward pass by a surrogate.",
        proof=_BACKWARD,
    ),
    Indicator(
        name="unfaithful-gradient",
        target=f"{__name__}:unfaithful_gradient",
        help="The gradient does not predict what steps do",
        class_="M",
        threshold=0.70,
        formula="median over right images of corr_u(m(x + h u) - m(x), h u.g) over 20 random directions u, the larger of h = "
        "eps / 4 and h = eps; for a one-step claim h = eps",
        cost="1 B, 40 F",
        shows="The backward pass is not the slope: shattered, or a surrogate that does not fit.",
        shows_not="That an attack fails: a coarse surrogate may lead the right way.",
        source="finite differences; idea of Athalye et al. 2018",
        mitigation="Choose another surrogate gradient by its fidelity, smooth the gradient, or attack without gradients.",
        proof=_UNFAITHFUL,
    ),
    Indicator(
        name="gradient-alignment",
        target=f"{__name__}:gradient_alignment",
        help="Gradients at two points of the ball do not agree",
        class_="M",
        threshold=0.75,
        formula="median over right images of cos(d m(x), d m(x + eta)), eta uniform in the ball",
        cost="2 B",
        shows="The surface turns within the budget: one step cannot follow it.",
        shows_not="That attacks of many steps fail.",
        source="Andriushchenko & Flammarion 2020",
        mitigation="Use attacks of many steps with random starts; do not train with one step alone.",
        proof=("single-step", *_BACKWARD),
    ),
    Indicator(
        name="noisy-gradient",
        target=f"{__name__}:noisy_gradient",
        help="The gradient of one call says little of the mean",
        class_="M",
        threshold=0.90,
        formula="median over right images of the cosine of two independent gradients of a random model",
        cost="2 B",
        shows="An attack along single calls follows noise.",
        shows_not="That more draws are enough; the split-half cosine of the mean says so.",
        source="Athalye et al. 2018; split-half signal to noise",
        mitigation="Average the gradient over draws (EOT) until its split-half cosine reaches 0.6.",
        proof=("mean-gradient", "black-box-search", "transfer", "attack-gap"),
    ),
)
