"""Weights that are drawn at every call: stochastic rounding to few levels, of which two are BinaryConnect."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from art_qplugins.domains import POSITIVE, Domain, Maybe, Number, check, check_all
from art_qplugins.errors import InputError
from art_qplugins.quantizers import dither
from art_qplugins.quantizers.functional import straight_through
from art_qplugins.quantizers.noise import Words, stochastic_layers
from art_qplugins.quantizers.precision import in_float32
from art_qplugins.torch_domains import MODULE

__all__ = ["StochasticRounding", "with_stochastic_weights"]

_OPTIONS: dict[str, Domain] = {"num_bits": Number(1, 8, whole=True), "limit": Maybe(POSITIVE)}


class StochasticRounding(Words):
    r"""Draws a weight from the two of :math:`2^k` levels around it, so that its mean is the weight.

    The levels are evenly spaced on :math:`[-l, l]`. With :math:`k = 1` and :math:`l = 1` it is BinaryConnect's
    :math:`P(+1) = \mathrm{clip}((w + 1) / 2, 0, 1)` (Courbariaux, Bengio & David 2015, equations 2 and 3). The gradient
    passes to the weight unchanged (algorithm 1 there).

    A draw of the weights is one for all images of a batch. So the scores of images in one batch depend on each other.

    :param num_bits: k, bits of a weight, 1 to 8.
    :param limit: l, above 0. ``None`` takes the largest magnitude of the weight, for weights that were trained without
        this; with few bits a network does not learn so.
    :param seed: key of the noise.
    :param layer: which layer of its network this is. Layers of one network draw different noise.
    """

    def __init__(self, num_bits: int = 1, limit: float | None = 1.0, *, seed: int = 0, layer: int = 0) -> None:
        super().__init__(seed=seed, layer=layer)
        self.num_bits = check("num_bits", num_bits, _OPTIONS["num_bits"])
        self.limit = check("limit", limit, _OPTIONS["limit"])

    @in_float32
    def forward(self, weight: Tensor) -> Tensor:
        """The weights of the draws in a batch, (draws, *weight.shape)."""
        each = weight.expand(self.fold, *weight.shape)
        with torch.no_grad():
            limit = weight.abs().max().clamp_min(1e-30) if self.limit is None else self.limit
            spacing = 2 * limit / (2**self.num_bits - 1)
            drawn = dither.noise(self.noise(each), 2.0, torch.empty_like(each))
            drawn.add_((weight + limit) / spacing).floor_().clamp_(0, 2**self.num_bits - 1)
            drawn.mul_(spacing).sub_(limit)
        return straight_through(drawn, each)

    def extra_repr(self) -> str:
        return f"num_bits={self.num_bits}, limit={self.limit}, seed={self.seed}, layer={self.layer}"


class _Drawn(nn.Module):
    """A layer whose weights are drawn. ``rounding`` is inside it, so the names and shapes of weights stay."""

    rounding: StochasticRounding

    def forward(self, x: Tensor) -> Tensor:
        layer = cast(Any, self)  # a layer of torch too
        weights = self.rounding(layer.weight)
        draws = zip(x.unflatten(0, (len(weights), -1)), weights, strict=True)
        answers = [self._answer(images, weight, layer.bias) for images, weight in draws]
        return torch.cat(answers) if len(answers) > 1 else answers[0]

    def _answer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolved: Tensor = cast(Any, self)._conv_forward(x, weight, bias)
        return convolved


class _Linear(_Drawn, nn.Linear):
    def _answer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)


class _Conv1d(_Drawn, nn.Conv1d):
    pass


class _Conv2d(_Drawn, nn.Conv2d):
    pass


class _Conv3d(_Drawn, nn.Conv3d):
    pass


_DRAWN: dict[type[nn.Module], type[_Drawn]] = {
    nn.Linear: _Linear,
    nn.Conv1d: _Conv1d,
    nn.Conv2d: _Conv2d,
    nn.Conv3d: _Conv3d,
}


def with_stochastic_weights(network: nn.Module, num_bits: int = 1, limit: float | None = 1.0) -> nn.Module:
    """A copy of ``network`` whose linear and convolutional layers draw their weights; see :class:`StochasticRounding`.

    :raises InputError: where the network has no such layer, draws weights already, or has one whose weight is computed or
        whose class is a subclass of torch's, which may read its weight in another way.
    """
    check_all(locals(), {"network": MODULE, **_OPTIONS})
    drawn, first, made = copy.deepcopy(network), len(stochastic_layers(network)), 0
    for name, layer in drawn.named_modules():
        if isinstance(layer, _Drawn):
            raise InputError(f"network: layer {name!r} draws its weights already")
        if type(layer) not in _DRAWN and isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            how = (
                "is computed at every call" if parametrize.is_parametrized(layer, "weight") else "may be read otherwise"
            )
            raise InputError(
                f"network: the weight of {name!r}, a {type(layer).__name__}, {how}; give a plain layer of torch"
            )
        if type(layer) in _DRAWN:
            layer.__class__ = _DRAWN[type(layer)]
            layer.add_module("rounding", StochasticRounding(num_bits, limit, layer=first + made))
            made += 1
    if not made:
        raise InputError(f"network: {type(network).__name__} has no linear or convolutional layer to draw weights for")
    return drawn
