"""Observed ranges of a network, and of layers that several paths share."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import InputError, quantization_report, quantize
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers import QuantAffine, activation_quantizers, calibrate
from art_qplugins.quantizers.functional import affine_grid, quant_affine, quantize_weight

GENERATOR = torch.Generator().manual_seed(1)
X = torch.rand(50, 1, 8, 8, generator=GENERATOR)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 20), nn.GELU(), nn.Linear(20, 5)
    ).eval()


def bounds(model):
    return [m.bounds.tolist() for m in model.modules() if isinstance(m, QuantAffine)]


def test_min_max_and_percentile_are_those_of_the_values_with_quantized_weights():
    model = network()
    with torch.no_grad():
        w = [quantize_weight(model[i].weight, 4) for i in (1, 3)]
        first = (X.flatten(1) @ w[0].T + model[1].bias).relu()
        second = nn.functional.gelu(first @ w[1].T + model[3].bias)
    twin = quantize(model, 8, 4, ranges="min-max", calibration=X, strict=True)
    for (low, high), values in zip(bounds(twin), (first, second), strict=True):
        assert (low, high) == (
            pytest.approx(min(0.0, float(values.min())), abs=1e-5),
            pytest.approx(float(values.max()), rel=1e-5),
        )
    twin = quantize(model, 8, 4, ranges="percentile", percentile=95.0, calibration=X)
    for (low, high), values in zip(bounds(twin), (first, second), strict=True):
        within = 1.1 * float(values.abs().max()) / 2048
        wanted = np.percentile(values.numpy(), [5, 95], method="inverted_cdf")
        assert (low, high) == (pytest.approx(min(0, wanted[0]), abs=within), pytest.approx(wanted[1], abs=within))


@pytest.mark.parametrize("num_bits", [2, 4])
def test_the_least_error_is_less_than_that_of_min_max_in_every_layer(num_bits):
    model = network()
    with torch.no_grad():
        values = [model[:i](X) for i in (3, 5)]
    errors = {}
    for ranges in ("min-max", "mse"):
        ends = bounds(quantize(model, num_bits, ranges=ranges, calibration=X))
        grids = [affine_grid(num_bits, *one) for one in ends]
        errors[ranges] = [
            (quant_affine(v, num_bits, *g) - v).square().mean() for v, g in zip(values, grids, strict=True)
        ]
    assert all(a < b for a, b in zip(errors["mse"], errors["min-max"], strict=True))


@pytest.mark.parametrize("ranges", ["min-max", "percentile", "mse"])
def test_the_model_given_is_left_as_it_was(ranges):
    model, calls = ConvNet((1, 8, 8), 10, width=4), []
    model.bn1.eval()  # a mode of its own
    model.conv1.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes, hooks = [m.training for m in model.modules()], [len(m._forward_hooks) for m in model.modules()]
    answers = copy.deepcopy(model).eval()(X)
    calls.clear()
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    twin = quantize(model, 4, 4, ranges=ranges, calibration=X, fold_batch_norm=True, functional=True)
    assert torch.equal(torch.rand(3), drawn)
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.eval()(X), answers)
    assert not any(isinstance(m, nn.ReLU) for m in twin.modules()) and any(
        isinstance(m, nn.ReLU) for m in model.modules()
    )


def test_the_number_of_images_does_not_change_what_is_kept_and_their_order_changes_nothing():
    ends = [bounds(quantize(network(), 4, ranges="mse", calibration=x)) for x in (X, X.flip(0))]
    assert ends[0] == pytest.approx(ends[1]) if isinstance(ends[0], float) else np.allclose(ends[0], ends[1], rtol=1e-6)


# --- Layers that are called more than once


class Block(nn.Module):
    """As a block of torchvision: one ReLU, twice."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.second = nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Linear(64, 64)

    def forward(self, x):
        return self.relu(10 * self.second(self.relu(self.first(x))) + x)


