"""The interface by which attacks replace a quantizer of activations, and the search for quantizers in a network."""

from __future__ import annotations

from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor, nn

from art_qplugins.domains import check
from art_qplugins.quantizers.surrogates import HasSurrogate, has_surrogate
from art_qplugins.torch_domains import MODULE

__all__ = ["ActivationQuantizer", "activation_quantizers", "as_quantizer"]


@runtime_checkable
class ActivationQuantizer(Protocol):
    """A module that rounds activations to ``2 ** num_bits`` evenly spaced levels.

    :ivar num_bits: bits per activation.
    """

    num_bits: int

    @property
    def range(self) -> tuple[float | Tensor, float | Tensor]:
        """The lowest and the highest level, without gradient."""

    def full_precision(self, x: Tensor) -> Tensor:
        """The real-valued function that the quantizer rounds, at x of any shape. It is differentiable in x."""


class _Conventional(HasSurrogate, Protocol):
    """A module of another package that follows the convention of QuantReLU but not the protocol."""

    num_bits: int
    clip: float


class _Clip:
    """Adapts such a module to the protocol. It rounds the clip to [0, clip]."""

    def __init__(self, module: _Conventional) -> None:
        self.num_bits = int(module.num_bits)
        self.range = (0.0, float(module.clip))

    def full_precision(self, x: Tensor) -> Tensor:
        return x.clamp(*self.range)


def _is_conventional(module: nn.Module) -> TypeGuard[_Conventional]:
    return hasattr(module, "num_bits") and hasattr(module, "clip") and has_surrogate(module)


def as_quantizer(module: nn.Module) -> ActivationQuantizer | None:
    """``module`` as a quantizer of activations; ``None`` where it is not one.

    A quantizer has the attributes of :class:`ActivationQuantizer`, or ``num_bits``, ``clip`` and an exchangeable
    ``surrogate`` as in :class:`~art_qplugins.QuantReLU`.
    """
    if isinstance(module, ActivationQuantizer):
        return module
    return _Clip(module) if _is_conventional(module) else None


def activation_quantizers(module: nn.Module) -> list[tuple[nn.Module, ActivationQuantizer]]:
    """Each quantizer of activations inside ``module`` with its module, in the order of the module tree."""
    check("module", module, MODULE)
    found = ((part, as_quantizer(part)) for part in module.modules())
    return [(part, quantizer) for part, quantizer in found if quantizer is not None]
