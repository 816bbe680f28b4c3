"""The stochastic layers of a network that is trained, and what they read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.quantizers.stochastic import StochasticQuantizer, stochastic_quantizers

__all__ = ["Readings", "layers_for"]


def layers_for(defence: str, model: nn.Module) -> list[StochasticQuantizer]:
    """The stochastic layers of ``model``, which a defence needs.

    :raises InputError: where there are none.
    """
    layers = stochastic_quantizers(model)
    if not layers:
        raise InputError(
            f"defence {defence!r} needs stochastic layers; quantize the model with alpha, e.g. "
            "quantize = {activation_bits = 2, alpha = 2.0}"
        )
    return layers


class Readings:
    """What each of some layers read in the last forward pass, until :meth:`end`."""

    def __init__(self, layers: Sequence[StochasticQuantizer]) -> None:
        self._layers = layers
        self._inputs: dict[nn.Module, Tensor] = {}
        inputs = self._inputs

        def keep(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs[layer] = given[0]

        self._hooks = [layer.register_forward_pre_hook(keep) for layer in layers]

    def last(self) -> list[Tensor]:
        """Of each layer, with gradient, in the dtype that it computes in: autocast may be over by now."""
        assert len(self._inputs) == len(self._layers), "the forward pass did not reach a stochastic layer"
        return [self._inputs[layer].to(layer.offset.dtype) for layer in self._layers]

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._inputs.clear()
