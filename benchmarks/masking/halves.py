"""Which half of the zoo a family of rows is in. The rule is here, and was here before any row of half C was run.

A is for tuning thresholds and B for checking them. C is sealed: it is run once, when everything else is done. A row of C
that leads to a change has been looked at. Its family then moves to B, and a new one takes its place.

A family that thresholds were tuned or debugged with before C existed is in A or B for good. Of the others, a hash of the
name puts about a third into C. A second hash splits the rest, and the old ones, in A and B.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

__all__ = ["MOVED", "Half", "half_of"]

Half = Literal["A", "B", "C"]

#: Families whose rows led to a change after they were in C, with the reason. They are in B.
MOVED: Mapping[str, str] = {
    "clipped-logits": "a clipped largest logit became a saturation",
    "codebook": "the last attacks go on from the best images, and through more than one backward pass",
    "jpeg-pil": "as codebook",
    "tiny-backward": "a gradient that underflows is multiplied",
    "steep-pixels": "looked at with them, though nothing was changed for it",
    "anti-adversary": "the part that is attacked alone may be a network in itself",
    "median-honest": "where few images are left, a silent control settles",
}
#: Families that took their place in C, before any row of theirs was run.
_IN_THEIR_PLACE = frozenset(
    """
    median dithered embedded decisions half-honest half-range frequencies patches deflected
    components-honest components generated
    """.split()  # noqa: SIM905
)

#: Families that are older than half C.
_OLD = frozenset(
    """
    plain training small-logits regularized noise width smooth-activation other-activation pooling residual mlp no-norm l2
    claims quantized quantized-coarse bpda at at-eps at-shape trades at-quantized sq sq-fine sq-at
    scale scale-at scale-l2 mu-law distilled saturated detached killed rounded compressed sign sign-steep fgsm-at
    k-winners squeezed output one-draw noisy steps few-steps last-iterate wrong-units divided eps-units train-mode
    """.split()  # noqa: SIM905
)
#: Chosen, before any verdict was looked at, as the first number for which A and B have rows of every old kind, and between 40
#: and 60 percent of the honest and of the masked ones.
_SALT = 0
#: Chosen, before any new row was run, as the first number for which C has a quarter to 40 percent of the new families, and
#: for which all three halves have new honest and new masked ones, and C a misleading one.
_SEALED_SALT = 1


def half_of(family: str) -> Half:
    """The half of a family."""
    if family in MOVED:
        return "B"
    if family in _IN_THEIR_PLACE:
        return "C"
    if family not in _OLD and _digit(f"sealed {_SEALED_SALT}{family}") % 3 == 0:
        return "C"
    return "A" if _digit(f"{_SALT}{family}") % 2 else "B"


def _digit(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0]
