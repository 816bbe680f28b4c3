"""Mechanisms (class M): why a gradient fails, measured at the clean images and in their neighbourhood.

A mechanism alone proves nothing. With the control experiment named in ``proof``, on the same images, it explains a gap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics.model_records import Indicator, Measurement, ModelRecords, percent

__all__ = ["FLOAT32_LOSS_GAP", "MECHANISMS"]

#: Above this distance of the top two logits, 1 - p_y rounds to 0 in float32: -log2(eps / 2) * ln 2 = 24 ln 2.
FLOAT32_LOSS_GAP = 24 * np.log(2)

_BACKWARD = ("surrogate-gradient", "black-box-search", "transfer")
_UNFAITHFUL = (*_BACKWARD, "ordinary-attack-gap")


def _share(
    describe: str, column: str, at_work: Callable[[ModelRecords], NDArray[np.bool_]]
) -> Callable[[ModelRecords, float], Measurement]:
    def read(case: ModelRecords, threshold: float) -> Measurement:
        if not case.right.any() or np.isnan(case.clean.column(column)).all():
            return Measurement(None, None, f"Not measured: {_why(case, column)}.")
        present = at_work(case)
        share = float(present[case.right].mean())
        return Measurement(
            share >= threshold, share, f"On {percent(share)} of the correctly answered images {describe}.", present
        )

    return read


def _why(case: ModelRecords, column: str) -> str:
    if not case.right.any():
        return "no image is answered correctly"
    return str(case.facts.get("skipped", {}).get(column, f"the clean cell has no {column}"))


def _interrupted(case: ModelRecords, threshold: float) -> Measurement:
    reaches = case.facts.get("reaches_pixels")
    if reaches is None:
        return Measurement(None, None, "Not measured.")
    if reaches:
        return Measurement(False, 0.0, "The graph of the backward pass reaches the pixels.")
    at = case.facts.get("ends_at") or "somewhere in the model"
    return Measurement(
        True, 1.0, f"No gradient reaches the pixels: the graph ends at {at}.", np.ones(case.n, dtype=bool)
    )


def _zero(case: ModelRecords) -> NDArray[np.bool_]:
    start = case.clean.column("gradient_start")
    return np.asarray((case.clean.column("gradient") == 0) | (start == 0))


def _vanished(case: ModelRecords, threshold: float) -> Measurement:
    """Counted where it is exactly zero; at work also where it is about to be: a few steps away, or as part of a mean."""
    words = "the gradient that an attack on cross-entropy starts from is exactly zero"
    reading = _share(words, "gradient", _zero)(case, threshold)
    return reading if reading.present is None else replace(reading, present=reading.present | _tiny(case))


def _tiny(case: ModelRecords) -> NDArray[np.bool_]:
    ratio, squared = case.clean.column("gradient_ratio"), case.clean.column("gradient_l2")
    if case.claimed.cell.norm == "Linf":
        return np.asarray(ratio < 1e-6)
    return np.asarray((ratio < 1e-6) | (squared == 0))


def _band(case: ModelRecords, threshold: float) -> Measurement:
    margin = case.clean.column("margin")
    if not case.right.any() or np.isnan(margin[case.right]).all():
        return Measurement(None, None, f"Not measured: {_why(case, 'margin')}.")
    middle = float(np.nanmedian(margin[case.right]))
    return Measurement(
        middle > threshold,
        middle,
        f"Half of the correctly answered images have their two largest logits more than {middle:.3g} apart; above "
        f"{threshold:.1f} float32 rounds the loss to 0, above 103 its whole gradient.",
        np.asarray(margin > threshold),
    )


def _low(column: str, words: str) -> Callable[[ModelRecords, float], Measurement]:
    def read(case: ModelRecords, threshold: float) -> Measurement:
        values = case.clean.column(column)
        if not case.right.any() or np.isnan(values[case.right]).all():
            return Measurement(None, None, f"Not measured: {_why(case, column)}.")
        middle = float(np.nanmedian(values[case.right]))
        return Measurement(middle < threshold, middle, words.format(middle), np.asarray(values < threshold))

    return read


def _noisy(case: ModelRecords, threshold: float) -> Measurement:
    measured = _low("coherence", "Two gradients of the same image, from other draws, have a cosine of {:.2f} (median).")
    reading = measured(case, threshold)
    if not (reading.fired and case.claim_averages):
        return reading
    return replace(reading, fired=False, evidence=f"{reading.evidence} The claimed attack averages over draws.")


def _unfaithful(case: ModelRecords, threshold: float) -> Measurement:
    """Small steps may cross no step of a staircase, or too many: a gradient that predicts large ones leads somewhere."""
    small, large = case.clean.column("fidelity"), case.clean.column("fidelity_eps")
    if not case.right.any() or np.isnan(small[case.right]).all():
        return Measurement(None, None, f"Not measured: {_why(case, 'fidelity')}.")
    best = large if ATTACKS[case.claimed.cell.attack].one_step else np.fmax(small, large)
    middle = float(np.nanmedian(best[case.right]))
    a, b = (float(np.nanmedian(v[case.right])) if not np.isnan(v).all() else np.nan for v in (small, large))
    return Measurement(
        middle < threshold,
        middle,
        f"Over random steps of eps / 4 and of eps, what the gradient predicts of the logit margin and what happens "
        f"correlate with {a:.2f} and {b:.2f} (medians over correctly answered images; 1 is a faithful gradient).",
        np.asarray(best < threshold),
    )


def _guilty(case: ModelRecords, threshold: float) -> Measurement:
    if "blocking" not in case.facts:
        return Measurement(None, None, "Not measured: there is no ledger of this model.")
    guilty = case.facts["blocking"]
    if guilty is None:
        return Measurement(False, 0.0, "No operation takes the gradient of most images to exactly zero.")
    share = float(guilty["share"])
    return Measurement(
        share > threshold,
        share,
        f"The gradient of {percent(share)} of the images is exactly zero behind {guilty['op']} in {guilty['layer']} and "
        "was not before it.",
        np.ones(case.n, dtype=bool),
    )


MECHANISMS: tuple[Indicator, ...] = (
    Indicator(
        id="no-gradient",
        title="No gradient reaches the pixels",
        class_="M",
        threshold=0.0,
        formula="the graph of d margin / d x has no path to x",
        cost="1 B",
        shows="There is no white-box number for this model.",
        shows_not="That the model is or is not robust.",
        source="Pintor et al. 2022, I1",
        mitigation="Give the layer a surrogate gradient (BPDA), or claim by black-box and transfer attacks.",
        read=_interrupted,
        proof=_BACKWARD,
    ),
    Indicator(
        id="zero-gradient",
        title="The gradient of the loss is exactly zero",
        class_="M",
        threshold=0.10,
        formula="share of right images with max |d CE / d x| = 0 in float32, at x or at a random point of the ball",
        cost="2 B",
        shows="Attacks along this loss do not move on those images.",
        shows_not="Whether the loss (see M3) or a layer (see M6) is to blame.",
        source="Pintor et al. 2022, I1; AutoAttack's and ART's flags without their blind spots",
        mitigation="Use a margin or DLR loss, or divide the logits by a constant; if it stays zero, a layer blocks it.",
        read=_vanished,
        proof=("logit-scale", *_BACKWARD),
    ),
    Indicator(
        id="loss-underflow",
        title="The loss underflows to zero",
        class_="M",
        threshold=0.25,
        formula="share of right images with cross-entropy = 0 in float32",
        cost="1 F",
        shows="The loss has no slope left in its first term.",
        shows_not="That an attack by the gradient's sign fails: it often survives.",
        source="numerics of softmax in float32; Lee et al. 2020",
        mitigation="Use a margin or DLR loss, or divide the logits by a constant.",
        read=_share("cross-entropy is exactly 0 in float32", "loss", lambda case: case.clean.column("loss") == 0),
        proof=("logit-scale",),
    ),
    Indicator(
        id="large-logits",
        title="The logits are too large for float32",
        class_="M",
        threshold=float(FLOAT32_LOSS_GAP),
        formula="median over right images of z_y - max other z",
        cost="1 F",
        shows="Which band of float32 underflow the model works in.",
        shows_not="That an attack by the gradient's sign fails: it often survives.",
        source="arithmetic: 24 ln 2 = 16.6",
        mitigation="Divide the logits by a constant: no answer changes.",
        read=_band,
        proof=("logit-scale",),
    ),
    Indicator(
        id="gradient-underflow",
        title="The gradient of the loss is about to underflow",
        class_="M",
        threshold=0.50,
        formula="share of right images with ||d CE|| / ||d margin|| < 1e-6; for L2 also with a squared norm of 0",
        cost="2 B",
        shows="Normalised steps (L2, L1) divide by what is lost already.",
        shows_not="Anything for steps by the sign while the gradient is not exactly zero.",
        source="numerics of softmax in float32",
        mitigation="Normalise per image in float64, or use a margin loss.",
        read=_share("the gradient of cross-entropy is below 1e-6 of that of the margin", "gradient_ratio", _tiny),
        proof=("logit-scale",),
    ),
    Indicator(
        id="blocking-operation",
        title="One operation takes the gradient to zero",
        class_="M",
        threshold=0.90,
        formula="ledger of gradient norms before and behind every node of the backward pass",
        cost="1 B",
        shows="Which layer is to blame.",
        shows_not="That another gradient gets further; see BPDA.",
        source="here; idea of Athalye et al. 2018",
        mitigation="Replace that operation's backward pass by a surrogate.",
        read=_guilty,
        proof=_BACKWARD,
    ),
    Indicator(
        id="unfaithful-gradient",
        title="The gradient does not predict what steps do",
        class_="M",
        threshold=0.70,
        formula="median over right images of corr_u(m(x + h u) - m(x), h u.g) over 20 random directions u, the larger of h = "
        "eps / 4 and h = eps; for a one-step claim h = eps",
        cost="1 B, 40 F",
        shows="The backward pass is not the slope: shattered, or a surrogate that does not fit.",
        shows_not="That an attack fails: a coarse surrogate may lead the right way.",
        source="finite differences; idea of Athalye et al. 2018",
        mitigation="Choose another surrogate gradient by its fidelity, smooth the gradient, or attack without gradients.",
        read=_unfaithful,
        proof=_UNFAITHFUL,
    ),
    Indicator(
        id="gradient-alignment",
        title="Gradients at two points of the ball do not agree",
        class_="M",
        threshold=0.75,
        formula="median over right images of cos(d m(x), d m(x + eta)), eta uniform in the ball",
        cost="2 B",
        shows="The surface turns within the budget: one step cannot follow it.",
        shows_not="That attacks of many steps fail.",
        source="Andriushchenko & Flammarion 2020",
        mitigation="Use attacks of many steps with random starts; do not train with one step alone.",
        read=_low(
            "alignment", "The gradient at an image and at a random point of its ball have a cosine of {:.2f} (median)."
        ),
        proof=("single-step", *_BACKWARD),
    ),
    Indicator(
        id="noisy-gradient",
        title="The gradient of one call says little of the mean",
        class_="M",
        threshold=0.90,
        formula="median over right images of the cosine of two independent gradients of a random model",
        cost="2 B",
        shows="An attack along single calls follows noise.",
        shows_not="That more draws are enough; the split-half cosine of the mean says so.",
        source="Athalye et al. 2018; split-half signal to noise",
        mitigation="Average the gradient over draws (EOT) until its split-half cosine reaches 0.6.",
        read=_noisy,
        proof=("mean-gradient", "black-box-search", "transfer", "attack-gap"),
    ),
)
