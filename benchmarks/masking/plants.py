"""The failures that are planted in the zoo: modules that hide gradients, and broken attacks.

Most wrap a network. The network without its wrapper is then the same function with an honest gradient, to attack it through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_qplugins import Threat

__all__ = [
    "BatchStatistics",
    "Compressed",
    "Detached",
    "DoubleSoftmax",
    "FrozenNoise",
    "KWinners",
    "Killed",
    "NoGrad",
    "Noisy",
    "OnPixels",
    "Probabilities",
    "Rounded",
    "Saturated",
    "Scaled",
    "Sign",
    "Wrapped",
    "last_iterate",
    "wrong_units",
]


class Wrapped(nn.Module):
    """A network in a module of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def logits(self, x: Tensor) -> Tensor:
        """The answers of the network itself, (N, K)."""
        logits: Tensor = self.network(x)
        return logits


# --- Scale of the logits


class Scaled(Wrapped):
    """The same answers, with the logits times ``factor``."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__(network)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) * self.factor


class Saturated(Wrapped):
    """Logits squeezed by a tanh and blown up after. No scale of the output gives the gradient back.

    The middle of the tanh lies between the image's two largest logits, and is a constant to autograd. So the two stay apart
    in float32, whatever the network's own scale.
    """

    def __init__(self, network: nn.Module, steepness: float) -> None:
        super().__init__(network)
        self.steepness = steepness

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x)
        middle = logits.detach().topk(2, dim=1).values.mean(1, keepdim=True)
        return torch.tanh((logits - middle) * self.steepness) * 1e4


# --- No gradient


class Detached(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.detach())


class NoGrad(Wrapped):
    """The graph is interrupted after the first part of the network."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.network.get_submodule("features")(x)
        logits: Tensor = self.network.get_submodule("head")(features)
        return logits


class _ZeroBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


