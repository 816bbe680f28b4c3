"""The objective of stochastic-quantization ensembles: information and bin spacing, also of several processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import InputError, StochasticQuantizer, quantize, train
from art_qplugins.defences.information import BinSpacing, MutualInformation
from art_qplugins.defences.processes import batch_mean, together
from art_qplugins.information import entropy, member_information, mutual_information, pooled
from art_qplugins.models.convnet import ConvNet
from art_qplugins.quantizers.stochastic import stochastic_quantizers


def network():
    torch.manual_seed(1)
    return quantize(ConvNet((1, 8, 8), 10, width=4), activation_bits=2, alpha=2.0, clip=2.0)


@pytest.fixture(scope="session")
def few(digits):
    """(x, y) of 200 images."""
    data = digits[0].take(200, seed=0)
    return data.x(), data.y()


@pytest.mark.parametrize(
    ("of", "information"),
    [
        ("units", mutual_information),
        ("channels", lambda p: mutual_information(pooled(p))),
        ("members", member_information),
    ],
)
def test_the_defence_rewards_the_deepest_layers_information(few, of, information):
    model, defence = network(), MutualInformation(beta=0.3, of=of)
    layers, seen = stochastic_quantizers(model), []
    handle = layers[-1].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    defence.start(model)
    model(few[0][:20])
    penalty = defence.penalty(model)
    expected = -0.3 * information(layers[-1].probabilities(seen[0]))
    assert torch.equal(penalty, expected)
    (gradient,) = torch.autograd.grad(penalty, model.conv1.weight)
    assert gradient.any() and gradient.isfinite().all()
    defence.finish(model)
    handle.remove()
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_what_is_maximised_is_one_of_three():
    with pytest.raises(InputError, match=r"^of: it is .joint.; give .units. or .channels. or .members.$"):
        MutualInformation(of="joint")


def test_bin_spacing_is_the_mean_of_the_spacings_and_lowers_them(few):
    model, defence = network(), BinSpacing(weight=0.5)
    defence.start(model)
    spacings = [layer.spacing.item() for layer in stochastic_quantizers(model)]
    assert defence.penalty(model).item() == pytest.approx(0.5 * np.mean(spacings), rel=1e-5)
    trained = []
    for defences in ([], [BinSpacing(weight=0.5)]):
        layers = stochastic_quantizers(train(copy.deepcopy(model), few, defences, epochs=4, batch_size=20))
        trained.append(np.mean([layer.spacing.item() for layer in layers]))
    assert trained[1] < 0.8 * trained[0]


def test_relative_spacing_is_in_deviations_of_what_a_layer_reads():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    found = {}
    for scale in (1.0, 10.0):  # weights and bins scaled up together: the same network
        layer = StochasticQuantizer(2, low=-2 * scale, clip=2 * scale)
        model = nn.Sequential(nn.Linear(3, 3, bias=False), layer)
        model[0].weight.data = scale * torch.eye(3)
        for relative in (False, True):
            defence = BinSpacing(weight=1.0, relative=relative)
            defence.start(model)
            model(x)
            penalty = defence.penalty(model)
            found[scale, relative] = penalty.item()
            slopes = torch.autograd.grad(penalty, (layer.raw_spacing, model[0].weight), allow_unused=True)
            assert slopes[0] > 0 and slopes[1] is None  # it asks for finer bins, not for larger activations
            defence.finish(model)
    assert found[10.0, False] == pytest.approx(10 * found[1.0, False], rel=1e-4)
    assert found[10.0, True] == pytest.approx(found[1.0, True], rel=1e-4)
    assert found[1.0, True] == pytest.approx(4 / 3 / x.std(correction=0).item(), rel=1e-4)


def test_a_layer_that_reads_one_value_has_a_finite_relative_spacing():
    model = nn.Sequential(StochasticQuantizer(2))
    defence = BinSpacing(relative=True)
    defence.start(model)
    model(torch.zeros(4, 3))
    assert defence.penalty(model).isfinite()


# --- Several processes


def test_a_mean_over_processes_is_weighted_by_their_images_and_gives_each_the_gradient_of_the_whole():
    parts = [torch.rand(n, 5, 4, dtype=torch.float64).softmax(-1).requires_grad_() for n in (3, 2)]
    whole = torch.cat(parts)
    expected = torch.autograd.grad(entropy(whole.mean(0)).sum(), parts)
    for part, slope in zip(parts, expected, strict=True):
        other = next(one for one in parts if one is not part)
        theirs = torch.cat([len(other) * other.detach().mean(0).flatten(), torch.tensor([float(len(other))])])
        with together(lambda mine, theirs=theirs: mine + theirs):
            mean = batch_mean(part.mean(0), len(part))
        torch.testing.assert_close(mean, whole.mean(0))
        (found,) = torch.autograd.grad(entropy(mean).sum() * len(part) / len(whole), part)  # as training weights it
        torch.testing.assert_close(found, slope)
    alone = parts[0].mean(0)
    assert batch_mean(alone, 3) is alone


TOGETHER = """
import os, sys, torch
from torch import nn
from art_qplugins import StochasticQuantizer, train
from art_qplugins.defences import processes
from art_qplugins.defences.information import BinSpacing, MutualInformation

class Apart(MutualInformation):
    def penalty(self, model):
        with processes.together(None):
            return super().penalty(model)

class Aside(nn.Module):  # the answers do not depend on draws, and the penalty is smooth
    def __init__(self):
        super().__init__()
        self.conv, self.quantizer, self.fc = nn.Conv2d(1, 3, 3), StochasticQuantizer(2, alpha=1.0, low=-0.5, clip=0.5), nn.Linear(12, 2)
    def forward(self, x):
        read = self.conv(x)
        return self.fc(read.flatten(1)) + 0 * self.quantizer(read).sum()

torch.set_num_threads(1)
out, devices = sys.argv[1], int(sys.argv[2])
found = {}
for name, defences, accumulate in (
    *((of, [MutualInformation(5.0, of)], 1) for of in ("units", "channels", "members")),
    ("spacing", [BinSpacing(1.0, relative=True)], 1),
    ("apart", [Apart(5.0)], 1),
    ("in parts", [MutualInformation(5.0)], 4),  # 5 images in one process and 4 in the other
):
    torch.manual_seed(0)
    model, told = Aside(), []
    x = torch.rand(27, 1, 4, 4)
    train(model, (x, torch.arange(27) % 2), defences, epochs=1, batch_size=9, devices=devices, accumulate=accumulate,
          progress=told.append)
    found[name] = {**model.state_dict(), "loss": torch.tensor([one.loss for one in told if one.ends_epoch])}
torch.save(found, f"{out}/{os.environ.get('LOCAL_RANK', '0')}.pt")
"""


def start(folder, devices, launcher=()):
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(TOGETHER)
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), str(devices)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(path) for path in sorted(folder.glob("*.pt"))]


def test_two_processes_have_the_loss_and_the_gradient_of_one_with_the_whole_batch(tmp_path):
    (one,) = start(tmp_path / "one", 1)
    two = start(tmp_path / "two", 2, ("-m", "torch.distributed.run", "--nproc-per-node", "2"))
    assert len(two) == 2
    for name, trained in one.items():
        far = max(float((value - two[0][name][key]).abs().max()) for key, value in trained.items())
        assert far > 1e-3 if name == "apart" else far < 1e-5, (name, far)
        assert all(torch.equal(value, two[1][name][key]) for key, value in two[0][name].items())
