"""Thresholds that several parts of the diagnosis share. A threshold of a single indicator is in its row.

Accuracies are fractions in [0, 1]. The thresholds were chosen on half A of the zoo in ``benchmarks/masking``. Error rates
are reported on half B.
"""

from __future__ import annotations

import numpy as np

__all__ = ["CONTROL", "FLOAT32_LOSS_GAP", "LARGE_GAP", "MATERIAL", "ORDINARY", "SIGNIFICANT"]

#: A gap in accuracy counts where its lower 95 % confidence bound exceeds this.
MATERIAL = 0.02
#: The same for a control experiment. Its attacks make more attempts than the attacks that it is compared with.
CONTROL = 0.04
#: The same for all attacks against 20-step PGD. Honest models of half A of the zoo stay below it.
ORDINARY = 0.12
#: Significance level of the symptoms that are tests. Holm's correction keeps it over all of them together.
SIGNIFICANT = 0.05
#: Median gap of the two largest logits up to which cross-entropy in float32 loses nothing.
LARGE_GAP = 7.5
#: Gap of the two largest logits above which 1 - p_y rounds to 0 in float32: -log2(eps / 2) * ln 2 = 24 ln 2.
FLOAT32_LOSS_GAP = float(24 * np.log(2))
