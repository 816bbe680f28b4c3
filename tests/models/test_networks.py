"""Every registered architecture keeps one contract, and each network of a paper is the paper's."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from art_qplugins import InputError, QuantizedClassifier, QuantReLU, quantize, train
from art_qplugins.defences.aggregation import ConvexAggregation, project_to_simplex
from art_qplugins.models import MODELS
from art_qplugins.models.aggregation import Aggregation
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.resnet import BasicBlock, ResNet8
from art_qplugins.models.wide_resnet import Block, WideResNet
from art_qplugins.quantizers import weight_layers
from art_qplugins.recipes.load import parse_recipe


@dataclass(frozen=True, kw_only=True)
class Row:
    """One architecture: ``small`` is what the tests run; slots and weights are counted there, parameters at full size."""

    name: str
    small: dict
    slots: int
    weights: int
    shape: tuple[int, int, int] = (3, 32, 32)
    published: dict[int, dict] = field(default_factory=dict)  # parameters -> options, for 10 classes
    smallest: int = 4
    layers: str  # direct children, by which ART names layers
    activation: type = nn.ReLU


VGG = " ".join(f"conv{i}_{j}" for i, n in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, n + 1))


def madry(channels, width):
    """The weights of a group of five units."""
    return sum(9 * n * width + 9 * width**2 + 2 * n + 2 * width for n in (channels, *[width] * 4))


ROWS = [
    Row(
        name="convnet",
        small={"width": 4},
        slots=3,
        weights=4,
        shape=(1, 8, 8),
        # (9 * 16 + 2 * 16) + (9 * 16 * 32 + 2 * 32) + (512 + 1) * 64 + (64 + 1) * 10
        published={38_330: {}},
        layers="conv1 bn1 act1 conv2 bn2 act2 fc1 act3 fc2",
    ),
    Row(
        name="wrn",
        small={"depth": 16, "widen_factor": 1},
        slots=13,
        weights=16,  # twelve in blocks, two shortcuts (the first group needs none at this width), the first and the last
        published={
            36_479_194: {},  # the paper's 36.5M
            2_748_890: {"depth": 16, "widen_factor": 4},  # 2.7M
            8_949_210: {"depth": 40, "widen_factor": 4},  # 8.9M
            17_116_634: {"depth": 16, "widen_factor": 10},  # 17.1M
            36_479_194 + 2 * 12: {"aggregation": True},
        },
        layers="conv group1 group2 group3 bn act fc",
    ),
    Row(
        name="vgg16",
        small={"width": 4},
        slots=13,
        weights=14,
        # Configuration D's 14,714,688 in convolutions, less 4,224 biases, plus 2 * 4,224 of batch norm, plus 5,130.
        published={14_714_688 + 4_224 + 5_130: {}},
        smallest=32,
        layers=f"{VGG} fc",
    ),
    Row(
        name="resnet8",
        small={"width": 4},
        slots=7,
        weights=10,
        # The stem, three groups, the linear layer, and two 1x1 shortcuts, which option A would not have.
        published={
            464 + 4_672 + 13_952 + 55_552 + 650 + (576 + 2_176): {},
            464 + 4_672 + 13_952 + 55_552 + 650 + (576 + 2_176) + 2 * 3: {"aggregation": True},
        },
        layers="conv bn act group1 group2 group3 fc",
    ),
    Row(
        name="resnet18",
        small={"width": 4},
        slots=17,
        weights=21,
        published={11_173_962: {}, 11_173_962 + 2 * 8: {"aggregation": True}},  # 11.17M
        smallest=8,
        layers="conv bn act group1 group2 group3 group4 fc",
    ),
    Row(
        name="mnist-cnn",
        small={"width": 4},
        slots=3,
        weights=4,
        shape=(1, 28, 28),
        published={832 + 51_264 + 3_212_288 + 10_250: {}},  # 3,274,634, layer by layer
        layers="conv1 act1 pool1 conv2 act2 pool2 fc1 act3 fc2",
    ),
    Row(
        name="madry-wrn",
        small={"units": 1, "widen_factor": 1},
        slots=7,
        weights=8,
        # No shortcut has weights. Three groups of five units: 9 * in * out and batch norms.
        published={432 + madry(16, 160) + madry(160, 320) + madry(320, 640) + 2 * 640 + 6_410: {}},
        layers="conv group1 group2 group3 bn act fc",
        activation=nn.LeakyReLU,
    ),
]


def make(row, **options):
    """A small network of a row, in eval mode."""
    torch.manual_seed(0)
    activation = {"activation": options.pop("activation")} if "activation" in options else {}
    entry = MODELS[row.name]
    model = entry.load()(options.pop("shape", row.shape), 10, **entry.resolve({**row.small, **options}), **activation)
    return model.eval()


def images(row, n=2):
    return torch.rand(n, *row.shape, generator=torch.Generator().manual_seed(1))


def slots(model, kind=nn.ReLU):
    return sum(isinstance(m, kind) for m in model.modules())


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.LeakyReLU, QuantReLU)
each = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_paper = pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row.name)


def test_the_table_is_the_registry():
    assert [row.name for row in ROWS] == list(MODELS)


@each
def test_parameters_are_as_published_and_every_activation_is_its_own_slot(row):
    for parameters, options in row.published.items():
        with torch.device("meta"):
            entry = MODELS[row.name]
            model = entry.load()(row.shape, 10, **entry.resolve(options))
        assert sum(p.numel() for p in model.parameters()) == parameters
    assert slots(make(row), row.activation) == row.slots
    assert len(weight_layers(make(row))) == row.weights


@pytest.mark.parametrize(("depth", "widen_factor", "expected"), [(28, 10, 25), (16, 4, 13), (10, 1, 7)])
def test_a_wide_resnet_has_two_activations_a_block_and_one_in_its_head(depth, widen_factor, expected):
    with torch.device("meta"):
        model = WideResNet((3, 32, 32), 10, depth=depth, widen_factor=widen_factor)
    assert slots(model) == expected
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert convolutions == depth - (widen_factor == 1)  # the paper counts a shortcut in every group


@each
def test_logits_gradient_and_determinism(row):
    model, x = make(row), images(row).requires_grad_()
    logits = model(x)
    assert logits.shape == (2, 10) and logits.dtype == torch.float32 and logits.isfinite().all()
    assert torch.equal(model(x), logits)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([3, 5])), x)
    assert gradient.isfinite().all() and all(image.any() for image in gradient)
    with torch.no_grad():  # in eval mode an image's logits are its own
        torch.testing.assert_close(model(x[:1]), logits[:1], rtol=1e-4, atol=1e-5)


@each
def test_every_weight_and_bias_has_a_gradient_in_training(row):
    model = make(row).train()
    F.cross_entropy(model(images(row, 8)), torch.arange(8)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [name for name, layer in weight_layers(model) if not layer.weight.grad.any()] == []


@each
def test_other_shapes(row):
    for shape in ((1, row.smallest, row.smallest), (3, row.smallest + 5, row.smallest + 8)):
        assert make(row, shape=shape)(torch.rand(2, *shape)).shape == (2, 10)


@each
@pytest.mark.parametrize(
    "activation",
    [nn.ReLU, nn.ReLU6, lambda: nn.Hardtanh(0, 1), nn.Tanh, lambda: nn.LeakyReLU(0.1), lambda: QuantReLU(2)],
    ids=["relu", "relu6", "relu1", "tanh", "leaky", "quantized"],
)
def test_the_activation_is_a_slot(row, activation):
    model = make(row, activation=activation)
    kind = type(activation())
    assert slots(model, kind) == row.slots and slots(model, ACTIVATIONS) == row.slots
    assert model(images(row)).isfinite().all()


@each
def test_quantize_takes_every_activation_and_every_weight(row):
    model, x = make(row, activation=nn.ReLU), images(row)
    twin = quantize(model, activation_bits=4, weight_bits=4)
    assert (slots(model), slots(twin), slots(twin, QuantReLU)) == (row.slots, 0, row.slots)
    used = Counter()
    for name, module in twin.named_modules():
        if isinstance(module, QuantReLU):
            module.register_forward_hook(lambda *_, name=name: used.update([name]))
    assert twin(x).isfinite().all()
    assert len(used) == row.slots and set(used.values()) == {1}  # each once: none is shared, none is idle
    for _, layer in weight_layers(twin):
        assert all(len(channel.unique()) <= 15 for channel in layer.weight)
    assert not torch.equal(twin(x), model(x))


@each
def test_the_last_layer_with_weights_is_the_linear_one(row):
    *_, (_, last) = weight_layers(make(row))
    assert isinstance(last, nn.Linear) and last.out_features == 10
    twin = quantize(make(row), mu=255.0, mu_layers=1, mu_normalize=True)  # weights of any size
    pairs = zip(weight_layers(make(row)), weight_layers(twin), strict=True)
    changed = [not torch.equal(before.weight, after.weight) for (_, before), (_, after) in pairs]
    assert changed == [False] * (row.weights - 1) + [True]


@each
def test_a_stochastic_ensemble_of_it(row):
    ensemble = StochasticEnsemble(
        quantize(make(row, activation=nn.ReLU), activation_bits=2, alpha=2.0), draws=3, eot_chunk=2
    )
    x = images(row).requires_grad_()
    output = ensemble(x)
    torch.testing.assert_close(output.exp().sum(-1), torch.ones(2))
    (gradient,) = torch.autograd.grad(output[:, 0].sum(), x)
    assert gradient.any()


@each
def test_copies(row):
    model, x = make(row), images(row)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
    other = make(row, activation=nn.ReLU6)
    other.load_state_dict(model.state_dict())  # activations have no state


@each
def test_art_can_name_its_layers(row):
    model = make(row)
    assert not isinstance(model, nn.Sequential)
    classifier = QuantizedClassifier(model, nn.CrossEntropyLoss(), row.shape, 10, device_type="cpu")
    assert classifier.layer_names == row.layers.split()
    x = images(row).numpy()
    assert classifier.get_activations(x, classifier.layer_names[0], batch_size=2).shape[0] == 2
    last = classifier.get_activations(x, classifier.layer_names[-1], batch_size=2)
    np.testing.assert_allclose(last, classifier.predict(x), rtol=1e-5, atol=1e-6)


@each
def test_recipes_take_it(row):
    recipe = {
        "name": "r",
        "data": {"name": "digits"},
        "threat": {"eps": [0.1]},
        "models": [{"name": "m", "architecture": {"name": row.name, "options": row.small}}],
        "attacks": [{"id": "art:fgsm"}],
    }
    assert parse_recipe(recipe).models[0].architecture.options == row.small


@each_paper
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True])
def test_bad_options_are_one_line_that_names_them(row, value):
    for option in row.small:
        with pytest.raises(InputError, match=rf"^{option}: it is {value!r}; [^\n]+$"):
            MODELS[row.name].load()(row.shape, 10, **{**row.small, option: value})


@each
def test_a_recipe_refuses_what_no_network_can_be(row):
    entry = MODELS[row.name]
    for option in row.small:
        for value in (0, -1, 1.5, "4", True, 10**12, 10**400, float("nan"), None):
            with pytest.raises(InputError, match=rf"^{row.name}: option {option}: it is [^\n]+$"):
                entry.resolve({option: value})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 27}, "wrn: depth is 27; give a depth of 6n "),
        ({"depth": 28, "widen_factor": 32}, None),
        ({"depth": 76, "widen_factor": 32}, "depth is 76 and widen_factor is 32; give less of one"),
    ],
)
def test_the_depth_and_the_width_of_a_wide_resnet_go_together(options, words):
    if words is None:
        assert MODELS["wrn"].resolve(options) == MODELS["wrn"].defaults | options
    else:
        with pytest.raises(InputError, match=words):
            MODELS["wrn"].resolve(options)


@pytest.mark.parametrize(
    ("name", "largest"),
    [*((row.name, {"width": 512}) for row in ROWS if "width" in row.small), ("wrn", {"depth": 70, "widen_factor": 32})],
)
def test_the_largest_network_has_about_a_billion_weights(name, largest):
    with torch.device("meta"):
        model = MODELS[name].load()((3, 32, 32), 10, **MODELS[name].resolve(largest))
    assert sum(p.numel() for p in model.parameters()) < 1.2e9


@each_paper
def test_small_images_are_refused(row):
    side = row.smallest
    for shape in ((3, side - 1, side), (3, side, side - 1), (side, side)):
        with pytest.raises(InputError, match=rf"^input_shape: it is \([^\n]*; give \(C, H, W\) from {side}x{side} on$"):
            make(row, shape=shape)


@pytest.mark.parametrize("depth", [4, 9, 11, 15, 18, 30])
def test_a_depth_that_is_not_6n_plus_4_is_refused(depth):
    with pytest.raises(InputError, match=rf"^depth: it is {depth}; [^\n]*6n \+ 4"):
        WideResNet((3, 32, 32), 10, depth=depth, widen_factor=1)


# --- each is the paper's


def batch_norm(bn, x):
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)


def with_statistics(module):
    """Batch norms whose every number matters."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for value in (m.weight.data, m.bias.data, m.running_mean, m.running_var):
                value.uniform_(0.2, 1.5)
    return module.eval()


