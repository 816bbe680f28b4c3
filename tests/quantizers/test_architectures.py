"""Networks of torchvision, of timm and of RobustBench's style, with random weights: nothing stays in float in silence."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from art_qplugins import quantization_report, quantize
from art_qplugins.quantizers.functions import QUANTIZABLE

torchvision = pytest.importorskip("torchvision")
models = torchvision.models

#: A tanh stays as a module before its quantizer, and a softmax is quantized where it is asked for.
PLAIN = tuple(function.module for name, function in QUANTIZABLE.items() if name not in ("tanh", "softmax"))


class Normalized(nn.Module):
    """In the style of RobustBench: pixels in [0, 1] are normalized inside, activations are functions."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.dropout = 0.3

        def forward(self, x):
            h = self.conv1(F.relu(self.bn1(x), inplace=True))
            h = F.relu(self.bn2(h))
            if self.dropout > 0:
                h = F.dropout(h, p=self.dropout, training=self.training)
            return torch.add(x, self.conv2(h))

    def __init__(self, width=8):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.5, 0.4, 0.4]).view(1, 3, 1, 1), requires_grad=False)
        self.register_buffer("std", torch.tensor([0.2, 0.2, 0.3]).view(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(self.Block(width), self.Block(width))
        self.bn, self.fc = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x):
        h = self.blocks(self.stem((x - self.mean) / self.std))
        h = F.silu(self.bn(h))
        return self.fc(F.avg_pool2d(h, h.shape[-1]).flatten(1))


def vision_transformer():
    net = models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)
    nn.init.normal_(net.heads.head.weight)  # torchvision begins with 0
    return net


def vgg():
    features = models.vgg.make_layers([8, "M", 16, "M", 32, 32, "M"])
    with torch.device("meta"):  # its classifier has 120 million weights
        net = models.VGG(features, init_weights=False)
    net.classifier = nn.Sequential(nn.Linear(32 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 10))
    return net


def from_timm(name, **options):
    return lambda: pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=10, **options)


NETWORKS = {
    "resnet18": (lambda: models.resnet18(num_classes=10), {"fold_batch_norm": True}),
    "mobilenet_v3": (lambda: models.mobilenet_v3_small(num_classes=10), {"fold_batch_norm": True}),
    "vgg": (vgg, {}),
    "vision transformer": (vision_transformer, {"also": ["layer-norm"]}),
    "timm": (from_timm("resnet18"), {"fold_batch_norm": True}),
    "timm relu6": (from_timm("resnet18", act_layer=nn.ReLU6), {"fold_batch_norm": True}),
    "robustbench": (Normalized, {"functional": True}),
}


def check(model, size, options, images=4):
    model.eval()
    x = torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with torch.no_grad():
        plain = model(x)
    for ranges, calibration in (("fixed", None), ("min-max", x), ("mse", x)):
        twin = quantize(model, 8, 8, ranges=ranges, calibration=calibration, strict=True, **options)
        assert not [name for name, m in twin.named_modules() if isinstance(m, PLAIN)]
        parts = quantization_report(twin)
        assert [p for p in parts if p.bits is None and not p.expected] == []
        assert {p.bits for p in parts} <= {8, None} and sum(p.bits == 8 for p in parts) > 6
        assert twin.training is model.training
        pixels = x.clone().requires_grad_()
        logits = twin(pixels)
        (gradient,) = torch.autograd.grad(logits.square().sum(), pixels)
        assert gradient.isfinite().all()
        with torch.no_grad():
            assert torch.equal(twin(x), logits.detach())  # with and without gradients
        if ranges != "fixed":  # [0, 6] is too coarse for random weights that make small activations
            assert gradient.abs().sum() > 0
            assert (logits - plain).norm() < 0.35 * (plain - plain.mean(0)).norm() + 0.2 * plain.norm()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    with torch.no_grad():
        assert torch.equal(model(x), plain)


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_is_quantized_and_the_network_answers_about_as_in_float(name):
    torch.manual_seed(0)
    make, options = NETWORKS[name]
    check(make(), 32, options)


def test_batch_norms_before_convolutions_are_named():
    with pytest.warns(UserWarning, match=r"blocks\.0\.bn1 \(BatchNorm2d\), blocks\.1\.bn1 \(BatchNorm2d\), bn"):
        twin = quantize(Normalized().eval(), 8, 8, functional=True, fold_batch_norm=True)
    assert [n for n, m in twin.named_modules() if isinstance(m, nn.BatchNorm2d)] == [
        "blocks.0.bn1",
        "blocks.1.bn1",
        "bn",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"fold_batch_norm": True}),
        ("mobilenet_v3_large", {"fold_batch_norm": True}),
        ("vgg16", {}),
        ("vit_b_16", {"also": ["layer-norm"]}),
    ],
)
def test_the_networks_themselves(name, options):
    torch.manual_seed(0)
    model = getattr(models, name)(weights=None)
    if name == "vit_b_16":
        nn.init.normal_(model.heads.head.weight)
    check(model, 224, options, images=2)
