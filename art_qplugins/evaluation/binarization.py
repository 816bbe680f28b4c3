"""The binarization test: does an attack find planted adversarial images? It tests the attack, not the model.

For each image the last layer is replaced by a binary readout. The readout separates random points inside the ball from a few
points on its boundary. The boundary points are adversarial by construction. An attack that misses them cannot be trusted on
this network. An attack that finds them does not show that the model is robust.

Source: Zimmermann, Brendel, Tramer & Carlini 2022, "Increasing Confidence in Adversarial Robustness Evaluations". Their
readout has logits of range 1, which would hide masking by the logit scale. Here the readout has the range of the network's
own logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.score import check_legal, score
from art_qplugins.geometry import random_point
from art_qplugins.guard import isolated
from art_qplugins.quantizers.noise import draws_from
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["Binarization", "binarization_test"]

#: Inner points stay within this share of eps.
_INNER = 0.95
#: Position of the decision boundary between the inner points (0) and the points at eps (1). Random points rarely
#: succeed if it is close to 1.
_CLOSENESS = 0.99
#: An attack takes an estimator with two classes, images (1, C, H, W) and labels (1,). It returns adversarial images.
AttackFunction = Callable[[QuantizedClassifier, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Binarization:
    """The result of the test.

    :ivar success: share of the tested images on which the attack found an adversarial image; NaN if none was tested.
    :ivar random: the same share for random points of the ball, as many as were fitted. If it is high, the test was too
        easy.
    :ivar used: number of tested images.
    :ivar dropped: number of images that were not tested, because no linear readout separates their points.
    :ivar each: (N,) 1 where the attack succeeded, 0 where it failed, NaN where the image was dropped.
    """

    success: float
    random: float
    used: int
    dropped: int
    each: NDArray[np.float64]


def binarization_test(
    estimator: QuantizedClassifier,
    attack: AttackFunction,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    inner: int = 49,
    boundary: int = 1,
    seed: int = 0,
) -> Binarization:
    """Run ``attack`` against a binary network for each image. It restores modes, hooks and random states.

    It costs ``2 * (inner + boundary)`` forward passes per image, and the attack on one image at a time. With 64 images the
    share of successes is accurate to 12 points. A random module is fitted on the mean of its features and judged like any
    other.

    :param attack: the attack under test with its claimed settings. It must work with two classes.
    :param x: (N, C, H, W) in [0, 1]. Of the labels ``y`` (N,), only the device and the type are used.
    :param threat: Linf, L2 or L1 with eps above 0.
    :param inner: number of random points within 0.95 eps, in addition to the image itself.
    :param boundary: number of random points at eps, at least 1. With ten, as in some scripts of the paper, random points
        of the ball succeed on half of the digits images. With one they succeed on none. See ``random``.
    :raises InputError: where the network runs no ``nn.Linear``, or the threat is L0.
    """
    if threat.norm == "L0" or threat.eps <= 0:
        raise InputError(f"threat: {threat} has no boundary to put points on; give Linf, L2 or L1 with eps above 0")
    module = estimator.model
    head = _head(module, x[:1], seed)
    each, random = np.full(len(x), np.nan), []
    for i in range(len(x)):
        image, drawn = x[i : i + 1], derive_seed(seed, f"binarization/{i}")
        points = torch.cat([image, _around(image, threat, inner, boundary, drawn)])
        binary = _binary(module, head, points, boundary, drawn)
        if binary is None:
            continue
        label = torch.zeros(1, dtype=y.dtype, device=y.device)
        with isolated(module, drawn), draws_from(module, drawn):
            found = attack(_estimator(estimator, binary), image, label).to(image)
        check_legal(image, found, threat)
        each[i] = score(binary, found, label, seed=drawn)["correct"][0] < 0.5
        tried = random_point(image.expand(len(points), *image.shape[1:]), threat, drawn)
        random.append(score(binary, tried, label.expand(len(tried)), seed=drawn)["correct"].min() < 0.5)
    used = len(random)
    return Binarization(
        success=float(np.nanmean(each)) if used else float("nan"),
        random=float(np.mean(random)) if used else float("nan"),
        used=used,
        dropped=len(x) - used,
        each=each,
    )


class _Readout(nn.Module):
    """A network with two classes: a linear function d of the inputs of its last linear layer, as logits (-d/2, d/2)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, network: nn.Module, head: str, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.network, self.head = network, head
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        features, _ = _features(self.network, self.head, x)
        d = features @ self.weight + self.bias
        return torch.stack([-d / 2, d / 2], dim=1)


