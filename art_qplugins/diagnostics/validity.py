"""Validity (class V): is there an evaluation at all?

Where an indicator with ``alone="INVALID"`` fires, no number counts. The others are facts that a reader must know. What is
found of a module is measured in ``gradients/measure.py``; here it is only read.
"""

from __future__ import annotations

import functools

from scipy.stats import binom

from art_qplugins.diagnostics.indicator import Indicator, Measure, Measurement, percent
from art_qplugins.diagnostics.model_records import ModelRecords

__all__ = ["VALIDITY"]


def _fact(name: str, words: str, no: str) -> Measure:
    """A fact of the clean cell: a number, a flag, or a list that counts by its length.

    :param words: the evidence above the threshold, with a place for the value; ``no`` below it.
    """

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        value = records.facts.get(name)
        if value is None:
            why = records.facts.get("skipped", {}).get(name, f"the clean cell does not say {name}")
            return Measurement(None, None, f"Not measured: {why}.")
        size = float(len(value)) if isinstance(value, (list, tuple, str)) else float(value)
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{size:.3g}"
        return Measurement(size > threshold, size, words.format(shown) if size > threshold else no)

    return measure


def failed_cells(records: ModelRecords, threshold: float) -> Measurement:
    n = len(records.failed)
    if not n:
        return Measurement(False, 0.0, "Every cell of this model ran, and every adversarial image was legal.")
    names = ", ".join(sorted({o.cell.label for o in records.failed}))
    return Measurement(
        True, float(n), f"{n} {'cell' if n == 1 else 'cells'} failed ({names}); what they would have found is unknown."
    )


def chance_accuracy(records: ModelRecords, threshold: float) -> Measurement:
    classes = max(2, int(records.clean.column("label").max()) + 1)
    correct, n = int(records.correct.sum()), records.n
    p = float(binom.sf(correct - 1, n, 1 / classes))
    return Measurement(
        p > threshold,
        correct / n,
        f"Without an attack {correct} of {n} images are answered correctly; guessing gives {percent(1 / classes)}.",
    )


def eps_too_large(records: ModelRecords, threshold: float) -> Measurement:
    claim, pixels = records.claimed.cell, records.facts.get("pixels")
    widest = {"Linf": 1.0, "L2": float(pixels or 0) ** 0.5, "L1": float(pixels or 0)}.get(claim.norm, 0.0)
    if not widest:
        return Measurement(None, None, f"Not measured: how far apart two images can be in {claim.norm} is not known.")
    return Measurement(
        claim.eps >= widest,
        claim.eps,
        f"Pixels are in [0, 1], so two images are at most {widest:.3g} apart in {claim.norm}; eps is {claim.eps:.4g}.",
    )


batch_dependence = _fact(
    "batch_dependent",
    "Asked in another batch, the same image gets logits that differ by {} of their size (a random model: by its slope).",
    "An image gets the same logits in every batch.",
)
stateful_model = _fact(
    "stateful", "A forward pass in eval mode changes {}.", "A forward pass leaves every buffer as it was."
)
probabilities = _fact(
    "probabilities", "Every row of its output is non-negative and sums to 1.", "Its output is no distribution."
)
test_time_optimisation = _fact(
    "dynamic", "It computes gradients during a forward pass.", "A forward pass computes no gradient."
)
random_model = _fact(
    "random", "The same image gets other answers when it is asked again.", "The same image gets the same answer."
)

_validity = functools.partial(
    Indicator,
    class_="V",
    threshold=0.0,
    cost="at most 5 F",
    shows="The evaluation, not the model, decides the number.",
    shows_not="Anything about robustness.",
    source="AutoAttack's flags, machine readable; Carlini et al. 2019",
)

VALIDITY: tuple[Indicator, ...] = (
    _validity(
        name="failed-cells",
        target=f"{__name__}:failed_cells",
        help="Cells of this model failed",
        formula="Cells of this model failed",
        mitigation="Read the errors in the table of cells, mend their cause and run the same command again.",
    ),
    _validity(
        name="chance-accuracy",
        target=f"{__name__}:chance_accuracy",
        help="The model is no better than guessing",
        threshold=0.05,
        formula="binomial test of clean accuracy against 1 / classes",
        mitigation="Check labels, pixel range (images are in [0, 1]), normalisation and weights.",
        alone="INVALID",
    ),
    _validity(
        name="eps-too-large",
        target=f"{__name__}:eps_too_large",
        help="The budget allows every image",
        formula="eps against the largest distance of two images",
        mitigation="Give eps in units of pixels in [0, 1]: 8/255 and not 8.",
        alone="INVALID",
    ),
    _validity(
        name="batch-dependence",
        target=f"{__name__}:batch_dependence",
        help="An image's answer depends on the others in its batch",
        threshold=0.01,
        formula="largest relative difference of an image's logits between two batches; of a random model, the norm of the "
        "gradient of one half of a batch in the pixels of the other, relative to that in its own",
        mitigation="Use the model as it is deployed: batch norm with its running statistics (eval mode).",
        alone="INVALID",
    ),
    _validity(
        name="stateful-model",
        target=f"{__name__}:stateful_model",
        help="Asking the model changes it",
        formula="buffers and parameters before and after a forward pass",
        mitigation="Keep what the model learns or counts out of its forward pass.",
    ),
    _validity(
        name="probabilities",
        target=f"{__name__}:probabilities",
        help="The model returns probabilities",
        formula="all rows in [0, 1] and summing to 1, within 1e-5",
        mitigation="Return logits; cross-entropy of a softmax has a tiny gradient.",
        alone="INVALID",
    ),
    _validity(
        name="test-time-optimisation",
        target=f"{__name__}:test_time_optimisation",
        help="The model optimises while it answers",
        formula="calls of autograd during a forward pass",
        mitigation="Attack it adaptively: standard attacks do not see what it does at test time (Croce et al. 2022).",
        alone="SUSPECT",
    ),
    _validity(
        name="random-model",
        target=f"{__name__}:random_model",
        help="The model is random",
        formula="5 forward passes with other draws",
        mitigation="Score on fresh draws and attack the mean over draws; both were done here.",
    ),
)