@pytest.mark.parametrize(("channels", "width", "stride"), [(4, 4, 1), (4, 6, 1), (4, 6, 2), (4, 4, 2)])
@pytest.mark.parametrize("aggregation", [False, True])
def test_a_wide_block_is_the_reference(channels, width, stride, aggregation):
    block = with_statistics(Block(channels, width, stride, aggregation=aggregation, activation=nn.ReLU6))
    a = (1.0, 1.0)
    if aggregation:
        block.add.a.data = torch.tensor([0.3, 0.7])
        a = (0.3, 0.7)
    x = torch.randn(2, channels, 8, 8)
    o = F.relu6(batch_norm(block.bn1, x))
    s = x if (channels, stride) == (width, 1) else F.conv2d(o, block.shortcut.weight, stride=stride)
    r = F.conv2d(o, block.conv1.weight, stride=stride, padding=1)
    r = F.conv2d(F.relu6(batch_norm(block.bn2, r)), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), a[0] * s + a[1] * r)


@pytest.mark.parametrize(("channels", "width", "stride"), [(4, 4, 1), (4, 6, 2)])
def test_a_residual_block_sums_convexly(channels, width, stride):
    """The aggregation stands where the sum stood; with weights of 1 it is the sum."""
    block = with_statistics(BasicBlock(channels, width, stride, aggregation=True, activation=nn.ReLU6))
    plain = BasicBlock(channels, width, stride, aggregation=False, activation=nn.ReLU6).eval()
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if k != "add.a"})
    x = torch.randn(2, channels, 8, 8)
    block.add.a.data = torch.ones(2)
    torch.testing.assert_close(block(x), plain(x))
    block.add.a.data = torch.tensor([0.3, 0.7])
    r = F.conv2d(x, block.conv1.weight, stride=stride, padding=1)
    r = F.conv2d(F.relu6(batch_norm(block.bn1, r)), block.conv2.weight, padding=1)
    expected = F.relu6(0.3 * block.shortcut(x) + 0.7 * batch_norm(block.bn2, r))
    torch.testing.assert_close(block(x), expected)


