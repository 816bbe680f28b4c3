"""Bins that start where the data lies (of arXiv 2312.00105 only the abstract is public; this is a RECONSTRUCTION's choice)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from art_qplugins.defences import DATA_RANGE
from art_qplugins.defences.base import Defence, Images
from art_qplugins.defences.processes import batch_mean
from art_qplugins.defences.stochastic import layers_for
from art_qplugins.errors import InputError
from art_qplugins.quantizers.stochastic import StochasticQuantizer

__all__ = ["DataRange", "quantile"]


class DataRange(Defence):
    """Spreads the bins of each stochastic layer over what the layer reads, before training starts.

    One forward pass in train mode measures it. The bins of a layer are spread just before its turn, so later layers read what
    its quantized output makes. A layer that is used several times has the range of its first use. Offset and spacing are
    learned from there.

    A layer stands in place of its activation function. At alpha = 2 its mean is x clipped to its bins. With ``low`` = 0.5 it
    cuts off the lower half, as ReLU does behind batch norm. With ``low`` = 0.001 it keeps all but the tails, as Hardtanh does,
    and a network of such layers starts out nearly linear.

    :param low: the share of what a layer reads that is below its first bin.
    :param high: the share that is not above its last bin.
    :param samples: images of the training data, drawn at random; all where there are fewer. They pass the network as one batch.
    """

    def __init__(self, low: float = 0.5, high: float = 0.999, samples: int = 256) -> None:
        DATA_RANGE.check_arguments(locals())
        self.low, self.high, self.samples = low, high, samples

    def start(self, model: nn.Module) -> None:
        self._layers = layers_for("data-range", model)

    def look_passes(self, classes: int, epochs: int) -> float:
        return float(self.samples)

    @torch.no_grad()
    def look(self, model: nn.Module, data: Images, epochs: int, tell: Callable[[str], None]) -> None:
        if epochs:
            return
        rows = torch.randperm(len(data.y))[: self.samples]
        x, _ = data.at(rows, self._layers[0].offset.device)
        spread: set[int] = set()

        def before(number: int, layer: StochasticQuantizer, given: tuple[Tensor, ...]) -> None:
            if number not in spread:
                spread.add(number)
                self._spread(number, layer, given[0])

        with _same_buffers(model), ExitStack() as hooks:
            for number, layer in enumerate(self._layers, start=1):
                hooks.callback(layer.register_forward_pre_hook(partial(before, number)).remove)
            model(x)

    def _spread(self, number: int, layer: StochasticQuantizer, x: Tensor) -> None:
        ends = torch.stack([quantile(x, self.low), quantile(x, self.high)]).float()
        low, high = batch_mean(ends, len(x)).tolist()  # equal in all processes, also where devices round differently
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(
                f"data-range: what stochastic layer {number} reads goes from {low:g} to {high:g}, and bins need a range; give a "
                "smaller low, a larger high, or a network whose activations differ between images"
            )
        layer.spread(low, high)


def quantile(x: Tensor, share: float) -> Tensor:
    """The least value of x that so large a share of them does not exceed, a scalar. x may have any number of elements.

    :param share: in [0, 1].
    """
    return x.flatten().kthvalue(max(1, math.ceil(share * x.numel()))).values


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Give buffers back their values at the end: batch norm's statistics in train mode change."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
