"""Each way to quantize a network ends in a verdict and a number, which the module confirms. One test for each way."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from art_qplugins import Threat, diagnose
from art_qplugins.estimators import QuantizedClassifier

FOLDER = Path(__file__).parents[2] / "benchmarks" / "ways"
sys.path.append(str(FOLDER))
from quantized import WAYS, trained_network  # noqa: E402
from ways_page import page  # noqa: E402

#: Ways whose operations have no backward pass: what PGD leaves is all that was right before. That of bitsandbytes' nf4 has none
#: on processors with AVX512_BF16, for which its first answers pack the weights.
BLIND = {
    "torch.ao eager",
    "torch.ao dynamic",
    "torch.ao fx",
    "torchao int8 dynamic",
    "torchao PT2E",
    "ONNX Runtime static",
}
EITHER = {"bitsandbytes nf4"}
N, EPS = 30, 0.35


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
    found = diagnose(estimator, x.numpy(), y.numpy(), Threat("Linf", EPS), level=2)

    if name in BLIND:
        assert found.verdict == "MASKED" and found.claimed_accuracy > right - 0.2
    elif name not in EITHER:
        assert found.verdict in ("NOT_REFUTED", "INCONCLUSIVE") and found.claimed_accuracy < 0.3
    assert found.corrected_accuracy < 0.3
    with torch.no_grad():
        left = float((model(torch.from_numpy(found.x_adv)).argmax(1) == y).double().mean())
    assert left == pytest.approx(found.corrected_accuracy, abs=1.5 / N)  # dynamic scales depend on the batch


def test_the_page_is_made_of_its_records():
    records = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    assert len(records["ways"]) >= len(WAYS)
    assert page(records) == (FOLDER / "results.md").read_text(encoding="utf-8")
