r"""Surrogate gradients: the exact quantizer forward, the slope of a smoother function backward.

This is BPDA (Athalye, Carlini & Wagner 2018) at each quantized activation. The slope is that of a smoother
:math:`h \approx Q_b`, taken at the quantizer's own input. No surrogate is right for every network, and a wrong one
makes a network look robust. Run several, or choose by :func:`~art_qplugins.gradients.fidelity.best_surrogate`.

The slopes are those of the functions below, with b for num_bits, c for clip and :math:`\Delta = c / (2^b - 1)` for the
step. A quantizer with another lowest level first moves its range to [0, c].

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
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from art_qplugins.domains import POSITIVE, TABLE, Domain, Number, OneOf, check
from art_qplugins.errors import InputError, did_you_mean, shown
from art_qplugins.torch_domains import MODULE

__all__ = ["SURROGATES", "HasSurrogate", "Surrogate", "as_surrogate", "has_surrogate", "surrogate", "surrogate_layers"]


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


#: Kind -> function(x, num_bits, clip, **options) that returns the slope at x, in x's shape and dtype.
SURROGATES: dict[str, Callable[..., Tensor]] = {
    "straight-through": _straight_through,
    "identity": _identity,
    "leaky": _leaky,
    "tanh": _tanh,
    "soft-staircase": _soft_staircase,
}

#: By the name of an option. A slope of 0, or a k so large that tanh is flat, leaves nothing of the gradient.
_DOMAINS: dict[str, Domain] = {"slope": Number(0, 10, above=True), "k": Number(0.01, 100)}


@dataclass(frozen=True)
class Surrogate:
    """One kind of surrogate with its options: plain data that copies and pickles. Called, it gives the slope at x.

    :param kind: a key of :data:`SURROGATES`.
    :param options: numbers by the names of the kind's options, e.g. ``{"slope": 0.1}``. An option that is not given has
        its default. A slope is in (0, 10]. A sharpness k is in [0.01, 100].
    """

    kind: str
    options: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check("surrogate", self.kind, OneOf(tuple(SURROGATES)))
        defaults = _defaults(self.kind)
        for name, value in check(f"surrogate {self.kind!r}: options", self.options, TABLE).items():
            if name not in defaults:
                hint = did_you_mean(name, defaults) if defaults else "; it takes none"
                raise InputError(f"surrogate {self.kind!r}: unknown option {shown(name)}{hint}")
            check(f"surrogate {self.kind!r}: option {name}", value, _DOMAINS.get(name, POSITIVE))

    def __call__(self, x: Tensor, num_bits: int, clip: float) -> Tensor:
        return SURROGATES[self.kind](x, num_bits, clip, **self.options)

    def __str__(self) -> str:
        """The kind and all its options, also defaults. A network's repr, and so its hash, contains this text."""
        options = {**_defaults(self.kind), **self.options}
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def _defaults(kind: str) -> dict[str, float]:
    parameters = inspect.signature(SURROGATES[kind]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def as_surrogate(kind: str | Surrogate | None) -> Surrogate | None:
    """The surrogate for ``kind``; ``None`` for straight-through, which is the quantizer's own fused backward pass."""
    if kind is None:
        return None
    chosen = kind if isinstance(kind, Surrogate) else Surrogate(kind)
    return None if chosen.kind == "straight-through" else chosen


class HasSurrogate(Protocol):
    """A module whose surrogate gradient can be exchanged. Its forward pass applies the attribute.

    :ivar surrogate: ``None`` for straight-through.
    """

    surrogate: Surrogate | None


def has_surrogate(module: nn.Module) -> TypeGuard[HasSurrogate]:
    """Whether the attribute ``surrogate`` of ``module`` is ``None`` or a :class:`Surrogate`."""
    return isinstance(getattr(module, "surrogate", ""), Surrogate | None)


def surrogate_layers(module: nn.Module) -> list[HasSurrogate]:
    """The modules inside ``module`` with an exchangeable surrogate gradient, in order."""
    return [part for part in module.modules() if has_surrogate(part)]


@contextlib.contextmanager
def surrogate(module: nn.Module, kind: str = "straight-through", **options: float) -> Iterator[None]:
    """Within the context, the quantized activations of ``module`` have the surrogate gradient ``kind``.

    No value changes. Afterwards every activation has its previous surrogate again, also after an exception. Contexts nest. The surrogate is
    fixed in the forward pass. The backward pass may come later.

    The context changes every :class:`~art_qplugins.QuantReLU` and :class:`~art_qplugins.QuantHardtanh`. It also changes
    every other module whose attribute ``surrogate`` is ``None`` or a :class:`Surrogate`. Its forward pass must apply the
    attribute as ``QuantReLU.forward`` does.

    :param kind: a key of :data:`SURROGATES`.
    :param options: of that kind, e.g. ``slope=0.1`` for leaky and ``k=4`` for tanh and soft-staircase.
    :raises InputError: where the kind or an option is unknown, or ``module`` has no such activation.
    """
    check("module", module, MODULE)
    chosen = as_surrogate(Surrogate(kind, options))
    before = [(layer, layer.surrogate) for layer in surrogate_layers(module)]
    if not before:
        raise InputError(
            f"{type(module).__name__} has no QuantReLU, so it has no surrogate gradient to choose; quantize it first"
        )
    try:
        for layer, _ in before:
            layer.surrogate = chosen
        yield
    finally:
        for layer, setting in before:
            layer.surrogate = setting