def test_each_call_of_a_module_has_a_range_of_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Block()).eval()
    with torch.no_grad():
        first = model[1].first(X.flatten(1)).relu()
        second = (10 * model[1].second(first) + X.flatten(1)).relu()
    twin = quantize(model, 8, ranges="min-max", calibration=X, strict=True)
    assert [high for _, high in bounds(twin)] == pytest.approx([float(first.max()), float(second.max())], rel=1e-5)
    assert set(twin.state_dict()) >= set(model.state_dict())
    assert [p.name for p in quantization_report(twin) if p.kind == "activation"] == [
        "1.relu.quantizer",
        "1.relu_1.quantizer",
    ]
    with torch.no_grad():
        torch.testing.assert_close(twin(X), model(X), rtol=0, atol=float(second.max()) / 20)


def test_one_module_at_several_paths_has_a_range_at_each():
    act = nn.ReLU()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), act, nn.Linear(9, 9), act).eval()
    one, other = bounds(quantize(model, 4, ranges="min-max", calibration=X))
    assert one != other and model[2] is model[4]


class Branching(Block):
    """It cannot be traced."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def test_calls_with_other_ranges_that_cannot_be_told_apart_are_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Branching()).eval()
    with pytest.raises(InputError, match=r"^ranges: layer '1\.relu' is called 2 times [^\n]*'?ranges = \"fixed\"$"):
        quantize(model, 8, ranges="min-max", calibration=X)
    quantize(model, 8, strict=True)  # one fixed range


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Flatten(), nn.ReLU())

    def forward(self, x):
        return self.part(x) + self.part(x)


def test_calls_with_the_same_range_share_it():
    ((low, high),) = bounds(quantize(Twice(), 8, ranges="min-max", calibration=X))
    assert low == 0 and high == pytest.approx(float(X.max()))


# --- Refusals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranges": "mse"}, "ranges: 'mse' is observed on images; give them as calibration"),
        ({"calibration": X}, "calibration: fixed ranges need no images"),
        ({"ranges": "mse", "calibration": X * 255}, r"calibration: pixels are from 0\.\d+ to 2\d\d\.\d+; give images in \[0, 1\]"),
        ({"ranges": "mse", "calibration": X - 1}, "calibration: pixels are from -"),
        ({"ranges": "mse", "calibration": X * float("nan")}, "calibration: pixels are from nan"),
        ({"ranges": "mse", "calibration": X[0]}, "calibration: "),
        ({"ranges": "mse", "calibration": X, "clip": 3.0}, "clip: ranges are observed"),
        ({"ranges": "mse", "calibration": X, "alpha": 2.0}, "ranges: quantizer 'stochastic' has no zero point"),
        ({"ranges": "mse", "calibration": X, "activation": "learned-clip"}, "ranges: quantizer 'learned-clip'"),
        ({"ranges": "mse", "calibration": X, "activation_bits": None}, "ranges: there are no activations to quantize"),
        ({"also": ["softmax"], "activation_bits": None}, "also: there are no activations"),
        ({"functional": True, "activation_bits": None}, "functional: there are no activations"),
        ({"ranges": "largest"}, "ranges: it is 'largest'"),
        ({"percentile": 50.0}, "percentile: it is 50"),
    ],
)  # fmt: skip
def test_what_makes_no_range_is_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=f"^{message}[^\n]*$"):
        quantize(network(), **({"activation_bits": 4} | given))


def test_layers_without_a_range_are_named():
    model = network()
    with torch.no_grad():
        model[1].weight.zero_(), model[1].bias.fill_(-1.0)
    with pytest.raises(InputError, match=r"^calibration: layer '2' is 0 on all images"):
        quantize(model, 4, ranges="min-max", calibration=X)
    with torch.no_grad():
        model[1].bias.fill_(float("inf"))
    with pytest.raises(InputError, match=r"^calibration: layer '2' has values that are not finite"):
        quantize(model, 4, ranges="mse", calibration=X)
    with pytest.raises(InputError, match=r"^model: Sequential has no QuantAffine to calibrate"):
        calibrate(quantize(nn.Sequential(nn.ReLU()), 4), X)


def test_a_network_can_be_calibrated_again_and_observes_only_then():
    twin = quantize(network(), 4, ranges="min-max", calibration=X)
    before = bounds(twin)
    assert calibrate(twin, X[:5] / 9) is twin and bounds(twin) != before
    calibrate(twin, X)
    assert bounds(twin) == before and all(q.observe is None for q, _ in activation_quantizers(twin))
