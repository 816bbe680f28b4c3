"""The validation zoo: models whose truth is known, planted failures and honest ones, on scikit-learn's digits.

A row is declarative: how the model is made, what is claimed of it, and what a diagnosis has to say. The diagnostics know
nothing of it. Everything is deterministic per seed, and every network trains in seconds on one core.

Not here, since a claim is an attack id and an ART estimator is always in eval mode on pixels in [0, 1]: an attack that
returns its last iterate, batch norm in train mode, and eps in other units than the pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_qplugins import Dataset, QuantizedClassifier, load, quantize, train
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble

__all__ = ["ROWS", "Built", "Row", "classifier"]

SHAPE, CLASSES = (1, 8, 8), 10
Kind = Literal["masked", "weak", "honest"]


@dataclass(frozen=True)
class Built:
    """The model under test and, for a planted failure, the same function with an honest gradient, to attack it through."""

    model: nn.Module
    twin: nn.Module | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model and one claim.

    :param kind: ``masked``: the gradients hide adversarial images from the claimed attack, or there are none to follow;
        ``weak``: the claimed attack is too weak for a model that hides nothing; ``honest``.
    :param expected: the verdicts that count as right.
    :param must_fire: indicators that the plant has to set off.
    """

    name: str
    kind: Kind
    build: Callable[[int], Built]
    expected: frozenset[str]
    why: str
    attack: str = "art:pgd"
    options: Mapping[str, Any] = field(default_factory=dict)
    norm: str = "Linf"
    eps: float = 0.15
    must_fire: frozenset[str] = frozenset()


def classifier(model: nn.Module) -> QuantizedClassifier:
    return QuantizedClassifier(model.eval(), nn.CrossEntropyLoss(), SHAPE, CLASSES, device_type="cpu")


# --- Training


@functools.cache
def _digits() -> Dataset:
    return load("digits", "train")


def _network(seed: int, *, width: int = 8, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvNet(SHAPE, CLASSES, width=width, activation=activation)


@functools.cache
def plain(seed: int, width: int = 8, epochs: int = 6, weight_decay: float = 5e-4) -> nn.Module:
    return train(_network(seed, width=width), _digits(), epochs=epochs, weight_decay=weight_decay, seed=seed)


Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


def _fit(model: nn.Module, loss: Loss, *, seed: int, epochs: int, learning_rate: float = 0.1) -> nn.Module:
    """Like ``train``, with another loss."""
    x, y = _digits().x(), _digits().y()
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=random).split(64):
            value = loss(model.train(), x[rows], y[rows], random)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _adversarial(eps: float, steps: int, *, random_start: bool = True) -> Loss:
    """Cross-entropy at the images of an L-infinity PGD against the network in eval mode (Madry et al. 2018)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
        model.eval()
        start = (2 * torch.rand(x.shape, generator=random) - 1) * eps if random_start else torch.zeros_like(x)
        x_adv = (x + start).clamp(0, 1)
        for _ in range(steps):
            leaf = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
            step = min(1.0, 2.5 / steps) * eps * gradient.sign()
            x_adv = torch.clamp(torch.min(torch.max(leaf + step, x - eps), x + eps), 0, 1).detach()
        return F.cross_entropy(model.train()(x_adv), y)

    return loss


@functools.cache
def robust(seed: int, width: int = 8, eps: float = 0.15) -> nn.Module:
    return _fit(_network(seed, width=width), _adversarial(eps, 5), seed=seed, epochs=12)


def _fast_adversarial(seed: int) -> Built:
    """FGSM from the image itself at twice the budget of the other rows, the setting of catastrophic overfitting."""
    return Built(_fit(_network(seed, width=16), _adversarial(0.3, 1, random_start=False), seed=seed, epochs=20))


def _distilled(seed: int, temperature: float = 40.0) -> Built:
    """Papernot et al. 2016: teacher and student trained at a high temperature, the student deployed at 1."""

    def at_temperature(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
        return F.cross_entropy(model(x) / temperature, y)

    teacher = _fit(_network(seed), at_temperature, seed=seed, epochs=10, learning_rate=0.3)

    def imitate(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
        with torch.no_grad():
            soft = (teacher(x) / temperature).softmax(1)
        return F.cross_entropy(model(x) / temperature, soft)

    student = _fit(_network(seed + 100), imitate, seed=seed, epochs=10, learning_rate=0.3)
    return Built(student, Scaled(student, 1 / temperature))


def _smoothed(seed: int) -> Built:
    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
        return F.cross_entropy(model(x), y, label_smoothing=0.5)

    return Built(_fit(_network(seed), loss, seed=seed, epochs=12))


def _squeezed(seed: int) -> Built:
    """Logit squeezing with Gaussian noise (Kannan et al. 2018)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
        logits = model(x + 0.3 * torch.randn(x.shape, generator=random))
        return F.cross_entropy(logits, y) + 0.5 * logits.norm(dim=1).mean()

    return Built(_fit(_network(seed), loss, seed=seed, epochs=12))


