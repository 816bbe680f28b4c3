"""ART's evasion attacks that are listed and cannot be chosen, with the reason.

Not even listed are attacks on speech, video, tables, executables and detectors, those for TensorFlow, and
``AdversarialPatch``, which only chooses between others.
"""

from __future__ import annotations

from functools import partial

from art_qplugins.attacks.catalogue.libraries import ART
from art_qplugins.attacks.catalogue.row import Attack, refused_attack_of

__all__ = ["ROWS"]

_refused = partial(refused_attack_of, ART)
_NO_BUDGET = "it keeps to no norm, so no budget says how far it may go"

ROWS: list[Attack] = [
    _refused("geoda", "GeoDA", "the boundary as a plane", "ART 1.20.1 calls np.mat, which is not in NumPy 2"),
    _refused("shadow", "ShadowAttack", "smooth changes of colour that need not be small", _NO_BUDGET),
    _refused("wasserstein", "Wasserstein", "mass moved between pixels", "its budget is a Wasserstein distance"),
    _refused("composite", "CompositeAdversarialAttackPyTorch", "hue, saturation, rotation, contrast", _NO_BUDGET),
    _refused("spatial", "SpatialTransformation", "rotations and shifts", _NO_BUDGET),
    _refused("patch", "AdversarialPatchPyTorch", "a printed patch", _NO_BUDGET),
    _refused("patch-numpy", "AdversarialPatchNumpy", "a printed patch", _NO_BUDGET),
    _refused("graphite-white-box", "GRAPHITEWhiteboxPyTorch", "a printed sticker", _NO_BUDGET),
    _refused("graphite-black-box", "GRAPHITEBlackbox", "a printed sticker, by decisions", _NO_BUDGET),
    _refused("laser", "LaserAttack", "a beam of light of the caller's own generator", _NO_BUDGET),
    _refused("laser-beam", "LaserBeamAttack", "a beam of light", _NO_BUDGET),
    _refused(
        "features",
        "FeatureAdversariesPyTorch",
        "the features of another image",
        "it needs guide images and a layer of the model; call ART's class with the estimator",
    ),
    _refused(
        "features-numpy",
        "FeatureAdversariesNumpy",
        "the features of another image, by L-BFGS",
        "it needs guide images and a layer of the model; call ART's class with the estimator",
    ),
    _refused(
        "targeted-uap",
        "TargetedUniversalPerturbation",
        "one perturbation for all images, towards one class",
        "it needs a target class, and a threat names none; use art:uap",
    ),
]
