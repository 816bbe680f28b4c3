"""quantization_report() lists every activation and weight; quantize() names what stays in float, or raises."""

from __future__ import annotations

import copy
import pickle
import warnings

import another_package
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from art_qplugins import InputError, quantization_report, quantize
from art_qplugins.fingerprint import fingerprint
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers import Part


def bits(model, kind=None):
    return {part.name: part.bits for part in quantization_report(model) if kind in (None, part.kind)}


def reasons(model):
    return {part.name: part.reason for part in quantization_report(model) if part.bits is None}


class Functional(nn.Module):
    """One activation as a module, and one as a function."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x):
        return F.relu(self.second(self.act(self.first(x))))


def test_every_activation_and_weight_is_listed_with_its_bits():
    model = ConvNet((1, 8, 8), 10, width=4)
    parts = ["act1", "act2", "act3"], ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
    plain = bits(model)
    assert plain == dict.fromkeys(["conv1.weight", "bn1.weight", *plain], None) and set(plain) >= {*parts[0], *parts[1]}
    twin = quantize(model, activation_bits=3, weight_bits=5)
    assert bits(twin, "activation") == dict.fromkeys(parts[0], 3)
    assert bits(twin, "weight") == dict.fromkeys(parts[1], 5) | {"bn1.weight": None, "bn2.weight": None}
    assert reasons(twin) == {"bn1.weight": "norms stay in float", "bn2.weight": "norms stay in float"}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"granularity": "per_tensor"}, {"narrow_range": False}])
@pytest.mark.parametrize("num_bits", [1, 3, 8, 16])
def test_bits_of_weights_are_remembered_in_copies_and_pickles(num_bits, options, trainable):
    twin = quantize(ConvNet((1, 8, 8), 10, width=4), weight_bits=num_bits, mu=10.0, trainable=trainable, **options)
    for model in [twin, copy.deepcopy(twin), *([] if trainable else [pickle.loads(pickle.dumps(twin))])]:
        assert {k: v for k, v in bits(model, "weight").items() if "bn" not in k} == dict.fromkeys(
            ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"], num_bits
        )
        assert {part.type for part in quantization_report(model) if part.kind == "weight"} == {
            "Conv2d",
            "Linear",
            "BatchNorm2d",
        }


def test_a_weight_that_was_trained_since_is_in_float_again():
    twin = quantize(ConvNet((1, 8, 8), 10, width=4), weight_bits=4)
    with torch.no_grad():
        twin.fc1.weight[0, 0] += 1e-3
    assert bits(twin)["fc1.weight"] is None and reasons(twin)["fc1.weight"] == "it has changed since it was quantized"


def test_what_is_remembered_changes_neither_repr_nor_fingerprint_nor_state():
    model = ConvNet((1, 8, 8), 10, width=4)
    twin, by_hand = quantize(model, weight_bits=3, mu=10.0), copy.deepcopy(model)
    by_hand.load_state_dict(twin.state_dict())
    assert repr(by_hand) == repr(twin) and fingerprint(by_hand) == fingerprint(twin)
    assert set(twin.state_dict()) == set(model.state_dict())
    assert bits(by_hand)["fc1.weight"] is None


@pytest.mark.parametrize(
    "activation",
    [nn.Mish, nn.CELU, nn.SELU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Softplus, nn.Softmax, nn.PReLU],
)
def test_an_activation_without_a_quantized_form_is_named(activation):
    other = activation(dim=1) if activation is nn.Softmax else activation()
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), other)
    with pytest.warns(UserWarning, match=rf"^Sequential: in float after quantize\(\): 3 \({activation.__name__}\); "):
        twin = quantize(model, activation_bits=4)
    if activation is nn.Softmax:
        assert reasons(twin)["3"] == "it is quantized where it is asked for: also = ['softmax']"
    else:
        assert reasons(twin)["3"] == (
            "it has no quantized form; use nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.GELU "
            "or nn.SiLU"
        )
    with pytest.raises(InputError, match=rf"3 \({activation.__name__}\)"):
        quantize(model, activation_bits=4, strict=True)
    quantize(model, weight_bits=4, strict=True)  # no activation was to be quantized


def test_a_tanh_is_in_float_until_its_values_are_rounded():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    assert bits(model, "activation") == {"1": None, "3": None}
    assert reasons(model)["1"] == "it was not quantized"
    twin = quantize(model, activation_bits=3, activation_layers=["3"], strict=True)
    assert bits(twin, "activation") == {"1": None, "3.1": 3}


def test_an_activation_that_is_a_function_is_named():
    with pytest.warns(UserWarning, match=r"^Functional: in float after quantize\(\): Functional \(relu\(\)\); "):
        twin = quantize(Functional(), activation_bits=4)
    (part,) = [part for part in quantization_report(twin) if part.kind == "activation" and part.bits is None]
    assert part.type == "relu()" and part.reason.startswith("Functional.forward, line ")
    with pytest.raises(InputError, match=r"relu\(\)"):
        quantize(Functional(), activation_bits=4, strict=True)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Embedding(3, 4), {"weight": "Embedding"}),
        (nn.ConvTranspose2d(2, 3, 3), {"weight": "ConvTranspose2d"}),
        (nn.LSTM(3, 4), {"weight_ih_l0": "LSTM", "weight_hh_l0": "LSTM"}),
        (nn.Bilinear(2, 3, 4), {"weight": "Bilinear"}),
    ],
)
def test_a_weight_that_stays_in_float_is_named(module, names):
    model = nn.Sequential(nn.Linear(4, 4), module)
    first, kind = next(iter(names.items()))
    with pytest.warns(UserWarning, match=rf"in float after quantize\(\): 1\.{first} \({kind}\)"):
        twin = quantize(model, weight_bits=4)
    assert {f"1.{name}" for name in names} <= set(reasons(twin))
    only = "only nn.Linear, nn.MultiheadAttention and nn.Conv1d to nn.Conv3d are quantized"
    assert reasons(twin)[f"1.{first}"] == f"it is of a {kind}; {only}"
    with pytest.raises(InputError, match=kind):
        quantize(model, weight_bits=4, strict=True)


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(4), lambda: nn.GroupNorm(2, 4), lambda: nn.BatchNorm1d(4)])
def test_norms_are_listed_and_not_complained_of(norm):
    twin = quantize(nn.Sequential(nn.Linear(4, 4), norm(), nn.ReLU()), 4, 4, strict=True)
    assert reasons(twin) == {"1.weight": "norms stay in float"}


def test_a_layer_that_is_the_whole_network_has_no_path():
    assert [part.name for part in quantization_report(nn.Linear(4, 4))] == ["weight"]
    assert [part.name for part in quantization_report(nn.LayerNorm(4))] == ["weight"]


def test_only_the_first_few_are_named():
    model = nn.Sequential(nn.ReLU(), *(nn.Mish() for _ in range(6)))
    with pytest.warns(UserWarning, match=r": 1 \(Mish\), 2 \(Mish\), 3 \(Mish\), 4 \(Mish\) and 2 more; "):
        quantize(model, activation_bits=4)


def test_the_warning_points_at_the_call():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantize(Functional(), activation_bits=4)
    assert [w.filename for w in caught] == [__file__]


def test_activations_that_were_left_out_by_choice_are_not_complained_of():
    twin = quantize(ConvNet((1, 8, 8), 10, width=4), activation_bits=4, activation_layers=1, strict=True)
    assert bits(twin, "activation") == {"act1": None, "act2": None, "act3": 4}


def test_a_range_that_the_quantizer_cannot_have_is_named(foreign):
    model = nn.Sequential(nn.ReLU(), nn.Hardtanh())
    with pytest.warns(UserWarning, match=r": 1 \(Hardtanh\); "):
        twin = quantize(model, activation_bits=4, activation="power-of-two")
    assert isinstance(twin[0], another_package.PowerOfTwo) and isinstance(twin[1], nn.Hardtanh)


def test_a_part_is_plain_data():
    assert quantization_report(nn.Linear(2, 2)) == [
        Part("weight", "weight", "Linear", None, "it was not quantized", expected=True)
    ]