# --- What is planted


class Scaled(nn.Module):
    """The same answers, the logits times ``factor``."""

    def __init__(self, network: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * self.factor


class Saturated(Scaled):
    """Logits squeezed by a tanh and blown up after: no scale of the output gives the gradient back.

    Its middle is at 5, between the two largest logits of most images; both above 7.2 would be a tie in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((self.network(x) - 5) * self.factor) * 1e4


class Detached(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.detach())


class _Killed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


class Killed(Scaled):
    """A gradient of exactly zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(_Killed.apply(x))


class Rounded(Scaled):
    """Pixels rounded to five levels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * 4).round() / 4)


class RoundedThrough(Scaled):
    """The same with BPDA: an identity backward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + ((x * 4).round() / 4 - x).detach())


class Noisy(Scaled):
    """Gaussian noise on the pixels at every call, from the global generator: no layer of ours says so."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + self.factor * torch.randn_like(x))


class Probabilities(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1)


class DoubleSoftmax(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).softmax(1).softmax(1)


class _Sign(torch.autograd.Function):
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
    def __init__(self) -> None:
        super().__init__()
        self.slope: float | None = 0.0  # None: the true derivative, zero

    def forward(self, x: Tensor) -> Tensor:
        return x.sign() if self.slope is None else _Sign.apply(x, self.slope)


def _binary(seed: int, slope: float | None) -> Built:
    """Trained straight through, deployed with another backward."""
    twin = _binary_twin(seed)
    model = _network(seed, activation=Sign)
    model.load_state_dict(twin.state_dict())
    for part in model.modules():
        if isinstance(part, Sign):
            part.slope = slope
    return Built(model, twin)


@functools.cache
def _binary_twin(seed: int) -> nn.Module:
    return train(_network(seed, activation=Sign), _digits(), epochs=12, learning_rate=0.05, seed=seed)


class KWinners(nn.Module):
    """k winners take all (Xiao et al. 2020): the largest tenth of the activations of an image, the others 0."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, flat.shape[1] // 10), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


def _winners(seed: int) -> Built:
    return Built(train(_network(seed, width=16, activation=KWinners), _digits(), epochs=15, seed=seed))


def _stochastic(seed: int, bits: int = 2, **options: Any) -> nn.Module:
    return StochasticEnsemble(_stochastic_network(seed, bits), **options).eval()


@functools.cache
def _stochastic_network(seed: int, bits: int) -> nn.Module:
    network = quantize(plain(seed), activation_bits=bits, alpha=2.0, clip=2.0, seed=seed)
    return train(network, _digits(), epochs=3, learning_rate=0.02, seed=seed)


def _on_plain(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[int], Built]:
    return lambda seed: Built(wrap(plain(seed)), plain(seed))


def _on_robust(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[int], Built]:
    return lambda seed: Built(wrap(robust(seed)), robust(seed))


def _only(make: Callable[[int], nn.Module]) -> Callable[[int], Built]:
    return lambda seed: Built(make(seed))


def _mu_law(layers: int) -> Callable[[int], Built]:
    def build(seed: int) -> Built:
        model = quantize(plain(seed), weight_bits=3, mu=255.0, mu_layers=layers)
        return Built(model, Scaled(model, 1e-2))

    return build


# --- The table

_MASKED, _SUSPECT, _INVALID = frozenset({"MASKED"}), frozenset({"SUSPECT"}), frozenset({"INVALID"})
_SILENT = frozenset({"NOT_REFUTED"})


