"""ART's evasion attacks that are listed but cannot be chosen, with the reason.

Attacks on speech, video, tables, executables and detectors and attacks for TensorFlow are not listed. ``AdversarialPatch``
is not listed either, because it only chooses between other attacks.
"""

from __future__ import annotations

from functools import partial

from art_qplugins.attacks.catalogue.libraries import ART
from art_qplugins.attacks.catalogue.row import Attack, refused_attack_of

__all__ = ["ROWS"]

_refused = partial(refused_attack_of, ART)
_NO_NORM = "it has no norm, so eps cannot limit it"

ROWS: list[Attack] = [
    _refused(
        "geoda",
        "GeoDA",
        "a linear approximation of the decision boundary",
        "ART 1.20.1 calls np.mat, which is not in NumPy 2",
    ),
    _refused("shadow", "ShadowAttack", "smooth colour changes of any size", _NO_NORM),
    _refused("wasserstein", "Wasserstein", "mass moved between pixels", "its eps is a Wasserstein distance"),
    _refused("composite", "CompositeAdversarialAttackPyTorch", "hue, saturation, rotation, contrast", _NO_NORM),
    _refused("spatial", "SpatialTransformation", "rotations and shifts", _NO_NORM),
    _refused("patch", "AdversarialPatchPyTorch", "a printed patch", _NO_NORM),
    _refused("patch-numpy", "AdversarialPatchNumpy", "a printed patch", _NO_NORM),
    _refused("graphite-white-box", "GRAPHITEWhiteboxPyTorch", "a printed sticker", _NO_NORM),
    _refused("graphite-black-box", "GRAPHITEBlackbox", "a printed sticker, by decisions", _NO_NORM),
    _refused("laser", "LaserAttack", "a beam of light from a generator of the caller", _NO_NORM),
    _refused("laser-beam", "LaserBeamAttack", "a beam of light", _NO_NORM),
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
