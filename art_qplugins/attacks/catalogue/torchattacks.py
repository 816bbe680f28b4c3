"""The attacks of torchattacks 3.5.1.

VANILA is left out because it is no attack. MultiAttack and LGV are left out because they combine or prepare other
attacks. ``AutoAttack`` is left out because it is not the published one: it has 10 iterations instead of 100 and another
schedule of Square.
"""

from __future__ import annotations

from functools import partial

from art_qplugins.attacks.catalogue.libraries import TORCHATTACKS
from art_qplugins.attacks.catalogue.options import ITERATIVE, count
from art_qplugins.attacks.catalogue.row import Attack, attack_of, refused_attack_of
from art_qplugins.domains import Number, Option, Rule

__all__ = ["ROWS"]

_ta = partial(attack_of, TORCHATTACKS)
_refused = partial(refused_attack_of, TORCHATTACKS)
_PROBABILITY = Number(0, 1)
_ELASTIC = {
    "max_iter": Option(100, count(100_000, least=10)),  # it divides by a tenth of them
    "binary_search_steps": 9,
    "lr": 0.01,
    "initial_const": 0.001,
    "beta": Option(0.001, Number(0, 0.1)),
    "kappa": 0.0,
}
_BLOCKS = {
    "max_iter": 10,
    "momentum": 1.0,
    "amplification": Option(10.0, Number(1, 1000)),
    "prob": Option(0.7, _PROBABILITY),
}
_BLOCK_NAMES = {"max_iter": "num_iter_set"}
_RESTARTS = {"num_random_init": "n_restarts"}
_DIVERSE = {
    "decay": 0.0,
    "resize_rate": Option(0.9, Number(0.5, 1, below=True)),
    "diversity_prob": Option(0.5, _PROBABILITY),
}

#: They smooth with one kernel for each of three channels.
_THREE_CHANNELS = Rule(
    ("channels",), lambda channels: channels == 3, "images of 3 channels, or use torchattacks:difgsm"
)

