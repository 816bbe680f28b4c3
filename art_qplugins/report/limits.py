"""Limits on the difference of two runs, such as ``robust_accuracy:-1%`` for ``artq compare --fail-on``.

A limit is compared with the difference and not with its interval. Both runs have the same images, so the difference on these
images is exact. A check that waited for significance would let a model get worse in small steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.report import words

if TYPE_CHECKING:
    from art_qplugins.evaluation.compare import Comparison, Missing
    from art_qplugins.evaluation.records import Difference

__all__ = ["Limit", "parse_limit"]

_EXAMPLE = "write it as robust_accuracy:-1%"


@dataclass(frozen=True)
class Limit:
    """The largest allowed difference B - A, as a fraction. A negative limit or 0 limits a fall, a positive one a rise."""

    metric: str  # of words.METRICS
    points: float

    def broken_by(self, found: Comparison) -> Iterator[str]:
        """One line for each difference beyond the limit, and for each model, number or attack that the second run lacks.

        :raises InputError: where no model has the metric in both runs, because the limit could not fail then.
        """
        rows = [row for row in found.rows if row.metric == self.metric]
        if not rows:
            raise InputError(f"--fail-on {self.metric}: no model has this in both runs; run both with the same attacks")
        for name in found.only_first:
            yield f"{name} is only in A"
        for one in (*found.missing, *found.failed):
            if one.metric == self.metric:
                lacks = "is only in A" if one.attack is None else f"{one.attack} has no result in B"
                yield f"{self._what(one.model, one)}: {lacks}"
        for row in rows:
            beyond = row.difference - self.points if self.points > 0 else self.points - row.difference
            if beyond > 1e-9:
                yield f"{self._what(row.first, row)} {words.signed(row.difference)} points, beyond {words.signed(self.points)}"

    def _what(self, model: str, at: Difference | Missing) -> str:
        return (
            f"{model}: {words.METRICS[self.metric]}{'' if at.eps is None else f' at {words.threat(at.norm, at.eps)}'}"
        )


def parse_limit(text: str) -> Limit:
    """A limit from ``METRIC:-1%``, in points of accuracy.

    :raises InputError: where it is not such a limit.
    """
    metric, colon, amount = text.partition(":")
    number = re.fullmatch(r"([+-]\d+(?:\.\d+)?|0(?:\.0+)?)\s*%", amount.strip())
    if not colon or number is None:
        raise InputError(f"--fail-on {text}: not a limit in percent with a sign; {_EXAMPLE}")
    if metric not in words.METRICS:
        raise InputError(
            f"--fail-on {text}: unknown metric {metric!r}{did_you_mean(metric, words.METRICS)}; there is {' and '.join(words.METRICS)}"
        )
    if not abs(float(number[1])) <= 100:
        raise InputError(f"--fail-on {text}: accuracies differ by at most 100 points; {_EXAMPLE}")
    return Limit(metric, float(number[1]) / 100)
