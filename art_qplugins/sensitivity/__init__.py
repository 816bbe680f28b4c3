"""How far a network carries a small change of its input: from layer to layer, and at most.

Defensive Quantization rests on both (Lin, Gan & Han 2019, figure 3 and section 4.2).
"""

from art_qplugins.sensitivity.distances import activation_distances
from art_qplugins.sensitivity.norms import LayerNorm, operator_norms

__all__ = ["LayerNorm", "activation_distances", "operator_norms"]
