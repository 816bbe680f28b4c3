"""Can this attack find what is there? A test of the attack and not of the model, with adversarial images put in by hand.

Zimmermann, Brendel, Tramer & Carlini 2022, "Increasing Confidence in Adversarial Robustness Evaluations": around each image
the last layer is replaced by a binary one that tells random points inside the ball from a few on its boundary. The latter
are adversarial by construction, so an attack that misses them cannot be trusted on this network. Passing shows no
robustness.

Their readout has logits of range 1, which hides a masking by scale (theirs to choose; here not): it gets the range of the
network's own logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.score import check_legal, score
from art_qplugins.geometry import random_point
from art_qplugins.guard import isolated
from art_qplugins.quantizers.stochastic import draws_from
from art_qplugins.seeds import derive_seed
from art_qplugins.threat import Threat

__all__ = ["Binarization", "binarization_test"]

#: Inner points stay within this share of eps.
_INNER = 0.95
#: Where the decision boundary lies between the inner points, 0, and those on the boundary, 1: near these luck is rare.
_CLOSENESS = 0.99
#: What an attack makes of an estimator with two classes, images (1, C, H, W) and labels (1,).
AttackFunction = Callable[[QuantizedClassifier, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Binarization:
    """What came of it.

    :param success: share of the images used on which the attack found an adversarial image; NaN where none was used.
    :param random: the same of as many random points of the ball as were fitted: if high, the test was too easy.
    :param used: images tested.
    :param dropped: images left out, because no linear readout tells their points apart.
    :param each: (N,) 1 where the attack succeeded, 0 where not, NaN where the image was dropped.
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
    """Run ``attack`` against a binary network around each image. Modes, hooks and random states are as before.

    It costs ``2 * (inner + boundary)`` forward passes an image and the attack, which sees one image at a time; 64 images
    give the share to within 12 points. A random module is fitted on the mean of its features and judged as any other.

    :param attack: the one to be tested, with the settings that are claimed; it must do with two classes.
    :param x: (N, C, H, W) in [0, 1]; ``y`` (N,) labels, used for nothing but their device.
    :param threat: Linf, L2 or L1 with eps above 0.
    :param inner: random points within 0.95 eps beside the image itself.
    :param boundary: random points at eps, at least 1. With ten, as in some of their scripts, random points of the ball do as
        well on half of the images of digits, and on none with one: see ``random``.
    :raises InputError: where the network runs no ``nn.Linear``, or the threat is L0.
    """
    if threat.norm == "L0" or threat.eps <= 0:
        raise InputError(f"threat: {threat} has no boundary to put points on; give Linf, L2 or L1 with eps above 0")
    module = estimator.model
    head = _head(module, x[:1], seed)
    each, lucky = np.full(len(x), np.nan), []
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
        lucky.append(score(binary, tried, label.expand(len(tried)), seed=drawn)["correct"].min() < 0.5)
    used = len(lucky)
    return Binarization(
        success=float(np.nanmean(each)) if used else float("nan"),
        random=float(np.mean(lucky)) if used else float("nan"),
        used=used,
        dropped=len(x) - used,
        each=each,
    )


class _Readout(nn.Module):
    """A network that answers by a linear function d of what goes into its last linear layer, as logits (-d/2, d/2)."""

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
    """Path of the linear layer that runs last."""
    ran: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: ran.append(name))  # type: ignore[misc]
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]
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
    """What goes into the head, (N, F), the mean over draws where the module takes several; and the logits."""
    seen: list[Tensor] = []
    handle = module.get_submodule(head).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = module(x)
    finally:
        handle.remove()
    return torch.cat(seen).unflatten(0, (-1, len(x))).mean(0).flatten(1), logits


def _around(x: Tensor, threat: Threat, inner: int, boundary: int, seed: int) -> Tensor:
    """Random points around one image: ``inner`` within 0.95 eps and then ``boundary`` at eps, clipped to [0, 1]."""
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
    """A readout that is above 0 on the last ``boundary`` points and below on the others; ``None`` if none is."""
    from sklearn.linear_model import LogisticRegression

    with isolated(module, seed), draws_from(module, seed), torch.no_grad():
        features, logits = _features(module, head, points)
    f = features.double().cpu().numpy()
    spread = f.std()
    if not (np.isfinite(f).all() and spread > 0):
        return None
    outside = np.arange(len(f)) >= len(f) - boundary
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a separable fit never converges: its direction is what is wanted
        fit = LogisticRegression(C=np.inf, max_iter=1000).fit((f - f.mean(0)) / spread, outside)
    weight = fit.coef_[0] / spread
    d = f @ weight
    inside, beyond = d[~outside].max(), d[outside].min()
    if inside >= beyond:
        return None
    gain = float(logits.max() - logits.min()) / (d.max() - d.min())
    bias = -gain * (inside + _CLOSENESS * (beyond - inside))
    readout = _Readout(module, head, torch.as_tensor(gain * weight).to(features), torch.as_tensor(bias).to(features))
    # Once more as it will be asked: one image at a time would only round otherwise.
    with isolated(module, seed), draws_from(module, seed), torch.no_grad():
        answers = readout(points).argmax(1).cpu().numpy()
    return readout if (answers == outside).all() else None


def _estimator(like: QuantizedClassifier, binary: _Readout) -> QuantizedClassifier:
    return QuantizedClassifier(
        binary,
        nn.CrossEntropyLoss(),
        like.input_shape,
        2,
        clip_values=None if like.clip_values is None else tuple(like.clip_values),
        device_type=str(like.device),
    )
