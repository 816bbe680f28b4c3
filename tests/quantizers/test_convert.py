"""quantize() and bake(): what they change, what they leave, what they refuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from art_qplugins import InputError, QuantHardtanh, QuantReLU, StochasticQuantizer, quantize
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers import activation_quantizers, bake, weight_layers
from art_qplugins.quantizers.functional import mu_law, quant_hardtanh, quant_relu, quantize_weight
from art_qplugins.quantizers.layers import FUNCTIONS
from art_qplugins.quantizers.registry import ACTIVATION_FUNCTIONS

OPTIONS = {
    "activations": {"activation_bits": 3},
    "stochastic": {"activation_bits": 2, "alpha": 1.5},
    "weights": {"weight_bits": 3},
    "mu": {"mu": 255.0},
    "function": {"activation_function": "tanh"},
    "all": {"activation_bits": 4, "weight_bits": 2, "mu": 10.0, "mu_layers": 3, "granularity": "per_tensor"},
    "trainable": {"weight_bits": 3, "mu": 255.0, "trainable": True},
}


def small():
    return ConvNet((1, 8, 8), 10, width=4)


def images(n=5):
    return torch.rand(n, 1, 8, 8)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_model_given_is_left_as_it_was(options):
    model = small().eval()
    model.bn1.train()  # a mode of its own
    x = images()
    state, modules, modes = (
        copy.deepcopy(model.state_dict()),
        list(model.modules()),
        [m.training for m in model.modules()],
    )
    classes, parameters = [type(m) for m in modules], list(model.parameters())
    twin = quantize(model, **options)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
        twin.train()(x)
    assert list(model.modules()) == modules
    assert [type(m) for m in modules] == classes
    assert [m.training for m in modules] == modes
    assert list(map(id, model.parameters())) == list(map(id, parameters))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_the_twin_is_in_the_mode_of_the_model(options, training):
    twin = quantize(small().train(training), **options)
    assert {m.training for name, m in twin.named_modules() if "parametrizations" not in name} == {training}


def test_every_weight_and_activation_is_quantized_and_nothing_else():
    model, x = small().eval(), images()
    with torch.no_grad():
        model.bn1.running_mean.normal_()
        twin = quantize(model, activation_bits=2, weight_bits=3, clip=1.5)

        def w(layer):
            return quantize_weight(layer.weight, 3)

        def norm(bn, t):
            return nn.functional.batch_norm(t, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

        h = quant_relu(norm(model.bn1, nn.functional.conv2d(x, w(model.conv1), padding=1)), 2, 1.5)
        h = quant_relu(norm(model.bn2, nn.functional.conv2d(h, w(model.conv2), stride=2, padding=1)), 2, 1.5)
        h = quant_relu(nn.functional.linear(h.flatten(1), w(model.fc1), model.fc1.bias), 2, 1.5)
        torch.testing.assert_close(twin(x), nn.functional.linear(h, w(model.fc2), model.fc2.bias))


@pytest.mark.parametrize("weight_bits", [None, 3])
@pytest.mark.parametrize(
    ("mu_layers", "mapped"),
    [
        (1, ["fc2"]),
        (2, ["fc1", "fc2"]),
        (4, ["conv1", "conv2", "fc1", "fc2"]),
        (["fc2", "conv1"], ["conv1", "fc2"]),
        (["conv*"], ["conv1", "conv2"]),
        (["*2", "fc2"], ["conv2", "fc2"]),
    ],
)
def test_the_chosen_layers_are_mapped_first_and_quantized_after(weight_bits, mu_layers, mapped):
    model = small()
    twin = quantize(model, weight_bits=weight_bits, mu=255.0, mu_layers=mu_layers, symmetric=False)
    layers = weight_layers(model)
    assert [name for name, _ in layers] == ["conv1", "conv2", "fc1", "fc2"]
    for name, layer in layers:
        expected = layer.weight.detach()
        if name in mapped:
            expected = mu_law(expected, 255.0)
        if weight_bits is not None:
            expected = quantize_weight(expected, weight_bits, symmetric=False)
        assert torch.equal(twin.get_submodule(name).weight, expected), name


@pytest.mark.parametrize(
    ("chosen", "quantized"),
    [
        (None, ["act1", "act2", "act3"]),
        (1, ["act3"]),
        (2, ["act2", "act3"]),
        (["act3", "act1"], ["act1", "act3"]),
        (["act[12]"], ["act1", "act2"]),
    ],
)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_the_chosen_activations_are_quantized_and_numbered_in_their_order(chosen, quantized, alpha):
    twin = quantize(small(), 2, alpha=alpha, activation_layers=chosen, strict=True)
    found = [name for name, m in twin.named_modules() if isinstance(m, (QuantReLU, StochasticQuantizer))]
    assert found == quantized
    assert [m.layer for m in twin.modules() if isinstance(m, StochasticQuantizer)] == [*range(len(found))] * bool(alpha)


# --- Activation functions

X = torch.tensor([-9.0, -2.0, -1.0, -0.4, 0.0, 0.2, 0.7, 1.0, 3.3, 6.0, 20.0])
FUNCTION = {
    "relu6": (lambda x: x.clamp(0, 6), lambda x, k: quant_relu(x, k, 6.0)),
    "relu1": (lambda x: x.clamp(0, 1), lambda x, k: quant_relu(x, k, 1.0)),
    "tanh": (torch.tanh, lambda x, k: quant_hardtanh(x.tanh(), k, -1.0, 1.0)),
}


@pytest.mark.parametrize("own", [nn.ReLU, nn.ReLU6, nn.Tanh, lambda: nn.Hardtanh(-2, 2)])
@pytest.mark.parametrize("num_bits", [None, 1, 2, 4])
@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_an_activation_function_replaces_every_activation_with_and_without_rounding(name, num_bits, own):
    assert set(FUNCTIONS) == set(FUNCTION) == set(ACTIVATION_FUNCTIONS)
    model, (plain, rounded) = nn.Sequential(own(), nn.Sequential(own())), FUNCTION[name]
    twin = quantize(model, num_bits, activation_function=name, strict=True)
    for part in (twin[0], twin[1][0]):
        assert torch.equal(part(X), plain(X) if num_bits is None else rounded(X, num_bits))
    assert len(activation_quantizers(twin)) == (0 if num_bits is None else 2)
    assert isinstance(model[0], type(own()))


@pytest.mark.parametrize("num_bits", [1, 2, 8])
def test_a_rounded_tanh_has_the_gradient_of_tanh(num_bits):
    twin = quantize(nn.Sequential(nn.Tanh()), num_bits)
    gradients = []
    for function in (twin, torch.tanh):
        x = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(x).sum(), x)[0])
    assert torch.equal(*gradients) and gradients[0][1:-1].all()
    assert len(twin(torch.linspace(-5, 5, 9999)).unique()) == 2**num_bits


def test_a_rounded_tanh_can_be_quantized_again_and_attacked():
    from art_qplugins.attacks.adaptive.full_precision import full_precision, other_bits

    model = nn.Sequential(nn.Flatten(), nn.Tanh())
    twin = quantize(quantize(model, activation_bits=8), activation_bits=2, strict=True)
    x = X.reshape(1, 1, 1, -1)
    assert torch.equal(twin(x), quantize(model, activation_bits=2)(x))
    assert [m.num_bits for m in twin.modules() if isinstance(m, QuantHardtanh)] == [2]
    with full_precision(twin, x):
        assert torch.equal(twin(x), x.flatten(1).tanh())
    with other_bits(twin, 4):
        torch.testing.assert_close(twin(x), quantize(model, activation_bits=4)(x))


@pytest.mark.parametrize(("name", "low", "high"), [("relu6", 0, 6), ("relu1", 0, 1), ("tanh", -1, 1)])
def test_stochastic_activations_take_the_range_of_the_function(name, low, high):
    twin = quantize(small(), 2, alpha=2.0, activation_function=name)
    ranges = [quantizer.range for _, quantizer in activation_quantizers(twin)]
    assert len(ranges) == 3
    for found in ranges:
        assert [*map(float, found)] == pytest.approx([low, high], abs=1e-5)
    assert twin(images()).isfinite().all()


class Called(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return nn.functional.relu(self.act(x))


def test_an_activation_that_keeps_its_function_is_named():
    with pytest.warns(UserWarning, match=r"^Called: in float after quantize\(\): Called \(relu\(\)\); "):
        quantize(Called(), activation_function="tanh")


def test_stochastic_activations_are_numbered_and_share_the_seed():
    twin = quantize(small(), activation_bits=3, alpha=1.5, clip=2.0, seed=7)
    layers = [twin.act1, twin.act2, twin.act3]
    assert all(isinstance(m, StochasticQuantizer) for m in layers)
    assert [(m.seed, m.layer, m.num_bits, m.alpha) for m in layers] == [(7, i, 3, 1.5) for i in range(3)]
    assert float(layers[0].spacing.detach() * 7) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU, (0, 3)),
        (nn.ReLU6, (0, 3)),
        (lambda: QuantReLU(8), (0, 3)),
        (nn.Hardtanh, (-1, 1)),
        (lambda: nn.Hardtanh(-2, 0.5), (-2, 0.5)),
        (lambda: nn.Hardtanh(0, 1), (0, 1)),
        (lambda: QuantHardtanh(8, -1.5, 2.5), (-1.5, 2.5)),
    ],
)
@pytest.mark.parametrize("alpha", [None, 2.0, 1.5])
def test_every_kind_of_activation_is_replaced_and_its_range_kept(activation, expected, alpha):
    model = nn.Sequential(nn.Linear(2, 2), activation(), nn.Sequential(activation()))
    twin = quantize(model, activation_bits=2, clip=3, alpha=alpha)
    found = [quantizer for _, quantizer in activation_quantizers(twin)]
    assert [quantizer.num_bits for quantizer in found] == [2, 2]
    for quantizer in found:
        assert [float(end) for end in quantizer.range] == pytest.approx(expected, abs=1e-5)
        assert isinstance(quantizer, StochasticQuantizer if alpha else (QuantReLU, QuantHardtanh))


def test_at_many_bits_a_network_with_hardtanh_answers_as_in_float():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.Hardtanh(), nn.Linear(32, 32), nn.Hardtanh(-2, 1), nn.Linear(32, 10)
    )
    x = torch.rand(200, 1, 8, 8)
    torch.testing.assert_close(quantize(model, activation_bits=16)(x), model(x), rtol=0, atol=1e-3)


def test_one_activation_module_in_several_places_is_quantized_in_all_of_them():
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act, nn.Sequential(nn.Linear(3, 3), act))
    assert not [m for m in quantize(model, activation_bits=2).modules() if isinstance(m, nn.ReLU)]
    stochastic = quantize(model, activation_bits=2, alpha=2.0)
    assert [m.layer for m in stochastic.modules() if isinstance(m, StochasticQuantizer)] == [0, 1, 2]


def test_a_residual_network_from_torchvision():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None).eval()
    x = torch.rand(2, 3, 32, 32)
    twin = quantize(model, activation_bits=4, weight_bits=3)
    assert not [m for m in twin.modules() if isinstance(m, nn.ReLU)]
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for _, layer in weight_layers(by_hand):
            layer.weight.copy_(quantize_weight(layer.weight, 3))
        for module in by_hand.modules():
            if hasattr(module, "relu"):
                module.relu = QuantReLU(4)
        assert torch.equal(twin(x), by_hand(x))
        assert not torch.equal(twin(x), model(x))


# --- trainable, bake


@pytest.mark.parametrize("options", [{"weight_bits": 3}, {"mu": 255.0, "mu_layers": 2}, {"weight_bits": 1, "mu": 1.0}])
def test_baking_a_trained_twin_keeps_its_function(options):
    model, x = small().eval(), images()
    twin = quantize(model, **options, trainable=True)
    assert torch.equal(twin(x), quantize(model, **options)(x))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x), torch.arange(len(x))).backward()
        optimizer.step()
    before = twin(x).detach()
    assert bake(twin) is twin
    assert torch.equal(twin(x), before)
    assert not any(parametrize.is_parametrized(m) for m in twin.modules())
    assert bake(twin) is twin  # nothing left to do


@pytest.mark.parametrize("name", ["activations", "weights", "mu", "all"])
def test_a_baked_twin_pickles_copies_and_has_the_models_parameters(name):
    model, x = small().eval(), images()
    twin = quantize(model, **OPTIONS[name])
    for again in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert torch.equal(again(x), twin(x))
    assert set(twin.state_dict()) == set(model.state_dict())
    assert all(p.is_leaf and p.requires_grad for p in twin.parameters())


# --- refusals


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), {"activation_bits": 4}, "no activation module to quantize.*nn.ReLU"),
        (nn.Sequential(nn.Linear(2, 2), nn.Mish()), {"activation_bits": 4}, "no activation module to quantize"),
        (nn.Sequential(nn.ReLU()), {"weight_bits": 4}, "no layer with weights"),
        (nn.Sequential(nn.ReLU()), {"mu": 255.0}, "has 0 layers with weights"),
        (small(), {"alpha": 2.0}, "alpha .* needs activation_bits"),
        (small(), {"mu": 255.0, "mu_layers": 0}, "mu_layers: it is 0; give a whole number of at least 1"),
        (small(), {"mu": 255.0, "mu_layers": 5}, "mu_layers is 5, and the network has 4 layers"),
        (
            small(),
            {"mu": 255.0, "mu_layers": ["fc2", "fcl"]},
            "mu_layers: none .* called 'fcl'; the layers with weights are: conv1, conv2, fc1, fc2",
        ),
        (
            small(),
            {"mu": 255.0, "mu_layers": []},
            r"mu_layers: it is \[\]; give a whole number of at least 1 or a list",
        ),
        (small(), {"mu": 255.0, "mu_layers": "fc2"}, r"mu_layers: it is 'fc2'; give a whole number of at least 1 or a"),
        (small(), {"activation_bits": 4, "activation_layers": 4}, "activation_layers is 4, .* has 3 activations"),
        (
            small(),
            {"activation_bits": 4, "activation_layers": ["act1", "relu*"]},
            r"activation_layers: none of the activations is called 'relu\*'; the activations are: act1, act2, act3",
        ),
        (small(), {"activation_function": "relu2"}, "activation_function: it is 'relu2'; "),
        (nn.Sequential(nn.Linear(2, 2)), {"activation_function": "tanh"}, "no activation module"),
        (nn.Sequential(QuantReLU(4)), {"activation_function": "tanh"}, "activation_function: .* quantized already"),
        (small(), {"activation_bits": 0}, "activation_bits: it is 0; "),
        (small(), {"activation_bits": 4, "clip": -1.0}, "clip: it is -1.0; "),
        (small(), {"weight_bits": 99}, "weight_bits: it is 99; "),
        (small(), {"weight_bits": 3, "granularity": "per_row"}, "granularity: it is 'per_row'; "),
        (small(), {"mu": -1.0}, "mu: it is -1.0; "),
        (small(), {"mu": 0.0}, "mu: it is 0.0; "),
        (
            small(),
            {"mu": 255.0, "mu_layers": ["fc2", -5]},
            "mu_layers: there is no position -5; the layers with weights are: conv1, conv2, fc1, fc2",
        ),
        (small(), {"mu": 255.0, "mu_layers": [4]}, "mu_layers: there is no position 4; the layers"),
        (small(), {"weight_bits": 3, "zero_point": True}, "zero_point: symmetric levels have 0 among them"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_line(model, options, message):
    with pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        quantize(model, **options)


def test_a_weight_outside_the_mu_laws_domain_is_named_with_its_value():
    model = small()
    with torch.no_grad():
        model.fc1.weight[3, 2] = -1.625
    with pytest.raises(InputError, match=r"^[^\n]*'fc1' holds 1\.625, [^\n]*mu_normalize = true$"):
        quantize(model, mu=255.0, mu_layers=2)
    assert quantize(model, mu=255.0, mu_layers=1) is not None  # that layer is not mapped
    mapped = quantize(model, mu=255.0, mu_layers=2, mu_normalize=True)
    assert mapped.fc1.weight[3, 2].item() == pytest.approx(-1.625)