def test_a_wide_resnet_is_its_blocks_and_its_head():
    model = with_statistics(WideResNet((3, 32, 32), 10, depth=16, widen_factor=2))
    x = torch.rand(2, 3, 32, 32)
    out = F.conv2d(x, model.conv.weight, padding=1)
    for group, width, side in ((model.group1, 32, 32), (model.group2, 64, 16), (model.group3, 128, 8)):
        assert len(group) == 2
        for block in group:
            out = block(out)
        assert out.shape == (2, width, side, side)
    out = F.avg_pool2d(F.relu(batch_norm(model.bn, out)), 8).flatten(1)
    torch.testing.assert_close(model(x), F.linear(out, model.fc.weight, model.fc.bias), rtol=1e-4, atol=1e-4)


def test_resnet18_and_vgg16_are_torchvisions_but_for_their_stem_and_head():
    torchvision = pytest.importorskip("torchvision")
    rows = {row.name: row for row in ROWS}

    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = with_statistics(make(rows["resnet18"], width=64))
    _same(ours, theirs, images(rows["resnet18"]))

    theirs = torchvision.models.vgg16_bn(num_classes=10, init_weights=False)
    for m in theirs.modules():
        if isinstance(m, nn.Conv2d):
            m.bias = None
    theirs.avgpool, theirs.classifier = nn.Identity(), nn.Linear(512, 10)
    ours = with_statistics(make(rows["vgg16"], width=64))
    _same(ours, theirs, images(rows["vgg16"]))


