"""Mechanisms (class M): why a gradient fails, measured at the clean images and in their neighbourhood.

A mechanism alone proves nothing. It explains a gap together with a control experiment on the same images. ``rules.py``
names the control experiments of each. The measurements are in ``gradients/measure.py``. This module only compares them
with thresholds. Sources are in the rows.
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


def _share(words: str, column: str, is_present: Callable[[ModelRecords], NDArray[np.bool_]]) -> Measure:
    """The share of correctly classified images on which a mechanism is present. It fires above the threshold.

    :param column: the measure of the clean cell that this needs.
    """

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        if not records.correct.any() or np.isnan(records.clean.column(column)).all():
            return _not_measured(records, column)
        present = is_present(records)
        measured = records.correct & ~np.isnan(records.clean.column(column))
        if not measured.any():
            return _not_measured(records, column)
        share = float(present[measured].mean())
        evidence = f"On {percent(share)} of the correctly classified images {words}."
        return Measurement(share >= threshold, share, evidence, present)

    return measure


def _low(column: str, words: str) -> Measure:
    """The median of a measure of the clean cell over correctly classified images. It fires below the threshold."""

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        values = records.clean.column(column)
        if _lacking(records, values):
            return _not_measured(records, column)
        middle = float(np.nanmedian(values[records.correct]))
        return Measurement(middle < threshold, middle, words.format(middle), np.asarray(values < threshold))

    return measure


def _lacking(records: ModelRecords, values: NDArray[np.float64]) -> bool:
    """Whether no correctly classified image has a value."""
    return not records.correct.any() or bool(np.isnan(values[records.correct]).all())


def _not_measured(records: ModelRecords, column: str) -> Measurement:
    why = str(records.facts.get("skipped", {}).get(column, f"the clean cell has no {column}"))
    if not records.correct.any():
        why = "no image is classified correctly"
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
    """The share counts images whose gradient is exactly zero.

    ``present`` also includes images whose gradient is about to vanish. Such a gradient may be zero a few steps away, or
    in a mean over draws.
    """
    words = "the gradient that an attack on cross-entropy starts from is exactly zero"
    found = _share(words, "gradient", _exactly_zero)(records, threshold)
    return found if found.present is None else replace(found, present=found.present | _about_to_vanish(records))


loss_underflow = _share(
    "cross-entropy is exactly 0 in float32", "loss", lambda records: records.clean.column("loss") == 0
)


def large_logits(records: ModelRecords, threshold: float) -> Measurement:
    if not records.correct.any():
        return _not_measured(records, "margin")
    margin, middle = records.clean.column("margin"), records.logit_gap
    present = np.isnan(margin) | (margin > threshold)
    if not np.isfinite(middle):
        return Measurement(True, None, "The gap between the two largest logits is not finite.", present)
    return Measurement(
        middle > threshold,
        middle,
        f"The median gap between the two largest logits is {middle:.3g} over correctly classified images. Above "
        f"{threshold:.1f} float32 rounds the loss to 0. Above 103 it also rounds the whole gradient to 0.",
        present,
    )


_underflow = _share(
    "the gradient of cross-entropy is smaller than 1e-6 times the gradient of the margin",
    "gradient_ratio",
    _about_to_vanish,
)


def gradient_underflow(records: ModelRecords, threshold: float) -> Measurement:
    scale = records.facts.get("gradient_scale")
    if not scale:
        return _underflow(records, threshold)
    return Measurement(
        True,
        None,
        f"The gradient of cross-entropy points elsewhere when it is multiplied by {scale:.3g}. A direction cannot depend on a "
        "factor: numbers underflow or overflow on the way back.",
        np.ones(records.n, dtype=bool),
    )


def blocking_operation(records: ModelRecords, threshold: float) -> Measurement:
    if "blocking" not in records.facts:
        return Measurement(None, None, "Not measured: the gradient was not followed through this model.")
    blocking = records.facts["blocking"]
    if blocking is None:
        return Measurement(False, 0.0, "No operation takes the gradient of most images to exactly zero.")
    share = float(blocking["share"])
    return Measurement(
        share > threshold,
        share,
        f"{blocking['op']} in {blocking['layer']} makes the gradient of {percent(share)} of the images exactly zero.",
        np.ones(records.n, dtype=bool),
    )


def unfaithful_gradient(records: ModelRecords, threshold: float) -> Measurement:
    """The step length with the better fidelity counts.

    On a staircase, small steps may cross no step, or too many. A one-step attack takes one large step, so only large
    steps count for it.
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
        f"The change of the logit margin that the gradient predicts and the real change correlate with {a:.2f} over "
        f"random steps of eps / 4 and with {b:.2f} over random steps of eps (medians over correctly classified images; "
        "1 is a faithful gradient).",
        np.asarray(best < threshold),
    )


gradient_alignment = _low(
    "alignment", "The gradients at an image and at a random point of its ball have a cosine of {:.2f} (median)."
)


