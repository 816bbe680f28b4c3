"""Thresholds that several parts of the diagnosis share. A threshold of one indicator alone is in that indicator's row.

Accuracies are fractions in [0, 1]. The thresholds were set on half A of the zoo in ``benchmarks/masking``; rates are
reported of half B.
"""

from __future__ import annotations

import numpy as np

__all__ = ["CONTROL", "FLOAT32_LOSS_GAP", "LARGE_GAP", "MATERIAL", "ORDINARY", "SIGNIFICANT"]

#: A gap in accuracy counts where its lower 95 % confidence bound exceeds this.
MATERIAL = 0.02
#: The same for a control experiment. Its attacks try more often than those that it is compared with.
CONTROL = 0.04
#: The same for all attacks against PGD of 20 steps. Honest models of half A of the zoo stay below it.
ORDINARY = 0.12
#: Level of the tests of the symptoms, and the error rate that Holm's correction keeps over all of them together.
SIGNIFICANT = 0.05
#: Median gap of the two largest logits up to which cross-entropy in float32 loses nothing.
LARGE_GAP = 7.5
#: Gap of the two largest logits above which 1 - p_y rounds to 0 in float32: -log2(eps / 2) * ln 2 = 24 ln 2.
FLOAT32_LOSS_GAP = float(24 * np.log(2))