def _head(module: nn.Module, x: Tensor, seed: int) -> str:
    """Path of the linear layer that runs last.

    :raises InputError: where none runs.
    """
    ran: list[str] = []

    def note(name: str, *_: object) -> None:
        ran.append(name)

    linear = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    handles = [part.register_forward_hook(partial(note, name)) for name, part in linear]
    try:
        with isolated(module, seed), draws_from(module, seed), torch.no_grad():
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise InputError(f"model: {type(module).__name__} runs no nn.Linear, so it has no last layer to replace")
    return ran[-1]


def _features(module: nn.Module, head: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of the head, (N, F), and the logits, (N, K). Both are averaged over the draws of a random module."""
    inputs: list[Tensor] = []

    def note(_: nn.Module, given: Sequence[Tensor]) -> None:
        inputs.append(given[0])

    handle = module.get_submodule(head).register_forward_pre_hook(note)
    try:
        logits = module(x)
    finally:
        handle.remove()
    return torch.cat(inputs).unflatten(0, (-1, len(x))).mean(0).flatten(1), logits


def _around(x: Tensor, threat: Threat, inner: int, boundary: int, seed: int) -> Tensor:
    """(inner + boundary, C, H, W) random points around one image, clipped to [0, 1].

    First ``inner`` points within 0.95 eps, then ``boundary`` points at eps.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "points"))
    shape = (inner + boundary, *x.shape[1:])
    if threat.norm == "Linf":
        moves = torch.rand(shape, generator=generator) * 2 - 1
        moves[inner:] = moves[inner:].sign()
        radius = torch.full((len(moves),), threat.eps)
    else:
        moves = torch.randn(shape, generator=generator)
        order = {"L2": 2, "L1": 1}[threat.norm]
        length = torch.linalg.vector_norm(moves.flatten(1), ord=order, dim=1)
        radius = threat.eps * torch.rand(len(moves), generator=generator) ** (1 / x[0].numel())
        radius[inner:] = threat.eps
        radius = radius / length
    radius[:inner] *= _INNER
    return (x + (moves * radius.view(-1, *[1] * (x.dim() - 1))).to(x)).clamp(0, 1)


def _binary(module: nn.Module, head: str, points: Tensor, boundary: int, seed: int) -> _Readout | None:
    """A readout that is above 0 on exactly the last ``boundary`` points; ``None`` where there is none."""
    with isolated(module, seed), draws_from(module, seed), torch.no_grad():
        features, logits = _features(module, head, points)
    outside = np.arange(len(points)) >= len(points) - boundary
    found = _separation(features.double().cpu().numpy(), outside, float(logits.max() - logits.min()))
    if found is None:
        return None
    weight, bias = (torch.as_tensor(value).to(features) for value in found)
    readout = _Readout(module, head, weight, bias)
    # Evaluate the points again as in the test, because rounding may have moved one to the other side.
    with isolated(module, seed), draws_from(module, seed), torch.no_grad():
        answers = readout(points).argmax(1).cpu().numpy()
    return readout if (answers == outside).all() else None


def _separation(
    features: NDArray[np.float64], outside: NDArray[np.bool_], logit_range: float
) -> tuple[NDArray[np.float64], float] | None:
    """Weight and bias of a linear function that is above 0 on exactly the outer points; ``None`` where there is none.

    Its values on the points have the range ``logit_range``.
    """
    from sklearn.linear_model import LogisticRegression

    spread = features.std()
    if not (np.isfinite(features).all() and spread > 0):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a separable fit never converges, but only its direction is used
        fit = LogisticRegression(C=np.inf, max_iter=1000).fit((features - features.mean(0)) / spread, outside)
    weight = fit.coef_[0] / spread
    d = features @ weight
    inside, beyond = d[~outside].max(), d[outside].min()
    if inside >= beyond:
        return None
    gain = logit_range / (d.max() - d.min())
    return gain * weight, -gain * (inside + _CLOSENESS * (beyond - inside))


def _estimator(like: QuantizedClassifier, binary: _Readout) -> QuantizedClassifier:
    return QuantizedClassifier(
        binary,
        nn.CrossEntropyLoss(),
        like.input_shape,
        2,
        clip_values=None if like.clip_values is None else tuple(like.clip_values),
        device_type=str(like.device),
    )
