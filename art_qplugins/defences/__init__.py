"""Training-time defences by name, and the training loop that they shape."""

from art_qplugins.domains import Number, Option
from art_qplugins.registry import Entry, Registry

__all__ = ["DEFENCES"]

#: The weight of a penalty beside cross-entropy. 0 trains without it, for comparison.
_WEIGHT = Number(0, 10)

DEFENCES: Registry[Entry] = Registry(
    "defence",
    [
        Entry(
            name="orthogonality",
            target="art_qplugins.defences.lipschitz:Orthogonality",
            help="penalty on W W^T - I, Defensive Quantization (Lin et al. 2019)",
            options={"beta": Option(2e-3, _WEIGHT)},
        ),
        Entry(
            name="convex-aggregation",
            target="art_qplugins.defences.aggregation:ConvexAggregation",
            help="convex weights of skip and residual in a wrn with aggregation = true (Cisse et al. 2017)",
        ),
        Entry(
            name="mutual-information",
            target="art_qplugins.defences.information:MutualInformation",
            help="information kept by the deepest stochastic layer (arXiv 2312.00105, reconstructed)",
            options={"beta": Option(0.1, _WEIGHT)},
        ),
        Entry(
            name="bin-spacing",
            target="art_qplugins.defences.information:BinSpacing",
            help="penalty on the bin spacing of stochastic layers (arXiv 2312.00105, reconstructed)",
            options={"weight": Option(1e-2, _WEIGHT)},
        ),
    ],
    group="art_qplugins.defences",
)
