"""The validation zoo: models whose truth is known, planted failures and honest ones, on digits and on MNIST.

A row is declarative: how the model is made, what is claimed of it, and what a diagnosis has to say. The diagnostics know
nothing of it. The claim speaks of a number, the verdict of the model's gradients: an attack that is too weak for a model
that hides nothing makes the claim OVERSTATED and leaves the verdict at NOT_REFUTED (kind ``weak``).

Thresholds are tuned on half A and rates reported of half B. A row's family decides its half, so that B holds plants, and
kinds of honest models, that nobody has tuned on, for every seed and data set.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from networks import DATASETS, Recipe, Shape, Site, cached, cross_entropy, fingerprint, fit, imitating, network, trained
from networks import adversarial as adversarial_loss
from plants import (
    BatchStatistics,
    Compressed,
    Detached,
    DoubleSoftmax,
    FrozenNoise,
    Killed,
    KWinners,
    Measured,
    NoGrad,
    Noisy,
    Probabilities,
    Rounded,
    Saturated,
    Scaled,
    Sign,
    last_iterate,
    wrong_units,
)
from torch import nn

from art_qplugins import QuantizedClassifier, Threat, quantize
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import bake

__all__ = ["ROWS", "Built", "Row", "classifier"]

Kind = Literal["masked", "weak", "invalid", "honest"]
Eps = Mapping[str, float]


@dataclass(frozen=True)
class Built:
    """The model under test and, for a planted failure, the same function with an honest gradient, to attack it through."""

    model: nn.Module
    twin: nn.Module | None = None


Build = Callable[[Site], Built]
Make = Callable[[Site], nn.Module]

#: Half the images of an undefended network stand, or fewer; a robust one keeps most.
_EPS = {"digits": 0.15, "mnist": 0.1}
_ROBUST = {"digits": 0.15, "mnist": 0.2}
#: More than half of the distance between four levels: less changes no pixel that is black or white.
_COARSE = {"digits": 0.2, "mnist": 0.25}
_L2 = {"digits": 0.8, "mnist": 1.5}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model and one claim.

    :param kind: ``masked``: the gradients hide adversarial images from the claimed attack, or there are none to follow;
        ``weak``: the claimed attack is too weak for a model that hides nothing; ``invalid``: there is no number to speak
        of; ``honest``.
    :param family: rows that are variations of one plant, or of one honest idea; they share a half.
    :param expected: the verdicts that count as right.
    :param attack: what the claim rests on, with its ``options``.
    :param claim: where given, the number claimed is what this loop measures, and ``attack`` is what it is called.
    :param eps: by data set.
    :param must_fire: indicators that the plant has to set off.
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
    eps: Eps = field(default_factory=lambda: _EPS)
    must_fire: frozenset[str] = frozenset()

    @property
    def mechanism(self) -> str:
        """What hides the images, of a planted failure; else the kind."""
        return next((name for name, families in _MECHANISMS.items() if self.family in families), self.kind)

    @property
    def half(self) -> Literal["A", "B"]:
        return "A" if hashlib.sha256(f"{_SALT}{self.family}".encode()).digest()[0] % 2 else "B"

    def threat(self, dataset: str) -> Threat:
        return Threat(self.norm, self.eps[dataset])


_MECHANISMS = {
    "scale": ("scale", "scale-at", "scale-l2", "mu-law", "distilled"),
    "no-gradient": ("saturated", "detached", "killed", "rounded", "compressed", "sign"),
    "bad-gradient": ("sign-steep", "k-winners"),
    "rugged": ("fgsm-at", "squeezed"),
    "output": ("output",),
    "random": ("one-draw", "noisy"),
}
#: Chosen, before any verdict was looked at, as the first number for which both halves have rows of every kind, and
#: between 40 and 60 percent of the honest and of the masked ones.
_SALT = 0


def classifier(model: nn.Module, site: Site) -> QuantizedClassifier:
    return QuantizedClassifier(model.eval(), nn.CrossEntropyLoss(), site.shape, 10, device_type="cpu")


# --- Networks


def plain(site: Site, *, epochs: int = 6, **more: Any) -> nn.Module:
    return trained(site, Recipe(epochs=epochs, **more))


def shaped(**shape: Any) -> Make:
    return lambda site: plain(site, shape=Shape(**shape))


def _robust_recipe(site: Site, eps: float | None = None, loss: str = "adversarial", **more: Any) -> Recipe:
    shape = Shape(**{k: more.pop(k) for k in tuple(more) if k in Shape.__dataclass_fields__})
    options = {"eps": _ROBUST[site.dataset] if eps is None else eps, "steps": 5 if site.dataset == "digits" else 4}
    return Recipe(shape=shape, loss=loss, options=tuple((options | more).items()), epochs=_epochs(site))


def _epochs(site: Site) -> int:
    return 12 if site.dataset == "digits" else 7


def robust(site: Site, eps: float | None = None, **more: Any) -> nn.Module:
    """Adversarially trained; ``more`` is a loss's options or a shape's fields."""
    return trained(site, _robust_recipe(site, eps, **more))


def trades(site: Site, beta: float = 6.0, **more: Any) -> nn.Module:
    return trained(site, _robust_recipe(site, loss="trades", beta=beta, **more))


def _tuned(site: Site, base: nn.Module, adversarially: bool = False, **bits: Any) -> nn.Module:
    """Quantized, trained on for a little so that it gets used to it, and deployed."""
    options = (("eps", _ROBUST[site.dataset]), ("steps", 4), ("warm", 0.0)) if adversarially else ()
    name = "adversarial" if adversarially else "cross_entropy"
    recipe = Recipe(loss=name, options=options, epochs=2, learning_rate=0.02)
    loss = adversarial_loss(**dict(options)) if adversarially else cross_entropy()  # type: ignore[arg-type]
    model = cached(
        site,
        ("tuned", fingerprint(base), tuple(bits.items()), recipe),
        lambda: quantize(base, trainable=True, seed=site.seed, **bits),
        lambda m: fit(m, loss, site, recipe),
    )
    return bake(copy.deepcopy(model)).eval()


def _stochastic(site: Site, bits: int = 2, adversarially: bool = False, **options: Any) -> nn.Module:
    base = robust(site) if adversarially else plain(site)
    members = _tuned(site, base, adversarially, activation_bits=bits, alpha=2.0, clip=2.0)
    return StochasticEnsemble(members, **options).eval()


def _binary(site: Site, slope: float | None) -> Built:
    """Trained straight through, deployed with another backward."""
    recipe = Recipe(epochs=12, learning_rate=0.05)
    twin = cached(
        site,
        ("binary", recipe),
        lambda: network(site, activation=Sign),
        lambda m: fit(m, cross_entropy(), site, recipe),
    )
    model = copy.deepcopy(twin)
    for part in model.modules():
        if isinstance(part, Sign):
            part.slope = slope
    return Built(model, twin)


def _winners(site: Site, share: float = 0.08) -> Built:
    recipe = Recipe(shape=Shape(width=16), epochs=10 if site.dataset == "digits" else 6)
    make = functools.partial(KWinners, share)
    model = cached(
        site,
        ("k-winners", share, recipe),
        lambda: network(site, recipe.shape, make),
        lambda m: fit(m, cross_entropy(), site, recipe),
    )
    return Built(model)


def _distilled(site: Site, temperature: float = 40.0) -> Built:
    """Papernot et al. 2016: teacher and student trained at a high temperature, the student deployed at 1."""
    teacher = Recipe(options=(("gain", 1 / temperature),), epochs=10, learning_rate=0.3)
    student = cached(
        site,
        ("student", temperature, teacher),
        lambda: network(Site(site.dataset, site.seed + 100)),
        lambda m: fit(m, imitating(trained(site, teacher), temperature), site, teacher),
    )
    return Built(student, Scaled(student, 1 / temperature))


def _fast_adversarial(site: Site) -> nn.Module:
    """FGSM from the image itself, at a large budget and without warming up: the setting of catastrophic overfitting."""
    options = (("eps", 0.3), ("steps", 1), ("random_start", 0), ("warm", 0.3))
    return trained(
        site,
        Recipe(
            shape=Shape(width=16), loss="adversarial", options=options, epochs=20 if site.dataset == "digits" else 10
        ),
    )


def _paired(site: Site, loss: str) -> nn.Module:
    """CLP or LSQ on noisy images, as in Mosbach et al. 2018, their noise in proportion to the image."""
    strength, noise, epochs = (0.3, 0.2, 20) if site.dataset == "digits" else (0.3, 0.3, 8)
    return trained(site, Recipe(loss=loss, options=(("strength", strength), ("noise", noise)), epochs=epochs))


def _noisy(site: Site) -> Built:
    """Fresh noise at every call. The twin is the mean over a fixed bank: nearly the same function, and not random."""
    digits = site.dataset == "digits"
    base = plain(site) if digits else plain(site, options=(("noise", 0.5),))
    deviation = 0.3 if digits else 0.5
    return Built(Noisy(base, deviation), FrozenNoise(base, site.shape, deviation, site.seed))


# --- Ways to write a row


def _on(base: Make, wrap: Callable[[nn.Module], nn.Module]) -> Build:
    return lambda site: Built(wrap(base(site)), base(site))


def _alone(make: Make) -> Build:
    return lambda site: Built(make(site))


def _input(base: Make, kind: type[Rounded] | type[Compressed], value: Any, bpda: bool = False) -> Build:
    def build(site: Site) -> Built:
        through = kind(base(site), value, through=True)
        return Built(through) if bpda else Built(kind(base(site), value), through)

    return build


def _mu_law(layers: int) -> Build:
    def build(site: Site) -> Built:
        model = quantize(plain(site), weight_bits=3, mu=255.0, mu_layers=layers)
        return Built(model, Scaled(model, 1e-2))

    return build


_MASKED, _SUSPECT, _INVALID = frozenset({"MASKED"}), frozenset({"SUSPECT"}), frozenset({"INVALID"})
_SILENT = frozenset({"NOT_REFUTED"})


def _row(kind: Kind, expected: frozenset[str]) -> Callable[..., Row]:
    def make(name: str, family: str, build: Build, why: str, must_fire: str = "", **more: Any) -> Row:
        more = {"expected": expected, **more}
        return Row(
            name=name, kind=kind, family=family, build=build, why=why, must_fire=frozenset(must_fire.split()), **more
        )

    return make


_masked, _weak, _invalid = _row("masked", _MASKED), _row("weak", _SILENT), _row("invalid", _INVALID)


def _honest(name: str, family: str, make: Make, why: str, **more: Any) -> Row:
    return _row("honest", _SILENT)(name, family, _alone(make), why, **more)


# --- The table

_HONEST = (
    # Plain
    _honest("plain", "plain", plain, "broken by everybody"),
    _honest("plain-small-eps", "plain", plain, "many images stand: room for a gap", eps={"digits": 0.08, "mnist": 0.05}),
    _honest("plain-long", "training", lambda s: plain(s, epochs=30 if s.dataset == "digits" else 15), "larger margins"),
    _honest("plain-no-decay", "training", lambda s: plain(s, epochs=12, weight_decay=0.0), "larger margins"),
    _honest("plain-decay", "training", lambda s: plain(s, weight_decay=5e-3), "small margins"),
    _honest(
        "logits-small",
        "small-logits",
        lambda s: plain(s, options=(("gain", 4.0),)),
        "trained to logits a quarter as large; claimed by a loss that does not mind",
        attack="autoattack:apgd-t",
    ),
    _honest("mixup", "regularized", lambda s: plain(s, loss="mixup", epochs=10), "soft targets"),
    _honest("smoothing-0.1", "regularized", lambda s: plain(s, options=(("smoothing", 0.1),)), "mild label smoothing"),
    _honest("dropout", "regularized", shaped(dropout=0.4), "trained with dropout"),
    _honest("noise-trained", "noise", lambda s: plain(s, options=(("noise", 0.2),), epochs=10), "Gaussian augmentation"),
    _honest(
        "noise-frozen",
        "noise",
        lambda s: FrozenNoise(plain(s, options=(("noise", 0.2),), epochs=10), s.shape, 0.2, s.seed),
        "the mean over eight fixed noises: deterministic and smooth",
    ),
    # Architectures
    _honest("narrow", "width", shaped(width=4), "few parameters, smaller margins"),
    _honest("wide", "width", shaped(width=16), "more parameters"),
    _honest("gelu", "smooth-activation", shaped(activation="gelu"), "a smooth activation"),
    _honest("silu", "smooth-activation", shaped(activation="silu"), "a smooth activation"),
    _honest("elu", "other-activation", shaped(activation="elu"), "another one"),
    _honest("tanh", "other-activation", shaped(activation="tanh"), "an activation that saturates, in part"),
    _honest("leaky-relu", "other-activation", shaped(activation="leaky-relu"), "no dead units"),
    _honest("max-pool", "pooling", shaped(pool="max"), "kinks of max pooling"),
    _honest("average-pool", "pooling", shaped(pool="average"), "smoother"),
    _honest("residual", "residual", shaped(residual=True), "a skip connection"),
    _honest("mlp", "mlp", shaped(convolutions=False), "no convolution"),
    _honest("no-norm", "no-norm", shaped(norm=False), "no batch norm"),
    # Claims in other norms and by other attacks
    _honest("plain-l2", "l2", plain, "a claim in another norm", norm="L2", eps=_L2),
    _honest("at-l2", "l2", robust, "the same, of a robust network", norm="L2", eps=_L2),
    _honest("plain-apgd", "claims", plain, "claimed by a stronger attack", attack="autoattack:apgd-ce"),
    _honest("at-apgd", "claims", robust, "the same", attack="autoattack:apgd-ce", eps=_ROBUST),
    _honest("at-autoattack", "claims", robust, "by the strongest", attack="autoattack:standard", eps=_ROBUST),
    _honest("plain-pgd-50", "claims", plain, "fifty steps", options={"max_iter": 50}),
    # Quantized
    _honest("8bit", "quantized", lambda s: quantize(plain(s), 8, 8), "straight-through, close to float"),
    _honest("4bit", "quantized", lambda s: quantize(plain(s), 4, 4), "straight-through"),
    _honest("3bit", "quantized-coarse", lambda s: _tuned(s, plain(s), activation_bits=3, weight_bits=3, clip=2.0), "quantization-aware training"),
    _honest("2bit-weights", "quantized-coarse", lambda s: _tuned(s, plain(s), weight_bits=2), "exactly differentiable in the pixels"),
    _honest("3bit-weights", "quantized-coarse", lambda s: quantize(plain(s), weight_bits=3), "mu-law's control"),
    _honest("rounded-bpda", "bpda", lambda s: _input(plain, Rounded, 5, True)(s).model, "rounding, through its BPDA", eps=_ROBUST),
    _honest("compressed-bpda", "bpda", lambda s: _input(plain, Compressed, 0.1, True)(s).model, "lossy, through BPDA"),
    # Robust
    _honest("at", "at", robust, "a gap of PGD to AutoAttack is normal", eps=_ROBUST),
    _honest("at-wide", "at", lambda s: robust(s, width=16), "the same, wider", eps=_ROBUST),
    _honest("at-small-eps", "at-eps", lambda s: robust(s, 0.1), "trained at a smaller eps than claimed", eps=_ROBUST),
    _honest("at-large-eps", "at-eps", lambda s: robust(s, 0.25), "at a larger one", eps={"digits": 0.25, "mnist": 0.25}),
    _honest("at-residual", "at-shape", lambda s: robust(s, residual=True), "with a skip connection", eps=_ROBUST),
    _honest("at-gelu", "at-shape", lambda s: robust(s, activation="gelu"), "smooth", eps=_ROBUST),
    _honest("trades", "trades", trades, "another loss", eps=_ROBUST),
    _honest("trades-1", "trades", lambda s: trades(s, 1.0), "less of it", eps=_ROBUST),
    _honest("at-8bit", "at-quantized", lambda s: quantize(robust(s), 8, 8), "honest quantization", eps=_ROBUST),
    _honest("at-4bit", "at-quantized", lambda s: quantize(robust(s), 4, 4), "coarser", eps=_ROBUST),
    _honest("trades-8bit", "at-quantized", lambda s: quantize(trades(s), 8, 8), "of TRADES", eps=_ROBUST),
    _honest("at-4bit-tuned", "at-quantized", lambda s: _tuned(s, robust(s), True, activation_bits=4, weight_bits=4, clip=2.0), "adversarially trained when quantized", eps=_ROBUST),
    # Stochastic, attacked through the deployed average
    _honest("sq-eot-4", "sq", lambda s: _stochastic(s, draws=4), "ensemble of four, attacked as such"),
    _honest("sq-eot-8", "sq", lambda s: _stochastic(s, draws=8), "of eight", options={"max_iter": 40}),
    _honest("sq-eot-4bit", "sq-fine", lambda s: _stochastic(s, 4, draws=4), "less noise"),
    _honest("sq-at", "sq-at", lambda s: _stochastic(s, adversarially=True, draws=8), "of a robust network", attack="autoattack:apgd-ce", eps=_ROBUST),
)  # fmt: skip

_PLANTED = (
    # Scale
    _masked("x1e4", "scale", _on(plain, lambda m: Scaled(m, 1e4)), "cross-entropy and its gradient are 0", "attack-gap logit-scale zero-gradient loss-underflow large-logits gradient-underflow"),
    _masked("x30", "scale", _on(plain, lambda m: Scaled(m, 30.0)), "not all gradients are gone", "attack-gap logit-scale loss-underflow large-logits gradient-underflow"),
    _masked("x1e4-fgsm", "scale", _on(plain, lambda m: Scaled(m, 1e4)), "one step", "attack-gap zero-gradient loss-underflow large-logits gradient-underflow", attack="art:fgsm"),
    _masked("at-x1e4", "scale-at", _on(robust, lambda m: Scaled(m, 1e4)), "robust, and claimed too high", "attack-gap logit-scale zero-gradient loss-underflow large-logits gradient-underflow", eps=_ROBUST),
    _masked("trades-x1e4", "scale-at", _on(trades, lambda m: Scaled(m, 1e4)), "the same of TRADES", "attack-gap logit-scale zero-gradient loss-underflow large-logits gradient-underflow", eps=_ROBUST),
    _masked("x10-l2", "scale-l2", _on(plain, lambda m: Scaled(m, 10.0)), "the square of the gradient underflows in an L2 step", "attack-gap logit-scale loss-underflow large-logits gradient-underflow", norm="L2", eps=_L2),
    _masked("x10", "scale-l2", _on(plain, lambda m: Scaled(m, 10.0)), "steps by sign mostly survive it", "loss-underflow large-logits", expected=_MASKED | _SUSPECT),
    _masked("mu-law-1", "mu-law", _mu_law(1), "the last layer: in part still attackable", "loss-underflow large-logits", expected=_MASKED | _SUSPECT),
    _masked("mu-law-2", "mu-law", _mu_law(2), "the last two layers", "attack-gap logit-scale loss-underflow large-logits gradient-underflow"),
    _masked("mu-law-2-fgsm", "mu-law", _mu_law(2), "the same, claimed by FGSM", "attack-gap loss-underflow large-logits", attack="art:fgsm"),
    _masked("distilled", "distilled", _distilled, "trained at temperature 40, deployed at 1", "loss-underflow large-logits"),
    _masked("tanh-pgd", "saturated", _on(plain, lambda m: Saturated(m, 4.0)), "inside the graph: no scale undoes it", "attack-gap surrogate-gradient zero-gradient"),
    _masked("tanh-apgd-t", "saturated", _on(plain, lambda m: Saturated(m, 4.0)), "claimed by a loss that no scale changes", "attack-gap surrogate-gradient zero-gradient", attack="autoattack:apgd-t"),
    _masked("tanh-at", "saturated", _on(robust, lambda m: Saturated(m, 8.0)), "of a robust network", "attack-gap zero-gradient", eps={"digits": 0.2, "mnist": 0.25}),
    # No gradient
    _masked("detached", "detached", _on(plain, Detached), "no gradient reaches the pixels", "no-gradient", expected=_INVALID | _MASKED),
    _masked("no-grad", "detached", _on(plain, NoGrad), "interrupted within", "no-gradient", expected=_INVALID | _MASKED),
    _masked("gradient-killer", "killed", _on(plain, Killed), "a backward of exactly zero", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient"),
    _masked("gradient-killer-at", "killed", _on(robust, Killed), "of a robust network: a smaller gap", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient", eps={"digits": 0.2, "mnist": 0.25}),
    _masked("rounded", "rounded", _input(plain, Rounded, 5), "pixels on 5 levels, no BPDA", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient", eps=_ROBUST),
    _masked("rounded-2bit", "rounded", _input(plain, Rounded, 4), "on 4 levels", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient", eps=_COARSE),
    _masked("compressed", "compressed", _input(plain, Compressed, 0.3), "the lossy step of JPEG, no BPDA", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient"),
    _masked("sign", "sign", lambda s: _binary(s, None), "binary activations with their true derivative", "attack-gap surrogate-gradient zero-gradient blocking-operation unfaithful-gradient"),
    _masked("sign-steep", "sign-steep", lambda s: _binary(s, 50.0), "through the derivative of tanh(50 x)", "unfaithful-gradient", expected=_MASKED | _SUSPECT),
    # Rugged
    _masked("fgsm-at", "fgsm-at", _alone(_fast_adversarial), "catastrophic overfitting", "attack-gap single-step gradient-alignment", attack="art:fgsm", eps={"digits": 0.3, "mnist": 0.3}),
    _masked("k-winners", "k-winners", _winners, "a discontinuous activation", "unfaithful-gradient", expected=_MASKED | _SUSPECT),
    _masked("smoothing-0.5", "squeezed", _alone(lambda s: plain(s, options=(("smoothing", 0.5),), epochs=12)), "strong label smoothing, PGD-10", expected=_MASKED | _SUSPECT, options={"max_iter": 10}, eps={"digits": 0.15, "mnist": 0.05}),
    _masked("clp", "squeezed", _alone(lambda s: _paired(s, "pairing")), "clean logit pairing, PGD-10", expected=_MASKED | _SUSPECT, options={"max_iter": 10}, eps=_ROBUST),
    _masked("lsq", "squeezed", _alone(lambda s: _paired(s, "squeezing")), "logit squeezing, PGD-10", expected=_MASKED | _SUSPECT, options={"max_iter": 10}, eps=_ROBUST),
    # Output
    _masked("probabilities", "output", _on(plain, Probabilities), "cross-entropy of a softmax; to refuse it is right too", expected=_MASKED | _SUSPECT | _INVALID),
    _masked("double-softmax", "output", _on(plain, DoubleSoftmax), "and of a softmax of it", expected=_MASKED | _SUSPECT | _INVALID),
    # Random
    _masked("sq-one-draw", "one-draw", lambda s: Built(_stochastic(s, draws=8, eot_draws=1), _stochastic(s, draws=8)), "deployed with eight draws, attacked in ten steps through one", expected=_MASKED | _SUSPECT, options={"max_iter": 10}),
    _masked("noisy-input", "noisy", _noisy, "noise that no layer of ours announces, no averaging", expected=_MASKED | _SUSPECT, options={"max_iter": 10}, eps=_ROBUST),
)  # fmt: skip

_WEAK = (
    _weak("small-step", "steps", _alone(plain), "ten steps that reach a tenth of eps", "attack-gap", options={"max_iter": 10, "rel_eps_step": 0.01}),
    _weak("small-step-at", "steps", _alone(robust), "of a robust network", "attack-gap", options={"max_iter": 10, "rel_eps_step": 0.01}, eps=_ROBUST),
    _weak("three-steps", "few-steps", _alone(plain), "three steps of a tenth of eps", "attack-gap", options={"max_iter": 3, "rel_eps_step": 0.1}),
    _weak("fgsm-claim", "few-steps", _alone(plain), "a one-step attack", "attack-gap single-step", attack="art:fgsm"),
    _weak("last-iterate", "last-iterate", _alone(plain), "a number from a loop that returns its last iterate", claim=last_iterate),
    _weak("wrong-units", "wrong-units", _alone(plain), "a number from steps 255 times too small", claim=wrong_units),
    _weak("div-3", "divided", _on(plain, lambda m: Scaled(m, 1 / 3)), "cross-entropy of small logits spends its steps on all classes"),
    _weak("div-100", "divided", _on(plain, lambda m: Scaled(m, 0.01)), "the same, linear in them", "attack-gap"),
    _weak("div-100-at", "divided", _on(robust, lambda m: Scaled(m, 0.01)), "of a robust network", eps=_ROBUST),
)  # fmt: skip

_BROKEN = (
    _invalid("eps-units", "eps-units", _alone(plain), "eps of 8 for pixels in [0, 1]", eps={"digits": 8.0, "mnist": 8.0}),
    _invalid("train-mode", "train-mode", _alone(lambda s: BatchStatistics(plain(s))), "answers depend on the batch"),
    _invalid("train-mode-at", "train-mode", _alone(lambda s: BatchStatistics(robust(s))), "the same", eps=_ROBUST),
)  # fmt: skip

ROWS: tuple[Row, ...] = (*_HONEST, *_PLANTED, *_WEAK, *_BROKEN)

assert set(_EPS) == set(DATASETS)
