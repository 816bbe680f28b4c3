"""Stochastic weights as a part of the network, which is trained with them too."""

from __future__ import annotations

import torch
from torch import nn

from art_qplugins.defences import STOCHASTIC_WEIGHTS
from art_qplugins.defences.base import Defence
from art_qplugins.errors import InputError
from art_qplugins.models.stochastic_weights import StochasticRounding, with_stochastic_weights

__all__ = ["StochasticWeights"]


class StochasticWeights(Defence):
    """Draws the weights of every linear and convolutional layer at every call, in training and afterwards.

    By default it is stochastic BinaryConnect (Courbariaux et al. 2015): two weights, -1 and 1, and weights
    that are clipped to [-1, 1] after each step. There the paper predicts with the mean weights or their signs; here the network
    stays random, and what it predicts with is the mean over draws, ``StochasticEnsemble(network, draws)``.

    Weights start small beside the levels, so training takes learning rates of 1 and above, and batch norm.

    :param num_bits: bits of a weight, 1 to 8.
    :param limit: the largest level. ``None`` takes each weight's own largest magnitude, and clips nothing.
    """

    def __init__(self, num_bits: int = 1, limit: float | None = 1.0) -> None:
        STOCHASTIC_WEIGHTS.check_arguments(locals())
        self.num_bits, self.limit = num_bits, limit

    def network(self, model: nn.Module) -> nn.Module:
        return with_stochastic_weights(model, self.num_bits, self.limit)

    def start(self, model: nn.Module) -> None:
        found = {(m.num_bits, m.limit) for m in model.modules() if isinstance(m, StochasticRounding)}
        if found != {(self.num_bits, self.limit)}:
            raise InputError(
                f"defence 'stochastic-weights' is a part of the network, and {type(model).__name__} has it not; give "
                f"with_stochastic_weights(model, {self.num_bits}, {self.limit}) of art_qplugins.models.stochastic_weights"
            )

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Clip the weights to the levels' ends, beyond which nothing depends on them."""
        if self.limit is not None:
            for layer in model.modules():
                if isinstance(getattr(layer, "rounding", None), StochasticRounding):
                    layer.get_parameter("weight").clamp_(-self.limit, self.limit)
