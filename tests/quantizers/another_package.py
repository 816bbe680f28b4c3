"""A quantizer of activations as another package would write it, with its row."""

from __future__ import annotations

import torch
from torch import nn

from art_qplugins.quantizers import Quantizer


class PowerOfTwo(nn.Module):
    """Round to 0 and to ``top`` times the powers of two from 1 down; ``2 ** num_bits`` levels."""

    def __init__(self, num_bits, *, top=4.0):
        super().__init__()
        self.num_bits, self.top = num_bits, top

    @property
    def range(self):
        return 0.0, self.top

    def full_precision(self, x):
        return x.clamp(0, self.top)

    def forward(self, x):
        exponent = torch.log2(x.clamp(0, self.top) / self.top).round().clamp(min=2 - 2**self.num_bits)
        return x.clamp(0, self.top) + (torch.where(x > 0, self.top * 2**exponent, 0.0) - x.clamp(0, self.top)).detach()


ROW = Quantizer(
    name="power-of-two",
    target=f"{__name__}:PowerOfTwo",
    help="levels at powers of two",
    options={"top": 4.0},
    place="activation",
    arguments={"activation_bits": "num_bits"},
    switch=("activation_bits",),
    line=lambda table: f"{table['activation_bits']}-bit activations at powers of two",
    estimator="art_qplugins.estimators:QuantizedClassifier",
)
