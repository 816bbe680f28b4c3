"""Autocast changes nothing of what quantizers, penalties and estimates give: float32, of the same value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import MuLawMapping, QuantHardtanh, QuantReLU, StochasticQuantizer, quantize
from art_qplugins.defences.information import MutualInformation
from art_qplugins.defences.lipschitz import orthogonality_penalty
from art_qplugins.information import information, member_information, mutual_information
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers import QUANTIZERS, activation_quantizers
from art_qplugins.quantizers.entmax import entmax
from art_qplugins.quantizers.functional import mu_law, mu_law_inverse, quant_hardtanh, quant_relu
from art_qplugins.quantizers.precision import in_float32
from art_qplugins.quantizers.surrogates import SURROGATES
from art_qplugins.recipes.model import Quantization

NARROW = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *NARROW]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Tables that switch on each row of QUANTIZERS.
TABLES = [
    ("stochastic", {"activation_bits": 3, "alpha": 2.0}),
    ("stochastic", {"activation_bits": 3, "alpha": 1.5}),
    ("mu-law", {"mu": 255.0}),
    ("mu-law", {"mu": 255.0, "mu_normalize": True}),
    ("uniform", {"activation_bits": 8}),
    ("learned-clip", {"activation": "learned-clip", "activation_bits": 8, "clip": 0.5}),
    ("uniform-weight", {"weight_bits": 4}),
    ("uniform-weight", {"weight_bits": 4, "symmetric": False}),
]


def test_every_row_has_a_table_here():
    assert {name for name, _ in TABLES} == set(QUANTIZERS)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def values(device, dtype=torch.float32):
    """Some in [-0.9, 0.9], so that the mu-law is defined, as a matrix."""
    generator = torch.Generator().manual_seed(0)
    return (1.8 * torch.rand(40, 30, generator=generator) - 0.9).to(device, dtype)


def value_and_gradient(function, x):
    """Both also where the backward pass is inside the same context as the forward pass."""
    x = x.detach().requires_grad_()
    value = function(x)
    (gradient,) = torch.autograd.grad(value, x, torch.linspace(-1, 1, value.numel()).to(value).view(value.shape))
    return value.detach(), gradient


def check(function, x, autocast):
    """Under autocast to a dtype: what float32 gives without, and a gradient in the dtype of ``x``."""
    expected, slope = value_and_gradient(function, x.float())
    with torch.autocast(x.device.type, autocast):
        value, gradient = value_and_gradient(function, x)
    assert value.dtype == torch.float32 and gradient.dtype == x.dtype
    assert torch.equal(value, expected)
    assert torch.equal(gradient, slope.to(x.dtype)) and gradient.any()


@pytest.mark.parametrize("autocast", NARROW)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "table"), TABLES)
def test_a_registered_quantizer_gives_the_same_under_autocast(name, table, dtype, autocast, device):
    row, full = QUANTIZERS[name], Quantization(**table).model_dump()

    def quantized(x):  # made anew, so that a random one draws the same
        return row.make(full).to(device)(x)

    check(quantized, values(device, dtype) * (4 if row.place == "activation" else 1), autocast)


FUNCTIONS = {
    "entmax": lambda x: entmax(x, 1.5),
    "quant_hardtanh": lambda x: quant_hardtanh(x, 8),
    "mu_law": lambda x: mu_law(x, 255.0),
    "mu_law_inverse": lambda x: mu_law_inverse(x, 255.0),
    "the inverse of a mapping": MuLawMapping(255.0, normalize=True).inverse,
    "the information": lambda x: mutual_information(x.abs()),
    "the information of an image": lambda x: information(x.abs(), torch.full(x.shape[1:], 0.2)).sum(),
    "the information of members": lambda x: member_information(x.abs()),
    "the penalty": orthogonality_penalty,
    "the penalty of a tall matrix": lambda x: orthogonality_penalty(x[:, :7]),
    "the probabilities": StochasticQuantizer(2, alpha=1.5).probabilities,
    "the mean": StochasticQuantizer(2, alpha=1.5).full_precision,
    "the mean of unbiased rounding": StochasticQuantizer(2).full_precision,
    "the clip": QuantReLU(2).full_precision,
    "the clip of a Hardtanh": QuantHardtanh(2).full_precision,
    **{kind: QuantReLU(2, surrogate=kind) for kind in SURROGATES},
}


@pytest.mark.parametrize("autocast", NARROW)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_so_does_what_is_computed_from_one(function, dtype, autocast):
    check(function, values("cpu", dtype), autocast)


@pytest.mark.parametrize("shape", [(64, 576), (576, 64)])
@pytest.mark.parametrize("autocast", NARROW)
def test_the_penalty_has_no_gradient_at_an_orthonormal_matrix(autocast, shape, device):
    weight = nn.init.orthogonal_(torch.empty(shape)).to(device).requires_grad_()
    with torch.autocast(device, autocast):
        orthogonality_penalty(weight).backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.abs().max() < 1e-4  # 1e-2 where a matrix product is in bfloat16


@pytest.mark.parametrize("options", [{"activation_bits": 8}, {"activation_bits": 2, "alpha": 1.5}, {"weight_bits": 4}])
@pytest.mark.parametrize("autocast", NARROW)
def test_in_a_network_every_quantizer_gives_float32_of_what_is_narrow(autocast, options, device):
    network = quantize(ConvNet((1, 8, 8), 10, width=4), **options, trainable=True).to(device)
    seen = []
    maps = [m for name, m in network.named_modules() if ".parametrizations.weight." in name]
    for module in maps or [m for m, _ in activation_quantizers(network)]:
        module.register_forward_hook(lambda m, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast(device, autocast):
        logits = network(torch.rand(4, 1, 8, 8, device=device))
        logits.float().sum().backward()
    assert len(seen) >= 3 and {given for _, given in seen} == {torch.float32}
    assert autocast in {taken for taken, _ in seen} or maps  # weights are float32 anyway
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in network.parameters())
    assert network.get_parameter("conv1.parametrizations.weight.original" if maps else "conv1.weight").grad.any()


@pytest.mark.parametrize("autocast", NARROW)
def test_the_information_is_float32_also_where_the_loss_is_outside_of_autocast(autocast):
    network, defence = quantize(ConvNet((1, 8, 8), 10, width=4), 2, alpha=1.5), MutualInformation()
    defence.start(network)
    with torch.autocast("cpu", autocast):
        network(torch.rand(4, 1, 8, 8))
        within = defence.penalty(network)
    assert torch.equal(within, defence.penalty(network)) and within.dtype == torch.float32
    defence.finish(network)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "table"), TABLES)
def test_without_autocast_a_converted_network_computes_in_its_dtype(name, table, dtype):
    module = QUANTIZERS[name].make(Quantization(**table).model_dump()).to(dtype)
    value, gradient = value_and_gradient(module, values("cpu", dtype))
    assert value.dtype == gradient.dtype == dtype


def test_autocast_of_another_device_and_of_double_precision_changes_nothing():
    seen = []

    @in_float32
    def function(x, *, other):
        seen.append((x.dtype, other.dtype, torch.is_autocast_enabled("cpu")))
        return x

    one, two = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        function(one, other=two)
        assert torch.is_autocast_enabled("cpu")
    function(two, other=one)
    assert seen == [
        (torch.float64, torch.float32, False),
        (torch.bfloat16, torch.float64, False),
    ]
    assert function.__name__ == "function"


@pytest.mark.parametrize(
    ("dtype", "num_bits", "reached"),
    [
        *((torch.bfloat16, k, 2**k) for k in range(1, 8)),
        (torch.bfloat16, 8, 235),
        (torch.float16, 8, 256),
        (torch.float32, 8, 256),
    ],
)
def test_levels_on_zero_to_six_that_values_of_a_dtype_reach(dtype, num_bits, reached):
    if dtype == torch.float32:
        x = torch.linspace(-1, 7, 100_001)
    else:
        x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)  # all of them
    with torch.autocast("cpu", torch.bfloat16):
        assert len(quant_relu(x[x.isfinite()], num_bits).unique()) == reached
