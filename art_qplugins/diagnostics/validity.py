"""Validity (class V): is there an evaluation at all?

No number counts if an indicator with ``alone="INVALID"`` fires. The other indicators are facts that a reader must know.
The facts are measured in ``gradients/measure.py``. This module only reads them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
from scipy.stats import binom

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics.indicator import Indicator, Measure, Measurement, percent
from art_qplugins.diagnostics.model_records import ModelRecords
from art_qplugins.evaluation.outcome import Outcome

__all__ = ["VALIDITY"]

#: An image has moved if it is farther from the clean one than this share of eps.
_MOVED = 1e-3
#: Number of attacks that a sentence names.
_NAMED = 3


def _fact(name: str, words: str, no: str) -> Measure:
    """A fact of the clean cell: a number, a flag, or a list. The length of a list is its value.

    :param words: the evidence above the threshold, with a placeholder for the value. ``no`` is the evidence below it.
    """

    def measure(records: ModelRecords, threshold: float) -> Measurement:
        value = records.facts.get(name)
        if value is None:
            why = records.facts.get("skipped", {}).get(name, f"the clean cell does not say {name}")
            return Measurement(None, None, f"Not measured: {why}.")
        size = float(len(value)) if isinstance(value, (list, tuple, str)) else float(value)
        if math.isnan(size):
            return Measurement(None, None, "Not measured: it is NaN.")
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{size:.3g}"
        return Measurement(size > threshold, size, words.format(shown) if size > threshold else no)

    return measure


def failed_cells(records: ModelRecords, threshold: float) -> Measurement:
    n = len(records.failed)
    if not n:
        return Measurement(False, 0.0, "Every cell of this model ran, and every adversarial image was legal.")
    names = ", ".join(sorted({o.cell.label for o in records.failed}))
    return Measurement(
        True, float(n), f"{n} {'cell' if n == 1 else 'cells'} failed ({names}), so their results are unknown."
    )


def no_answers(records: ModelRecords, threshold: float) -> Measurement:
    silent = [o for o in records.failed if o.cell.raised]
    if not silent:
        return Measurement(False, 0.0, "The model answered for every image that it was asked for.")
    return Measurement(
        True,
        float(len(silent)),
        f"{_labels(silent)} failed because the model has no answer for a legal image: {silent[0].cell.error_line}.",
    )


def other_answers(records: ModelRecords, threshold: float) -> Measurement:
    cells = [o for o in (records.clean, *records.attacks, *records.failed) if o.cell.drift is not None]
    if not cells:
        return Measurement(None, None, "Not measured: no cell asked the model again after its attack.")
    worst = max(cells, key=lambda o: o.cell.drift or 0.0)
    largest, several = float(worst.cell.drift or 0.0), [o for o in cells if (o.cell.drift or 0.0) > threshold]
    if not several:
        return Measurement(False, largest, "The model answers for the same clean images as before each attack.")
    return Measurement(
        True,
        largest,
        f"During {_labels(several)} the answers for the same clean images changed, by {percent(largest)} of the largest logit.",
    )


def chance_accuracy(records: ModelRecords, threshold: float) -> Measurement:
    classes = max(2, int(records.clean.column("label").max()) + 1)
    correct, n = int((records.clean.labelled >= 0.5).sum()), records.n
    p = float(binom.sf(correct - 1, n, 1 / classes))
    return Measurement(
        p > threshold,
        correct / n,
        f"The model classifies {correct} of {n} clean images correctly. Guessing gives {percent(1 / classes)}.",
    )


def eps_too_large(records: ModelRecords, threshold: float) -> Measurement:
    claim, pixels = records.claimed.cell, records.facts.get("pixels")
    widest = {"Linf": 1.0, "L2": float(pixels or 0) ** 0.5, "L1": float(pixels or 0)}.get(claim.norm, 0.0)
    if not widest:
        return Measurement(
            None, None, f"Not measured: the largest distance of two images in {claim.norm} is not known."
        )
    return Measurement(
        claim.eps >= widest,
        claim.eps,
        f"Two images in [0, 1] are at most {widest:.3g} apart in {claim.norm}. eps is {claim.eps:.4g}.",
    )


def idle_attacks(records: ModelRecords, threshold: float) -> Measurement:
    if all(o.cell.visited is None for o in records.attacks):
        return Measurement(None, None, "Not measured: no cell says which points its attack visited.")
    idle = [o for o in records.attacks if _idle(records, o)]
    if not idle:
        return Measurement(
            False, 0.0, "Every attack visited other points than the clean images, or had no image to move."
        )
    return Measurement(
        len(idle) > threshold,
        float(len(idle)),
        f"{_labels(idle)} moved no image, and asked the model for no point but the clean images.",
    )


def _idle(records: ModelRecords, o: Outcome) -> bool:
    """Whether an attack that had images to move moved none, and did not try to."""
    distance = o.column("distance")
    to_move = records.correct & ~np.isnan(distance)
    return o.cell.visited is False and bool(to_move.any()) and not (distance[to_move] > _MOVED * o.cell.eps).any()


def undefined_path(records: ModelRecords, threshold: float) -> Measurement:
    if all(o.cell.visited is None for o in records.attacks):
        return Measurement(None, None, "Not measured: no cell says which points its attack visited.")
    lost = [o for o in records.attacks if o.cell.undefined]
    points = sum(o.cell.undefined for o in lost)
    if not lost:
        return Measurement(
            False, 0.0, "Every point that an attack visited is finite, and so is every gradient that it got."
        )
    return Measurement(
        points > threshold, float(points), f"{_labels(lost)} met {points} points or gradients that are not finite."
    )


def other_options(records: ModelRecords, threshold: float) -> Measurement:
    ran: dict[str, None] = {}
    for o in records.attacks:
        changed = ATTACKS[o.cell.attack].weakened(o.cell.params) if o.cell.role == "attack" else {}
        if changed:
            defaults = ATTACKS[o.cell.attack].defaults
            words = ", ".join(f"{name} = {value} and not {defaults[name]}" for name, value in changed.items())
            ran[f"{o.cell.attack} with {words}"] = None
    if not ran:
        return Measurement(False, 0.0, "Every attack of the recipe ran with its default options, or with more effort.")
    more = f", and {len(ran) - _NAMED} more" if len(ran) > _NAMED else ""
    return Measurement(len(ran) > threshold, float(len(ran)), f"The recipe ran {'; '.join([*ran][:_NAMED])}{more}.")


def _labels(outcomes: list[Outcome]) -> str:
    names = list(dict.fromkeys(f"{o.cell.label} at {o.cell.norm} {o.cell.eps:.4g}" for o in outcomes))
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


_dependence = _fact(
    "batch_dependent",
    "The logits of one image differ by {} of their size between two batches (for a random model, measured by gradients).",
    "An image gets the same logits in every batch.",
)


def batch_dependence(records: ModelRecords, threshold: float) -> Measurement:
    """With the accuracies in the batch that was scored and of each image alone."""
    found = _dependence(records, threshold)
    if not found.fired:
        return found
    both = [
        f"Of the {what} images {percent(float(outcome.column('correct').mean()))} are classified correctly in their batch, and "
        f"{percent(float(np.nanmean(outcome.column('alone'))))} alone."
        for what, outcome in (("clean", records.clean), ("adversarial", records.claimed))
        if not np.isnan(outcome.column("alone")).all()
    ]
    return replace(found, evidence=" ".join([found.evidence, *both]))


stateful_model = _fact(
    "stateful", "A forward pass in eval mode changes {}.", "A forward pass leaves every buffer as it was."
)
probabilities = _fact(
    "probabilities",
    "Every row of the output is non-negative and sums to 1. Cross-entropy applies a second softmax to it and saturates, so "
    "the logarithm of the output was attacked in its place. No prediction changes.",
    "The output is not a probability distribution.",
)
_dynamic = _fact("dynamic", "A forward pass computes gradients.", "A forward pass computes no gradient.")


def test_time_optimisation(records: ModelRecords, threshold: float) -> Measurement:
    """A mechanism too: the gradient of an attack may not see what the forward pass optimizes."""
    return replace(_dynamic(records, threshold), present=np.ones(records.n, dtype=bool))


adapted_model = _fact("adapted", "The model {}.", "The model takes batches, leaves them as they are and gives float32.")


def deployed_model(records: ModelRecords, threshold: float) -> Measurement:
    told = records.facts.get("deployed")
    if not told:
        return Measurement.does_not_apply("the model is a torch module of its own.")
    return Measurement(True, float(len(told)), f"The model {'. It '.join(told)}.")


def twin_parity(records: ModelRecords, threshold: float) -> Measurement:
    """Of adversarial images, twice the threshold is allowed: they are near a boundary of the twin."""
    clean = records.clean.column("agrees")
    several = [o.column("agrees") for o in records.attacks]
    adversarial = np.concatenate(several) if several else np.array([])
    apart = {}
    for what, agrees in (("clean", clean), ("adversarial", adversarial)):
        known = agrees[~np.isnan(agrees)]
        if len(known):
            apart[what] = (int((known < 0.5).sum()), len(known))
    if not apart:
        return Measurement.does_not_apply("the model has no twin.")
    shares = {what: few / n for what, (few, n) in apart.items()}
    value = max(shares.get("clean", 0.0), shares.get("adversarial", 0.0) / 2)
    words = " and ".join(f"{few} of {n} {what} images" for what, (few, n) in apart.items())
    return Measurement(value > threshold, value, f"The twin gives another label than the model for {words}.")


random_model = _fact(
    "random",
    "Two forward passes of one image give different logits.",
    "Two forward passes of one image give the same logits.",
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
        mitigation="Read the errors in the table of cells, fix their cause and run the same command again.",
    ),
    _validity(
        name="no-answer",
        target=f"{__name__}:no_answers",
        help="The model has no answer for some images",
        formula="cells that failed because the model raises on an image in [0, 1], asked again alone, or gives NaN for it",
        shows="Nobody knows whether these images break the model.",
        mitigation="Let the model answer for every image in [0, 1]. If it means to reject some, give it a rejection class.",
    ),
    _validity(
        name="changing-answers",
        target=f"{__name__}:other_answers",
        help="The model gives other answers after it was asked often",
        threshold=0.01,
        formula="largest change of a logit between two calls for the same clean images with the same draws, one before and "
        "one after an attack, relative to the largest logit; not of a model whose answers differ from call to call",
        mitigation="Make the answer depend on the image alone: no counters, no caches, no learning at test time.",
    ),
    _validity(
        name="adapted-model",
        target=f"{__name__}:adapted_model",
        help="The model is asked in another way than it is written for",
        formula="what is done so that attacks can ask it: image by image, with copies of the images, or logits as float32",
        shows="How the model was asked. Its answers are its own.",
        mitigation="Take batches, leave the images as they are, and give float32 logits: attacks then cost less.",
    ),
    _validity(
        name="deployed-model",
        target=f"{__name__}:deployed_model",
        help="The model is a deployed one, with the gradient of another network",
        formula="how it answers, and where the gradient that attacks follow is from",
        shows="Images are judged by the deployed model. How strong an attack along a gradient is depends on the twin.",
        mitigation="Give the network that was deployed as its twin, and look at what finds images without a gradient.",
        source="Athalye, Carlini & Wagner 2018, section 4.1.1",
    ),
    _validity(
        name="twin-parity",
        target=f"{__name__}:twin_parity",
        help="A deployed model and its twin give different labels",
        threshold=0.005,
        formula="share of clean images with another label, or half the share of adversarial ones",
        shows="The twin is another network than the deployed one: its own numbers do not hold for what is deployed.",
        mitigation="Find where they differ first (art_qplugins.parity): pixel range, mean and deviation, biases, rounding.",
        source="Label agreement; Wilson 1927 for its interval",
    ),
    _validity(
        name="idle-attack",
        target=f"{__name__}:idle_attacks",
        help="An attack did nothing",
        formula="attacks that moved no image and visited no point but the clean images, where images could be moved",
        shows="The number of this attack is the clean accuracy. It says nothing about robustness.",
        mitigation="Check the options of the attack, and whether the model has a gradient at all. Then attack again.",
    ),
    _validity(
        name="undefined-path",
        target=f"{__name__}:undefined_path",
        help="An attack met points or gradients that are not finite",
        formula="points with NaN or infinity that an attack asked the model for, and gradients with them that it got",
        shows="The attack lost images on its way, so its number is too high.",
        mitigation="Check the options of the attack, and look for the operation whose gradient is not finite.",
    ),
    _validity(
        name="other-options",
        target=f"{__name__}:other_options",
        help="An attack ran with other options than its defaults",
        formula="attacks of the recipe with fewer steps, starts or queries than by default, or with other settings",
        shows="The number is that of another attack than its name says, and may be too high.",
        mitigation="Run the attack with its default options too, and report the lower number.",
        source="Carlini et al. 2019, on hyperparameters",
    ),
    _validity(
        name="chance-accuracy",
        target=f"{__name__}:chance_accuracy",
        help="The model is no better than guessing",
        threshold=0.05,
        formula="binomial test of clean accuracy against 1 / classes",
        mitigation="Check labels, pixel range (images are in [0, 1]), normalisation and weights.",
    ),
    _validity(
        name="eps-too-large",
        target=f"{__name__}:eps_too_large",
        help="eps is so large that every image is allowed",
        formula="eps against the largest distance of two images",
        mitigation="Give eps in units of pixels in [0, 1]: 8/255 and not 8.",
    ),
    _validity(
        name="batch-dependence",
        target=f"{__name__}:batch_dependence",
        help="The prediction of an image depends on the other images in its batch",
        threshold=0.01,
        formula="largest relative difference of an image's logits between two batches; for a random model, the norm of the "
        "gradient of one half of a batch in the pixels of the other half, relative to that in its own pixels",
        shows="The number holds for batches like those that were scored, and for no others.",
        mitigation="Use the model as it is deployed: batch norm with its running statistics (eval mode).",
    ),
    _validity(
        name="stateful-model",
        target=f"{__name__}:stateful_model",
        help="A forward pass changes the model",
        formula="buffers and parameters before and after a forward pass",
        mitigation="Update no buffer and no parameter in the forward pass in eval mode.",
    ),
    _validity(
        name="probabilities",
        target=f"{__name__}:probabilities",
        help="The model returns probabilities",
        formula="all rows in [0, 1] and summing to 1, within 1e-5",
        shows="Attacks on the output itself, as in other tools, are weaker than the numbers here.",
        mitigation="Give logits to other tools: end the model before its softmax, or take the logarithm of its output.",
    ),
    _validity(
        name="test-time-optimisation",
        target=f"{__name__}:test_time_optimisation",
        help="The model computes gradients in its forward pass",
        formula="calls of autograd during a forward pass",
        mitigation="Use an adaptive attack: standard attacks do not account for test-time optimisation (Croce et al. 2022).",
    ),
    _validity(
        name="random-model",
        target=f"{__name__}:random_model",
        help="The model is random",
        formula="5 forward passes with independent draws",
        mitigation="Score on fresh draws and attack the mean over draws. Both were done here.",
    ),
)
