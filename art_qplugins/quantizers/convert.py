"""``quantize``: any network in, its quantized twin out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrize

from art_qplugins.errors import InputError
from art_qplugins.quantizers.activation import QuantReLU
from art_qplugins.quantizers.stochastic import StochasticQuantizer
from art_qplugins.quantizers.weight import MuLawMapping, UniformWeightQuantizer

__all__ = ["bake", "quantize", "weight_layers"]

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, QuantReLU)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weight_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The (name, module) of every linear and convolutional layer, in the order of the module tree."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _WEIGHTED)]


def quantize(
    model: nn.Module,
    activation_bits: int | None = None,
    weight_bits: int | None = None,
    clip: float = 6.0,
    mu: float | None = None,
    *,
    alpha: float | None = None,
    activation_layers: int | None = None,
    mu_layers: int = 1,
    mu_normalize: bool = False,
    symmetric: bool = True,
    granularity: str = "per_channel",
    narrow_range: bool = True,
    seed: int = 0,
    trainable: bool = False,
) -> nn.Module:
    """A quantized copy of ``model``; the model given is left as it was.

    Weights are mapped first and quantized after, ``Q(F(W))``, in every linear and convolutional layer; biases and batch
    norms stay in float32.

    :param model: any module whose activations are modules (``nn.ReLU``, ``nn.ReLU6``, ``nn.Hardtanh``, ``QuantReLU``).
    :param activation_bits: bits of every activation; each becomes a :class:`QuantReLU`.
    :param weight_bits: bits of every weight.
    :param clip: upper level of the quantized activations.
    :param mu: strength of the mu-law mapping of the last ``mu_layers`` layers; ``None`` for no mapping.
    :param alpha: make the activations stochastic, with this sparsity (:class:`StochasticQuantizer`).
    :param activation_layers: quantize the last so many activations only; ``None`` for all.
    :param mu_normalize: see :class:`MuLawMapping`.
    :param symmetric: this and the next two: see :class:`UniformWeightQuantizer`.
    :param seed: key of the noise of stochastic activations.
    :param trainable: keep the maps on the weights as parametrizations, for quantization-aware training. The default
        stores the mapped weights as plain parameters: faster, and the module pickles.
    :raises InputError: where there is nothing to quantize, or a weight is outside the mu-law's domain [-1, 1].
    """
    twin = copy.deepcopy(model)
    if activation_bits is not None:
        _swap_activations(twin, _activation_factory(activation_bits, clip, alpha, seed), activation_layers)
    elif alpha is not None:
        raise InputError("alpha makes activations stochastic, and needs activation_bits; add e.g. activation_bits = 2")
    layers = weight_layers(twin)
    if weight_bits is not None and not layers:
        raise InputError(
            f"weight_bits is {weight_bits}, and {type(model).__name__} has no layer with weights to quantize"
        )
    if mu is not None:
        if not 1 <= mu_layers <= len(layers):
            raise InputError(f"mu_layers is {mu_layers}, and the network has {len(layers)} layers with weights")
        for name, layer in layers[-mu_layers:]:
            _check_domain(name, layer, mu_normalize)
            parametrize.register_parametrization(layer, "weight", MuLawMapping(mu, normalize=mu_normalize))
    if weight_bits is not None:
        quantizer = {"symmetric": symmetric, "granularity": granularity, "narrow_range": narrow_range}
        for _, layer in layers:
            parametrize.register_parametrization(layer, "weight", UniformWeightQuantizer(weight_bits, **quantizer))
    return twin if trainable else bake(twin)


def bake(model: nn.Module) -> nn.Module:
    """Replace every parametrized weight by its value, in place: the deployed form. Returns ``model``."""
    with torch.no_grad():
        for module in model.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model


def _activation_factory(num_bits: int, clip: float, alpha: float | None, seed: int) -> Callable[[int], nn.Module]:
    if alpha is None:
        return lambda layer: QuantReLU(num_bits, clip)
    return lambda layer: StochasticQuantizer(num_bits, alpha=alpha, clip=clip, seed=seed, layer=layer)


def _swap_activations(model: nn.Module, make: Callable[[int], nn.Module], last: int | None) -> None:
    # In the order of the module tree, which is that of the forward pass in any sane network. A module used twice has two.
    slots = [name for name, child in model.named_modules(remove_duplicate=False) if isinstance(child, ACTIVATIONS)]
    if not slots:
        raise InputError(
            f"{type(model).__name__} has no activation module to quantize; "
            "use nn.ReLU() modules in place of functional calls such as F.relu(x)"
        )
    if last is not None and not 1 <= last <= len(slots):
        raise InputError(f"activation_layers is {last}, and the network has {len(slots)} activations")
    for layer, path in enumerate(slots[-last:] if last else slots):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(layer).train(model.get_submodule(path).training))


def _check_domain(name: str, layer: nn.Module, normalize: bool) -> None:
    largest = float(layer.weight.detach().abs().max())  # type: ignore[union-attr, operator]
    if not normalize and largest > 1:
        raise InputError(
            f"mu-law: weight {name!r} holds {largest:.4g}, outside the map's domain [-1, 1]; set mu_normalize = true"
        )
