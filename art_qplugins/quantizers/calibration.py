"""Ranges of affine quantizers from what a network computes of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from art_qplugins.domains import Domain, Number, OneOf, check_all
from art_qplugins.errors import InputError
from art_qplugins.guard import evaluating
from art_qplugins.quantizers.activation import QuantAffine
from art_qplugins.quantizers.observers import RANGES, Observer
from art_qplugins.torch_domains import IMAGES, MODULE

__all__ = ["PERCENTILE", "calibrate", "check_pixels"]

PERCENTILE = Number(50, 100, above=True)
#: Images in a forward pass.
_BATCH = 16

_ARGUMENTS: dict[str, Domain] = {
    "model": MODULE,
    "calibration": IMAGES,
    "ranges": OneOf(tuple(RANGES)),
    "percentile": PERCENTILE,
}


def calibrate(
    model: nn.Module, calibration: Tensor, *, ranges: str = "min-max", percentile: float = 99.99
) -> nn.Module:
    """Give every :class:`QuantAffine` of ``model`` the range that its values have on images. In place.

    The images go through the network once, in eval mode, in batches of 16, with its weights as they are and without
    rounding of activations. What is kept of them does not grow with their number.

    :param calibration: (N, C, H, W) float32 in [0, 1].
    :param ranges: ``"min-max"``; ``"percentile"``, from the (100 - percentile)th to the percentile-th; or ``"mse"``, the
        range whose levels have the least mean squared error. The last two count values in bins narrower than 1/2048 of
        the largest magnitude.
    :param percentile: above 50, at most 100.
    :return: ``model``.
    :raises InputError: where the network has no such quantizer, where values are not finite or all 0, or where one is
        called more than once in a forward pass and would need different ranges.
    """
    check_all(locals(), _ARGUMENTS)
    check_pixels(calibration)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QuantAffine)}
    if not layers:
        raise InputError(
            f"model: {type(model).__name__} has no QuantAffine to calibrate; quantize it with ranges first"
        )
    make, range_of = RANGES[ranges]
    parameter = next((p for p in model.parameters() if p.is_floating_point()), calibration)
    with _observing(layers, make) as seen, evaluating(model), torch.no_grad(), parametrize.cached():
        for batch in calibration.split(_BATCH):
            for observers in seen.values():
                observers.next_pass()
            model(batch.to(parameter))
    for name, layer in layers.items():
        if calls := seen[name].calls:  # none of a layer for training alone
            layer.spread(*_one_range(_path(name), [range_of(one, layer.num_bits, percentile) for one in calls]))
    return model


def check_pixels(x: Tensor) -> None:
    """:raises InputError: where images are outside [0, 1]."""
    low, high = (float(end) for end in x.aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"calibration: pixels are from {low:g} to {high:g}; give images in [0, 1], and put a normalization into the network"
        )


class _Calls:
    """The observers of a quantizer: one for each of its calls in a forward pass."""

    def __init__(self, name: str, make: type[Observer]) -> None:
        self.name, self.make = name, make
        self.calls: list[Observer] = []
        self.call = 0

    def next_pass(self) -> None:
        self.call = 0

    def __call__(self, values: Tensor) -> None:
        if self.call == len(self.calls):
            self.calls.append(self.make())
        try:
            self.calls[self.call](values)
        except ValueError as error:
            raise InputError(f"calibration: layer {_path(self.name)!r} has {error}; check the weights") from None
        self.call += 1


@contextmanager
def _observing(layers: dict[str, QuantAffine], make: type[Observer]) -> Iterator[dict[str, _Calls]]:
    """Within the context, quantizers give their values to observers and do not round."""
    seen = {name: _Calls(name, make) for name in layers}
    try:
        for name, layer in layers.items():
            layer.observe = seen[name]
        yield seen
    finally:
        for layer in layers.values():
            layer.observe = None


def _path(quantizer: str) -> str:
    """The layer whose values a quantizer rounds."""
    return quantizer.removesuffix(".quantizer")


def _one_range(name: str, found: list[tuple[float, float]]) -> tuple[float, float]:
    """The range that all calls of a layer have, widened to hold 0."""
    if len(set(found)) > 1:
        shown = ", ".join(f"[{low:.4g}, {high:.4g}]" for low, high in found)
        raise InputError(
            f"ranges: layer {name!r} is called {len(found)} times in a forward pass, with the ranges {shown}; "
            'give each call a module of its own, or take ranges = "fixed"'
        )
    low, high = min(found[0][0], 0.0), max(found[0][1], 0.0)
    if low == high:
        raise InputError(
            f"calibration: layer {name!r} is 0 on all images, so it shows no range; give other images, or leave it out "
            "by activation_layers"
        )
    return low, high
