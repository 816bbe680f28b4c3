"""Each way to quantize a network ends in a verdict and a number, which the module confirms. One test for each way."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from art_qplugins import Threat, diagnose
from art_qplugins.estimators import QuantizedClassifier

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "ways"))
from quantized import WAYS, trained_network

#: Ways whose operations have no backward pass. What PGD leaves of these is all that was right before.
BLIND = {
    "torch.ao eager",
    "torch.ao dynamic",
    "torch.ao fx",
    "torchao int8 dynamic",
    "torchao PT2E",
    "ONNX Runtime static",
}
N = 40


@pytest.fixture(scope="module")
def trained(digits):
    return trained_network(digits[0].x(), digits[0].y(), epochs=6)


@pytest.mark.parametrize("name", WAYS)
def test_a_way_to_quantize_has_a_verdict_and_a_number(name, trained, digits):
    way, test = WAYS[name], digits[1]
    for module in way.modules:
        pytest.importorskip(module, reason=f"{name} needs {way.package}; pip install {way.package}")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    x, y = test.x()[:N], test.y()[:N]
    model = way(trained, digits[0].x()[:200])
    with torch.no_grad():
        right = float((model(x).argmax(1) == y).double().mean())
    assert right > 0.8

    estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10)
    found = diagnose(estimator, x.numpy(), y.numpy(), Threat("Linf", 0.2), level=1)

    assert found.verdict != "INVALID" and found.claimed_accuracy is not None, str(found)
    assert (found.claimed_accuracy > right - 0.2) == (name in BLIND), (found.claimed_accuracy, right)
    assert math.isfinite(found.corrected_accuracy) and found.corrected_accuracy < right
    with torch.no_grad():
        left = float((model(torch.from_numpy(found.x_adv)).argmax(1) == y).double().mean())
    assert left == pytest.approx(found.corrected_accuracy, abs=1.01 / N)  # dynamic scales depend on the batch
