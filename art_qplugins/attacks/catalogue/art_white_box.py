"""ART's white-box evasion attacks on image classifiers.

``ProjectedGradientDescent`` is left out, because it only chooses between other attacks. ``AutoAttack`` is left out, because
it is not the published one: its default is APGD-CE and APGD-DLR with five starts, DeepFool and ART's Square.
"""

from __future__ import annotations

from functools import partial

from art_qplugins.attacks.catalogue.libraries import ART
from art_qplugins.attacks.catalogue.options import ITERATIVE, count
from art_qplugins.attacks.catalogue.row import Attack, attack_of
from art_qplugins.domains import Number, Option, Rule

__all__ = ["ROWS"]

_art = partial(attack_of, ART)
_STARTS = {"num_random_init": "nb_random_init"}
#: For attacks that adapt their step size: a first step of 2 eps, as published, and ART's default of 100 iterations.
_ADAPTIVE = {"max_iter": 100, "rel_eps_step": 2.0, "num_random_init": 5}
_CE, _DLR = {"loss_type": "cross_entropy"}, {"loss_type": "difference_logits_ratio"}

ROWS: list[Attack] = [
    _art(
        "fgsm",
        "FastGradientMethod",
        "one step along the sign of the gradient",
        norms=("Linf", "L2", "L1"),
        one_step=True,
        cost=(1, 1),
    ),
    _art(
        "bim",
        "BasicIterativeMethod",
        "iterated FGSM with small steps, no random start",
        ITERATIVE,
        norms=("Linf",),
        cost=(20, 22),
    ),
    _art(
        "pgd",
        "ProjectedGradientDescentPyTorch",
        "PGD on cross-entropy with random starts",
        {**ITERATIVE, "num_random_init": Option(1, count(1000, least=0))},
        norms=("Linf", "L2", "L1"),
        cost=(20, 22),
    ),
    _art(
        "pgd-numpy",
        "ProjectedGradientDescentNumpy",
        "the same in NumPy, one call of the estimator per step",
        {**ITERATIVE, "num_random_init": Option(1, count(1000, least=0))},
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
        "ART's Auto-PGD on cross-entropy; the step size halves when progress stops",
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
        "Carlini & Wagner: distance plus a margin term, weighted by a binary search",
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
            "largest_const": Option(20.0, Number(1e-5, 1e6)),
            "const_factor": Option(2.0, Number(1.1, 1000)),
            "decrease_factor": Option(0.9, Number(0.1, 0.99)),
            "confidence": 0.0,
        },
        rules=[
            Rule(
                ("initial_const", "largest_const"),
                lambda first, last: first < last,
                "a largest_const above initial_const",
            )
        ],
        norms=("Linf",),
        minimum_norm=True,
        cost=(607, 1_340),
    ),
    _art(
        "cw-l0",
        "CarliniL0Method",
        "Carlini & Wagner in L0: the least important pixels are reset one by one",
        {"max_iter": 10, "binary_search_steps": 10, "learning_rate": 0.01, "initial_const": 0.01, "confidence": 0.0},
        norms=("L0",),
        minimum_norm=True,
        cost=(404, 1_287),
    ),
    _art(
        "ead",
        "ElasticNet",
        "elastic net: Carlini & Wagner with an L1 term; keeps the image of smallest L1 distance",
        {
            "max_iter": 100,
            "binary_search_steps": 9,
            "learning_rate": 0.01,
            "initial_const": 0.001,
            "beta": Option(0.001, Number(0, 0.1)),
        },
        norms=("L1",),
        fixed={"decision_rule": "L1"},
        minimum_norm=True,
        cost=(1_800, 3_602),
    ),
    _art(
        "deepfool",
        "DeepFool",
        "repeated steps to the nearest decision boundary of the linearized model",
        {"max_iter": 100, "overshoot": 1e-6, "nb_grads": Option(10, count(10_000, least=2))},
        norms=("L2",),
        names={"overshoot": "epsilon"},
        minimum_norm=True,
        scale_free=True,
        cost=(1_010, 202),
    ),
    _art(
        "newtonfool",
        "NewtonFool",
        "Newton steps on the probability of the class",
        {"max_iter": 100, "eta": Option(0.01, Number(1e-3, 1))},
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
        "steps along the decision boundary from an adversarial image towards the clean one",
        {
            "max_iter": 1000,
            "binary_search_steps": 10,
            "lr": 1e-3,
            "overshoot": Option(1.1, Number(1, 2)),
            "init_size": 100,
        },
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
        "one perturbation for all images, accumulated from DeepFool",
        {"max_iter": 20, "delta": Option(0.2, Number(0, 0.5))},
        fixed={"attacker": "deepfool", "attacker_params": {"verbose": False}},
        scale_free=True,
        cost=(19_415, 3_943),
    ),
]
