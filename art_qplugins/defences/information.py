r"""The objective of stochastic-quantization ensembles (arXiv 2312.00105; a RECONSTRUCTION from its abstract).

.. math:: L = CE - \beta\, \hat I(X; Q) + \lambda\, \mathrm{mean}_l \Delta_l

It maximises the information between the input and the deepest quantized representation. It keeps the average bin
spacing small, which bounds how much noise the quantizers add.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from art_qplugins.defences.base import Defence
from art_qplugins.domains import NOT_NEGATIVE, check
from art_qplugins.errors import InputError
from art_qplugins.information import mutual_information
from art_qplugins.quantizers.stochastic import StochasticQuantizer, stochastic_layers

__all__ = ["BinSpacing", "MutualInformation"]


def _layers(model: nn.Module, name: str) -> list[StochasticQuantizer]:
    """The stochastic layers.

    :raises InputError: where there are none.
    """
    layers = stochastic_layers(model)
    if not layers:
        raise InputError(
            f"defence {name!r} needs stochastic layers; quantize the model with alpha, e.g. "
            "quantize = {activation_bits = 2, alpha = 2.0}"
        )
    return layers


class MutualInformation(Defence):
    """Subtracts ``beta`` times the information that the deepest stochastic layer keeps of the batch.

    Where several processes train together, each estimates it on its own part of the batch. The estimate of a part is lower
    than that of the whole, so ``beta`` means a little less then.
    """

    def __init__(self, beta: float = 0.1) -> None:
        self.beta: float = check("beta", beta, NOT_NEGATIVE)

    def start(self, model: nn.Module) -> None:
        self._layer = _layers(model, "mutual-information")[-1]
        self._inputs: Tensor | None = None  # the layer's input in the last forward pass

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._inputs = inputs[0]

        self._hook = self._layer.register_forward_pre_hook(keep)

    def penalty(self, model: nn.Module) -> Tensor:
        assert self._inputs is not None, "the deepest stochastic layer was not reached by the forward pass"
        x = self._inputs.to(self._layer.offset.dtype)  # autocast may be over by now
        return -self.beta * mutual_information(self._layer.probabilities(x))

    def finish(self, model: nn.Module) -> None:
        self._hook.remove()
        self._inputs = None


class BinSpacing(Defence):
    """Adds ``weight`` times the average bin spacing of the stochastic layers."""

    def __init__(self, weight: float = 1e-2) -> None:
        self.weight: float = check("weight", weight, NOT_NEGATIVE)

    def start(self, model: nn.Module) -> None:
        self._stochastic = _layers(model, "bin-spacing")

    def penalty(self, model: nn.Module) -> Tensor:
        return self.weight * torch.stack([layer.spacing for layer in self._stochastic]).mean()
