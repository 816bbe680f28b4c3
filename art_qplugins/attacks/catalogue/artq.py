"""The attacks that no library has."""

from __future__ import annotations

from art_qplugins.attacks.catalogue.row import ITERATIVE, Attack, Library

__all__ = ["ROWS"]

_own = Library("artq", "art_qplugins.attacks.adapters.artq:run", ("Linf", "L2"))

ROWS: list[Attack] = [
    _own(
        "pgd-margin",
        "pgd_margin",
        "PGD on the logit margin, which no scale of the logits can saturate",
        {**ITERATIVE, "num_random_init": 1},
    ),
    _own(
        "apgd-margin",
        "apgd_margin",
        "Auto-PGD on the logit margin; an image leaves the loop once it is misclassified",
        {"max_iter": 20},
    ),
    _own(
        "multi-targeted",
        "multi_targeted",
        "Auto-PGD towards each of the nearest classes in turn, on the images that still stand",
        {"max_iter": 20, "targets": 9},
    ),
    _own(
        "rescaled",
        "rescaled",
        "Auto-PGD on cross-entropy of rescaled logits: per-image, jacobian (NJS) or hessian (HNS)",
        {"max_iter": 20, "scaling": "per-image"},
    ),
    _own(
        "surrogates",
        "surrogates",
        "Auto-PGD by each surrogate gradient that applies (or those of kinds), the most faithful first",
        {"max_iter": 20, "kinds": [], "targets": 0},
    ),
    _own(
        "shadow",
        "shadow",
        "Auto-PGD on the full-precision shadow of a quantized model, then from there on the model itself",
        {"max_iter": 20},
        quantized=True,
    ),
    _own(
        "bits",
        "bits",
        "Auto-PGD on the model at several bit widths of its activations, then from there on the model itself",
        {"max_iter": 20, "bits": [2, 3, 4, 8]},
        quantized=True,
    ),
    _own(
        "joint",
        "joint",
        "Auto-PGD on weight times the model's loss plus the rest times its full-precision shadow's",
        {"max_iter": 20, "weights": [0.5]},
        quantized=True,
    ),
    _own(
        "eot",
        "eot",
        "Auto-PGD on the mean margin of a random model; as many draws a gradient as make it agree with itself",
        {"max_iter": 20, "eot_iter": None},
        models="stochastic",
    ),
    _own(
        "clean",
        "clean",
        "no attack: the image as it is; its cell measures the gradients of the model within this radius",
        {"radius": 0.0, "directions": 20},
        needs="nothing",
        norms=("Linf", "L2", "L1", "L0"),
    ),
]
