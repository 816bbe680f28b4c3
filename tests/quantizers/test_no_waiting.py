"""A training step reads no number back from the device: quantizers, penalties and estimates compute with tensors alone.

On a GPU each such number makes the CPU wait until all before it is computed. Here an operation that would is refused.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from art_qplugins import quantize
from art_qplugins.defences import DEFENCES
from art_qplugins.models.wide_resnet import WideResNet
from art_qplugins.quantizers import noise, stochastic
from art_qplugins.quantizers.surrogates import SURROGATES, surrogate

#: Numbers or shapes that depend on data, and tensors made of Python's numbers, which are on the CPU.
REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "lift_fresh")


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name == "index" and any(part.dtype == torch.bool for part in args[1] if part is not None)
        assert name not in REFUSED and not masks, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """On the CPU some steps take numbers and noise of numpy, since there is nothing to wait for."""
    monkeypatch.setattr(stochastic, "_scalar", lambda value: value)
    monkeypatch.setattr(noise, "_words", noise._words_of_the_device)


def network(**table):
    blank = WideResNet((1, 8, 8), 10, depth=10, widen_factor=1, aggregation=True)
    model = quantize(blank, **table, trainable=True).train()
    model(torch.rand(2, 1, 8, 8)).sum().backward()  # tables of noise are made once, on the CPU
    model.zero_grad()
    return model


def step(model, x, y, term=lambda logits: 0.0):
    with NoWaiting():
        logits = model(x)
        (nn.functional.cross_entropy(logits, y) + term(logits)).backward()


@pytest.fixture
def batch():
    return torch.rand(6, 1, 8, 8), torch.arange(6)


@pytest.mark.parametrize(
    "table",
    [
        {"activation_bits": 4},
        {"activation_bits": 4, "activation": "learned-clip"},
        {"activation_bits": 2, "alpha": 2.0},
        {"activation_bits": 2, "alpha": 1.5},
        {"activation_bits": 2, "alpha": 1.0},
        {"weight_bits": 4},
        {"weight_bits": 1, "granularity": "per_tensor"},
        {"weight_bits": 4, "symmetric": False},
        {"mu": 255.0, "mu_layers": 2, "mu_normalize": True},
    ],
    ids=str,
)
def test_a_quantized_step_waits_for_nothing(table, batch):
    step(network(**table), *batch)


@pytest.mark.parametrize("kind", SURROGATES)
def test_no_surrogate_waits(kind, batch):
    model = network(activation_bits=2)
    with surrogate(model, kind):
        step(model, *batch)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("orthogonality", {}),
        ("convex-aggregation", {}),
        *(("mutual-information", {"of": of}) for of in ("units", "channels", "members")),
        *(("bin-spacing", {"relative": relative}) for relative in (False, True)),
    ],
)
@pytest.mark.parametrize("alpha", [2.0, 1.5])
def test_no_term_of_the_loss_waits(name, options, alpha, batch):
    model, defence = network(activation_bits=2, alpha=alpha), DEFENCES[name].load()(**options)
    defence.start(model)
    step(model, *batch, lambda logits: defence.term(model, *batch, logits))
    with NoWaiting():
        defence.after_step(model)
    defence.finish(model)


class _Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return grad * float(ctx.saved_tensors[0].sum())


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x * float(x.sum()),
        lambda x: x * x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0],
        lambda x: x * torch.tensor(2.0),
        _Reads.apply,
    ],
)
def test_the_check_can_fail(waits):
    x = torch.rand(3, requires_grad=True)
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        waits(x).sum().backward()
