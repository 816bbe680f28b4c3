"""Exported files hold integers, and answer as the network does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_qplugins import InputError, QuantReLU, open_deployed, quantize
from art_qplugins.deployment.export import export
from art_qplugins.deployment.grids import codes_of
from art_qplugins.deployment.integer import integer_form
from art_qplugins.deployment.weights import stored
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.noisy import with_noise
from art_qplugins.models.resnet import ResNet8
from art_qplugins.quantizers.weight import UniformWeightQuantizer

SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.manual_seed(0)


def stirred(network):
    """With batch norms as training leaves them: gains of both signs, one that is 0, and odd statistics."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            part.weight.data[0] = 0
    return network.eval()


def convnet(**settings):
    return quantize(stirred(ConvNet(SHAPE, 5, width=4)), **settings)


def resnet(**settings):
    return quantize(stirred(ResNet8(SHAPE, 5, width=4)), **settings)


def answers(network, x):
    with torch.no_grad():
        return network(x)


# --- The integer form in torch


@pytest.mark.parametrize("bits", range(1, 9))
def test_with_a_float_bias_the_form_is_the_network(bits):
    network, x = convnet(activation_bits=bits, weight_bits=bits), torch.rand(64, *SHAPE)
    form = integer_form(network, SHAPE, bias="float")
    # A value next to a threshold may be rounded to the next level; few images have one.
    off = (answers(form.module, x) - answers(network, x)).abs().amax(1)
    assert (off > 1e-5).float().mean() <= 0.1
    assert {layer.weight for layer in form.layers} == {"int8"}


@pytest.mark.parametrize("make", [convnet, resnet])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_integer_biases_of_few_bits_change_no_level(make, bits):
    network, x = make(activation_bits=bits, weight_bits=bits), torch.rand(64, *SHAPE)
    form = integer_form(network, SHAPE)
    off = (answers(form.module, x) - answers(network, x)).abs().amax(1)
    # The bias of a last linear layer is not behind a threshold; it is off by a part of a step.
    assert (off > 5e-3).float().mean() <= 0.1
    assert any(layer.kernel == "integer" for layer in form.layers)


def test_a_bias_between_steps_is_rounded_to_one_that_changes_no_level():
    # Steps are s_x s_w = 0.4 * 0.5. A bias of 0.11 is nearest to 0.2, which would move sums over a threshold.
    layer = nn.Conv2d(1, 1, 1)
    layer.weight.data.fill_(3.5)
    layer.bias.data.fill_(0.11)
    network = nn.Sequential(QuantReLU(4), quantize(nn.Sequential(layer), weight_bits=4), QuantReLU(4)).eval()
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8) * 6
    form = integer_form(network, (1, 8, 8))
    assert torch.allclose(answers(form.module, x), answers(network, x), atol=1e-6)


def test_the_network_given_stays_as_it_is():
    network = resnet(activation_bits=4, weight_bits=4).train()
    before, text = copy.deepcopy(network.state_dict()), repr(network)
    integer_form(network, SHAPE)
    assert repr(network) == text and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_form_has_the_straight_through_gradient():
    network, x = convnet(activation_bits=4, weight_bits=4), torch.rand(8, *SHAPE, requires_grad=True)
    form = integer_form(network, SHAPE, bias="float")
    (own,) = torch.autograd.grad(network(x).sum(), x)
    (found,) = torch.autograd.grad(form.module(x).sum(), x)
    assert torch.allclose(own, found, atol=1e-4 * own.abs().max())