def _masked(name: str, build: Callable[[int], Built], must_fire: str, why: str, **more: Any) -> Row:
    more = {"expected": _MASKED, **more}
    return Row(name=name, kind="masked", build=build, must_fire=frozenset(must_fire.split()), why=why, **more)


def _weak(name: str, build: Callable[[int], Built], must_fire: str, why: str, **more: Any) -> Row:
    more = {"expected": _SILENT, **more}
    return Row(name=name, kind="weak", build=build, must_fire=frozenset(must_fire.split()), why=why, **more)


def _honest(name: str, make: Callable[[int], nn.Module], why: str, **more: Any) -> Row:
    return Row(name=name, kind="honest", build=_only(make), expected=_SILENT, why=why, **more)


ROWS: tuple[Row, ...] = (
    # Honest: plain
    _honest("plain", plain, "broken by everybody"),
    _honest("plain-narrow", lambda s: plain(s, width=4), "few parameters, smaller margins"),
    _honest("plain-wide", lambda s: plain(s, width=16), "more parameters"),
    _honest("plain-long", lambda s: plain(s, epochs=30), "trained on: larger margins, near to underflow"),
    _honest("plain-no-decay", lambda s: plain(s, epochs=20, weight_decay=0.0), "larger margins"),
    _honest("plain-decay", lambda s: plain(s, weight_decay=5e-3), "small margins"),
    _honest("plain-small-eps", plain, "half the images stand: room for a gap", eps=0.08),
    _honest("plain-l2", plain, "a claim in another norm, where fidelity is not measured", norm="L2", eps=0.8),
    _honest("plain-apgd", plain, "claimed by a stronger attack", attack="autoattack:apgd-ce"),
    # Honest: quantized
    _honest("plain-8bit", lambda s: quantize(plain(s), 8, 8), "straight-through, close to float"),
    _honest("plain-4bit", lambda s: quantize(plain(s), 4, 4), "straight-through"),
    _honest("plain-3bit-weights", lambda s: quantize(plain(s), weight_bits=3), "mu-law's control: no mapping"),
    _honest("rounded-bpda", lambda s: RoundedThrough(plain(s)), "the attacked rounding, through its BPDA"),
    # Honest: robust
    _honest("at", robust, "adversarially trained: a gap of PGD to AutoAttack is normal"),
    _honest("at-wide", lambda s: robust(s, width=16), "the same, wider"),
    _honest("at-0.1", lambda s: robust(s, eps=0.1), "trained at a smaller eps than claimed"),
    _honest("at-8bit", lambda s: quantize(robust(s), 8, 8), "honest quantization of a robust network"),
    _honest("at-4bit", lambda s: quantize(robust(s), 4, 4), "the same, coarser"),
    # Honest: stochastic, attacked through the deployed average
    _honest("sq-eot", lambda s: _stochastic(s, draws=4), "ensemble of four, attacked as such"),
    _honest("sq-eot-8", lambda s: _stochastic(s, draws=8), "ensemble of eight"),
    _honest("sq-eot-4bit", lambda s: _stochastic(s, 4, draws=4), "less noise"),
    # Scale
    _masked(
        "plain-x1e4",
        _on_plain(lambda m: Scaled(m, 1e4)),
        "GAP INV-T M2 M3 M4",
        "logits times 10,000: cross-entropy and its gradient are 0",
    ),
    _masked(
        "plain-x10-l2",
        _on_plain(lambda m: Scaled(m, 10.0)),
        "GAP INV-T M3 M4",
        "logits times 10: the square of the gradient underflows in an L2 step",
        norm="L2",
        eps=0.8,
    ),
    _masked(
        "plain-x10",
        _on_plain(lambda m: Scaled(m, 10.0)),
        "M3 M4",
        "the same against steps by sign, which mostly survive it: a suspicion is right too",
        expected=_MASKED | _SUSPECT,
    ),
    _masked(
        "at-x1e4", _on_robust(lambda m: Scaled(m, 1e4)), "GAP INV-T M2 M3 M4", "robust, and claimed too high by scale"
    ),
    _masked(
        "plain-div-100",
        _on_plain(lambda m: Scaled(m, 0.01)),
        "GAP INV-T",
        "logits over 100: cross-entropy becomes linear in them and spends its steps on the wrong classes",
        expected=_MASKED | _SUSPECT,
    ),
    _masked(
        "mu-law-1", _mu_law(1), "M3 M4", "the last layer, 3 bit: in part still attackable", expected=_MASKED | _SUSPECT
    ),
    _masked("mu-law-2", _mu_law(2), "GAP INV-T M3 M4", "the last two layers, 3 bit"),
    _masked("distilled", _distilled, "M3 M4", "distillation at temperature 40, deployed at 1"),
    _masked(
        "tanh-pgd",
        _on_plain(lambda m: Saturated(m, 4.0)),
        "GAP P1 M2",
        "saturated inside the graph: no scale undoes it",
    ),
    _masked(
        "tanh-apgd-t",
        _on_plain(lambda m: Saturated(m, 4.0)),
        "GAP P1 M2",
        "the same, claimed by a loss that no scale changes",
        attack="autoattack:apgd-t",
    ),
    # No gradient
    _masked(
        "detached", _on_plain(Detached), "", "no gradient reaches the pixels: there is no number", expected=_INVALID
    ),
    _masked("gradient-killer", _on_plain(Killed), "GAP P1 M2 M7", "a backward of exactly zero"),
    _masked("gradient-killer-at", _on_robust(Killed), "GAP P1 M2 M7", "the same on a robust network: a smaller gap"),
    _masked(
        "rounded",
        lambda s: Built(Rounded(plain(s)), RoundedThrough(plain(s))),
        "GAP P1 M2 M7",
        "pixels on 5 levels, no BPDA",
    ),
    _masked("sign", lambda s: _binary(s, None), "GAP P1 M2 M7", "binary activations with their true derivative, zero"),
    _masked(
        "sign-steep",
        lambda s: _binary(s, 50.0),
        "M7",
        "binary activations through the derivative of tanh(50 x)",
        expected=_MASKED | _SUSPECT,
    ),
    # Rugged
    _masked("fgsm-at", _fast_adversarial, "GAP", "trained and claimed by FGSM", attack="art:fgsm", eps=0.3),
    _masked("k-winners", _winners, "M7", "a discontinuous activation", expected=_MASKED | _SUSPECT),
    _masked(
        "label-smoothing", _smoothed, "", "smoothing 0.5, PGD-10", expected=_MASKED | _SUSPECT, options={"max_iter": 10}
    ),
    _masked(
        "logit-squeezing", _squeezed, "", "with noise, PGD-10", expected=_MASKED | _SUSPECT, options={"max_iter": 10}
    ),
    # Output
    _masked(
        "probabilities",
        _on_plain(Probabilities),
        "",
        "cross-entropy of a softmax; to refuse it by its name is right too",
        expected=_MASKED | _SUSPECT | _INVALID,
    ),
    _masked(
        "double-softmax", _on_plain(DoubleSoftmax), "", "and of a softmax of it", expected=_MASKED | _SUSPECT | _INVALID
    ),
    # Random
    _masked(
        "sq-one-draw-gradient",
        lambda s: Built(_stochastic(s, draws=8, eot_draws=1), _stochastic(s, draws=8)),
        "",
        "deployed with eight draws, attacked in ten steps through one",
        expected=_MASKED | _SUSPECT,
        options={"max_iter": 10},
    ),
    _masked(
        "noisy-input",
        lambda s: Built(Noisy(plain(s), 0.2), plain(s)),
        "",
        "noise that no layer of ours announces, attacked without averaging",
        expected=_MASKED | _SUSPECT,
    ),
    # The attack's fault
    _weak(
        "small-step",
        _only(plain),
        "GAP S1",
        "PGD whose ten steps reach a tenth of eps",
        options={"max_iter": 10, "rel_eps_step": 0.01},
    ),
    _weak(
        "three-steps",
        _only(plain),
        "GAP S1",
        "three steps of a tenth of eps",
        options={"max_iter": 3, "rel_eps_step": 0.1},
    ),
    _weak(
        "small-step-at",
        _only(robust),
        "GAP S1",
        "small steps on a robust network",
        options={"max_iter": 10, "rel_eps_step": 0.01},
    ),
    _weak("fgsm-claim", _only(plain), "GAP", "a one-step attack on a plain network", attack="art:fgsm"),
)
