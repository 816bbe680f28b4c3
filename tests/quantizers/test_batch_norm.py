"""Batch norm folded into the layer before it: the same answers, and nothing left in silence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_qplugins import InputError, quantization_report, quantize
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers.batch_norm import fold_batch_norm

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(model):
    """With statistics and weights that are not those of a new network."""
    generator = torch.Generator().manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean.normal_(generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
            if m.affine:
                nn.init.normal_(m.weight, generator=generator)
                nn.init.normal_(m.bias, generator=generator)
    return model.double().eval()


def norms(model):
    return [name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class Residual(nn.Module):
    """Both are inside a forward, and one convolution is grouped and has a bias."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4, affine=False)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x))) + x


FOLDED = {
    "convnet": lambda: ConvNet((1, 8, 8), 10, width=4),
    "sequential": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False), nn.BatchNorm1d(5)),
    "residual": lambda: nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4), Residual(), Residual()),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_folded_network_has_the_same_answers_and_no_batch_norm(name):
    model = trained(FOLDED[name]())
    expected, found = model(X.double()), norms(model)
    twin = quantize(model, weight_bits=16, fold_batch_norm=True, strict=True)
    torch.testing.assert_close(twin(X.double()), expected, rtol=1e-3, atol=1e-3)
    assert norms(twin) == [] and norms(model) == found and found
    assert torch.equal(model(X.double()), expected)
    assert fold_batch_norm(model) == []
    torch.testing.assert_close(model(X.double()), expected)


class Before(nn.Module):
    """A batch norm before its convolution, as in networks with pre-activation."""

    def __init__(self):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(self.bn(x))


class Both(nn.Module):
    """The convolution's values are used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        h = self.conv(x)
        return self.bn(h) + h


class Again(Both):
    """The convolution is called twice."""

    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv(2 * x)


class Choosing(Both):
    """It cannot be traced."""

    def forward(self, x):
        return self.bn(self.conv(x)) if x.sum() > 0 else self.conv(x)


class OfTheBatch(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))


class Shared(nn.Module):
    """One convolution before two batch norms."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(1, 2, 3)
        self.a, self.b = nn.Sequential(conv, nn.BatchNorm2d(2)), nn.Sequential(conv, nn.BatchNorm2d(2))

    def forward(self, x):
        return self.a(x) + self.b(x)


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (Before, ["bn"]),
        (Both, ["bn"]),
        (Again, ["bn"]),
        (Choosing, ["bn"]),
        (OfTheBatch, ["1"]),
        (Shared, ["a.1", "b.1"]),
    ],
)
def test_one_that_cannot_be_folded_stays_and_is_named(network, left):
    model = trained(network())
    with pytest.warns(UserWarning, match=rf"in float after quantize\(\): {left[0]} \(BatchNorm2d\)"):
        twin = quantize(model, weight_bits=16, fold_batch_norm=True)
    assert norms(twin) == left
    torch.testing.assert_close(twin(X.double()), model(X.double()), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match=rf"{left[0]} \(BatchNorm2d\)"):
        quantize(model, weight_bits=16, fold_batch_norm=True, strict=True)


def test_weights_are_quantized_after_they_were_folded():
    twin = quantize(trained(ConvNet((1, 8, 8), 10, width=4)), 4, 4, fold_batch_norm=True, strict=True)
    assert {p.bits for p in quantization_report(twin)} == {4}
    assert all(len(channel.unique()) <= 15 for channel in twin.conv1.weight)
