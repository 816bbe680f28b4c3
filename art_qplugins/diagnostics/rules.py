"""The one table of the diagnosis: what each indicator decides, and which control experiments settle which mechanism.

A mechanism is a way in which a gradient can mislead attacks. Its control experiment takes away the mechanism and nothing
else. Every indicator has one of four answers:

* fired: it found something;
* silent: it ran and found nothing;
* does not apply: this model or this claim has nothing that it could test;
* not run: it was skipped, or it failed.

A mechanism that fired ends in one of four ways:

======== ================================================================================ ======================
end      when                                                                             verdict
======== ================================================================================ ======================
proved   a control fired, and the mechanism is on most of the images that it newly broke  MASKED
settled  no control fired, and one was silent that could have found something             as if it were absent
open     no control fired, and none could have found something                            SUSPECT
apart    a control fired, on images without the mechanism                                 SUSPECT
======== ================================================================================ ======================

A silent control could have found something where it breaks the same images at a larger eps, or where no image was left to
attack. The gap between two attacks is no control: it shows that one of them is weak.

An indicator without a row here is a note. It is shown, and it decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["NOTE", "RULES", "Rule"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one indicator does to the verdict.

    :ivar alone: the verdict if it fires and nothing is proved. INVALID goes before every other verdict.
    :ivar controls: for a mechanism: its control experiments. A control that exchanges nothing but the gradient is a
        mechanism too, and names itself.
    :ivar required: if it did not run and nothing else was found, the verdict is INCONCLUSIVE.
    """

    alone: Literal["SUSPECT", "INCONCLUSIVE", "INVALID"] | None = None
    controls: tuple[str, ...] = ()
    required: bool = False


#: Decides nothing.
NOTE = Rule()

#: Ways around a backward pass that is not the slope.
_AROUND = ("surrogate-gradient", "black-box-search", "transfer")

RULES: Mapping[str, Rule] = {
    # The claim
    "attack-gap": Rule(required=True),
    # Control experiments
    "logit-scale": Rule(required=True),
    "surrogate-gradient": Rule(alone="SUSPECT", controls=("surrogate-gradient",)),
    "mean-gradient": Rule(alone="SUSPECT"),
    "black-box-search": Rule(alone="SUSPECT", required=True),
    "transfer": Rule(alone="SUSPECT"),
    "single-step": Rule(),
    # Mechanisms
    "no-gradient": Rule(alone="SUSPECT", controls=_AROUND),
    "zero-gradient": Rule(alone="SUSPECT", controls=("logit-scale", *_AROUND), required=True),
    "loss-underflow": Rule(alone="SUSPECT", controls=("logit-scale",), required=True),
    "large-logits": Rule(alone="SUSPECT", controls=("logit-scale",), required=True),
    "gradient-underflow": Rule(controls=("logit-scale",)),
    "blocking-operation": Rule(controls=_AROUND),
    "unfaithful-gradient": Rule(controls=_AROUND),
    "gradient-alignment": Rule(controls=("single-step", *_AROUND)),
    "noisy-gradient": Rule(controls=("mean-gradient", "black-box-search", "transfer")),
    "test-time-optimisation": Rule(controls=_AROUND),
    # Symptoms
    "misled-loss": Rule(alone="SUSPECT"),
    "unbounded-attack-fails": Rule(alone="SUSPECT"),
    # Validity
    "failed-cells": Rule(alone="INCONCLUSIVE"),
    "no-answer": Rule(alone="INVALID"),
    "changing-answers": Rule(alone="INVALID"),
    "chance-accuracy": Rule(alone="INVALID"),
    "eps-too-large": Rule(alone="INVALID"),
    "batch-dependence": Rule(alone="SUSPECT"),
}
