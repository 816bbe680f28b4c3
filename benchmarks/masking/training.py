"""How the zoo's networks are trained. Everything is deterministic per recipe.

Trained weights are kept in a cache folder, under a hash of the recipe and of the code that changes its result, so that a
second run trains nothing.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from losses import LOSSES, Loss, imitating, pgd
from networks import Net, Shape, Site, convolution, network
from torch import nn

from art_qplugins.checkpoint import load_checkpoint, save_checkpoint

__all__ = ["Recipe", "cached", "fingerprint", "fit", "trained"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. The data set and the seed are the site's.

    :ivar loss: a name in ``LOSSES``; ``options`` are its settings.
    """

    shape: Shape = field(default_factory=Shape)
    loss: str = "cross_entropy"
    options: tuple[tuple[str, float], ...] = ()
    epochs: int = 6
    learning_rate: float = 0.1
    weight_decay: float = 5e-4


def fit(model: nn.Module, loss: Loss, site: Site, recipe: Recipe) -> nn.Module:
    """Train in place by SGD with Nesterov momentum 0.9 and a cosine schedule. The network is in eval mode afterwards.

    :raises RuntimeError: where a weight is not finite in the end.
    """
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
        torch.manual_seed(site.seed)  # for dropout, the only layer here that uses the global generator
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(x), generator=random).split(size):
                value = loss(model.train(), x[rows], y[rows], random, done / steps)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)  # small networks break by large early steps
                optimizer.step()
                schedule.step()
                done += 1
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise RuntimeError(f"training diverged: {site.dataset}, seed {site.seed}, {recipe}")
    return model.eval()


def cached(site: Site, key: object, make: Callable[[], nn.Module], teach: Callable[[nn.Module], object]) -> nn.Module:
    """``make()`` with the weights that ``teach`` gives it, or gave it in an earlier run.

    :param key: everything that changes the weights beyond the site and the code here; its ``repr`` is hashed.
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
    """Hash of weights and their names. It is part of the key of a network that is made from this one."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(key: object) -> str:
    return hashlib.sha256(f"{_code()}{key!r}".encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    """The source of what a training runs through. Which loss it is, and its options, are in the recipe."""
    used: tuple[Callable[..., object], ...] = (Net, convolution, fit, pgd, *LOSSES.values(), imitating)
    return "".join(inspect.getsource(part) for part in used)


@functools.lru_cache(maxsize=64)
def trained(site: Site, recipe: Recipe) -> nn.Module:
    """The network of a recipe. It is shared: copy it to train it on."""
    loss = LOSSES[recipe.loss](**dict(recipe.options))
    return cached(
        site,
        recipe,
        lambda: network(site, recipe.shape),
        lambda model: fit(model, loss, site, recipe),
    )