def noisy_gradient(records: ModelRecords, threshold: float) -> Measurement:
    """Does not fire for a claimed attack that averages over draws."""
    words = "Two gradients of one image from independent draws have a cosine of {:.2f} (median)."
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
        formula="the autograd graph has no path from the margin to x",
        cost="1 B",
        shows="There is no white-box number for this model.",
        shows_not="That the model is or is not robust.",
        source="Pintor et al. 2022, I1",
        mitigation="Give the layer a surrogate gradient (BPDA), or base the claim on black-box and transfer attacks.",
    ),
    Indicator(
        name="zero-gradient",
        target=f"{__name__}:zero_gradient",
        help="The gradient of the loss is exactly zero",
        class_="M",
        threshold=0.10,
        formula="share of correct images with max |d CE / d x| = 0 in float32, at x or at a random point of the ball",
        cost="2 B",
        shows="Attacks on this loss do not move on those images.",
        shows_not="The cause: the loss (see loss-underflow) or a layer (see blocking-operation).",
        source="Pintor et al. 2022, I1; AutoAttack's and ART's flags without their blind spots",
        mitigation="Use a margin or DLR loss, or divide the logits by a constant. If the gradient stays zero, a layer blocks it.",
    ),
    Indicator(
        name="loss-underflow",
        target=f"{__name__}:loss_underflow",
        help="The loss underflows to zero",
        class_="M",
        threshold=0.25,
        formula="share of correct images with cross-entropy = 0 in float32",
        cost="1 F",
        shows="float32 rounds the loss of these images to zero.",
        shows_not="That attacks with sign-gradient steps fail: they often work.",
        source="numerics of softmax in float32; Lee et al. 2020",
        mitigation="Use a margin or DLR loss, or divide the logits by a constant.",
    ),
    Indicator(
        name="large-logits",
        target=f"{__name__}:large_logits",
        help="The logits are too large for float32",
        class_="M",
        threshold=FLOAT32_LOSS_GAP,
        formula="median of z_y - max_{j != y} z_j over correct images",
        cost="1 F",
        shows="Whether float32 rounds the loss, or its whole gradient, to zero.",
        shows_not="That attacks with sign-gradient steps fail: they often work.",
        source="arithmetic: 24 ln 2 = 16.6",
        mitigation="Divide the logits by a constant. No prediction changes.",
    ),
    Indicator(
        name="gradient-underflow",
        target=f"{__name__}:gradient_underflow",
        help="The gradient of the loss is about to underflow",
        class_="M",
        threshold=0.50,
        formula="share of correct images with ||d CE|| / ||d margin|| < 1e-6; for L2 also with a squared norm of 0; or another direction "
        "of d CE times a power of two on 10 % of the images",
        cost="2 B",
        shows="Normalised steps (L2, L1) divide by a norm that has underflowed.",
        shows_not="Anything about sign-gradient steps, as long as the gradient is not exactly zero.",
        source="numerics of softmax in float32",
        mitigation="Normalise per image in float64, use a margin loss, or multiply the loss by a power of two.",
    ),
    Indicator(
        name="blocking-operation",
        target=f"{__name__}:blocking_operation",
        help="One operation takes the gradient to zero",
        class_="M",
        threshold=0.90,
        formula="gradient norms before and after every node of the backward pass",
        cost="1 B",
        shows="Which layer loses the gradient.",
        shows_not="That another gradient breaks more images; see surrogate-gradient.",
        source="this package; idea of Athalye et al. 2018",
        mitigation="Replace the backward pass of that operation with a surrogate.",
    ),
    Indicator(
        name="unfaithful-gradient",
        target=f"{__name__}:unfaithful_gradient",
        help="The gradient does not predict how the margin changes",
        class_="M",
        threshold=0.70,
        formula="median over correct images of corr_u(m(x + h u) - m(x), h u.g) over 20 random directions u, the larger of "
        "h = eps / 4 and h = eps; for a one-step claim h = eps",
        cost="1 B, 40 F",
        shows="The backward pass is not the slope: the gradient is shattered, or its surrogate does not fit.",
        shows_not="That an attack fails: a coarse surrogate may still point in a useful direction.",
        source="finite differences; idea of Athalye et al. 2018",
        mitigation="Choose the surrogate gradient with the highest fidelity, smooth the gradient, or use a black-box attack.",
    ),
    Indicator(
        name="gradient-alignment",
        target=f"{__name__}:gradient_alignment",
        help="Gradients at two points of the ball do not agree",
        class_="M",
        threshold=0.75,
        formula="median over correct images of cos(d m(x), d m(x + eta)), eta uniform in the ball",
        cost="2 B",
        shows="The gradient changes direction within eps, so one step cannot follow it.",
        shows_not="That multi-step attacks fail.",
        source="Andriushchenko & Flammarion 2020",
        mitigation="Use multi-step attacks with random starts. Do not train with single-step attacks alone.",
    ),
    Indicator(
        name="noisy-gradient",
        target=f"{__name__}:noisy_gradient",
        help="The gradient of one draw is far from the mean gradient",
        class_="M",
        threshold=0.90,
        formula="median over correct images of the cosine of two independent gradients of a random model",
        cost="2 B",
        shows="An attack on single draws follows noise.",
        shows_not="How many draws are enough. The split-half cosine of the mean shows that.",
        source="Athalye et al. 2018; split-half signal to noise",
        mitigation="Average the gradient over draws (EOT) until its split-half cosine reaches 0.6.",
    ),
)
