"""A network that is attacked along the gradient of another network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from art_qplugins.domains import check
from art_qplugins.errors import InputError
from art_qplugins.quantizers.functional import straight_through
from art_qplugins.torch_domains import MODULE

__all__ = ["TwinGradient"]


class TwinGradient(nn.Module):
    """The outputs of ``network``, bit for bit, with the gradient of ``twin``.

    If the twin is the network before its weights were quantized, an attack follows the gradient of the float weights. The
    gradient is computed at the twin's own activations, so this is a transfer attack that sees the target's outputs.

    :param network: the attacked network. Neither it nor its parameters get a gradient.
    :param twin: takes the same input and gives logits of the same shape.
    """

    def __init__(self, network: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.network = check("network", network, MODULE)
        self.twin = check("twin", twin, MODULE)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value: Tensor = self.network(x)
        if not torch.is_grad_enabled():
            return value
        path: Tensor = self.twin(x)
        if path.shape != value.shape:
            raise InputError(
                f"TwinGradient: the network gives {tuple(value.shape)} and its twin {tuple(path.shape)}; "
                "take a twin with as many classes"
            )
        return straight_through(value, path)
