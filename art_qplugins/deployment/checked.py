"""What a deployed model may answer, and one line that says what came where it is anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from art_qplugins.errors import InputError, one_line, shown

__all__ = ["checked", "same"]

#: Characters of an answer that are shown.
_SHOWN = 60


def checked(given: Any, n: int, *, nb_classes: int | None, labels_only: bool, finite: bool = True) -> NDArray[Any]:
    """The answer for ``n`` images: scores (n, K) as float32, or labels (n,) as int64. Labels may come as scores.

    :param given: an array, a tensor, or lists of numbers.
    :param nb_classes: K; ``None`` takes any number from 2.
    :param finite: also refuse infinity.
    :raises InputError: for another shape or type, for text, nothing and NaN, and for a label that is no class.
    """
    wanted = f"({n}, {nb_classes or 'K'}) {'finite ' * finite}numbers" + f", or ({n},) labels" * labels_only
    try:
        found = np.asarray(given.detach().cpu().double().numpy() if isinstance(given, Tensor) else given)
    except Exception:  # lists of different lengths, or an object that is no array
        found = np.asarray(None)
    if found.dtype.kind not in "fiu":
        raise _not(wanted, f"{found.dtype} {found.shape}" if found.dtype.kind in "bc" else _text(given))
    alone = found.shape in ((n,), (n, 1))  # one number for each image
    if labels_only and alone:
        return _labels(found.reshape(n), nb_classes)
    if found.ndim != 2 or len(found) != n or found.shape[1] < 2 or nb_classes not in (None, found.shape[1]):
        raise _not(wanted, f"an array {found.shape}", "; where these are labels, say labels_only" * alone)
    with np.errstate(over="ignore"):
        scores = found.astype(np.float32)
    bad = ~np.isfinite(scores) if finite else np.isnan(scores)
    if bad.any():
        raise _not(wanted, f"{found[bad][0]} for {int(bad.any(1).sum())} of {n} images")
    return scores.argmax(1).astype(np.int64) if labels_only else scores


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two answers to the same images differ by rounding only."""
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-4, atol=1e-5))


def _labels(found: NDArray[Any], nb_classes: int | None) -> NDArray[np.int64]:
    high = np.inf if nb_classes is None else nb_classes - 1
    odd = found[~((found >= 0) & (found <= high) & (found == np.floor(found)))]
    if len(odd):
        raise _not("labels from 0" + ("" if nb_classes is None else f" to {high}"), shown(odd[0].item()))
    return found.astype(np.int64)


def _text(given: Any) -> str:
    """The beginning of an answer that is no array."""
    text = given.decode("utf-8", "replace") if isinstance(given, bytes) else given
    words = repr(one_line(text[: 4 * _SHOWN])[:_SHOWN]) if isinstance(text, str) else shown(given)[:_SHOWN]
    return "nothing" if given is None or words == "''" else words


def _not(wanted: str, came: str, hint: str = "") -> InputError:
    return InputError(f"it answered {came}; it must answer {wanted}{hint}")
