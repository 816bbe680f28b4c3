"""The networks of the validation zoo: small ones, and the ways in which they are trained.

Everything is deterministic per recipe. What was trained lies in a cache folder, under a hash of the recipe and of the
code below that changes its answer, so that a second run trains nothing.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_qplugins import Dataset, load
from art_qplugins.checkpoint import load_checkpoint, save_checkpoint

__all__ = ["DATASETS", "Net", "Recipe", "Shape", "Site", "cached", "fingerprint", "fit", "network", "trained"]

DATASETS = ("digits", "mnist")
CLASSES = 10
_TRAIN_IMAGES = 10_000  # at most; digits has 1,198


@dataclass(frozen=True)
class Site:
    """Where a row is built: a data set, a seed, and the folders of data and of trained weights (``None``: keep none)."""

    dataset: str
    seed: int
    root: Path | None = None
    cache: Path | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, 8, 8) if self.dataset == "digits" else (1, 28, 28)

    def train(self) -> tuple[Tensor, Tensor]:
        return _images(self.dataset, "train", _TRAIN_IMAGES, self.root)

    def test(self, n: int = 200) -> tuple[Tensor, Tensor]:
        """The same images for every row and seed."""
        return _images(self.dataset, "test", n, self.root)


@functools.lru_cache(maxsize=8)
def _images(name: str, split: Any, n: int, root: Path | None) -> tuple[Tensor, Tensor]:
    images: Dataset = load(name, split, root=root).take(n, seed=0)
    return images.x(), images.y()


# --- Architectures


@dataclass(frozen=True, kw_only=True)
class Shape:
    """:param pool: how the second half of the convolutions halves the image: ``stride``, ``max`` or ``average``."""

    width: int = 8
    activation: str = "relu"
    pool: str = "stride"
    norm: bool = True
    residual: bool = False
    convolutions: bool = True
    dropout: float = 0.0


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky-relu": lambda: nn.LeakyReLU(0.1),
}


class Net(nn.Module):
    """Two convolutions, each but the first of an 8x8 image halving it, and two fully connected layers; or three of these.

    :param activation: makes each activation, in place of the one that ``shape`` names.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], shape: Shape, activation: Callable[[], nn.Module] | None = None
    ) -> None:
        super().__init__()
        make = activation or _ACTIVATIONS[shape.activation]
        channels, height, _ = input_shape
        width = shape.width
        if shape.convolutions:
            side = -(-height // (2 if height < 16 else 4))
            self.features = nn.Sequential(
                *_convolution(channels, width, shape, make, halve=height >= 16),
                *_convolution(width, 2 * width, shape, make, halve=True),
                *([_Residual(2 * width, shape, make)] if shape.residual else []),
                nn.Flatten(),
            )
            flat = 2 * width * side * side
        else:
            flat = 16 * width
            inner = nn.Linear(channels * height * height, flat)
            self.features = nn.Sequential(nn.Flatten(), inner, make())
        self.head = nn.Sequential(nn.Dropout(shape.dropout), nn.Linear(flat, 64), make(), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


def _convolution(
    inner: int, outer: int, shape: Shape, make: Callable[[], nn.Module], *, halve: bool
) -> list[nn.Module]:
    stride = 2 if halve and shape.pool == "stride" else 1
    parts: list[nn.Module] = [nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=not shape.norm)]
    parts += [nn.BatchNorm2d(outer)] * shape.norm
    parts.append(make())
    if halve and shape.pool != "stride":
        parts.append({"max": nn.MaxPool2d, "average": nn.AvgPool2d}[shape.pool](2))
    return parts


class _Residual(nn.Module):
    def __init__(self, width: int, shape: Shape, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.inner = nn.Sequential(*_convolution(width, width, shape, make, halve=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


def network(site: Site, shape: Shape = Shape(), activation: Callable[[], nn.Module] | None = None) -> Net:
    """Untrained, its weights from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(site.seed)
        return Net(site.shape, shape, activation)


# --- Losses to train by: (model, x, y, generator, share of the training that is over) -> loss

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator, float], Tensor]


def cross_entropy(*, gain: float = 1.0, smoothing: float = 0.0, noise: float = 0.0) -> Loss:
    """:param gain: of the logits in the loss alone; above 1 the trained logits are that much smaller, below 1 larger.
    :param noise: standard deviation of Gaussian noise on the pixels."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        x = x + noise * torch.randn(x.shape, generator=random) if noise else x
        return F.cross_entropy(gain * model(x), y, label_smoothing=smoothing)

    return loss


def mixup(*, alpha: float = 1.0) -> Loss:
    """Zhang et al. 2018, one ratio a batch."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        share = float(torch._sample_dirichlet(torch.tensor([alpha, alpha]), generator=random)[0])
        other = torch.randperm(len(x), generator=random)
        logits = model(share * x + (1 - share) * x[other])
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[other])

    return loss


def adversarial(*, eps: float, steps: int = 5, random_start: bool = True, warm: float = 0.3) -> Loss:
    """Cross-entropy at the images of an L-infinity PGD against the network in eval mode (Madry et al. 2018).

    :param warm: the share of the training in which eps grows to its value; small networks give up on a large one at once.
    """

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        budget = eps * min(1.0, (done + 0.05) / warm) if warm else eps

        def worse(z: Tensor) -> Tensor:
            return F.cross_entropy(z, y)

        x_adv = _pgd(model.eval(), x, worse, budget, steps, random if random_start else None)
        return F.cross_entropy(model.train()(x_adv), y)

    return loss


def trades(*, eps: float, beta: float, steps: int = 5, warm: float = 0.3) -> Loss:
    """Cross-entropy plus ``beta`` times the divergence from clean to adversarial answer (Zhang et al. 2019, eq. 5)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        budget = eps * min(1.0, (done + 0.05) / warm)
        with torch.no_grad():
            clean = model.eval()(x).softmax(1)

        def apart(z: Tensor) -> Tensor:
            return F.kl_div(z.log_softmax(1), clean, reduction="batchmean")

        x_adv = _pgd(model, x, apart, budget, steps, random)
        logits = model.train()(torch.cat([x, x_adv]))
        here, there = logits[: len(x)], logits[len(x) :]
        divergence = F.kl_div(there.log_softmax(1), here.softmax(1), reduction="batchmean")
        return F.cross_entropy(here, y) + beta * divergence

    return loss


def pairing(*, strength: float, noise: float) -> Loss:
    """Clean logit pairing: the logits of random pairs of noisy images are drawn together (Kannan et al. 2018, sec. 3.2)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        logits = model(x + noise * torch.randn(x.shape, generator=random))
        half = len(x) // 2
        apart = (logits[:half] - logits[half : 2 * half]).norm(dim=1).mean()
        return F.cross_entropy(logits, y) + strength * apart

    return loss


def squeezing(*, strength: float, noise: float) -> Loss:
    """Logit squeezing: their norm is penalized, on noisy images (Kannan et al. 2018, sec. 3.3)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        logits = model(x + noise * torch.randn(x.shape, generator=random))
        return F.cross_entropy(logits, y) + strength * logits.norm(dim=1).mean()

    return loss


def imitating(teacher: nn.Module, temperature: float) -> Loss:
    """The student of defensive distillation: the teacher's answers at a temperature (Papernot et al. 2016)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        with torch.no_grad():
            soft = (teacher(x) / temperature).softmax(1)
        return F.cross_entropy(model(x) / temperature, soft)

    return loss


def _pgd(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    eps: float,
    steps: int,
    random: torch.Generator | None,
) -> Tensor:
    start = torch.zeros_like(x) if random is None else (2 * torch.rand(x.shape, generator=random) - 1) * eps
    x_adv, step = (x + start).clamp(0, 1), min(1.0, 2.5 / steps) * eps
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(leaf)), leaf)
        x_adv = torch.clamp(torch.min(torch.max(leaf + step * gradient.sign(), x - eps), x + eps), 0, 1).detach()
    return x_adv


_LOSSES: dict[str, Callable[..., Loss]] = {
    f.__name__: f for f in (cross_entropy, mixup, adversarial, trades, pairing, squeezing)
}


# --- Training


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: everything but the data set and the seed, which are the site's."""

    shape: Shape = field(default_factory=Shape)
    loss: str = "cross_entropy"
    options: tuple[tuple[str, float], ...] = ()
    epochs: int = 6
    learning_rate: float = 0.1
    weight_decay: float = 5e-4


def fit(model: nn.Module, loss: Loss, site: Site, recipe: Recipe) -> nn.Module:
    """SGD with Nesterov momentum 0.9 and a cosine schedule, in place; in eval mode afterwards."""
    x, y = site.train()
    size = 64 if len(x) < 5000 else 128
    random = torch.Generator().manual_seed(site.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    steps = recipe.epochs * -(-len(x) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(site.seed)  # dropout, the only layer here that asks the global generator
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(x), generator=random).split(size):
                value = loss(model.train(), x[rows], y[rows], random, done / steps)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)  # large steps early are what breaks small networks
                optimizer.step()
                schedule.step()
                done += 1
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise RuntimeError(f"training diverged: {site.dataset}, seed {site.seed}, {recipe}")
    return model.eval()


def cached(site: Site, key: object, make: Callable[[], nn.Module], teach: Callable[[nn.Module], object]) -> nn.Module:
    """``make()`` with the weights that ``teach`` gives it, or gave it in an earlier run.

    :param key: everything that changes the weights, by its ``repr``, beyond the site and the code of this module.
    """
    model = make().eval()
    if site.cache is None:
        teach(model)
        return model.eval()
    path = site.cache / f"{site.dataset}-{site.seed}-{_digest(key)}.safetensors"
    if path.exists() and path.with_suffix(".json").exists():
        load_checkpoint(path, model)
        return model
    teach(model)
    save_checkpoint(path, model, {"dataset": site.dataset, "seed": site.seed, "recipe": repr(key)})
    return model.eval()


def fingerprint(model: nn.Module) -> str:
    """Of weights and their names: what a network that another one is made from adds to that one's key."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(key: object) -> str:
    return hashlib.sha256(f"{_code()}{key!r}".encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    """The source of what every training runs through; a loss and its options are in the recipe, its code is here too."""
    return "".join(map(inspect.getsource, (Net, _convolution, fit, _pgd, *_LOSSES.values(), imitating)))


@functools.lru_cache(maxsize=64)
def trained(site: Site, recipe: Recipe) -> nn.Module:
    """The network of a recipe. Shared: whoever wants to train it on takes a copy."""
    loss = _LOSSES[recipe.loss](**dict(recipe.options))
    return cached(
        site,
        recipe,
        lambda: network(site, recipe.shape),
        lambda model: fit(model, loss, site, recipe),
    )
