"""Quantization-aware training is a training of ``quantize(..., trainable=True)``, with every defence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import quantization_report, quantize, train
from art_qplugins.defences import DEFENCES
from art_qplugins.models import MODELS
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.mixture import Mixture
from art_qplugins.quantizers import QuantAffine, bake, is_stochastic, weight_layers

GENERATOR = torch.Generator().manual_seed(0)
Y = torch.arange(64) % 4
#: A bright quarter says the class.
X = torch.rand(64, 1, 8, 8, generator=GENERATOR) / 4
for i, label in enumerate(Y.tolist()):
    X[i, 0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 0.5


def convnet():
    return ConvNet((1, 8, 8), 4, width=4)


#: By defence, the networks that it needs. All others take any.
NETWORK = {
    "adaptive-diversity": lambda: Mixture([convnet(), convnet()]),
    "convex-aggregation": lambda: MODELS["resnet8"].load()((1, 8, 8), 4, width=2, aggregation=True),
}
#: Those of stochastic quantization, which has ranges of its own.
STOCHASTIC = {"mutual-information", "bin-spacing", "data-range"}
OPTIONS = {"feedback-learning": {"directions": 8, "nearest": 4}}


@pytest.mark.parametrize("name", sorted({*DEFENCES} - {"stochastic-weights"}))  # that rounds weights itself
def test_one_call_fine_tunes_a_quantized_network_with_a_defence(name):
    row = DEFENCES[name]
    torch.manual_seed(0)
    defence = row.load()(**row.resolve(OPTIONS.get(name, {})))
    network = train(NETWORK.get(name, convnet)(), (X, Y), epochs=15, batch_size=16, learning_rate=0.05)
    how = {"alpha": 2.0} if name in STOCHASTIC else {"ranges": "mse", "calibration": X}
    quantized = defence.network(quantize(network, 4, 3, trainable=True, **how))
    before = [layer.weight.detach().clone() for _, layer in weight_layers(quantized)]
    trained = train(quantized, (X, Y), [defence], epochs=2, batch_size=16, learning_rate=0.02, weight_decay=0.0)
    with torch.no_grad():
        answers = trained(X)
    baked = bake(trained)
    if not is_stochastic(baked):
        with torch.no_grad():
            torch.testing.assert_close(baked(X), answers)
            assert (answers.argmax(1) == Y).float().mean() > 0.6
    assert {p.bits for p in quantization_report(baked) if not p.expected} == {3, 4}
    assert any(not torch.equal(a, layer.weight) for a, (_, layer) in zip(before, weight_layers(baked), strict=True))


def test_it_learns_with_an_attention_and_affine_activations():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.act = nn.Linear(16, 8), nn.GELU()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(32, 4)

        def forward(self, x):
            parts = x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(1, 3)
            h = self.act(self.embed(parts))
            return self.head((h + self.attention(h, h, h, need_weights=False)[0]).flatten(1))

    torch.manual_seed(0)
    quantized = quantize(Attends(), 4, 4, ranges="percentile", calibration=X, trainable=True, strict=True)
    ranges = [m.range for m in quantized.modules() if isinstance(m, QuantAffine)]
    trained = bake(train(quantized, (X, Y), epochs=30, batch_size=16, learning_rate=0.1))
    with torch.no_grad():
        assert (trained(X).argmax(1) == Y).float().mean() > 0.9
    assert [m.range for m in trained.modules() if isinstance(m, QuantAffine)] == ranges
    assert {p.bits for p in quantization_report(trained) if not p.expected} == {4}