ROWS: list[Attack] = [
    _ta("fgsm", "FGSM", "one step along the sign of the gradient", one_step=True, cost=(1, 1)),
    _ta(
        "pgd",
        "PGD PGDL2",
        "PGD on cross-entropy with a random start",
        ITERATIVE,
        norms=("Linf", "L2"),
        cost=(20, 20),
    ),
    _ta("mifgsm", "MIFGSM", "BIM with momentum", {**ITERATIVE, "decay": 1.0}, cost=(20, 20)),
    _ta(
        "eotpgd",
        "EOTPGD",
        "EOT-PGD: PGD along the mean gradient of several calls, for random models",
        {**ITERATIVE, "eot_iter": 8},
        gradient="mean",
        cost=(160, 160),
    ),
    _ta("bim", "BIM", "iterated FGSM with small steps, no random start", ITERATIVE, cost=(20, 20)),
    _ta(
        "ffgsm",
        "FFGSM",
        "one step of 1.25 eps from a random start (fast FGSM)",
        {"rel_eps_step": Option(1.25, Number(0.5, 10))},
        one_step=True,
        cost=(1, 1),
    ),
    _ta("rfgsm", "RFGSM", "BIM after one random step (R+FGSM where max_iter is 1)", ITERATIVE, cost=(20, 20)),
    _ta("tpgd", "TPGD", "PGD on the KL divergence from the clean output (TRADES)", ITERATIVE, cost=(20, 21)),
    _ta(
        "upgd",
        "UPGD",
        "PGD with momentum, EOT and a choice of losses",
        {**ITERATIVE, "decay": 1.0, "eot_iter": 1},
        cost=(20, 20),
    ),
    _ta("nifgsm", "NIFGSM", "BIM with Nesterov momentum", {**ITERATIVE, "decay": 1.0}, cost=(20, 20)),
    _ta(
        "sinifgsm",
        "SINIFGSM",
        "the same on m copies of the image at decreasing scales",
        {**ITERATIVE, "decay": 1.0, "m": Option(5, count(30))},
        gradient="mean",
        cost=(100, 100),
    ),
    _ta(
        "vmifgsm",
        "VMIFGSM",
        "momentum with variance tuning: corrected by gradients at N neighbours",
        {**ITERATIVE, "decay": 1.0, "N": Option(5, count(1000)), "beta": Option(1.5, Number(0, 4))},
        gradient="mean",
        cost=(120, 120),
    ),
    _ta(
        "vnifgsm",
        "VNIFGSM",
        "Nesterov momentum with variance tuning: corrected by gradients at N neighbours",
        {**ITERATIVE, "decay": 1.0, "N": Option(5, count(1000)), "beta": Option(1.5, Number(0, 4))},
        gradient="mean",
        cost=(120, 120),
    ),
    _ta(
        "difgsm",
        "DIFGSM",
        "BIM on randomly resized and padded images",
        {**ITERATIVE, **_DIVERSE},
        cost=(20, 20),
    ),
    _ta(
        "tifgsm",
        "TIFGSM",
        "DIFGSM with gradients smoothed by a kernel",
        {**ITERATIVE, **_DIVERSE, "len_kernel": Option(15, count(101)), "nsig": Option(3, count(10))},
        rules=[_THREE_CHANNELS],
        cost=(20, 20),
    ),
    _ta(
        "jitter",
        "Jitter",
        "PGD on rescaled, noisy probabilities",
        {**ITERATIVE, "scale": Option(10.0, Number(0.5, 100)), "std": Option(0.1, Number(0, 0.5))},
        scale_free=True,
        cost=(20, 20),
    ),
    _ta(
        "pgdrs",
        "PGDRS PGDRSL2",
        "PGD on the mean over noisy copies, for models with randomized smoothing",
        {**ITERATIVE, "noise_sd": Option(0.5, Number(0, 1)), "noise_batch_size": Option(5, count(1000))},
        norms=("Linf", "L2"),
        gradient="mean",
        cost=(100, 100),
    ),
    _ta(
        "pifgsm",
        "PIFGSM",
        "patch-wise steps beyond eps, projected back",
        _BLOCKS,
        names=_BLOCK_NAMES,
        rules=[_THREE_CHANNELS],
        cost=(10, 10),
    ),
    _ta(
        "pifgsmpp",
        "PIFGSMPP",
        "the same with diverse inputs and a temperature",
        {**_BLOCKS, "project_factor": Option(0.8, Number(0, 4))},
        names=_BLOCK_NAMES,
        rules=[_THREE_CHANNELS],
        cost=(10, 10),
    ),
    _ta(
        "apgd",
        "APGD",
        "torchattacks' Auto-PGD on cross-entropy with its default of 10 iterations; not autoattack:apgd-ce",
        {"max_iter": 10, "num_random_init": 1, "eot_iter": 1, "rho": Option(0.75, Number(0, 1))},
        names=_RESTARTS,
        norms=("Linf", "L2"),
        cost=(11, 12),
    ),
    _ta(
        "apgdt",
        "APGDT",
        "torchattacks' targeted Auto-PGD with its default of 10 iterations; not autoattack:apgd-t",
        {"max_iter": 10, "num_random_init": 1, "eot_iter": 1, "rho": Option(0.75, Number(0, 1))},
        names=_RESTARTS,
        norms=("Linf", "L2"),
        needs_classes=4,
        scale_free=True,
        targeted=True,
        cost=(99, 109),
    ),
    _ta(
        "fab",
        "FAB",
        "torchattacks' FAB with its default of 10 iterations; not autoattack:fab",
        {
            "max_iter": 10,
            "num_random_init": 1,
            "alpha_max": Option(0.1, Number(0, 1)),
            "eta": Option(1.05, Number(1, 1.5)),
            "beta": Option(0.9, Number(0, 1, above=True)),
        },
        names=_RESTARTS,
        norms=("Linf", "L2"),
        minimum_norm=True,
        scale_free=True,
        cost=(100, 23),
    ),
    _ta(
        "square",
        "Square",
        "torchattacks' Square with a rescaled schedule; not autoattack:square",
        {"n_queries": 5000, "num_random_init": 1, "p_init": 0.8},
        names=_RESTARTS,
        norms=("Linf", "L2"),
        needs="scores",
        cost=(0, 5_003),
    ),
    _ta(
        "spsa",
        "SPSA",
        "SPSA: gradients estimated by simultaneous perturbation",
        {"max_iter": 1, "nb_sample": Option(128, count(100_000)), "delta": Option(0.01, Number(1e-5, 1)), "lr": 0.01},
        names={"max_iter": "nb_iter"},
        needs="scores",
        cost=(0, 256),
    ),
    _ta(
        "cw",
        "CW",
        "Carlini & Wagner with a fixed weight c, without binary search",
        {
            "max_iter": Option(50, count(100_000, least=2)),
            "c": Option(1.0, Number(0.001, 1e6)),
            "kappa": 0.0,
            "lr": 0.01,
        },
        norms=("L2",),
        minimum_norm=True,
        cost=(31, 31),
    ),
    _ta(
        "deepfool",
        "DeepFool",
        "steps to the nearest decision boundary of the linearized model, image by image",
        {"max_iter": 50, "overshoot": 0.02},
        norms=("L2",),
        minimum_norm=True,
        scale_free=True,
        cost=(345, 35),
    ),
    _ta(
        "eadl1",
        "EADL1",
        "elastic net; keeps the image of smallest L1 distance",
        _ELASTIC,
        names={"max_iter": "max_iterations"},
        norms=("L1",),
        minimum_norm=True,
        cost=(199, 399),
    ),
    _ta(
        "eaden",
        "EADEN",
        "elastic net; keeps the image of smallest elastic-net distance",
        _ELASTIC,
        names={"max_iter": "max_iterations"},
        norms=("L1",),
        minimum_norm=True,
        cost=(199, 399),
    ),
    _ta(
        "sparsefool",
        "SparseFool",
        "few pixels that reach DeepFool's boundary",
        {"max_iter": 10, "lam": Option(3.0, Number(1, 10)), "overshoot": 0.02},
        norms=("L0",),
        minimum_norm=True,
        scale_free=True,
        cost=(346, 38),
    ),
    _ta(
        "onepixel",
        "OnePixel",
        "new values for eps pixels, by differential evolution",
        {"max_iter": 10, "popsize": Option(10, count(10_000))},
        norms=("L0",),
        needs="scores",
        cost=(0, 142),
    ),
    _ta(
        "pixle",
        "Pixle",
        "pixels rearranged within the image",
        {"restarts": Option(20, count(10_000)), "max_iter": 10},
        names={"max_iter": "max_iterations"},
        norms=("L0",),
        needs="scores",
        minimum_norm=True,
        cost=(0, 401),
    ),
    _ta(
        "jsma",
        "JSMA",
        "the two most salient values at a time, towards the next class",
        {"theta": 1.0},
        norms=("L0",),
        # Its target class is the label plus one, modulo ten.
        rules=[Rule(("classes",), lambda classes: classes == 10, "a model of 10 classes, or use art:jsma")],
        minimum_norm=True,
        scale_free=True,
        cost=(20, 5),
    ),
    _refused("gn", "GN", "Gaussian noise", "it has a standard deviation and no eps; use foolbox:gaussian-noise"),
]
