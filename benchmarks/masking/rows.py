"""A row of the zoo: one model whose truth is known, one claim, and what a diagnosis has to find.

How models are made is in ``builders.py``; the rows themselves are in ``zoo.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from art.estimators.classification import PyTorchClassifier
from halves import Half, half_of
from networks import CLASSES, Site
from plants import Measured
from torch import Tensor, nn

from art_qplugins import QuantizedClassifier, Threat

__all__ = [
    "EPS",
    "INVALID",
    "MASKED",
    "SUSPECT",
    "Build",
    "Built",
    "Make",
    "Row",
    "alone",
    "classifier",
    "honest",
    "invalid",
    "masked",
    "misleading",
    "weak",
]

Kind = Literal["masked", "misleading", "weak", "invalid", "honest"]
Eps = Mapping[str, float]


@dataclass(frozen=True)
class Built:
    """A model under test.

    :ivar twin: for a planted failure, the same function with an honest gradient, to attack the model through.
    :ivar estimator: what is diagnosed, where that is more than an estimator around ``model``. ``model`` then gives the same
        classes.
    """

    model: nn.Module
    twin: nn.Module | None = None
    estimator: PyTorchClassifier | None = None


Build = Callable[[Site], Built]
Make = Callable[[Site], nn.Module]

#: Eps by data set, in L-infinity. It breaks half of the images of an undefended network or more, and few of a robust one's.
EPS = {"digits": 0.15, "mnist": 0.1}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model and one claim.

    :ivar kind: ``masked``: the gradients hide adversarial images from the claimed attack, or there is no gradient to follow;
        ``misleading``: the same, but the number claimed is right; ``weak``: the claimed attack is too weak for a model that
        hides nothing; ``invalid``: the evaluation has no number; ``honest``.
    :ivar family: rows that are variations of one plant, or of one honest idea. They share a half.
    :ivar expected: the verdicts that count as right.
    :ivar attack: the attack of the claim, with its ``options``.
    :ivar claim: a loop that measures the number claimed, in place of ``attack``, which then only names it.
    :ivar eps: by data set.
    :ivar abstain: the output that rejects an image. A wrong answer to an adversarial image is then one that is not rejected.
    :ivar must_fire: names of the indicators that the plant has to set off.
    """

    name: str
    kind: Kind
    family: str
    build: Build
    expected: frozenset[str]
    why: str
    attack: str = "art:pgd"
    options: Mapping[str, Any] = field(default_factory=dict)
    claim: Measured | None = None
    norm: str = "Linf"
    eps: Eps = field(default_factory=lambda: EPS)
    abstain: int | None = None
    must_fire: frozenset[str] = frozenset()

    @property
    def mechanism(self) -> str:
        """Of a planted failure, what hides the images; else the kind."""
        return next((name for name, families in _MECHANISMS.items() if self.family in families), self.kind)

    @property
    def half(self) -> Half:
        """A to tune thresholds on, B to check them, C to report rates of."""
        return half_of(self.family)

    @property
    def datasets(self) -> frozenset[str]:
        """Those that it has an eps for."""
        return frozenset(self.eps)

    def threat(self, dataset: str) -> Threat:
        return Threat(self.norm, self.eps[dataset])


_MECHANISMS = {
    "scale": ("scale", "scale-at", "scale-l2", "mu-law", "distilled", "cifar-scaled"),
    "no-gradient": (
        *(
            "saturated",
            "detached",
            "killed",
            "rounded",
            "compressed",
            "sign",
            "jpeg-pil",
            "numpy-pixels",
            "thermometer",
        ),
        *("median", "dithered", "embedded", "tiny-backward", "decisions", "half-range", "frequencies", "patches"),
        *("components", "generated"),
        *("codebook", "steep-pixels", "inverted-rounded", "hidden-tanh", "no-grad-pixels", "scripted-rounded"),
        *("clipped-logits", "rounded-logits", "votes", "purified", "detector-squeezing", "cifar-jpeg"),
    ),
    "bad-gradient": ("sign-steep", "k-winners", "ripples", "wrong-backward", "reverse-sigmoid", "anti-adversary"),
    "rugged": ("fgsm-at", "squeezed"),
    "output": ("output", "ensemble-softmax", "art-output"),
    "random": ("one-draw", "noisy", "random-resize", "sq-alone", "deflected"),
    "art": ("art-jpeg", "art-filters", "art-thermometer", "art-variation"),
}


def classifier(model: nn.Module, x: Tensor, classes: int = CLASSES) -> QuantizedClassifier:
    """An estimator for images like ``x``."""
    return QuantizedClassifier(model.eval(), nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, device_type="cpu")


# --- Ways to write a row


def alone(make: Make) -> Build:
    """A model without a twin."""
    return lambda site: Built(make(site))


MASKED, SUSPECT, INVALID = frozenset({"MASKED"}), frozenset({"SUSPECT"}), frozenset({"INVALID"})
_SILENT = frozenset({"NOT_REFUTED"})


def _row(kind: Kind, expected: frozenset[str]) -> Callable[..., Row]:
    def make(name: str, family: str, build: Build, why: str, must_fire: str = "", **more: Any) -> Row:
        more = {"expected": expected, **more}
        return Row(
            name=name, kind=kind, family=family, build=build, why=why, must_fire=frozenset(must_fire.split()), **more
        )

    return make


masked, weak, invalid = _row("masked", MASKED), _row("weak", _SILENT), _row("invalid", INVALID)
misleading = _row("misleading", MASKED)


def honest(name: str, family: str, make: Make, why: str, **more: Any) -> Row:
    return _row("honest", _SILENT)(name, family, alone(make), why, **more)
