"""ART's evasion attacks on image classifiers that follow gradients.

Left out are ``ProjectedGradientDescent``, which only chooses between others, and ``AutoAttack``, which is not the published
one: its default is APGD-CE and APGD-DLR with five starts, DeepFool and ART's Square.
"""

from __future__ import annotations

from functools import partial

from art_qplugins.attacks.catalogue.libraries import ART
from art_qplugins.attacks.catalogue.row import ITERATIVE, Attack, attack_of

__all__ = ["ROWS"]

_art = partial(attack_of, ART)
_STARTS = {"num_random_init": "nb_random_init"}
#: Of the attacks that adapt their step: the first one is 2 eps, as published, and ART's own default of 100 iterations.
_ADAPTIVE = {"max_iter": 100, "rel_eps_step": 2.0, "num_random_init": 5}
_CE, _DLR = {"loss_type": "cross_entropy"}, {"loss_type": "difference_logits_ratio"}

ROWS: list[Attack] = [
    _art(
        "fgsm",
        "FastGradientMethod",
        "one step along the gradient's sign",
        norms=("Linf", "L2", "L1"),
        one_step=True,
        cost=(1, 1),
    ),
    _art(
        "bim", "BasicIterativeMethod", "FGSM in small steps, no random start", ITERATIVE, norms=("Linf",), cost=(20, 22)
    ),
    _art(
        "pgd",
        "ProjectedGradientDescentPyTorch",
        "projected gradient descent on cross-entropy, with random starts",
        {**ITERATIVE, "num_random_init": 1},
        norms=("Linf", "L2", "L1"),
        cost=(20, 22),
    ),
    _art(
        "pgd-numpy",
        "ProjectedGradientDescentNumpy",
        "the same in NumPy, step by step through the estimator",
        {**ITERATIVE, "num_random_init": 1},
        norms=("Linf", "L2", "L1"),
        cost=(20, 22),
    ),
    _art(
        "mifgsm",
        "MomentumIterativeMethod",
        "BIM with momentum",
        {**ITERATIVE, "decay": 1.0},
        norms=("Linf", "L2", "L1"),
        cost=(20, 22),
    ),
    _art(
        "apgd-ce",
        "AutoProjectedGradientDescent",
        "ART's Auto-PGD on cross-entropy; steps halve when progress stops",
        _ADAPTIVE,
        names=_STARTS,
        fixed=_CE,
        norms=("Linf", "L2", "L1"),
        cost=(500, 1_016),
    ),
    _art(
        "apgd-dlr",
        "AutoProjectedGradientDescent",
        "ART's Auto-PGD on the difference-of-logits ratio",
        _ADAPTIVE,
        names=_STARTS,
        fixed=_DLR,
        norms=("Linf", "L2", "L1"),
        needs_classes=3,
        scale_free=True,
        cost=(500, 1_016),
    ),
    _art(
        "acg-ce",
        "AutoConjugateGradient",
        "Auto-PGD along conjugate gradients, on cross-entropy",
        _ADAPTIVE,
        names=_STARTS,
        fixed=_CE,
        norms=("Linf", "L2", "L1"),
        cost=(500, 1_016),
    ),
    _art(
        "acg-dlr",
        "AutoConjugateGradient",
        "Auto-PGD along conjugate gradients, on the difference-of-logits ratio",
        _ADAPTIVE,
        names=_STARTS,
        fixed=_DLR,
        norms=("Linf", "L2", "L1"),
        needs_classes=3,
        scale_free=True,
        cost=(500, 1_016),
    ),
    _art(
        "reacg-ce",
        "RescalingAutoConjugateGradient",
        "conjugate gradients with a rescaled direction, on cross-entropy",
        _ADAPTIVE,
        names=_STARTS,
        fixed=_CE,
        norms=("Linf", "L2", "L1"),
        cost=(500, 1_016),
    ),
    _art(
        "reacg-dlr",
        "RescalingAutoConjugateGradient",
        "conjugate gradients with a rescaled direction, on the difference-of-logits ratio",
        _ADAPTIVE,
        names=_STARTS,
        fixed=_DLR,
        norms=("Linf", "L2", "L1"),
        needs_classes=3,
        scale_free=True,
        cost=(500, 1_016),
    ),
    _art(
        "cw-l2",
        "CarliniL2Method",
        "Carlini & Wagner: the least distance and a margin, weighed by a binary search",
        {"max_iter": 10, "binary_search_steps": 10, "learning_rate": 0.01, "initial_const": 0.01, "confidence": 0.0},
        norms=("L2",),
        minimum_norm=True,
        cost=(200, 651),
    ),
    _art(
        "cw-linf",
        "CarliniLInfMethod",
        "Carlini & Wagner in Linf: a bound that shrinks while an adversarial image is within it",
        {
            "max_iter": 10,
            "learning_rate": 0.01,
            "initial_const": 1e-5,
            "largest_const": 20.0,
            "const_factor": 2.0,
            "decrease_factor": 0.9,
            "confidence": 0.0,
        },
        norms=("Linf",),
        minimum_norm=True,
        cost=(607, 1_340),
    ),
    _art(
        "cw-l0",
        "CarliniL0Method",
        "Carlini & Wagner in L0: pixels that matter least are put back one by one",
        {"max_iter": 10, "binary_search_steps": 10, "learning_rate": 0.01, "initial_const": 0.01, "confidence": 0.0},
        norms=("L0",),
        minimum_norm=True,
        cost=(404, 1_287),
    ),
    _art(
        "ead",
        "ElasticNet",
        "elastic net: Carlini & Wagner with an L1 term, the image of least L1 distance kept",
        {"max_iter": 100, "binary_search_steps": 9, "learning_rate": 0.01, "initial_const": 0.001, "beta": 0.001},
        norms=("L1",),
        fixed={"decision_rule": "L1"},
        minimum_norm=True,
        cost=(1_800, 3_602),
    ),
    _art(
        "deepfool",
        "DeepFool",
        "to the nearest boundary of the linearized model, again and again",
        {"max_iter": 100, "overshoot": 1e-6, "nb_grads": 10},
        norms=("L2",),
        names={"overshoot": "epsilon"},
        minimum_norm=True,
        scale_free=True,
        cost=(1_010, 202),
    ),
    _art(
        "newtonfool",
        "NewtonFool",
        "Newton's steps on the probability of the class",
        {"max_iter": 100, "eta": 0.01},
        norms=("L2",),
        probabilities=True,
        minimum_norm=True,
        cost=(100, 201),
    ),
    _art(
        "jsma",
        "SaliencyMapMethod",
        "the two most salient values at a time, towards a random class",
        {"theta": 0.1},
        norms=("L0",),
        labels="none",
        minimum_norm=True,
        scale_free=True,
        cost=(11, 24),
    ),
    _art(
        "brendel-bethge",
        "BrendelBethgeAttack",
        "along the decision boundary, from an adversarial image towards the clean one",
        {"max_iter": 1000, "binary_search_steps": 10, "lr": 1e-3, "overshoot": 1.1, "init_size": 100},
        norms=("Linf", "L2", "L1", "L0"),
        names={"max_iter": "steps"},
        requires=("numba",),
        install="numba",
        minimum_norm=True,
        scale_free=True,
        cost=(1_000, 2_024),
    ),
    _art(
        "uap",
        "UniversalPerturbation",
        "one perturbation for all images, gathered by DeepFool",
        {"max_iter": 20, "delta": 0.2},
        fixed={"attacker": "deepfool", "attacker_params": {"verbose": False}},
        scale_free=True,
        cost=(19_415, 3_943),
    ),
]
