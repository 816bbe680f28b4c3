"""How far a network carries a small change of its input: from layer to layer, and at most.

Defensive Quantization rests on both (Lin, Gan & Han 2019, figure 3 and section 4.2). And what a change of its weights does to
it, on which the choice of mu-law mapping rests (Song et al. 2021, slides). And what the codes of a stochastic network tell of an
image before and after it (arXiv 2312.00105).
"""

from art_qplugins.sensitivity.changes import (
    LayerChange,
    LogitGain,
    OutputTerms,
    logit_gain,
    output_terms,
    weight_changes,
)
from art_qplugins.sensitivity.codes import Codes, Told
from art_qplugins.sensitivity.distances import activation_distances
from art_qplugins.sensitivity.norms import LayerNorm, operator_norms

__all__ = [
    "Codes",
    "LayerChange",
    "LayerNorm",
    "LogitGain",
    "OutputTerms",
    "Told",
    "activation_distances",
    "logit_gain",
    "operator_norms",
    "output_terms",
    "weight_changes",
]