class Killed(Wrapped):
    """A gradient of exactly zero; AutoAttack's issue 43."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(_ZeroBackward.apply(x))


# --- Pixels


class OnPixels(Wrapped):
    """A network behind a change of its pixels.

    :param through: with BPDA, an identity as backward pass (Athalye et al. 2018); else with the true derivative.
    """

    def __init__(self, network: nn.Module, through: bool = False) -> None:
        super().__init__(network)
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        changed = self.change(x)
        return self.logits(x + (changed - x).detach() if self.through else changed)

    def change(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Rounded(OnPixels):
    """Pixels rounded to ``levels`` levels."""

    def __init__(self, network: nn.Module, levels: int, through: bool = False) -> None:
        super().__init__(network, through)
        self.levels = levels

    def change(self, x: Tensor) -> Tensor:
        return (x * (self.levels - 1)).round() / (self.levels - 1)


class Compressed(OnPixels):
    """The lossy step of JPEG: the coefficients of a DCT of blocks, rounded to ``step``. No color transform, no tables.

    :param step: in units of an orthonormal DCT of pixels in [0, 1]; JPEG at quality 50 has 16 / 255 to 121 / 255.
    """

    basis: Tensor

    def __init__(self, network: nn.Module, step: float, through: bool = False, block: int = 4) -> None:
        super().__init__(network, through)
        self.step, self.block = step, block
        k, n = torch.arange(block)[:, None], torch.arange(block)[None]
        basis = torch.cos(math.pi * (2 * n + 1) * k / (2 * block)) * math.sqrt(2 / block)
        basis[0] /= math.sqrt(2)
        self.register_buffer("basis", basis)

    def change(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        b, basis = self.block, self.basis
        blocks = x.view(n, c, height // b, b, width // b, b).transpose(3, 4)
        coefficients = basis @ blocks @ basis.T
        back = basis.T @ ((coefficients / self.step).round() * self.step) @ basis
        return back.transpose(3, 4).reshape(x.shape).clamp(0, 1)


# --- Activations


class _SignFunction(torch.autograd.Function):
    """Sign, with the derivative of a clipped identity (slope 0) or of tanh(slope x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if ctx.slope == 0:
            return grad * (x.abs() <= 1), None
        return grad * ctx.slope * (1 - torch.tanh(ctx.slope * x) ** 2), None


class Sign(nn.Module):
    """Binary activations.

    :ivar slope: of the backward pass: 0 is a clipped identity, above 0 the derivative of tanh(slope x), ``None`` the true
        derivative, zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slope: float | None = 0.0

    def forward(self, x: Tensor) -> Tensor:
        signs: Tensor = x.sign() if self.slope is None else _SignFunction.apply(x, self.slope)
        return signs


class KWinners(nn.Module):
    """k winners take all (Xiao et al. 2020): the largest ``share`` of an image's activations, the others 0."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


class TanhQuantized(nn.Module):
    """Activations through a tanh and rounded to ``2 ** bits`` levels of [-1, 1], the rounding straight through.

    The tanh quantization of DoReFa-Net that Defensive Quantization compares itself with (Lin et al. 2019, table 5).
    """

    def __init__(self, bits: int, gain: float = 1.0) -> None:
        super().__init__()
        self.levels, self.gain = 2**bits - 1, gain

    def forward(self, x: Tensor) -> Tensor:
        squashed: Tensor = (torch.tanh(self.gain * x) + 1) / 2
        rounded = (squashed * self.levels).round() / self.levels
        straight_through: Tensor = squashed + (rounded - squashed).detach()
        return 2 * straight_through - 1


# --- Random


class Noisy(Wrapped):
    """Gaussian noise on the pixels at every call, from the global generator. No layer of this package announces it.

    :param calls: noisy copies whose logits are averaged in one call.
    """

    def __init__(self, network: nn.Module, deviation: float, calls: int = 1) -> None:
        super().__init__(network)
        self.deviation, self.calls = deviation, calls

    def forward(self, x: Tensor) -> Tensor:
        many = x.repeat(self.calls, 1, 1, 1)
        logits = self.logits(many + self.deviation * torch.randn_like(many))
        return logits.view(self.calls, len(x), -1).mean(0)


class FrozenNoise(Wrapped):
    """The mean logits under a fixed bank of noise: deterministic and differentiable, so nothing is hidden."""

    bank: Tensor

    def __init__(self, network: nn.Module, shape: tuple[int, int, int], deviation: float, seed: int) -> None:
        super().__init__(network)
        bank = deviation * torch.randn((8, 1, *shape), generator=torch.Generator().manual_seed(seed))
        self.register_buffer("bank", bank)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits((x + self.bank).flatten(0, 1))
        return logits.view(len(self.bank), len(x), -1).mean(0)


# --- Output and state


class Probabilities(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).softmax(1)


class DoubleSoftmax(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).softmax(1).softmax(1)


class _BatchNorm(nn.BatchNorm2d):
    """It normalizes by the statistics of the batch also in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


class BatchStatistics(Wrapped):
    """A copy of a network whose batch norms were left in train mode: an image's answer depends on its neighbours."""

    def __init__(self, network: nn.Module) -> None:
        import copy

        super().__init__(copy.deepcopy(network))
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = _BatchNorm

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


# --- Broken attacks: numbers that somebody measured with a loop of their own


def _cross_entropy_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    return gradient


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def last_iterate(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> float:
    """Accuracy under a PGD that steps by twice eps and reports its last iterate, not its best (Pintor et al. 2022, I3).

    Its iterates jump between corners of the ball. Many of them are adversarial; the last one is one among many.
    """
    random = torch.Generator().manual_seed(seed)
    x_adv = x + (2 * torch.rand(x.shape, generator=random) - 1) * threat.eps
    for _ in range(20):
        step = 2 * threat.eps * _cross_entropy_gradient(model, x_adv, y).sign()
        x_adv = (x + (x_adv + step - x).clamp(-threat.eps, threat.eps)).clamp(0, 1)
    return _accuracy(model, x_adv, y)


def wrong_units(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> float:
    """Accuracy under a PGD whose steps were meant for pixels in [0, 255]: each is 255 times too small."""
    x_adv = x.clone()
    for _ in range(20):
        step = threat.eps / 255 / 8 * _cross_entropy_gradient(model, x_adv, y).sign()
        x_adv = (x_adv + step).clamp(0, 1)
    return _accuracy(model, x_adv, y)


Measured = Callable[[nn.Module, Tensor, Tensor, Threat, int], float]
