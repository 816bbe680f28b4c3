r"""Surrogate gradients: the exact quantizer forward, the slope of something smoother backward.

This is BPDA (Athalye, Carlini & Wagner 2018) at each quantized activation: the slope is that of a smoother
:math:`h \approx Q_b`, taken at the quantizer's own input. No surrogate is right for every network, and a wrong one
looks like robustness: run several, or choose by :func:`~art_qplugins.gradients.fidelity.best_surrogate`.

Written b for num_bits, c for clip and :math:`\Delta = c / (2^b - 1)` for the step, the slopes are those of

================  =====================================================================================================
straight-through  :math:`\mathrm{clamp}(x, 0, c)`: 1 on (0, c), 0 outside (Bengio et al. 2013; Hubara et al. 2016)
identity          x: 1 everywhere, also where the unit is saturated (Athalye et al. 2018)
leaky             1 on (0, c), ``slope`` outside
tanh              :math:`\frac c2 (1 + \tanh(k v))`, :math:`v = 2x/c - 1`: slope :math:`k (1 - \tanh^2(k v))`. IR-Net's
                  estimator (Qin et al. 2020), there around the sign, here moved to the whole range [0, c]
soft-staircase    :math:`\Delta (\lfloor u \rfloor + \frac12 + \frac12 \tanh(k(u - \lfloor u \rfloor - \frac12)) /
                  \tanh(\frac k2))`, :math:`u = x / \Delta`, on (0, c), constant outside: DSQ (Gong et al. 2019). As k
                  goes to 0 it becomes straight-through, as k grows the staircase itself
================  =====================================================================================================
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.errors import InputError, did_you_mean
from art_qplugins.quantizers.functional import straight_through

__all__ = ["SURROGATES", "Surrogate", "TwinGradient", "surrogate"]


def _straight_through(x: Tensor, num_bits: int, clip: float) -> Tensor:
    return ((x > 0) & (x < clip)).to(x.dtype)


def _identity(x: Tensor, num_bits: int, clip: float) -> Tensor:
    return torch.ones_like(x)


def _leaky(x: Tensor, num_bits: int, clip: float, *, slope: float = 0.1) -> Tensor:
    return torch.ones_like(x).masked_fill_((x <= 0) | (x >= clip), slope)


def _tanh(x: Tensor, num_bits: int, clip: float, *, k: float = 1.0) -> Tensor:
    return k * (1 - torch.tanh(k * (2 * x / clip - 1)) ** 2)


def _soft_staircase(x: Tensor, num_bits: int, clip: float, *, k: float = 2.0) -> Tensor:
    u = x / (clip / (2**num_bits - 1))
    rise = k / 2 / math.tanh(k / 2) * (1 - torch.tanh(k * (u - u.floor() - 0.5)) ** 2)
    return rise.masked_fill_((x <= 0) | (x >= clip), 0)


#: Kind -> function(x, num_bits, clip, **options) that gives the slope at x, in x's shape and dtype.
SURROGATES: dict[str, Callable[..., Tensor]] = {
    "straight-through": _straight_through,
    "identity": _identity,
    "leaky": _leaky,
    "tanh": _tanh,
    "soft-staircase": _soft_staircase,
}


@dataclass(frozen=True)
class Surrogate:
    """One kind of surrogate with its options: plain data that copies and pickles. Called, it gives the slope at x.

    :param kind: a key of :data:`SURROGATES`.
    :param options: numbers above 0, by the names that the kind knows, e.g. ``{"slope": 0.1}``; the rest are defaults.
    """

    kind: str
    options: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in SURROGATES:
            raise InputError(f"unknown surrogate {self.kind!r}{did_you_mean(str(self.kind), SURROGATES)}")
        defaults = _defaults(self.kind)
        for name, value in self.options.items():
            if name not in defaults:
                hint = did_you_mean(name, defaults) if defaults else "; it takes none"
                raise InputError(f"surrogate {self.kind!r}: unknown option {name!r}{hint}")
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise InputError(f"surrogate {self.kind!r}: {name} is {value!r}; give a finite number above 0")

    def __call__(self, x: Tensor, num_bits: int, clip: float) -> Tensor:
        return SURROGATES[self.kind](x, num_bits, clip, **self.options)

    def __str__(self) -> str:
        """With the defaults, so that a network's repr, and with it its hash, says what it does."""
        options = {**_defaults(self.kind), **self.options}
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def _defaults(kind: str) -> dict[str, float]:
    parameters = inspect.signature(SURROGATES[kind]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def as_surrogate(kind: str | Surrogate | None) -> Surrogate | None:
    """``None`` for straight-through: that is the quantizer's own backward, which is fused and fast."""
    if kind is None:
        return None
    chosen = kind if isinstance(kind, Surrogate) else Surrogate(kind)
    return None if chosen.kind == "straight-through" else chosen


@contextlib.contextmanager
def surrogate(module: nn.Module, kind: str = "straight-through", **options: float) -> Iterator[None]:
    """Within, the quantized activations of ``module`` pass gradients back through ``kind``; no value changes.

    What was there before is back afterwards, also after an exception, and contexts nest. What counts is when the
    forward pass ran: a backward pass through its graph may come later.

    It reaches every :class:`~art_qplugins.quantizers.QuantReLU`, and every module of your own whose attribute
    ``surrogate`` is ``None`` or a :class:`Surrogate`, and which honours it as ``QuantReLU.forward`` does.

    :param kind: a key of :data:`SURROGATES`.
    :param options: of that kind, e.g. ``slope=0.1`` for leaky and ``k=4`` for tanh and soft-staircase.
    :raises InputError: where the kind or an option is unknown, or ``module`` has no such activation.
    """
    chosen = as_surrogate(Surrogate(kind, options))
    settings = [(m, getattr(m, "surrogate", "")) for m in module.modules()]
    before: list[tuple[Any, Surrogate | None]] = [(m, s) for m, s in settings if s is None or isinstance(s, Surrogate)]
    if not before:
        raise InputError(
            f"{type(module).__name__} has no QuantReLU, so no surrogate gradient to choose; quantize it first"
        )
    try:
        for m, _ in before:
            m.surrogate = chosen
        yield
    finally:
        for m, setting in before:
            m.surrogate = setting


class TwinGradient(nn.Module):
    """The answers of ``network``, bit for bit, with the gradient of ``twin``: an attack on one steered by the other.

    With the full-precision network as twin, the attack goes through the shadow weights of a weight-quantized one. The
    gradient is taken along the twin's own activations, so it is a transfer attack that knows what the target answers.

    :param network: what is attacked; it gets no gradient, nor do its parameters.
    :param twin: takes the same input and gives logits of the same shape.
    """

    def __init__(self, network: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.twin = twin

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.network(x)
        if not torch.is_grad_enabled():
            return value  # type: ignore[no-any-return]
        path = self.twin(x)
        if path.shape != value.shape:
            raise InputError(
                f"TwinGradient: the network gives {tuple(value.shape)} and its twin {tuple(path.shape)}; "
                "take a twin with as many classes"
            )
        return straight_through(value, path)