def _same(ours, theirs, x):
    """Our weights in their network, layer by layer of one kind and in their order, give our logits."""
    for kind in (nn.BatchNorm2d, nn.Conv2d, nn.Linear):
        pairs = [[m for m in _in_their_order(net) if isinstance(m, kind)] for net in (ours, theirs)]
        for mine, other in zip(*pairs, strict=True):
            other.load_state_dict(mine.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def _in_their_order(module):
    """Every module, a block's shortcut last."""
    yield module
    for _, child in sorted(module.named_children(), key=lambda item: item[0] in ("shortcut", "downsample")):
        yield from _in_their_order(child)


def test_the_mnist_network_is_the_reference():
    (row,) = (row for row in ROWS if row.name == "mnist-cnn")
    model, x = make(row), images(row)
    out = F.max_pool2d(F.relu(F.conv2d(x, model.conv1.weight, model.conv1.bias, padding=2)), 2)
    out = F.max_pool2d(F.relu(F.conv2d(out, model.conv2.weight, model.conv2.bias, padding=2)), 2)
    out = F.relu(F.linear(out.flatten(1), model.fc1.weight, model.fc1.bias))
    torch.testing.assert_close(model(x), F.linear(out, model.fc2.weight, model.fc2.bias))


@each_paper
def test_weights_start_from_he_and_biases_from_zero(row):
    for _, layer in weight_layers(make(row)):
        weight = layer.weight.detach()
        if weight.numel() > 1000:
            assert float(weight.square().mean()) * weight[0].numel() == pytest.approx(2, rel=0.2)
        assert layer.bias is None or not layer.bias.any()


# --- convex aggregation


@pytest.mark.parametrize(
    ("a", "expected"),
    [((0.5, 0.5), (0.5, 0.5)), ((0.2, 0.8), (0.2, 0.8)), ((0.9, 0.5), (0.7, 0.3)), ((3, 0), (1, 0)), ((-2, 0), (0, 1))],
)
def test_the_projection_in_closed_form(a, expected):
    torch.testing.assert_close(project_to_simplex(torch.tensor(a, dtype=torch.float32)), torch.tensor(expected).float())


def test_the_projection_is_the_nearest_point_of_the_simplex():
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    simplex = torch.stack([t, 1 - t], 1)
    for a in torch.randn(50, 2, dtype=torch.float64) * 2:
        nearest = simplex[(simplex - a).square().sum(1).argmin()]
        torch.testing.assert_close(project_to_simplex(a), nearest, atol=1e-4, rtol=0)


def general_projection(a):
    """The projection onto a simplex of any size, by sorting (Held, Wolfe & Crowder 1974; Duchi et al. 2008)."""
    descending = a.sort(descending=True).values
    above = 1 + torch.arange(1, len(a) + 1) * descending > descending.cumsum(0)
    k = int(above.nonzero().max()) + 1
    return (a - (descending[:k].sum() - 1) / k).clamp_min(0)


@given(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 2))
def test_the_projection_is_the_general_formula_for_two(a):
    a = torch.tensor(a, dtype=torch.float64)
    torch.testing.assert_close(project_to_simplex(a), general_projection(a), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "network",
    [
        lambda: WideResNet((1, 8, 8), 10, depth=10, widen_factor=1, aggregation=True),
        lambda: ResNet8((1, 8, 8), 10, width=4, aggregation=True),
    ],
    ids=["wrn", "resnet8"],
)
def test_training_keeps_aggregation_convex_and_learns_it(network, digits):
    few = digits[0].take(100, seed=0)
    for defences in ([], [ConvexAggregation()]):
        torch.manual_seed(0)
        model = train(network(), few, defences, epochs=2, learning_rate=0.2)
        weights = torch.stack([m.a for m in model.modules() if isinstance(m, Aggregation)]).detach()
        assert len(weights) == 3 and not torch.equal(weights, torch.full((3, 2), 0.5))
        convex = (weights >= 0).all() and torch.allclose(weights.sum(1), torch.ones(3))
        assert convex == bool(defences)


