"""ART's black-box evasion attacks on image classifiers. They use scores or decisions only."""

from __future__ import annotations

from functools import partial

from art_qplugins.attacks.catalogue.libraries import ART
from art_qplugins.attacks.catalogue.options import count
from art_qplugins.attacks.catalogue.row import Attack, attack_of
from art_qplugins.domains import Number, Option, Rule

__all__ = ["ROWS"]

_art = partial(attack_of, ART)
_WALK = Number(1e-6, 1)  # a step relative to the distance from the clean image
_DECISIONS = count(100_000)

ROWS: list[Attack] = [
    _art(
        "vat",
        "VirtualAdversarialMethod",
        "the direction that changes the prediction most, by finite differences in every value",
        {"max_iter": 10, "finite_diff": Option(1e-6, Number(1e-7, 0.1))},
        norms=("L2",),
        needs="scores",
        probabilities=True,
        cost=(0, 651),
    ),
    _art(
        "square",
        "SquareAttack",
        "ART's version of Square: random search over squares, one square for the whole batch",
        {"max_iter": 1000, "p_init": 0.8, "nb_restarts": 1},
        needs="scores",
        cost=(0, 3_003),
    ),
    _art(
        "boundary",
        "BoundaryAttack",
        "a random walk along the boundary, from an adversarial image towards the clean one",
        {
            "max_iter": 5000,
            "delta": Option(0.01, _WALK),
            "epsilon": Option(0.01, _WALK),
            "num_trial": 25,
            "sample_size": Option(20, count(10_000)),
            "init_size": 100,
        },
        norms=("L2",),
        fixed={"targeted": False},
        needs="decisions",
        minimum_norm=True,
        cost=(0, 8_240),
    ),
    _art(
        "hop-skip-jump",
        "HopSkipJump",
        "HopSkipJump: the direction of the boundary, estimated from decisions at many nearby points",
        {"max_iter": 50, "max_eval": Option(10000, _DECISIONS), "init_eval": Option(100, _DECISIONS), "init_size": 100},
        rules=[Rule(("init_eval", "max_eval"), lambda first, most: first <= most, "an init_eval of at most max_eval")],
        needs="decisions",
        minimum_norm=True,
        cost=(0, 24_597),
    ),
    _art(
        "sign-opt",
        "SignOPTAttack",
        "Sign-OPT: the direction to the nearest boundary, from the signs of its directional derivatives",
        {
            "max_iter": 1000,
            "n_queries": 20000,
            "num_trial": 100,
            "k": Option(200, count(10_000)),
            "alpha": Option(0.2, Number(1e-3, 10)),
            "beta": Option(0.001, Number(1e-8, 1)),
            "epsilon": Option(0.001, Number(1e-5, 1)),
        },
        norms=("L2",),
        names={"n_queries": "query_limit"},
        fixed={"targeted": False},
        needs="decisions",
        minimum_norm=True,
        needs_classes=3,
        cost=(0, 9_542),
    ),
    _art(
        "zoo",
        "ZooAttack",
        "Carlini & Wagner with finite differences instead of gradients",
        {
            "max_iter": 10,
            "binary_search_steps": 1,
            "learning_rate": 0.01,
            "initial_const": 0.001,
            "nb_parallel": Option(64, count(10_000)),
            "variable_h": Option(1e-4, Number(1e-6, 0.1)),
        },
        rules=[
            Rule(
                ("nb_parallel", "values"),
                lambda tried, values: tried <= values,
                "an nb_parallel of at most the values of an image",
            )
        ],
        norms=("L2",),
        # Resizing and importance sampling need images of at least 32x32, and ART mixes up the images of a batch.
        fixed={"use_resize": False, "use_importance": False, "batch_size": 1},
        needs="scores",
        minimum_norm=True,
        cost=(0, 260),
    ),
    _art(
        "simba",
        "SimBA",
        "random search along the cosine basis",
        {"max_iter": 3000, "epsilon": Option(0.1, Number(0.01, 0.5)), "freq_dim": Option(4, count(1000))},
        rules=[
            Rule(
                ("freq_dim", "side"),
                lambda frequencies, side: frequencies <= side,
                "a freq_dim of at most the side of the images",
            )
        ],
        norms=("L2",),
        fixed={"batch_size": 1},
        labels="one-hot",
        needs="scores",
        probabilities=True,
        minimum_norm=True,
        cost=(0, 979),
    ),
    _art(
        "pixel",
        "PixelAttack",
        "new values for eps pixels, by differential evolution",
        {"max_iter": 100},
        norms=("L0",),
        fixed={"es": 1},
        needs="scores",
        minimum_norm=True,
        needs_classes=3,
        cost=(0, 40_097),
    ),
    _art(
        "threshold",
        "ThresholdAttack",
        "changes of every value within eps, by differential evolution",
        {"max_iter": 100},
        norms=("Linf",),
        fixed={"es": 1},
        needs="scores",
        minimum_norm=True,
        needs_classes=3,
        cost=(0, 38_885),
    ),
]
