"""Noise before the convolutions of a network, as part of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from art_qplugins.domains import NOT_NEGATIVE, check, check_all
from art_qplugins.errors import InputError
from art_qplugins.quantizers.noise import KeyedNoise, keyed_generator, stochastic_layers
from art_qplugins.torch_domains import MODULE

__all__ = ["NoiseLayer", "with_noise"]


class NoiseLayer(KeyedNoise):
    """Adds :math:`N(0, \\sigma^2)` to every element, in train and in eval mode (Liu, Cheng, Zhang & Hsieh 2018, figure 1).

    :param sigma: standard deviation, at least 0.
    :param seed: key of the noise.
    :param layer: which layer of its network this is. Layers of one network draw different noise.
    """

    def __init__(self, sigma: float, *, seed: int = 0, layer: int = 0) -> None:
        super().__init__(seed=seed, layer=layer)
        self.sigma = float(check("sigma", sigma, NOT_NEGATIVE))

    def sample(self, shape: tuple[int, ...], key: int, device: torch.device) -> Tensor:
        return torch.randn(shape, generator=keyed_generator(key, device), device=device)

    def mirror(self, noise: Tensor) -> Tensor:
        return noise.neg_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * self.noise(x).to(x.dtype)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, seed={self.seed}, layer={self.layer}"


def with_noise(network: nn.Module, *, first: float, inner: float) -> nn.Module:
    """A copy of ``network`` with a :class:`NoiseLayer` before each convolution.

    A convolution holds its noise layer, so the names and shapes of weights are those of ``network``.

    :param first: sigma before the first convolution, in the order in which the network holds them.
    :param inner: sigma before the others.
    :raises InputError: where the network has no convolution, or has noise layers already.
    """
    check_all(locals(), {"network": MODULE, "first": NOT_NEGATIVE, "inner": NOT_NEGATIVE})
    noisy, before = copy.deepcopy(network), len(stochastic_layers(network))
    convolutions = [m for m in noisy.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    if not convolutions:
        raise InputError(f"network: {type(network).__name__} has no convolution to put noise before")
    if any(isinstance(layer, NoiseLayer) for layer in stochastic_layers(network)):
        raise InputError(f"network: {type(network).__name__} has noise layers already")
    for index, convolution in enumerate(convolutions):
        sigma = first if index == 0 else inner
        convolution.add_module("noise", NoiseLayer(sigma, layer=before + index))
        convolution.register_forward_pre_hook(_add_noise)
    return noisy


def _add_noise(convolution: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return convolution.get_submodule("noise")(inputs[0]), *inputs[1:]
