"""Do a deployed model and its twin agree? On labels, on scores, and layer by layer where both can be looked into.

The twin is what attacks follow, and perhaps what was evaluated before anything was deployed. On adversarial images small
differences change more labels than on clean ones, because these images are near a boundary of the twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.deployment.module import Answering
from art_qplugins.deployment.runtimes import Levels
from art_qplugins.domains import COUNT, Maybe, check_all
from art_qplugins.errors import InputError, shown
from art_qplugins.estimators.deployed import as_module
from art_qplugins.guard import evaluating, takes_hooks
from art_qplugins.metrics import wilson_interval
from art_qplugins.quantizers import activation_quantizers
from art_qplugins.torch_domains import IMAGES, MODULE

__all__ = ["AGREEMENT", "Agreement", "LayerFlips", "Parity", "answering", "parity", "same_labels"]

#: The least share of clean and of adversarial images that get the same label from both.
AGREEMENT = {"clean": 0.995, "adversarial": 0.99}


@dataclass(frozen=True, kw_only=True)
class LayerFlips:
    """One quantized activation in both.

    :ivar layer: its name in the twin. ``tensor`` is its name in the file.
    :ivar flips: share of its values that are on another level. ``far``: by how many levels at most.
    """

    layer: str
    tensor: str
    flips: float
    far: int


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Both on the same images.

    :ivar same: share of the images with the same label, with its 95 % Wilson interval.
    :ivar largest: largest difference of a score, of which the mean over classes is taken away; ``mean`` is the mean
        difference. ``None`` for a model that gives labels alone.
    :ivar layers: in the order of the network; empty where not both can be looked into.
    """

    n: int
    same: float
    interval: tuple[float, float]
    largest: float | None
    mean: float | None
    layers: tuple[LayerFlips, ...]

    @property
    def first(self) -> LayerFlips | None:
        """The first layer with a value on another level."""
        return next((layer for layer in self.layers if layer.flips > 0), None)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The agreement on clean images, and on adversarial ones where they were given."""

    clean: Agreement
    adversarial: Agreement | None

    @property
    def holds(self) -> bool:
        """Whether both agree on as many labels as :data:`AGREEMENT` asks for."""
        adversarial = self.adversarial is None or self.adversarial.same >= AGREEMENT["adversarial"]
        return self.clean.same >= AGREEMENT["clean"] and adversarial


def parity(deployed: Any, twin: Any, x: Tensor, x_adv: Tensor | None = None, *, batch_size: int = 250) -> Parity:
    """Compare a deployed model with its twin.

    :param deployed: a :class:`~art_qplugins.DeployedClassifier`, or its module.
    :param twin: a torch module or an ART ``PyTorchClassifier``; ``None`` takes the twin that the deployed model has.
    :param x: (N, C, H, W) clean images in [0, 1]. ``x_adv``: adversarial images, in any number.
    :raises InputError: where there is no twin, or the two do not take the same images.
    """
    deployed, twin = as_module(deployed), as_module(twin)
    check_all(locals(), {"twin": Maybe(MODULE), "x": IMAGES, "x_adv": Maybe(IMAGES), "batch_size": COUNT})
    if not isinstance(deployed, Answering):
        raise InputError(f"deployed: it is {shown(deployed)}; give a DeployedClassifier")
    module = deployed if twin is None else deployed.with_twin(twin)
    if module.twin is None:
        raise InputError("twin: the deployed model has none; give a torch module")
    return Parity(
        clean=_agreement(module, x, batch_size),
        adversarial=None if x_adv is None else _agreement(module, x_adv, batch_size),
    )


def answering(module: nn.Module) -> Answering | None:
    """The deployed model that ``module`` is, or is around."""
    return next((part for part in module.modules() if isinstance(part, Answering)), None)


def same_labels(module: nn.Module, x: Tensor, labels: Tensor, batch_size: int) -> NDArray[np.float64] | None:
    """Whether the twin gives each image the label that the deployed model gave it, (N,) of 0 and 1; ``None`` without a twin."""
    found = answering(module)
    if found is None or found.twin is None:
        return None
    with evaluating(found):
        twins = torch.cat([found.twin_logits(part).argmax(1) for part in x.split(batch_size)])
    same: NDArray[np.float64] = (twins == labels.to(twins)).double().cpu().numpy()
    return same


def _agreement(module: Answering, x: Tensor, batch_size: int) -> Agreement:
    assert module.twin is not None
    device = next((p.device for p in module.twin.parameters()), torch.device("cpu"))
    bare = module.without_twin()
    with evaluating(module), torch.no_grad():
        batches = [part.to(device, torch.float32) for part in x.split(batch_size)]
        own = torch.cat([bare(part) for part in batches])
        twins = torch.cat([module.twin_logits(part) for part in batches])
    if module.floor is not None:
        twins = twins.log_softmax(1)
    same = own.argmax(1) == twins.argmax(1)
    apart = ((own - own.mean(1, keepdim=True)) - (twins - twins.mean(1, keepdim=True))).abs()
    scored = not module.labels_only
    return Agreement(
        n=len(x),
        same=float(same.double().mean()),
        interval=wilson_interval(int(same.sum()), len(x)),
        largest=float(apart.max()) if scored else None,
        mean=float(apart.mean()) if scored else None,
        layers=_layers(module, batches[0]),
    )


def _layers(module: Answering, x: Tensor) -> tuple[LayerFlips, ...]:
    """The quantized activations that both have, compared on the first batch; none where the file has another structure."""
    levels = getattr(module.predict, "levels", None)
    inside = [] if levels is None else _quantized(module, x)
    if levels is None or not inside:
        return ()
    theirs = levels(np.asarray(x.cpu()))
    apart = [[_apart(values, one) for one in theirs] for _, values in inside]
    places = _in_order([[flips for flips, _ in row] for row in apart])
    return tuple(
        LayerFlips(layer=layer, tensor=theirs[place].name, flips=row[place][0], far=int(row[place][1]))
        for (layer, _), row, place in zip(inside, apart, places, strict=False)
    )


def _apart(values: NDArray[np.float32], tensor: Levels) -> tuple[float, float]:
    """The share of values on another level than those of a tensor, and by how many levels at most; infinite for another shape."""
    if tensor.values.shape != values.shape:
        return math.inf, math.inf
    far = np.rint(np.abs(tensor.values - values) / tensor.step)
    return float((far > 0).mean()), float(far.max())


def _in_order(costs: Sequence[Sequence[float]]) -> list[int]:
    """A column for each row, in their order, with the least sum of costs; none where every choice is infinite.

    A file may round where its network does not, such as a branch before a sum, which has the shape of the sum.
    """
    best: list[tuple[float, list[int]]] = [(0.0, [])]  # with so many columns seen, for the rows so far
    best += [(0.0, [])] * (len(costs[0]) if costs else 0)
    for row in costs:
        now: list[tuple[float, list[int]]] = [(math.inf, [])]
        for place, cost in enumerate(row):
            taken = best[place][0] + cost, [*best[place][1], place]
            now.append(min(now[-1], taken, key=lambda one: one[0]))
        best = now
    return best[-1][1] if best[-1][0] < math.inf else []


def _quantized(module: Answering, x: Tensor) -> Sequence[tuple[str, NDArray[np.float32]]]:
    """What the twin's quantizers of activations give, in the order of the forward pass."""
    assert module.twin is not None
    parts = {part for part, _ in activation_quantizers(module.twin) if takes_hooks(part)}
    names = {part: name for name, part in module.twin.named_modules()}
    found: list[tuple[str, NDArray[np.float32]]] = []

    def keep(part: nn.Module, _: Any, output: Tensor) -> None:
        found.append((names[part], output.detach().cpu().numpy()))

    hooks = [part.register_forward_hook(keep) for part in parts]
    try:
        with evaluating(module):
            module.twin_logits(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found