def test_grouped_convolutions_share_no_scale():
    network = nn.Sequential(
        nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    network = quantize(stirred(network), 4, 4)
    x = torch.rand(32, 4, 8, 8)
    form = integer_form(network, (4, 8, 8))
    assert [layer.kernel for layer in form.layers] == ["integer", "integer"]
    assert torch.allclose(answers(form.module, x), answers(network, x), atol=0.05)


# --- Weights as integers


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("levels", [{}, {"narrow_range": False}, {"symmetric": False, "zero_point": True}], ids=str)
def test_codes_times_scale_are_the_weight(bits, granularity, levels):
    quantizer = UniformWeightQuantizer(bits, granularity=granularity, **levels)
    weight = quantizer(torch.randn(6, 3, 3, 3) + 0.3)
    codes = codes_of(weight, quantizer)
    assert torch.allclose(codes.weight(), weight, atol=1e-6)
    kept = stored(codes)
    again = (kept.codes.int() - kept.zero_point.int().view(-1, 1, 1, 1)) * kept.scale.view(-1, 1, 1, 1)
    assert kept.codes.dtype == torch.int8 and torch.allclose(again, weight, atol=1e-6)


@pytest.mark.parametrize(
    ("quantizer", "change", "reason"),
    [
        (UniformWeightQuantizer(4, symmetric=False), 0, "zero_point"),
        (UniformWeightQuantizer(12), 0, "12 bits"),
        (UniformWeightQuantizer(4), 0.01, "changed"),
    ],
)
def test_a_weight_without_an_integer_form_says_why(quantizer, change, reason):
    weight = quantizer(torch.randn(4, 9))
    weight[0, 0] += change
    assert reason in codes_of(weight, quantizer)


def test_mu_law_weights_stay_float_and_say_so(tmp_path):
    network = convnet(activation_bits=4, mu=255.0, mu_normalize=True, mu_layers=4)
    layers = integer_form(network, SHAPE).layers
    assert all(layer.weight == "float32" and "no integer form exists" in layer.reason for layer in layers)


# --- Files


def run(path, x):
    pytest.importorskip("onnxruntime")
    return torch.from_numpy(open_deployed(path)[0](x.numpy()))


@pytest.fixture
def onnx():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnx")


def graph_of(onnx, path):
    graph = onnx.load(path).graph
    return graph, {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}


def test_a_file_holds_what_integer_kernels_fuse(onnx, tmp_path):
    made = export(resnet(activation_bits=4, weight_bits=4), tmp_path / "net.onnx", SHAPE)
    graph, values = graph_of(onnx, made.path)
    after = {name: node for node in graph.node for name in node.input}
    kinds = [node.op_type for node in graph.node]
    assert "Round" not in kinds and "BatchNormalization" not in kinds
    for node in graph.node:
        if node.op_type == "Clip":  # on codes, and behind QuantizeLinear
            assert [values[name].dtype for name in node.input[1:]] == [np.uint8, np.uint8]
            assert values[node.input[2]] == 15 and after[node.output[0]].op_type == "DequantizeLinear"
        if node.op_type == "QuantizeLinear":
            assert values[node.input[2]].dtype == np.uint8
    makers = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "Conv":
            weight = makers[node.input[1]]
            assert weight.op_type == "DequantizeLinear" and values[weight.input[0]].dtype == np.int8
            assert values[weight.input[1]].shape == values[weight.input[0]].shape[:1]


def test_large_weights_of_float_kernels_are_int8_too_and_unpacked_once(onnx, tmp_path):
    network = quantize(stirred(ResNet8(SHAPE, 5, width=16)), 4, 4)
    made, x = export(network, tmp_path / "net.onnx", SHAPE), torch.rand(8, *SHAPE)
    graph, values = graph_of(onnx, made.path)
    assert [values[node.input[0]].dtype for node in graph.node if node.op_type == "Cast"] == [np.int8] * 2
    assert not any(value.dtype == np.float32 and value.size > 4096 for value in values.values())
    assert torch.allclose(run(made.path, x), answers(made.module, x), atol=0.2)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("bias", ["int", "float"])
def test_onnx_runtime_answers_as_the_form_does(bits, bias, onnx, tmp_path):
    network, x = resnet(activation_bits=bits, weight_bits=bits), torch.rand(64, *SHAPE)
    made = export(network, tmp_path / "net.onnx", SHAPE, bias=bias)
    off = (run(made.path, x) - answers(made.module, x)).abs().amax(1)
    assert (off > 1e-4).float().mean() <= 0.25  # a level next to a threshold may flip
    assert off.max() <= 0.2 * answers(made.module, x).std()


def test_affine_weights_of_8_bits_have_zero_points(onnx, tmp_path):
    network = convnet(activation_bits=8, weight_bits=8, symmetric=False, zero_point=True)
    made, x = export(network, tmp_path / "net.onnx", SHAPE), torch.rand(16, *SHAPE)
    _, values = graph_of(onnx, made.path)
    assert any(value.dtype == np.int8 and value.ndim == 1 and value.any() for value in values.values())
    assert torch.allclose(run(made.path, x), answers(network, x), atol=0.05)
    assert any("VNNI" in note for note in made.notes)


def test_frozen_members_are_those_of_a_frozen_ensemble(onnx, tmp_path):
    ensemble = StochasticEnsemble(convnet(activation_bits=2, alpha=1.5), 3, frozen=True, antithetic=True).eval()
    made, x = export(ensemble, tmp_path / "net.onnx", SHAPE), torch.rand(16, *SHAPE)
    assert made.draws == 3 and "3 frozen members" in made.notes[0]
    assert torch.allclose(answers(made.module, x), answers(ensemble, x), atol=1e-4)
    assert torch.allclose(run(made.path, x), answers(ensemble, x), atol=1e-3)


def test_noise_before_convolutions_is_frozen_too(tmp_path):
    made = export(with_noise(convnet(activation_bits=4), first=0.1, inner=0.1), tmp_path / "net.pt2", SHAPE, to="pt2")
    x = torch.rand(4, *SHAPE)
    assert made.draws == 1 and torch.equal(answers(made.module, x), answers(made.module, x))


def test_pt2_holds_the_network_bit_for_bit(tmp_path):
    network, x = resnet(activation_bits=4, weight_bits=4), torch.rand(7, *SHAPE)
    made = export(network, tmp_path / "net.pt2", SHAPE, to="pt2")
    assert torch.equal(torch.export.load(made.path).module()(x), answers(network, x))


def test_torchao_gets_its_own_operations(tmp_path):
    pytest.importorskip("torchao.quantization.pt2e")
    network, x = resnet(activation_bits=4, weight_bits=4), torch.rand(7, *SHAPE)
    made = export(network, tmp_path / "net.pt2", SHAPE, to="torchao")
    program = torch.export.load(made.path)
    used = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert used == {"aten", "quantized_decomposed"}
    assert torch.equal(program.module()(x), answers(made.module, x))


def test_an_estimator_is_exported_with_what_art_applies_around_it(tmp_path):
    network = convnet(activation_bits=4, weight_bits=4)
    loss = nn.CrossEntropyLoss()
    estimator = PyTorchClassifier(network, loss, SHAPE, 5, preprocessing=(0.5, 0.25), device_type="cpu")
    made, x = export(estimator, tmp_path / "net.pt2", to="pt2"), torch.rand(8, *SHAPE)
    expected = torch.from_numpy(estimator.predict(x.numpy()))
    assert torch.allclose(answers(made.module, x), expected, atol=0.05)


# --- Bad input


class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[0]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(("layer", "words"), [(Odd(), "linalg_qr"), (Branching(), "torch.export cannot follow")])
def test_an_unknown_operation_names_its_layer(layer, words, onnx, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(InputError, match=r"'1\.1'") as error:
        export(network, tmp_path / "net.onnx", SHAPE)
    assert words in str(error.value) and "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input_shape": None}, "input_shape"),
        ({"to": "tflite"}, "tflite"),
        ({"bias": "int8"}, "bias"),
        ({"model": "net"}, "a str"),
    ],
)
def test_bad_arguments_are_named(given, words, tmp_path):
    settings = {"model": convnet(activation_bits=4), "path": tmp_path / "n.onnx", "input_shape": SHAPE} | given
    with pytest.raises(InputError, match=words):
        export(**settings)


def test_a_transformer_is_written_for_any_number_of_images(tmp_path, capfd):
    """With its softmax quantized too, and without the exporter's talk."""
    pytest.importorskip("onnxscript")
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    model = models.VisionTransformer(**sizes, num_classes=10).eval()
    torch.nn.init.normal_(model.heads.head.weight)
    twin = quantize(model, 8, 8, also=["softmax", "layer-norm"], strict=True)
    made = export(twin, tmp_path / "net.onnx", (3, 16, 16), bias="float")
    assert capfd.readouterr().err == ""
    x = torch.rand(7, 3, 16, 16)
    expected = answers(twin, x)
    # Where a value is within rounding of two levels, the file may take the other, in few places.
    assert (answers(made.module, x) - expected).abs().median() < 0.02 * expected.abs().max()
    pytest.importorskip("onnxruntime")
    found = torch.tensor(open_deployed(made.path)[0](x.numpy()))
    assert (found - expected).abs().median() < 0.02 * expected.abs().max()
