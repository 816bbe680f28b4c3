"""The attacks by id, ``library:name``. Nothing here imports a library; an attack's adapter does when it runs.

``art:autoattack`` and ``torchattacks:autoattack`` are other algorithms than the published AutoAttack (other losses, ten
times fewer iterations) and are therefore not offered under those names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from art_qplugins.registry import Entry, Registry

__all__ = ["ATTACKS", "Attack"]

Knowledge = Literal["white-box", "black-box"]


@dataclass(frozen=True, kw_only=True)
class Attack(Entry):
    """``target`` is the adapter, ``upstream`` what the adapter runs in its library."""

    upstream: str
    knowledge: Knowledge = "white-box"
    norms: tuple[str, ...]
    one_step: bool = False
    models: Literal["any", "deterministic", "stochastic"] = "any"


# The adapter of each library, and the norms that its attacks have where a row does not say otherwise.
_LIBRARIES = {
    "art": ("art_qplugins.attacks.art:run", ("Linf", "L2")),
    "torchattacks": ("art_qplugins.attacks.torchattacks:run", ("Linf",)),
    "autoattack": ("art_qplugins.attacks.autoattack:run", ("Linf", "L2", "L1")),
    "artq": ("art_qplugins.attacks.own:run", ("Linf", "L2")),
}


def _attack(name: str, upstream: str, help: str, options: Mapping[str, Any] | None = None, **more: Any) -> Attack:
    target, norms = _LIBRARIES[name.split(":")[0]]
    return Attack(
        name=name, target=target, upstream=upstream, help=help, options=options or {}, **{"norms": norms} | more
    )


# rel_eps_step is the step size as a fraction of eps; None means min(1, 2.5 / iterations).
_ITERATIVE = {"max_iter": 20, "rel_eps_step": None}

ATTACKS: Registry[Attack] = Registry(
    "attack",
    [
        _attack("art:fgsm", "FastGradientMethod", "one step along the gradient's sign", one_step=True),
        _attack("art:bim", "BasicIterativeMethod", "FGSM in small steps, no random start", _ITERATIVE, norms=("Linf",)),
        _attack(
            "art:pgd",
            "ProjectedGradientDescentPyTorch",
            "projected gradient descent on cross-entropy, with random starts",
            {**_ITERATIVE, "num_random_init": 1},
        ),
        _attack(
            "art:mifgsm", "MomentumIterativeMethod", "BIM with momentum", {**_ITERATIVE, "decay": 1.0}, norms=("Linf",)
        ),
        _attack(
            "art:square",
            "SquareAttack",
            "random search over squares; ART's version, one square for the whole batch",
            {"max_iter": 1000, "p_init": 0.8, "nb_restarts": 1},
            knowledge="black-box",
        ),
        _attack("torchattacks:fgsm", "FGSM", "one step along the gradient's sign", one_step=True),
        _attack("torchattacks:pgd", "PGD", "projected gradient descent on cross-entropy, random start", _ITERATIVE),
        _attack("torchattacks:mifgsm", "MIFGSM", "BIM with momentum", {**_ITERATIVE, "decay": 1.0}),
        _attack(
            "torchattacks:eotpgd",
            "EOTPGD",
            "PGD on the mean gradient of several calls, for models that are random",
            {**_ITERATIVE, "eot_iter": 8},
        ),
        _attack(
            "autoattack:standard",
            "standard",
            "the published AutoAttack, unmodified: APGD-CE, APGD-T, FAB-T, Square",
            models="deterministic",
        ),
        _attack(
            "autoattack:rand",
            "rand",
            "the published AutoAttack for random models: APGD-CE and APGD-DLR with 20 EOT draws",
            {"eot_iter": 20},
            models="stochastic",
        ),
        _attack("autoattack:apgd-ce", "apgd-ce", "the first part of autoattack:standard, alone"),
        _attack("autoattack:apgd-t", "apgd-t", "the targeted DLR part of autoattack:standard, alone"),
        _attack("autoattack:fab-t", "fab-t", "the minimum-norm part of autoattack:standard, alone"),
        _attack(
            "autoattack:square",
            "square",
            "the black-box part of autoattack:standard, alone",
            {"n_queries": 5000},
            knowledge="black-box",
        ),
        _attack(
            "artq:pgd-margin",
            "pgd_margin",
            "PGD on the logit margin, which no scale of the logits can saturate",
            {**_ITERATIVE, "num_random_init": 1},
        ),
        _attack(
            "artq:apgd-margin",
            "apgd_margin",
            "Auto-PGD on the logit margin; an image leaves the loop once it is misclassified",
            {"max_iter": 20},
        ),
        _attack(
            "artq:multi-targeted",
            "multi_targeted",
            "Auto-PGD towards each of the nearest classes in turn, on the images that still stand",
            {"max_iter": 20, "targets": 9},
        ),
        _attack(
            "artq:rescaled",
            "rescaled",
            "Auto-PGD on cross-entropy of rescaled logits: per-image, jacobian (NJS) or hessian (HNS)",
            {"max_iter": 20, "scaling": "per-image"},
        ),
        _attack(
            "artq:surrogates",
            "surrogates",
            "Auto-PGD by each surrogate gradient that applies (or those of kinds), the most faithful first",
            {"max_iter": 20, "kinds": [], "targets": 0},
        ),
        _attack(
            "artq:shadow",
            "shadow",
            "Auto-PGD on the full-precision shadow of a quantized model, then from there on the model itself",
            {"max_iter": 20},
        ),
        _attack(
            "artq:bits",
            "bits",
            "Auto-PGD on the model at several bit widths of its activations, then from there on the model itself",
            {"max_iter": 20, "bits": [2, 3, 4, 8]},
        ),
        _attack(
            "artq:joint",
            "joint",
            "Auto-PGD on weight times the model's loss plus the rest times its full-precision shadow's",
            {"max_iter": 20, "weights": [0.5]},
        ),
        _attack(
            "artq:eot",
            "eot",
            "Auto-PGD on the mean margin of a random model; as many draws a gradient as make it agree with itself",
            {"max_iter": 20, "eot_iter": None},
            models="stochastic",
        ),
        _attack(
            "artq:clean",
            "clean",
            "no attack: the image as it is; its cell measures the gradients of the model within this radius",
            {"radius": 0.0, "directions": 20},
            knowledge="black-box",
            norms=("Linf", "L2", "L1", "L0"),
        ),
    ],
)
