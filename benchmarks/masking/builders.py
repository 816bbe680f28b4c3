"""How the models of the zoo are made: networks, trained, quantized and with a failure planted in them.

A plant itself is in ``plants.py``. The rows that use these are in ``zoo.py``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from losses import adversarial, cross_entropy, imitating
from networks import Shape, Site, network
from plants import Compressed, FrozenNoise, KWinners, Noisy, Rounded, Scaled, Sign
from rows import Build, Built, Make
from torch import nn
from training import Recipe, cached, fingerprint, fit, trained

from art_qplugins import quantize
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import bake

__all__ = [
    "ROBUST",
    "binary",
    "distilled",
    "fast_adversarial",
    "mu_law",
    "noisy",
    "on",
    "on_pixels",
    "paired",
    "plain",
    "robust",
    "shaped",
    "stochastic",
    "trades",
    "tuned",
    "winners",
]

#: Eps by data set, in L-infinity, at which networks are trained adversarially and robust ones are claimed.
ROBUST = {"digits": 0.15, "mnist": 0.2}


def plain(site: Site, *, epochs: int = 6, **more: Any) -> nn.Module:
    """Trained on clean images. ``more`` are fields of the recipe."""
    return trained(site, Recipe(epochs=epochs, **more))


def shaped(**shape: Any) -> Make:
    """Trained on clean images, in this shape."""
    return lambda site: plain(site, shape=Shape(**shape))


def _robust_recipe(site: Site, eps: float | None = None, loss: str = "adversarial", **more: Any) -> Recipe:
    shape = Shape(**{k: more.pop(k) for k in tuple(more) if k in Shape.__dataclass_fields__})
    options = {"eps": ROBUST[site.dataset] if eps is None else eps, "steps": 5 if site.dataset == "digits" else 4}
    return Recipe(shape=shape, loss=loss, options=tuple((options | more).items()), epochs=_epochs(site))


def _epochs(site: Site) -> int:
    return 12 if site.dataset == "digits" else 7


def robust(site: Site, eps: float | None = None, **more: Any) -> nn.Module:
    """Adversarially trained. ``more`` are options of the loss or fields of the shape."""
    return trained(site, _robust_recipe(site, eps, **more))


def trades(site: Site, beta: float = 6.0, **more: Any) -> nn.Module:
    """Trained by TRADES."""
    return trained(site, _robust_recipe(site, loss="trades", beta=beta, **more))


def tuned(site: Site, base: nn.Module, adversarially: bool = False, **bits: Any) -> nn.Module:
    """Quantized, trained on a little with its quantizers, and deployed."""
    options = (("eps", ROBUST[site.dataset]), ("steps", 4), ("warm", 0.0)) if adversarially else ()
    name = "adversarial" if adversarially else "cross_entropy"
    recipe = Recipe(loss=name, options=options, epochs=2, learning_rate=0.02)
    settings: dict[str, Any] = dict(options)
    loss = adversarial(**settings) if adversarially else cross_entropy()
    model = cached(
        site,
        ("tuned", fingerprint(base), tuple(bits.items()), recipe),
        lambda: quantize(base, trainable=True, seed=site.seed, **bits),
        lambda m: fit(m, loss, site, recipe),
    )
    return bake(copy.deepcopy(model)).eval()


def stochastic(site: Site, bits: int = 2, adversarially: bool = False, **options: Any) -> nn.Module:
    """The mean over draws of a network with stochastic activations."""
    base = robust(site) if adversarially else plain(site)
    members = tuned(site, base, adversarially, activation_bits=bits, alpha=2.0, clip=2.0)
    return StochasticEnsemble(members, **options).eval()


def binary(site: Site, slope: float | None) -> Built:
    """Binary activations, trained straight through and deployed with the backward pass of ``slope``."""
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


def winners(site: Site, share: float = 0.08) -> Built:
    """k winners take all, as every activation."""
    recipe = Recipe(shape=Shape(width=16), epochs=10 if site.dataset == "digits" else 6)
    make = functools.partial(KWinners, share)
    model = cached(
        site,
        ("k-winners", share, recipe),
        lambda: network(site, recipe.shape, make),
        lambda m: fit(m, cross_entropy(), site, recipe),
    )
    return Built(model)


def distilled(site: Site, temperature: float = 40.0) -> Built:
    """Defensive distillation (Papernot et al. 2016): trained at a high temperature, deployed at 1."""
    teacher = Recipe(options=(("gain", 1 / temperature),), epochs=10, learning_rate=0.3)
    student = cached(
        site,
        ("student", temperature, teacher),
        lambda: network(Site(site.dataset, site.seed + 100)),
        lambda m: fit(m, imitating(trained(site, teacher), temperature), site, teacher),
    )
    return Built(student, Scaled(student, 1 / temperature))


def fast_adversarial(site: Site) -> nn.Module:
    """Trained by FGSM from the image itself at a large eps, the setting of catastrophic overfitting."""
    options = (("eps", 0.3), ("steps", 1), ("random_start", 0), ("warm", 0.3))
    return trained(
        site,
        Recipe(
            shape=Shape(width=16), loss="adversarial", options=options, epochs=20 if site.dataset == "digits" else 10
        ),
    )


def paired(site: Site, loss: str) -> nn.Module:
    """Logit pairing (CLP) or squeezing (LSQ) on noisy images, as in Mosbach et al. 2018, with noise that fits the images."""
    strength, noise, epochs = (0.3, 0.2, 20) if site.dataset == "digits" else (0.3, 0.3, 8)
    return trained(site, Recipe(loss=loss, options=(("strength", strength), ("noise", noise)), epochs=epochs))


def noisy(site: Site) -> Built:
    """Fresh noise at every call. The twin is the mean over a fixed bank of noise: nearly the same function, not random."""
    digits = site.dataset == "digits"
    base = plain(site) if digits else plain(site, options=(("noise", 0.5),))
    deviation = 0.3 if digits else 0.5
    return Built(Noisy(base, deviation), FrozenNoise(base, site.shape, deviation, site.seed))


# --- A failure planted in a network


def on(base: Make, wrap: Callable[[nn.Module], nn.Module]) -> Build:
    """A plant around a network, which is its twin."""
    return lambda site: Built(wrap(base(site)), base(site))


def on_pixels(base: Make, kind: type[Rounded] | type[Compressed], value: Any, bpda: bool = False) -> Build:
    """A change of the pixels before a network. Its twin has BPDA's backward pass; with ``bpda``, so has the model itself."""

    def build(site: Site) -> Built:
        through = kind(base(site), value, through=True)
        return Built(through) if bpda else Built(kind(base(site), value), through)

    return build


def mu_law(layers: int) -> Build:
    """3-bit weights, those of the last layers mu-law mapped, which makes the logits large."""

    def build(site: Site) -> Built:
        model = quantize(plain(site), weight_bits=3, mu=255.0, mu_layers=layers)
        return Built(model, Scaled(model, 1e-2))

    return build
