"""Random networks as fixed ones: a file holds the noise of some draws as constants.

No file format has noise with a key. So what is exported of a stochastic network answers the same at every call. Its members are
those of a frozen ensemble with the same seed (:class:`~art_qplugins.models.ensemble.StochasticEnsemble`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from art_qplugins.errors import InputError
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.folding import drawing
from art_qplugins.models.noisy import NoiseLayer
from art_qplugins.models.rules import RULES
from art_qplugins.quantizers import dither
from art_qplugins.quantizers.noise import KeyedNoise, stochastic_layers
from art_qplugins.quantizers.stochastic import StochasticQuantizer

__all__ = ["frozen"]


def frozen(module: nn.Module, input_shape: Sequence[int]) -> tuple[nn.Module, int]:
    """A copy of ``module`` with the noise of its draws as constants, and how many draws; 0 where it draws nothing.

    A network outside an ensemble has one draw.

    :raises InputError: where a layer's noise cannot be a constant: it is used twice in a pass, or it chooses a network.
    """
    if not stochastic_layers(module):
        return module, 0
    module = copy.deepcopy(module).eval()
    x = torch.zeros(1, *input_shape)
    if isinstance(module, StochasticEnsemble):
        return _members(module, x), module.draws
    for name, part in list(module.named_modules()):
        if isinstance(part, StochasticEnsemble):
            raise InputError(f"export: {name!r} is an ensemble inside another module; export the ensemble itself")
    return _with_constants(module, x, 0, antithetic=False), 1


class _Members(nn.Module):
    """Members of an ensemble, each with its own constants."""

    def __init__(self, members: Sequence[nn.Module], rule: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        return RULES[self.rule](torch.stack([member(x) for member in self.members]))


def _members(ensemble: StochasticEnsemble, x: Tensor) -> nn.Module:
    made = [_with_constants(ensemble.network, x, d, antithetic=ensemble.antithetic) for d in range(ensemble.draws)]
    return _Members(made, ensemble.rule)


def _with_constants(network: nn.Module, x: Tensor, draw: int, *, antithetic: bool) -> nn.Module:
    """A copy that shares the parameters of ``network`` and has the noise of one draw."""
    made = copy.deepcopy(network, {id(p): p for p in network.parameters()})
    drawn: dict[str, list[Tensor]] = {}
    layers = {name: part for name, part in made.named_modules() if isinstance(part, KeyedNoise)}
    for name, layer in layers.items():
        drawn[name] = []
        layer.register_forward_pre_hook(lambda part, args, kept=drawn[name]: _peek(part, args[0], kept))
    with torch.no_grad(), drawing(made, draw, 1, antithetic=antithetic, shared=True):
        made(x)
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(made.get_submodule(parent), last, _fixed(name, layer, drawn[name]))
    return made


def _peek(layer: nn.Module, x: Tensor, kept: list[Tensor]) -> None:
    assert isinstance(layer, KeyedNoise)
    call = layer.call
    kept.append(layer.noise(x))
    layer.call = call  # the layer draws the same again


def _fixed(name: str, layer: KeyedNoise, drawn: Sequence[Tensor]) -> nn.Module:
    if len(drawn) != 1:
        raise InputError(
            f"export: layer {name!r} draws {len(drawn)} times in a pass, and a file has one constant for it; give each use "
            "a layer of its own"
        )
    if isinstance(layer, StochasticQuantizer):
        return _FixedDraw(layer, drawn[0])
    if isinstance(layer, NoiseLayer):
        return _Shift(layer.sigma * drawn[0])
    raise InputError(
        f"export: layer {name!r} ({type(layer).__name__}) has noise that no constant replaces; export one of the networks "
        "that it chooses from"
    )


class _FixedDraw(nn.Module):
    """A stochastic quantizer with constant noise: :class:`~art_qplugins.quantizers.stochastic.StochasticQuantizer`."""

    def __init__(self, layer: StochasticQuantizer, words: Tensor) -> None:
        super().__init__()
        self.register_buffer("noise", dither.noise(words, layer.alpha, torch.empty(words.shape)))
        self.register_buffer("offset", layer.offset.detach().clone())
        self.register_buffer("spacing", layer.spacing.detach().clone())
        self.top = layer.num_bins - 1

    def forward(self, x: Tensor) -> Tensor:
        noise, offset, spacing = (self.get_buffer(name) for name in ("noise", "offset", "spacing"))
        return ((x - offset) / spacing + noise).floor().clamp(0, self.top) * spacing + offset


class _Shift(nn.Module):
    """Adds a constant."""

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.get_buffer("by")
