"""Validity (class V): is there an evaluation at all? Where one of the fatal ones fires, no number counts."""

from __future__ import annotations

from collections.abc import Callable

from scipy.stats import binom

from art_qplugins.diagnostics.records import Indicator, Measurement, ModelRecords, percent

__all__ = ["FATAL", "VALIDITY"]

#: Those that leave no number. The others are facts that a reader must know.
FATAL = ("chance-accuracy", "eps-too-large", "batch-dependence", "probabilities")


def _fact(name: str, words: str, no: str) -> Callable[[ModelRecords, float], Measurement]:
    def read(case: ModelRecords, threshold: float) -> Measurement:
        if name not in case.facts or case.facts[name] is None:
            why = case.facts.get("skipped", {}).get(name, f"the clean cell does not say {name}")
            return Measurement(None, None, f"Not measured: {why}.")
        value = case.facts[name]
        size = float(len(value)) if isinstance(value, (list, tuple, str)) else float(value)
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{size:.3g}"
        return Measurement(size > threshold, size, words.format(shown) if size > threshold else no)

    return read


def _failed(case: ModelRecords, threshold: float) -> Measurement:
    n = len(case.failed)
    if not n:
        return Measurement(False, 0.0, "Every cell of this model ran, and every adversarial image was legal.")
    names = ", ".join(sorted({o.cell.label for o in case.failed}))
    return Measurement(
        True, float(n), f"{n} {'cell' if n == 1 else 'cells'} failed ({names}); what they would have found is unknown."
    )


def _chance(case: ModelRecords, threshold: float) -> Measurement:
    classes = max(2, int(case.clean.column("label").max()) + 1)
    right, n = int(case.right.sum()), case.n
    p = float(binom.sf(right - 1, n, 1 / classes))
    return Measurement(
        p > threshold,
        right / n,
        f"Without an attack {right} of {n} images are answered correctly; guessing gives {percent(1 / classes)}.",
    )


def _budget(case: ModelRecords, threshold: float) -> Measurement:
    claim, pixels = case.claimed.cell, case.facts.get("pixels")
    widest = {"Linf": 1.0, "L2": float(pixels or 0) ** 0.5, "L1": float(pixels or 0)}.get(claim.norm, 0.0)
    if not widest:
        return Measurement(None, None, f"Not measured: how far apart two images can be in {claim.norm} is not known.")
    return Measurement(
        claim.eps >= widest,
        claim.eps,
        f"Pixels are in [0, 1], so two images are at most {widest:.3g} apart in {claim.norm}; eps is {claim.eps:.4g}.",
    )


def _validity(
    id: str, title: str, read: Callable[[ModelRecords, float], Measurement], mitigation: str, **more: object
) -> Indicator:
    settings = {
        "threshold": 0.0,
        "cost": "at most 5 F",
        "shows": "The evaluation, not the model, decides the number.",
        "shows_not": "Anything about robustness.",
        "source": "AutoAttack's flags, machine readable; Carlini et al. 2019",
        "formula": title,
        **more,
    }
    return Indicator(id=id, title=title, class_="V", read=read, mitigation=mitigation, **settings)  # type: ignore[arg-type]


VALIDITY: tuple[Indicator, ...] = (
    _validity(
        "failed-cells",
        "Cells of this model failed",
        _failed,
        "Read the errors in the table of cells, mend their cause and run the same command again.",
    ),
    _validity(
        "chance-accuracy",
        "The model is no better than guessing",
        _chance,
        "Check labels, pixel range (images are in [0, 1]), normalisation and weights.",
        threshold=0.05,
        formula="binomial test of clean accuracy against 1 / classes",
    ),
    _validity(
        "eps-too-large",
        "The budget allows every image",
        _budget,
        "Give eps in units of pixels in [0, 1]: 8/255 and not 8.",
        formula="eps against the largest distance of two images",
    ),
    _validity(
        "batch-dependence",
        "An image's answer depends on the others in its batch",
        _fact(
            "batch_dependent",
            "Asked in another batch, the same image gets logits that differ by {} of their size (a random model: by its slope).",
            "An image gets the same logits in every batch.",
        ),
        "Use the model as it is deployed: batch norm with its running statistics (eval mode).",
        threshold=0.01,
        formula="largest relative difference of an image's logits between two batches; of a random model, the norm of the "
        "gradient of one half of a batch in the pixels of the other, relative to that in its own",
    ),
    _validity(
        "stateful-model",
        "Asking the model changes it",
        _fact("stateful", "A forward pass in eval mode changes {}.", "A forward pass leaves every buffer as it was."),
        "Keep what the model learns or counts out of its forward pass.",
        formula="buffers and parameters before and after a forward pass",
    ),
    _validity(
        "probabilities",
        "The model returns probabilities",
        _fact(
            "probabilities", "Every row of its output is non-negative and sums to 1.", "Its output is no distribution."
        ),
        "Return logits; cross-entropy of a softmax has a tiny gradient.",
        formula="all rows in [0, 1] and summing to 1, within 1e-5",
    ),
    _validity(
        "test-time-optimisation",
        "The model optimises while it answers",
        _fact("dynamic", "It computes gradients during a forward pass.", "A forward pass computes no gradient."),
        "Attack it adaptively: standard attacks do not see what it does at test time (Croce et al. 2022).",
        formula="calls of autograd during a forward pass",
    ),
    _validity(
        "random-model",
        "The model is random",
        _fact(
            "random",
            "The same image gets other answers when it is asked again.",
            "The same image gets the same answer.",
        ),
        "Score on fresh draws and attack the mean over draws; both were done here.",
        formula="5 forward passes with other draws",
    ),
)
