"""Bins that start where the training data lies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import InputError, QuantizedClassifier, StochasticQuantizer, quantize, train
from art_qplugins.defences.ranges import DataRange, quantile
from art_qplugins.models.wide_resnet import WideResNet
from art_qplugins.quantizers.stochastic import stochastic_quantizers
from art_qplugins.training.images import TrainingImages


def images(n=200):
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(n) % 3


def ends(layer):
    return tuple(float(end) for end in layer.range)


def looked(model, data, **options):
    defence = DataRange(**options)
    defence.start(model)
    torch.manual_seed(0)
    defence.look(model, TrainingImages(*data, 1), 0, lambda doing: None)
    return model


def test_bins_go_from_quantile_to_quantile_of_what_a_layer_reads():
    x, y = images()
    layer = StochasticQuantizer(3)
    model = nn.Sequential(nn.Flatten(), layer, nn.Linear(16, 3))
    looked(model, (10 * x - 3, y), low=0.25, high=0.75)
    assert ends(layer) == pytest.approx((-0.5, 4.5), abs=0.3)
    looked(model, (10 * x - 3, y), low=0.0, high=1.0)
    assert ends(layer) == pytest.approx((float(x.min()) * 10 - 3, float(x.max()) * 10 - 3), abs=1e-4)


def test_later_layers_are_measured_behind_the_bins_of_earlier_ones():
    first, second = StochasticQuantizer(2), StochasticQuantizer(2)
    double = nn.Linear(16, 16, bias=False)
    double.weight.data = 2 * torch.eye(16)
    x, y = images()
    looked(nn.Sequential(nn.Flatten(), first, double, second), (100 * x - 50, y), low=0.0, high=0.75)
    assert ends(first) == pytest.approx((-50, 25), abs=4)
    # The first one gives its four bins alone, and the last of them for more than a quarter of what it reads.
    assert ends(second) == pytest.approx(tuple(2 * end for end in ends(first)), rel=1e-5)


def test_only_bins_change_and_only_before_the_first_step():
    model = quantize(WideResNet((1, 8, 8), 10, depth=10, widen_factor=1), activation_bits=2, alpha=1.5).train()
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    before = {name: value.clone() for name, value in model.state_dict().items()}
    looked(model, (x, y), samples=16)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    layers = stochastic_quantizers(model)
    assert len(changed) == 2 * len(layers) and all(name.split(".")[-1] in ("offset", "raw_spacing") for name in changed)
    assert not any(m._forward_pre_hooks for m in model.modules())
    after = {name: value.clone() for name, value in model.state_dict().items()}
    defence = DataRange()
    defence.start(model)
    defence.look(model, TrainingImages(x, y, 1), 1, lambda doing: None)
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())


def test_training_starts_from_the_range():
    model = nn.Sequential(nn.Flatten(), StochasticQuantizer(2), nn.Linear(16, 3))
    x, y = images()
    train(model, (x, y), [DataRange(low=0.001)], epochs=1, learning_rate=1e-6)
    assert ends(model[1]) == pytest.approx((0, 1), abs=0.02)  # they were on [0, 6]


def test_a_shared_layer_has_the_range_of_its_first_use():
    layer = StochasticQuantizer(2)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(100 * self.layer(x.flatten(1)))

    looked(Twice(), images())
    assert ends(layer)[1] < 2


@pytest.mark.parametrize("value", [0.5, math.nan])
def test_one_value_is_no_range(value):
    model = nn.Sequential(nn.Flatten(), StochasticQuantizer(2), nn.Linear(16, 3))
    x, y = images()
    with pytest.raises(InputError, match=r"^data-range: what stochastic layer 1 reads goes from [^\n]+$"):
        train(model, (torch.full_like(x, value), y), [DataRange()], epochs=1)


def test_low_is_below_high():
    with pytest.raises(InputError, match=r"^data-range: low is 0\.9 and high is 0\.1; give a low below high$"):
        DataRange(low=0.9, high=0.1)


def test_a_network_without_stochastic_layers_is_refused():
    with pytest.raises(InputError, match=r"^defence 'data-range' needs stochastic layers"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), images(), [DataRange()], epochs=1)


def test_arts_fit_has_no_images_to_show_it():
    model = nn.Sequential(nn.Flatten(), StochasticQuantizer(2), nn.Linear(16, 3))
    made = QuantizedClassifier(
        model,
        nn.CrossEntropyLoss(),
        (1, 4, 4),
        3,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        training_defences=[DataRange()],
        device_type="cpu",
    )
    x, y = images()
    with pytest.raises(
        InputError, match=r"^training_defences: DataRange looks at all images [^\n]+art_qplugins\.train"
    ):
        made.fit(x.numpy(), y.numpy())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_a_quantile_is_a_value_that_so_large_a_share_does_not_exceed(n, share):
    x = torch.randperm(n, generator=torch.Generator().manual_seed(0)).double().view(1, n)
    assert float(quantile(x, share)) == np.quantile(x.numpy(), share, method="inverted_cdf")