def test_convex_aggregation_needs_aggregation_layers(digits):
    with pytest.raises(
        InputError, match=r"^defence 'convex-aggregation' needs [^\n]*WideResNet[^\n]*aggregation = true"
    ):
        train(WideResNet((1, 8, 8), 10, depth=10, widen_factor=1), digits[0], [ConvexAggregation()], epochs=1)


def test_madrys_network_standardizes_each_image_as_tensorflow_does():
    network = make(ROWS[-1])
    seen = []
    network.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.rand(3, 3, 32, 32)
    x[1] = 0.25  # its standard deviation is 0
    x[2] = 0.5
    x[2, 0, 0, 0] = 0.5 + 1e-3
    network(x)
    pixels = x.double().numpy()
    mean, deviation = (f(pixels, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
    expected = (pixels - mean) / np.maximum(deviation, 1 / np.sqrt(3 * 32 * 32))
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=2e-4)


def test_the_shortcuts_of_madrys_network_pool_and_pad():
    unit = make(ROWS[-1]).group2[0]
    with torch.no_grad():
        unit.conv2.weight.zero_()
        x = torch.rand(2, 16, 7, 7)
        out = unit(x)
    assert out.shape == (2, 32, 4, 4) and not out[:, :8].any() and not out[:, 24:].any()
    torch.testing.assert_close(out[:, 8:24], F.avg_pool2d(x, 2, ceil_mode=True))
    first = make(ROWS[-1]).group1[0]
    with torch.no_grad():
        first.conv2.weight.zero_()
        x = torch.rand(2, 16, 5, 5) - 0.5
        torch.testing.assert_close(first(x), first.act1(first.bn1(x)))  # behind the activation
