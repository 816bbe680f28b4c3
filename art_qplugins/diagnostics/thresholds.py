"""Thresholds that several parts of the diagnosis share. A threshold of a single indicator is in its row.

Accuracies are fractions in [0, 1]. The thresholds were chosen on half A of the zoo in ``benchmarks/masking``. Error rates
are reported on half B.

Effects are point estimates, so a verdict does not depend on the number of images. A one-sided test stands beside each.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "CONTROL",
    "FLOAT32_LOSS_GAP",
    "LARGE_GAP",
    "MATERIAL",
    "MISLED",
    "POWER",
    "SIGNIFICANT",
    "SMALL_GAP",
    "by_trying_again",
]

#: A gap in accuracy is material above this.
MATERIAL = 0.02
#: A control experiment counts where it breaks more than this beyond what trying again breaks.
CONTROL = 0.05
#: The same for all attacks against the claimed one and 20-step PGD. Honest models of half A of the zoo stay below it.
MISLED = 0.25
#: A control experiment could have found something where a larger eps lets it break this share of the same images.
POWER = 0.5
#: Significance level of the symptoms that are tests. Holm's correction keeps it over all of them together.
SIGNIFICANT = 0.05
#: Median gaps of the two largest logits between which cross-entropy in float32 loses nothing.
SMALL_GAP, LARGE_GAP = 1.0, 7.5
#: Gap of the two largest logits above which 1 - p_y rounds to 0 in float32: -log2(eps / 2) * ln 2 = 24 ln 2.
FLOAT32_LOSS_GAP = float(24 * np.log(2))

#: By number of further tries, each of 20 gradients or 1000 queries: the share of all images that the same attack newly
#: breaks with other seeds. It is the 95th percentile over honest models, from ``benchmarks/masking/null.py``.
_AGAIN = {1: 0.002, 2: 0.0035, 4: 0.006, 8: 0.010, 16: 0.010}


def by_trying_again(tries: float) -> float:
    """The share of all images that so many further tries break where no gradient is hidden."""
    return float(np.interp(np.log2(max(tries, 1.0)), np.log2(list(_AGAIN)), list(_AGAIN.values())))
