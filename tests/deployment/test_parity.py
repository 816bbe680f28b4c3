"""Agreement of a deployed model with its twin: shares, differences of scores, and levels of activations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from deployed_nets import ANSWERS, CLASSES, SHAPE, function_of, images, linear
from torch import nn

from art_qplugins import DeployedClassifier, InputError, parity
from art_qplugins.deployment.parity import _in_order
from art_qplugins.metrics import wilson_interval
from art_qplugins.quantizers import QuantReLU


def apart(shift):
    """A twin, and a deployed model whose first score is higher."""
    twin, model = linear(), linear()
    with torch.no_grad():
        model[1].bias[0] += shift
    return twin, model


@pytest.mark.parametrize("answer", ["logits", "probabilities"])
def test_the_same_network_agrees(answer):
    twin, model = apart(0.0)
    found = parity(DeployedClassifier(function_of(model, ANSWERS[answer]), SHAPE, CLASSES), twin, images())
    assert (found.clean.n, found.clean.same, found.clean.interval) == (64, 1.0, wilson_interval(64, 64))
    assert found.clean.largest == pytest.approx(0, abs=1e-4) and found.adversarial is None and found.holds


def test_shares_and_differences_are_those_of_the_images():
    twin, model = apart(3.0)
    x, other = images(64), images(40, seed=5)
    found = parity(DeployedClassifier(function_of(model), SHAPE, CLASSES, twin=twin), None, x, other, batch_size=7)
    for agreement, points in ((found.clean, x), (found.adversarial, other)):
        same = twin(points).argmax(1) == model(points).argmax(1)
        assert agreement.same == pytest.approx(float(same.float().mean())) and 0.5 < agreement.same < 0.99
        assert agreement.interval == wilson_interval(int(same.sum()), len(points))
        assert agreement.largest == pytest.approx(2, abs=1e-4)  # 3, less the mean over three classes
        assert agreement.mean == pytest.approx((2 + 2 * 1) / 3, abs=1e-4)
    assert not found.holds


@pytest.mark.parametrize(("wrong", "holds"), [(0, True), (1, True), (2, False)])
def test_it_holds_where_enough_labels_agree(wrong, holds):
    """Of 200 clean images at most one may differ."""
    model = linear()
    x = images(200)
    keys = {x[i].numpy().tobytes() for i in range(wrong)}

    def predict(given):
        scores = function_of(model)(given)
        for i, image in enumerate(given):
            if image.tobytes() in keys:
                scores[i] = np.roll(scores[i], 1)
        return scores

    assert parity(DeployedClassifier(predict, SHAPE, CLASSES), model, x).holds is holds


def test_labels_alone_have_no_differences_of_scores():
    twin, model = apart(3.0)
    estimator = DeployedClassifier(function_of(model), SHAPE, CLASSES, twin=twin, labels_only=True)
    found = parity(estimator, None, images()).clean
    assert (found.largest, found.mean) == (None, None)
    assert found.same == pytest.approx(float((twin(images()).argmax(1) == model(images()).argmax(1)).float().mean()))


def test_what_cannot_be_compared_is_refused():
    bare = DeployedClassifier(function_of(linear()), SHAPE, CLASSES)
    with pytest.raises(InputError, match="twin: the deployed model has none"):
        parity(bare, None, images())
    with pytest.raises(InputError, match="give a DeployedClassifier"):
        parity(linear(), linear(), images())


# --- Levels


class Quantized(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = QuantReLU(4, clip=1.0), QuantReLU(3, clip=2.0)
        self.last = nn.Linear(4 * 25, CLASSES)

    def forward(self, x):
        return self.last(self.second(self.two(self.first(self.one(x)))).flatten(1))


def quantized_file(path, net, change=0.0):
    """The same network with integers between its layers. ``change`` is added to the bias of the second convolution."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node
    nodes, stored, given = [], {"zero": np.uint8(0)}, "image"
    for name, conv, quantizer in (("one", net.one, net.first), ("two", net.two, net.second)):
        top = 2**quantizer.num_bits - 1
        stored |= {f"{name}.w": conv.weight, f"{name}.b": conv.bias + (change if name == "two" else 0)}
        stored |= {f"{name}.s": np.float32(quantizer.clip / top), f"{name}.top": np.uint8(top)}
        nodes += [
            node("Conv", [given, f"{name}.w", f"{name}.b"], [f"{name}.c"], pads=[1, 1, 1, 1]),
            node("QuantizeLinear", [f"{name}.c", f"{name}.s", "zero"], [f"{name}.q"]),
            node("Clip", [f"{name}.q", "zero", f"{name}.top"], [f"{name}.levels"]),
            node("DequantizeLinear", [f"{name}.levels", f"{name}.s", "zero"], [f"{name}.d"]),
        ]
        given = f"{name}.d"
    stored |= {"w": net.last.weight, "b": net.last.bias}
    nodes += [node("Flatten", [given], ["flat"]), node("Gemm", ["flat", "w", "b"], ["scores"], transB=1)]
    graph = onnx.helper.make_graph(
        nodes,
        "quantized",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 1, 5, 5])],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        [
            onnx.numpy_helper.from_array(np.asarray(v.detach() if isinstance(v, torch.Tensor) else v), n)
            for n, v in stored.items()
        ],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_levels_are_compared_layer_by_layer_and_the_first_that_differs_is_named(tmp_path):
    net, x = Quantized().eval(), images(20, (1, 5, 5))
    same = DeployedClassifier.from_file(quantized_file(tmp_path / "same.onnx", net))
    found = parity(same, net, x).clean
    assert [(layer.layer, layer.tensor) for layer in found.layers] == [
        ("first", "one.levels"),
        ("second", "two.levels"),
    ]
    assert all(layer.flips < 1e-3 for layer in found.layers)
    moved = DeployedClassifier.from_file(quantized_file(tmp_path / "moved.onnx", net, change=2 * 2 / 7))
    found = parity(moved, net, x).clean
    with torch.no_grad():
        levels = [torch.round(net.two(net.first(net.one(x))).add(c).clamp(0, 2) * 3.5) for c in (0, 4 / 7)]
    assert found.first.layer == "second" and found.layers[0].flips < 1e-3
    assert found.first.flips == pytest.approx(float((levels[0] != levels[1]).float().mean()), abs=2e-3)
    assert found.first.far == 2


def test_a_twin_without_levels_has_no_layers(tmp_path):
    net = Quantized().eval()
    estimator = DeployedClassifier.from_file(quantized_file(tmp_path / "net.onnx", net))
    found = parity(estimator, linear((1, 5, 5)), images(4, (1, 5, 5))).clean
    assert found.layers == () and found.first is None


@pytest.mark.parametrize(
    ("costs", "places"),
    [
        ([[0.0, 1.0, 1.0], [1.0, 0.5, 0.0]], [0, 2]),  # the tensor between is no layer of the network
        ([[0.5, 0.0], [0.0, 0.5]], [0, 1]),  # in their order
        ([[math.inf, 0.1, math.inf], [math.inf, 0.0, 0.9]], [1, 2]),
        ([[0.0], [0.0]], []),  # fewer tensors than layers
        ([[math.inf, math.inf]], []),
        ([[]], []),
    ],
)
def test_layers_are_found_in_their_order_where_they_differ_least(costs, places):
    assert _in_order(costs) == places
