"""Networks of other kinds: attention, fixed points, an encoding before the first layer, and residual ones for CIFAR-10."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from losses import LOSSES
from networks import CLASSES, Net, Shape, Site, network
from pixels import Inverted, RandomResize, Thermometer
from published import Stepped
from torch import Tensor, nn
from training import Recipe, cached, fit

from art_qplugins.models import MODELS

__all__ = ["by_hand", "encoded", "equilibrium", "inverted", "library", "resized", "transformer"]

#: (C, H, W) of an image.
_Size = tuple[int, int, int]


class Transformer(nn.Module):
    """A small vision transformer (Dosovitskiy et al. 2021): patches, two layers with layer norm first and GELU, their mean."""

    def __init__(self, size: _Size, width: int = 32) -> None:
        super().__init__()
        channels, height, _ = size
        patch = height // 4
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (height // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.layers(tokens).mean(1))
        return logits


class Equilibrium(nn.Module):
    """A fixed point z = tanh(W z + U x), and a linear layer (Bai et al. 2019). W has norm 0.8, so there is one.

    :param implicit: the gradient of the fixed point by the implicit function theorem, as people train these; else that of
        the unrolled iterations.
    """

    def __init__(self, size: _Size, width: int = 96, iterations: int = 30, implicit: bool = True) -> None:
        super().__init__()
        channels, height, breadth = size
        self.iterations, self.implicit = iterations, implicit
        self.inject = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * breadth, width))
        self.inner = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, CLASSES)

    def step(self, z: Tensor, injected: Tensor, weight: Tensor) -> Tensor:
        return torch.tanh(z @ weight.T + injected)

    def forward(self, x: Tensor) -> Tensor:
        injected = self.inject(x)
        weight = 0.8 * self.inner.weight / torch.linalg.matrix_norm(self.inner.weight, 2)
        z = torch.zeros_like(injected)
        if not self.implicit:
            for _ in range(self.iterations):
                z = self.step(z, injected, weight)
        else:
            with torch.no_grad():
                for _ in range(self.iterations):
                    z = self.step(z, injected, weight)
            z = self.step(z, injected, weight)
            if z.requires_grad:
                self._solve_backward(z, injected.detach(), weight.detach())
        logits: Tensor = self.head(z)
        return logits

    def _solve_backward(self, z: Tensor, injected: Tensor, weight: Tensor) -> None:
        """Replace the gradient g of ``z`` by the solution of v = J^T v + g (Bai et al. 2019, eq. 10)."""
        leaf = z.detach().requires_grad_()
        again = self.step(leaf, injected, weight)

        def solve(gradient: Tensor) -> Tensor:
            solution = gradient
            for _ in range(self.iterations):
                solution = torch.autograd.grad(again, leaf, solution, retain_graph=True)[0] + gradient
            return solution

        z.register_hook(solve)


# --- Trained


def _taught(site: Site, key: object, make: Callable[[], nn.Module], recipe: Recipe) -> nn.Module:
    """``make()`` under the site's seed, trained. ``key`` says what it is; the code beside it is part of the cache's key."""

    def seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(site.seed)
            return make()

    loss = LOSSES[recipe.loss](**dict(recipe.options))
    return cached(site, (key, recipe), seeded, lambda model: fit(model, loss, site, recipe))


def _source(*parts: type[nn.Module]) -> str:
    return "".join(inspect.getsource(part) for part in parts)


def _recipe(site: Site, eps: float | None, epochs: int, learning_rate: float, steps: int = 4) -> Recipe:
    """Adversarial training where there is an eps."""
    options = () if eps is None else (("eps", eps), ("steps", steps))
    loss = "cross_entropy" if eps is None else "adversarial"
    return Recipe(loss=loss, options=options, epochs=epochs, learning_rate=learning_rate)


def transformer(site: Site, noise: float = 0.0) -> nn.Module:
    """:param noise: standard deviation of Gaussian noise on the training images."""
    epochs = 40 if site.dataset == "digits" else 10
    recipe = Recipe(options=(("noise", noise),), epochs=epochs)
    return _taught(site, _source(Transformer), lambda: Transformer(site.shape), recipe)


def equilibrium(site: Site, eps: float | None = None, implicit: bool = True) -> nn.Module:
    recipe = _recipe(site, eps, 30 if site.dataset == "digits" else 8, 0.1)
    model = _taught(site, _source(Equilibrium), lambda: Equilibrium(site.shape), recipe)
    model.implicit = implicit
    return model


def encoded(site: Site, levels: int = 10) -> nn.Module:
    """A network behind a thermometer encoding."""
    colors, height, breadth = site.shape

    def make() -> nn.Module:
        return Thermometer(Net((levels * colors, height, breadth), Shape()), levels)

    return _taught(site, (_source(Thermometer), levels), make, Recipe(epochs=8))


def inverted(site: Site) -> Inverted:
    """A network that was trained on negatives."""
    model = _taught(site, _source(Inverted), lambda: Inverted(network(site)), Recipe())
    assert isinstance(model, Inverted)
    return model


def resized(site: Site) -> nn.Module:
    """A network that was trained on images of random sizes. The sides lose at most a quarter."""
    least = site.shape[-1] * 3 // 4
    recipe = Recipe(epochs=15 if site.dataset == "digits" else 8)
    return _taught(site, _source(RandomResize), lambda: RandomResize(network(site), least), recipe)


def by_hand(site: Site, eps: float | None = None) -> nn.Module:
    """A network with activations on four levels, by a straight-through estimator that is no layer of any library."""
    recipe = _recipe(site, eps, 12 if site.dataset == "digits" else 7, 0.05)
    return _taught(site, _source(Stepped), lambda: network(site, activation=Stepped), recipe)


def library(site: Site, name: str, eps: float | None = None, **options: Any) -> nn.Module:
    """A network of this package, for images of CIFAR's size."""
    entry = MODELS[name]
    code = inspect.getsource(sys.modules[entry.load().__module__])
    epochs = 12 if eps is None else 10

    def make() -> nn.Module:
        built: nn.Module = entry.load()(site.shape, CLASSES, **entry.resolve(options))
        return built

    return _taught(site, (name, options, code), make, _recipe(site, eps, epochs, 0.1, steps=2))
