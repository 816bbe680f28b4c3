"""What a training is: its steps by hand, its options, what it tells, and what it refuses."""

from __future__ import annotations

import copy
import functools
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from art_qplugins import InputError, quantize, train
from art_qplugins.defences.base import Defence
from art_qplugins.models.convnet import ConvNet
from art_qplugins.recipes.model import Training
from art_qplugins.training import loop
from art_qplugins.training.engine import _ARGUMENTS


def linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def convnet():
    torch.manual_seed(1)
    return ConvNet((1, 8, 8), 10, width=4)


@pytest.fixture(scope="session")
def splits(digits):
    return digits[0].take(90, seed=0), digits[1].take(40, seed=0)


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


class Seen(Defence):
    """The batches of a training."""

    def __init__(self):
        self.batches = []

    def images(self, model, x, y):
        self.batches.append((x.clone(), y.clone()))
        return x


def by_hand(model, batches, make_optimizer, rates):
    """Steps on these batches, each with its rate."""
    optimizer = make_optimizer(model.parameters())
    for (x, y), rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


SCHEDULES = {
    "constant": ({}, lambda step: 1.0),
    "cosine": ({}, lambda step: (1 + math.cos(math.pi * step / 12)) / 2),
    "MultiStepLR": ({"milestones": [1, 2], "gamma": 0.1}, lambda step: 0.1 ** (step // 4)),
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_schedule_is_its_formula(schedule, splits):
    options, factor = SCHEDULES[schedule]
    seen, start = Seen(), linear()
    expected = copy.deepcopy(start)
    train(start, splits[0], [seen], epochs=3, batch_size=24, schedule=(schedule, options), learning_rate=0.1)
    rates = [0.1 * factor(step) for step in range(12)]
    by_hand(
        expected,
        seen.batches,
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        rates,
    )
    torch.testing.assert_close(weights(start), weights(expected), rtol=1e-4, atol=1e-5)


def test_a_warm_up_grows_in_a_line_to_the_learning_rate(splits, monkeypatch):
    monkeypatch.setattr(loop, "_TELL", 0.0)
    told, options = [], {"schedule": "constant", "warmup": 1.5, "learning_rate": 0.4}
    train(linear(), splits[0], epochs=2, batch_size=24, progress=told.append, **options)
    # Six of eight steps, of which the first has a seventh of the rate.
    assert [t.learning_rate for t in told] == pytest.approx([0.4 * min(step + 1, 7) / 7 for step in range(1, 9)])


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", ("SGD", {"momentum": 0.0, "nesterov": False})], ids=str)
def test_an_optimizer_is_torchs(optimizer, splits):
    name, options = (optimizer, {}) if isinstance(optimizer, str) else optimizer
    seen, start = Seen(), linear()
    expected = copy.deepcopy(start)
    options = {"momentum": 0.9, "nesterov": True, **options} if name == "SGD" else options
    common = {"learning_rate": 0.01, "schedule": "constant", "weight_decay": 0.1}
    train(start, splits[0], [seen], epochs=2, batch_size=24, optimizer=optimizer, **common)
    make = getattr(torch.optim, name)
    by_hand(expected, seen.batches, lambda p: make(p, lr=0.01, weight_decay=0.1, **options), [0.01] * 8)
    torch.testing.assert_close(weights(start), weights(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts, splits):
    models = [train(linear(), splits[0], epochs=2, batch_size=25, accumulate=n) for n in (1, parts)]
    torch.testing.assert_close(*map(weights, models), rtol=1e-4, atol=1e-5)


def test_a_clipped_gradient_has_the_norm(splits):
    start = linear()
    before = weights(start)
    options = {"optimizer": ("SGD", {"momentum": 0.0, "nesterov": False}), "weight_decay": 0.0, "schedule": "constant"}
    train(start, splits[0], epochs=1, batch_size=90, clip_norm=1e-3, learning_rate=1.0, **options)
    assert float((weights(start) - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_the_average_of_weights_is_what_is_kept(splits):
    class Weights(Defence):
        def __init__(self):
            self.all = []

        def after_step(self, model):
            self.all.append(weights(model))

    seen = Weights()
    averaged = train(linear(), splits[0], [seen], epochs=1, batch_size=30, ema=0.75)
    expected = seen.all[0]
    for one in seen.all[1:]:
        expected = 0.75 * expected + 0.25 * one
    torch.testing.assert_close(weights(averaged), expected, rtol=1e-5, atol=1e-6)


def test_the_best_epoch_is_kept_and_not_the_last(splits):
    class Ruin(Defence):
        """After the second epoch the network answers one class."""

        def __init__(self):
            self.steps = 0

        def after_step(self, model):
            self.steps += 1
            if self.steps == 4:
                self.good = weights(model)
            if self.steps > 4:
                with torch.no_grad():
                    model[1].weight.zero_()

    for keep in ("best", "last"):
        ruin, told = Ruin(), []
        model = train(
            linear(),
            splits[0],
            [ruin],
            epochs=4,
            batch_size=45,
            learning_rate=0.2,
            validation=splits[1],
            keep=keep,
            progress=told.append,
        )
        accuracies = [t.validation_accuracy for t in told if t.ends_epoch]
        assert accuracies[1] > max(accuracies[2:]) + 0.2, accuracies
        assert bool(weights(model)[:640].any()) == (keep == "best")


def test_validation_changes_nothing_of_the_training(splits):
    models = [
        train(quantize(convnet(), activation_bits=2, alpha=2.0), splits[0], epochs=2, validation=held)
        for held in (None, splits[1])
    ]
    assert torch.equal(*map(weights, models))


def test_channels_last_is_the_same_training(splits):
    models = [train(convnet(), splits[0], epochs=2, channels_last=flag) for flag in (False, True)]
    torch.testing.assert_close(*map(weights, models), rtol=1e-3, atol=1e-4)
    assert all(p.is_contiguous() for p in models[1].parameters())


def test_sixteen_bits_train_weights_in_float32(splits):
    model = train(quantize(convnet(), activation_bits=4), splits[0], epochs=2, precision="bf16-mixed")
    assert all(value.dtype == torch.float32 for value in model.parameters())
    full = train(quantize(convnet(), activation_bits=4), splits[0], epochs=2)
    difference = (weights(model) - weights(full)).abs().max()
    assert 0 < float(difference) < 0.2


def test_within_an_epoch_it_tells_once_a_second(splits, monkeypatch):
    monkeypatch.setattr(loop, "_TELL", 0.0)
    told = []
    train(linear(), splits[0], epochs=2, batch_size=24, progress=told.append)
    assert [(t.step, t.epoch, t.ends_epoch) for t in told] == [
        *((1, 0, False), (2, 0, False), (3, 0, False), (4, 1, True)),
        *((5, 1, False), (6, 1, False), (7, 1, False), (8, 2, True)),
    ]
    assert told[-1].seconds_left == 0 and all(t.images_per_second > 0 and t.steps == 8 for t in told)


# --- What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "sgd"}, "optimizer: unknown optimizer 'sgd'; there is: Adam, AdamW, SGD"),
        ({"optimizer": ("SGD", {"momentum": 2})}, "optimizer: SGD: option momentum: it is 2"),
        ({"optimizer": ("SGD", {"momentum": 0.0})}, "momentum is 0.0 and nesterov is True; give nesterov = false"),
        ({"schedule": "cosin"}, "schedule: unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"schedule": "MultiStepLR"}, "MultiStepLR has no milestones"),
        ({"schedule": ("MultiStepLR", {"milestones": [2]})}, "milestone 2 is beyond the training of 2 epochs"),
        ({"schedule": ("MultiStepLR", {"milestones": [2, 1]})}, "do not grow"),
        ({"warmup": 2}, "warmup: it takes 2 epochs and training has 2"),
        ({"warmup": 1, "schedule": "one-cycle"}, "warmup: a one-cycle schedule warms up by itself"),
        ({"augment": ["flop"]}, "augment: unknown augmentation 'flop'; did you mean 'flip'"),
        ({"keep": "best"}, 'keep: "best" needs images to validate on'),
        ({"precision": "16-mixed"}, 'precision: "16-mixed" needs a GPU'),
        ({"precision": "bf16"}, "precision: it is 'bf16'"),
        ({"validation": 5}, "validation: it is 5"),
    ],
)
def test_bad_options_are_one_line_and_train_nothing(splits, options, words):
    model = linear()
    before = weights(model)
    with pytest.raises(InputError) as caught:
        train(model, splits[0], **{"epochs": 2, **options})
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert torch.equal(weights(model), before)


def test_a_recipe_can_say_every_option():
    elsewhere = {"model", "defences", "seed", "devices", "state", "save_seconds", "progress"}
    assert set(Training().arguments()) == _ARGUMENTS.keys() - elsewhere


# --- Several processes

TOGETHER = """
import os, sys, torch
from torch import nn
from art_qplugins import load, quantize, train
from art_qplugins.defences.lipschitz import Orthogonality

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
model = quantize(model, activation_bits=4)
out, devices, accumulate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
# 1,198 images: the last batch is smaller, and odd.
data = load("digits", "train").take(1149, seed=0)
train(model, data, [Orthogonality(1e-3)], epochs=2, batch_size=50, devices=devices, accumulate=accumulate,
      augment=["crop"], clip_norm=1.0, validation=load("digits", "test").take(51, seed=0), keep="best")
torch.save(model.state_dict(), f"{out}/{os.environ.get('LOCAL_RANK', '0')}.pt")
"""


def start(folder, devices, accumulate=1, launcher=()):
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(TOGETHER)
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), str(devices), str(accumulate)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(path) for path in sorted(folder.glob("*.pt"))]


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


def test_a_compiled_network_ends_with_the_same_weights(splits, monkeypatch):
    """With a compiler that changes no operation, and takes no minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    one, other = (train(convnet(), splits[0], epochs=1, compile=compile) for compile in (True, False))
    torch.testing.assert_close(weights(one), weights(other))


@pytest.mark.parametrize(
    ("launcher", "accumulate"),
    [pytest.param((), 1, marks=pytest.mark.slow), (TORCHRUN, 2)],
    ids=["alone", "torchrun, in parts"],
)
def test_two_processes_end_with_the_weights_of_one(launcher, accumulate, tmp_path):
    (one,) = start(tmp_path / "one", 1)
    two = start(tmp_path / "two", 2, accumulate, launcher)
    assert len(two) == 2
    for name, value in one.items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(two[0][name], two[1][name])


@pytest.mark.slow
def test_random_layers_of_two_processes_draw_apart(tmp_path):
    code = TOGETHER.replace("activation_bits=4", "activation_bits=2, alpha=2.0").replace(
        "train(model",
        "noise = []\nmodel[1].register_forward_hook(lambda m, i, o: noise.append(float(o.sum())))\ntrain(model",
    )
    code = code.replace("model.state_dict()", "noise[:3]").replace(
        'load("digits", "train").take(1149, seed=0)', "twins()"
    )
    code = code.replace("torch.set_num_threads(1)", SAME_IMAGES)
    (tmp_path / "t.py").write_text(code)
    argv = [sys.executable, *TORCHRUN, str(tmp_path / "t.py"), str(tmp_path), "2", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(zero) == 3 and all(a != b for a, b in zip(zero, one, strict=True))


#: A data set of one image, so that processes differ in their noise alone.
SAME_IMAGES = """
def twins():
    x = torch.full((100, 1, 8, 8), 0.3)
    return x, torch.zeros(100, dtype=torch.int64)
torch.set_num_threads(1)
"""
