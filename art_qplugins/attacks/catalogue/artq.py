"""This package's own attacks."""

from __future__ import annotations

from functools import partial

from art_qplugins.attacks.catalogue.libraries import ARTQ
from art_qplugins.attacks.catalogue.options import ITERATIVE, count
from art_qplugins.attacks.catalogue.row import Attack, attack_of
from art_qplugins.domains import ListOf, Maybe, Number, OneOf, Option, Rule

__all__ = ["EFFORTS", "KINDS", "ROWS"]

_own = partial(attack_of, ARTQ)
#: The backward passes of ``repaired_gradients``.
KINDS = (
    *("as-is", "straight-through", "identity", "leaky", "tanh", "soft-staircase"),
    *("repaired", "bridged", "bypassed", "clipped-sign", "unrolled", "inner", "inner-alone", "smoothed"),
)
_OLD_KINDS = ("revived", "straight", "clipped", "repaired-straight-through")
_ADAPTER = "art_qplugins.attacks.adapters.artq"

#: Of ``artq:worst-case``, the cheapest first, and their gradients and forward passes for an image that stands.
_COSTS = {"quick": (80, 250), "standard": (350, 2_400), "thorough": (700, 5_000)}
EFFORTS = tuple(_COSTS)

ROWS: list[Attack] = [
    _own(
        "worst-case",
        "worst_case",
        "what AutoAttack leaves, for a small part of its gradients: cheap moves first, then rounds on the images nearest to falling",
        {
            "effort": Option("standard", OneOf(EFFORTS)),
            "budget": Option(None, Maybe(Number(1, 1_000_000))),
        },
        gradient="mixed",
        scale_free=True,
        targeted=True,
        takes_start=True,
        cost=_COSTS["standard"],
        costs=_COSTS,
    ),
    _own(
        "pgd",
        "pgd",
        "PGD on cross-entropy; from a random point of the ball, or from x + eps/2 along random signs; the last point counts",
        {
            **ITERATIVE,
            "start": Option("uniform", OneOf(("uniform", "signs"))),
            "precision": Option("float32", OneOf(("float32", "float64"))),
        },
        target=f"{_ADAPTER}:pgd",
        norms=("Linf",),
        returns_last=True,
        cost=(20, 20),
    ),
    _own(
        "pgd-margin",
        "ProjectedGradientDescentPyTorch",
        "PGD on the logit margin, which no logit scale can saturate",
        {**ITERATIVE, "num_random_init": Option(1, count(1000, least=0))},
        target=f"{_ADAPTER}:pgd_margin",
        scale_free=True,
        cost=(20, 22),
    ),
    _own(
        "apgd-margin",
        "apgd_margin",
        "Auto-PGD on the logit margin; an image leaves the loop when it is misclassified",
        {"max_iter": 20},
        scale_free=True,
        takes_start=True,
        cost=(20, 23),
    ),
    _own(
        "multi-targeted",
        "multi_targeted",
        "targeted Auto-PGD on each of the nearest classes in turn, on the images still robust",
        {"max_iter": 20, "targets": Option(9, count(10_000)), "eot_iter": 1},
        scale_free=True,
        targeted=True,
        takes_start=True,
        cost=(180, 192),
    ),
    _own(
        "diversified",
        "diversified",
        "Auto-PGD from output-diversified starts, on the parts of the margin in turn, with a grid of step sizes",
        {"max_iter": 20, "restarts": Option(10, count(1000))},
        scale_free=True,
        targeted=True,
        takes_start=True,
        cost=(270, 292),
    ),
    _own(
        "substitute",
        "substitute",
        "Auto-PGD on a small network fitted to the model's answers around the images; it needs no gradient of the model",
        {
            "max_iter": 20,
            "rounds": Option(6, count(100)),
            "points": Option(50, count(10_000)),
            "steps": Option(200, count(100_000)),
            "targets": Option(9, count(10_000)),
            "n_queries": 2500,
        },
        needs="scores",
        takes_start=True,
        cost=(0, 2819),
    ),
    _own(
        "rescaled",
        "rescaled",
        "Auto-PGD on cross-entropy of rescaled logits: per-image, jacobian (NJS) or hessian (HNS)",
        {"max_iter": 20, "scaling": Option("per-image", OneOf(("per-image", "jacobian", "hessian")))},
        scale_free=True,
        takes_start=True,
        cost=(20, 23),
    ),
    _own(
        "surrogates",
        "surrogates",
        "Auto-PGD through each surrogate gradient that applies (or those in kinds), the most faithful first",
        {
            "max_iter": 20,
            "kinds": Option([], ListOf(OneOf(KINDS + _OLD_KINDS))),
            "targets": Option(0, count(10_000, least=0)),
        },
        gradient="repaired",
        scale_free=True,
        takes_start=True,
        cost=(231, 270),
    ),
    _own(
        "unsaturated",
        "unsaturated",
        "Auto-PGD on the tensor before the saturation of the logits, then towards each of the nearest classes, then random search",
        {
            "max_iter": 20,
            "targets": Option(3, count(10_000, least=0)),
            "n_queries": Option(0, count(1_000_000, least=0)),
        },
        gradient="repaired",
        scale_free=True,
        takes_start=True,
        cost=(80, 92),
    ),
    _own(
        "search",
        "search",
        "random search with squares of pixels from the best images so far",
        {"n_queries": 5000},
        needs="scores",
        takes_start=True,
        cost=(0, 5000),
    ),
    _own(
        "full-precision",
        "full_precision",
        "Auto-PGD on the full-precision twin of a quantized model, then on the model from there",
        {"max_iter": 20},
        quantized=True,
        gradient="repaired",
        scale_free=True,
        takes_start=True,
        cost=(40, 44),
    ),
    _own(
        "bits",
        "bits",
        "Auto-PGD on the model at several activation bit widths, then on the model from there",
        {"max_iter": 20, "bits": Option([2, 3, 4, 8], ListOf(count(16), least=1))},
        quantized=True,
        gradient="repaired",
        scale_free=True,
        takes_start=True,
        cost=(100, 107),
    ),
    _own(
        "joint",
        "joint",
        "Auto-PGD on a weighted sum of the losses of the model and its full-precision twin",
        {"max_iter": 20, "weights": Option([0.5], ListOf(Number(0, 1), least=1))},
        quantized=True,
        gradient="repaired",
        scale_free=True,
        takes_start=True,
        cost=(40, 44),
    ),
    _own(
        "eot",
        "eot",
        "EOT: Auto-PGD on the mean margin of a random model, with enough draws for a stable gradient",
        {"max_iter": 20, "eot_iter": None},
        models="stochastic",
        gradient="mean",
        scale_free=True,
        takes_start=True,
        cost=(90, 274),
    ),
    _own(
        "single-draw",
        "single_draw",
        "PGD on cross-entropy along the gradient of one draw a step, as papers attack random networks; the last point counts",
        ITERATIVE,
        target=f"{_ADAPTER}:single_draw",
        models="stochastic",
        norms=("Linf",),
        returns_last=True,
        cost=(20, 20),
    ),
    _own(
        "frozen-seed",
        "frozen_seed",
        "Auto-PGD on the margin of a random model whose noise is the same at every step; a control, scored on other draws",
        {"max_iter": 20},
        models="stochastic",
        scale_free=True,
        takes_start=True,
        cost=(20, 37),
    ),
    _own(
        "random",
        "random",
        "random noise: uniform within eps, or normal with a standard deviation, which no eps limits; the mean over draws",
        {
            "distribution": Option("uniform", OneOf(("uniform", "normal"))),
            "std": Option(0.0, Number(0, 1)),
            "draws": Option(1, count(1000)),
        },
        target=f"{_ADAPTER}:random",
        norms=("Linf",),
        needs="nothing",
        rules=[
            Rule(
                ("distribution", "std"),
                lambda distribution, std: (distribution == "normal") == (std > 0),
                'a std above 0 with "normal", and none with "uniform"',
            )
        ],
        corrupts={"distribution": "normal"},
        cost=(0, 0),
    ),
    _own(
        "clean",
        "clean",
        "no attack: the clean image; its cell measures the gradients of the model within this radius",
        {"radius": Option(0.0, Number(0, 1e6)), "directions": Option(20, count(1000, least=2))},
        target=f"{_ADAPTER}:clean",
        needs="nothing",
        norms=("Linf", "L2", "L1", "L0"),
        cost=(0, 0),
    ),
]
