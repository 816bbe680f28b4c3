"""The attacks of Foolbox 3.3, an optional extra.

Foolbox has one class per norm for many attacks. Such a family is one row here. Foolbox's aliases are left out.
"""

from __future__ import annotations

import math
from functools import partial

from art_qplugins.attacks.catalogue.libraries import FOOLBOX
from art_qplugins.attacks.catalogue.options import ITERATIVE, count
from art_qplugins.attacks.catalogue.row import Attack, attack_of, refused_attack_of
from art_qplugins.domains import Maybe, Number, Option, Rule

__all__ = ["ROWS"]

_fb = partial(attack_of, FOOLBOX)
_refused = partial(refused_attack_of, FOOLBOX)
_ALL = ("Linf", "L2", "L1", "L0")
_WALK = Number(1e-6, 1)  # a step relative to the distance from the clean image
_SHARE = Number(0.01, 1)
#: They judge a point before they step from it, so one step tries the clean image only.
_TWO = Option(100, count(100_000, least=2))
_GAMMA = Option(0.05, Number(1e-3, 1, below=True))


def _each(family: str) -> str:
    return " ".join(f"{norm}{family}" for norm in ("Linf", "L2", "L1"))


ROWS: list[Attack] = [
    _fb("fgsm", _each("FastGradientAttack"), "one step along the gradient", one_step=True, cost=(1, 2)),
    _fb("bim", _each("BasicIterativeAttack"), "many small steps, no random start", ITERATIVE, cost=(20, 21)),
    _fb(
        "pgd", _each("ProjectedGradientDescentAttack"), "many small steps from a random start", ITERATIVE, cost=(20, 21)
    ),
    _fb(
        "mifgsm",
        _each("MomentumIterativeFastGradientMethod"),
        "BIM with momentum",
        {**ITERATIVE, "momentum": 1.0},
        cost=(20, 21),
    ),
    _fb("adam-bim", _each("AdamBasicIterativeAttack"), "BIM with Adam steps", ITERATIVE, cost=(20, 21)),
    _fb("adam-pgd", _each("AdamProjectedGradientDescentAttack"), "PGD with Adam steps", ITERATIVE, cost=(20, 21)),
    _fb(
        "sparse-l1",
        "SparseL1DescentAttack",
        "steps in the values with the largest gradients",
        {"max_iter": 20, "rel_eps_step": Option(None, Maybe(Number(1e-6, 1))), "quantile": Option(0.99, Number(0, 1))},
        norms=("L1",),
        cost=(20, 21),
    ),
    _fb(
        "vat",
        "VirtualAdversarialAttack",
        "the direction that changes the prediction most",
        {"max_iter": 10, "xi": Option(1e-6, Number(1e-7, 1))},
        norms=("L2",),
        cost=(10, 12),
    ),
    _fb(
        "fmn",
        "LInfFMNAttack L2FMNAttack L1FMNAttack L0FMNAttack",
        "fast minimum norm: the allowed distance shrinks after a success and grows after a failure",
        {"max_iter": _TWO, "max_stepsize": Option(1.0, Number(0.01, 100)), "gamma": _GAMMA},
        norms=_ALL,
        minimum_norm=True,
        scale_free=True,
        cost=(100, 101),
    ),
    _fb(
        "ddn",
        "DDNAttack",
        "decoupled direction and norm",
        {"max_iter": _TWO, "init_epsilon": Option(1.0, Number(1e-3, 1000)), "gamma": _GAMMA},
        rules=[
            Rule(
                ("init_epsilon", "gamma", "max_iter", "eps"),
                lambda first, gamma, steps, eps: eps <= first or math.log(eps / first) <= steps * math.log1p(gamma),
                "an init_epsilon that can grow to eps",
            )
        ],
        norms=("L2",),
        minimum_norm=True,
        cost=(100, 101),
    ),
    _fb(
        "brendel-bethge",
        "LinfinityBrendelBethgeAttack L2BrendelBethgeAttack L1BrendelBethgeAttack L0BrendelBethgeAttack",
        "steps along the decision boundary from an adversarial image towards the clean one",
        {"max_iter": 1000, "binary_search_steps": 10, "lr": 1e-3, "overshoot": Option(1.1, Number(1, 2))},
        norms=_ALL,
        requires=("numba",),
        install="numba",
        minimum_norm=True,
        scale_free=True,
        cost=(1_000, 1_064),
    ),
    _fb(
        "cw",
        "L2CarliniWagnerAttack",
        "Carlini & Wagner with its binary search",
        {
            "max_iter": Option(10000, count(100_000, least=2)),
            "binary_search_steps": 9,
            "stepsize": 0.01,
            "initial_const": 0.001,
            "confidence": 0.0,
        },
        norms=("L2",),
        minimum_norm=True,
        cost=(18_009, 18_010),
    ),
    _fb(
        "ead",
        "EADAttack",
        "elastic net; keeps the image of smallest L1 distance",
        {
            "max_iter": 10000,
            "binary_search_steps": 9,
            "initial_stepsize": Option(0.01, Number(1e-5, 1)),
            "regularization": Option(0.01, Number(0, 0.1)),
        },
        norms=("L1",),
        fixed={"decision_rule": "L1"},
        minimum_norm=True,
        cost=(16_009, 32_010),
    ),
    _fb(
        "deepfool",
        "LinfDeepFoolAttack L2DeepFoolAttack",
        "repeated steps to the nearest decision boundary of the linearized model",
        {"max_iter": 50, "candidates": Option(10, count(10_000, least=2)), "overshoot": 0.02},
        norms=("Linf", "L2"),
        minimum_norm=True,
        scale_free=True,
        cost=(55, 57),
    ),
    _fb(
        "newtonfool",
        "NewtonFoolAttack",
        "Newton steps on the probability of the class",
        {"max_iter": 100, "stepsize": 0.01},
        norms=("L2",),
        minimum_norm=True,
        cost=(100, 101),
    ),
    _fb(
        "hop-skip-jump",
        "HopSkipJumpAttack",
        "HopSkipJump: the direction of the boundary, estimated from decisions at many nearby points",
        {
            "max_iter": 64,
            "initial_gradient_eval_steps": Option(100, count(100_000)),
            "max_gradient_eval_steps": Option(10000, count(100_000)),
            "gamma": Option(1.0, Number(1e-3, 1000)),
        },
        rules=[
            Rule(
                ("initial_gradient_eval_steps", "max_gradient_eval_steps"),
                lambda first, most: first <= most,
                "initial_gradient_eval_steps of at most max_gradient_eval_steps",
            )
        ],
        norms=("Linf", "L2"),
        needs="decisions",
        minimum_norm=True,
        cost=(0, 35_561),
    ),
    _fb(
        "boundary",
        "BoundaryAttack",
        "a random walk along the boundary, from an adversarial image towards the clean one",
        {
            "max_iter": 25000,
            "spherical_step": Option(0.01, _WALK),
            "source_step": Option(0.01, _WALK),
            "step_adaptation": Option(1.5, Number(1.01, 10)),
        },
        norms=("L2",),
        needs="decisions",
        minimum_norm=True,
        cost=(0, 16_334),
    ),
    _fb(
        "pointwise",
        "PointwiseAttack",
        "a noisy image whose values are reset one by one",
        norms=("L2", "L0"),
        needs="decisions",
        minimum_norm=True,
        cost=(0, 1_052),
    ),
    _fb(
        "gen-attack",
        "GenAttack",
        "a genetic search towards the second most likely class",
        {
            "max_iter": 1000,
            "population": Option(10, count(1000, least=2)),
            "mutation_probability": Option(0.1, _SHARE),
            "mutation_range": Option(0.15, _SHARE),
        },
        norms=("Linf",),
        needs="scores",
        labels="targets",
        cost=(0, 10_002),
    ),
    _fb(
        "uniform-noise",
        "LinfAdditiveUniformNoiseAttack L2AdditiveUniformNoiseAttack",
        "uniform noise of length eps",
        norms=("Linf", "L2"),
        needs="nothing",
        cost=(0, 1),
    ),
    _fb(
        "repeated-uniform-noise",
        "LinfRepeatedAdditiveUniformNoiseAttack L2RepeatedAdditiveUniformNoiseAttack",
        "uniform noise of length eps, repeated until it succeeds",
        {"repeats": 100},
        norms=("Linf", "L2"),
        needs="decisions",
        cost=(0, 102),
    ),
    _fb(
        "gaussian-noise",
        "L2AdditiveGaussianNoiseAttack",
        "Gaussian noise of length eps",
        norms=("L2",),
        needs="nothing",
        cost=(0, 1),
    ),
    _fb(
        "repeated-gaussian-noise",
        "L2RepeatedAdditiveGaussianNoiseAttack",
        "Gaussian noise of length eps, repeated until it succeeds",
        {"repeats": 100},
        norms=("L2",),
        needs="decisions",
        cost=(0, 102),
    ),
    _fb(
        "clipped-uniform-noise",
        "L2ClippingAwareAdditiveUniformNoiseAttack",
        "uniform noise of length eps after clipping",
        norms=("L2",),
        needs="nothing",
        cost=(0, 1),
    ),
    _fb(
        "clipped-gaussian-noise",
        "L2ClippingAwareAdditiveGaussianNoiseAttack",
        "Gaussian noise of length eps after clipping",
        norms=("L2",),
        needs="nothing",
        cost=(0, 1),
    ),
    _fb(
        "clipped-repeated-uniform-noise",
        "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack",
        "the same, repeated until it succeeds",
        {"repeats": 100},
        norms=("L2",),
        needs="decisions",
        cost=(0, 102),
    ),
    _fb(
        "clipped-repeated-gaussian-noise",
        "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack",
        "the same, repeated until it succeeds",
        {"repeats": 100},
        norms=("L2",),
        needs="decisions",
        cost=(0, 102),
    ),
    _fb(
        "salt-and-pepper",
        "SaltAndPepperNoiseAttack",
        "more and more black and white values",
        {"max_iter": 1000},
        norms=("L2", "L1", "L0"),
        needs="decisions",
        minimum_norm=True,
        cost=(0, 1_002),
    ),
    _fb(
        "blended-noise",
        "LinearSearchBlendedUniformNoiseAttack",
        "a blend with more and more of a uniformly random image",
        {"max_iter": 1000, "directions": 1000},
        needs="decisions",
        minimum_norm=True,
        cost=(0, 2_002),
    ),
    _fb(
        "contrast",
        "L2ContrastReductionAttack",
        "less contrast: towards grey by eps",
        {"grey": 0.5},
        norms=("L2",),
        names={"grey": "target"},
        needs="nothing",
        cost=(0, 1),
    ),
    _fb(
        "contrast-binary-search",
        "BinarySearchContrastReductionAttack",
        "less contrast: towards grey until it succeeds, by a binary search",
        {"binary_search_steps": 15, "grey": 0.5},
        names={"grey": "target"},
        needs="decisions",
        minimum_norm=True,
        cost=(0, 16),
    ),
    _fb(
        "contrast-linear-search",
        "LinearSearchContrastReductionAttack",
        "less contrast: towards grey until it succeeds, step by step",
        {"max_iter": 1000, "grey": 0.5},
        names={"grey": "target"},
        needs="decisions",
        minimum_norm=True,
        cost=(0, 1_001),
    ),
    _fb("inversion", "InversionAttack", "the negative of the image", needs="nothing", minimum_norm=True, cost=(0, 1)),
    _fb(
        "blur",
        "GaussianBlurAttack",
        "more and more blur",
        {"max_iter": 1000},
        fixed={"channel_axis": 1},
        needs="decisions",
        minimum_norm=True,
        cost=(0, 1_002),
    ),
    _refused("spatial", "SpatialAttack", "rotations and shifts", "it has no norm, so eps cannot limit it"),
    _refused(
        "data-set", "DatasetAttack", "another image of the data set", "it needs a data set, and eps cannot limit it"
    ),
    _refused(
        "binarization",
        "BinarizationRefinementAttack",
        "values of an adversarial image moved to the thresholds of a model that binarizes its input",
        "it refines given adversarial images",
    ),
]
