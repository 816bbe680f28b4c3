"""Quantizers: what turns a float network into one that an integer device computes, with a gradient to attack it by."""

from art_qplugins.quantizers.activation import QuantReLU
from art_qplugins.quantizers.convert import bake, quantize, weight_layers
from art_qplugins.quantizers.stochastic import StochasticQuantizer, draws_from, is_stochastic
from art_qplugins.quantizers.surrogate import TwinGradient, surrogate
from art_qplugins.quantizers.weight import MuLawMapping, UniformWeightQuantizer

__all__ = [
    "MuLawMapping",
    "QuantReLU",
    "StochasticQuantizer",
    "TwinGradient",
    "UniformWeightQuantizer",
    "bake",
    "draws_from",
    "is_stochastic",
    "quantize",
    "surrogate",
    "weight_layers",
]
