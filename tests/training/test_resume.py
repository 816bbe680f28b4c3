"""A training that goes on from its state ends with the same bits as one that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from art_qplugins import InputError, quantize, train
from art_qplugins.defences.base import Defence
from art_qplugins.defences.information import BinSpacing, MutualInformation
from art_qplugins.defences.ranges import DataRange
from art_qplugins.models.convnet import ConvNet
from art_qplugins.training.state import read_state


class Killed(Exception):
    pass


class Kill(Defence):
    """Ends the training after some steps, as a kill does: nothing is written any more."""

    def __init__(self, after):
        self.left = after

    def after_step(self, model):
        self.left -= 1
        if self.left == 0:
            raise Killed


class Noise(Defence):
    """Random images, as adversarial training has, from the global generator."""

    def images(self, model, x, y):
        return (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


def network(**quantized):
    torch.manual_seed(1)
    model = nn.Sequential(ConvNet((1, 8, 8), 10, width=4), nn.Dropout(0.1))
    return quantize(model, **quantized) if quantized else model


@pytest.fixture(scope="session")
def splits(digits):
    return digits[0].take(90, seed=0), digits[1].take(40, seed=0)


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


CASES = {
    "plain": ({}, {}, []),
    "adamw, a warm-up and clipping": ({}, {"optimizer": "AdamW", "warmup": 0.5, "clip_norm": 0.5}, []),
    "best of an average": ({}, {"ema": 0.9, "keep": "best"}, []),
    "augmented, in parts": ({}, {"augment": ["crop", "flip"], "accumulate": 3}, []),
    "one cycle": ({}, {"schedule": "one-cycle", "learning_rate": 0.1}, []),
    "steps": ({}, {"schedule": ("MultiStepLR", {"milestones": [1, 2]}), "optimizer": "Adam"}, []),
    "16 bits": ({"activation_bits": 2}, {"precision": "bf16-mixed"}, []),
    "random": ({"activation_bits": 2, "alpha": 2.0}, {}, [DataRange, MutualInformation, BinSpacing, Noise]),
}


@pytest.mark.parametrize("killed_after", [1, 4, 6, 11])
@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(case, killed_after, splits, tmp_path):
    quantized, options, defences = CASES[case]
    state, told = tmp_path / "a-state.safetensors", []

    def go(after, **more):
        return train(
            network(**quantized),
            splits[0],
            [Kill(after), *(defence() for defence in defences)],
            epochs=3,
            batch_size=24,
            validation=splits[1],
            **{"learning_rate": 0.01, **options},
            **more,
        )

    with pytest.raises(Killed):
        go(killed_after, state=state, save_seconds=0)
    torch.manual_seed(999)  # global states have no part in it
    resumed = bits(go(0, state=state, save_seconds=0, progress=told.append))
    all_told = []
    assert same(resumed, bits(go(0, progress=all_told.append)))
    curve = [[(t.epoch, t.loss, t.validation_accuracy) for t in some if t.ends_epoch] for some in (told, all_told)]
    assert curve[0] == curve[1] and len(curve[0]) == 3


def test_a_training_that_is_done_is_not_done_again(splits, tmp_path):
    state = tmp_path / "state.safetensors"
    first = bits(train(network(), splits[0], epochs=2, state=state, save_seconds=0))
    again = train(network(), splits[0], [], epochs=2, state=state)
    assert same(bits(again), first) and state.exists()


def test_the_global_generators_are_where_they_were(splits):
    model = network(activation_bits=2, alpha=2.0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, splits[0], [Noise()], epochs=1)
    assert torch.equal(torch.rand(3), expected)


# --- A state that does not belong here


@pytest.fixture
def left(splits, tmp_path):
    """The state of a training of two epochs."""
    state = tmp_path / "left-state.safetensors"
    train(network(), splits[0], epochs=2, state=state, save_seconds=0)
    return state


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"optimizer": "AdamW"}, "optimizer is"),
        ({"optimizer": ("SGD", {"momentum": 0.5})}, "optimizer is"),
        ({"learning_rate": 0.5}, "learning_rate is 0.1 there and 0.5 here"),
        ({"epochs": 3}, "epochs is 2 there and 3 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"augment": ["flip"]}, "augment 0 is"),
        ({"defences": [Noise()]}, "defences is"),
    ],
)
def test_the_state_of_another_training_is_one_line(left, splits, changed, words):
    with pytest.raises(InputError, match=words) as caught:
        train(network(), splits[0], **{"epochs": 2, "state": left, **changed})
    assert "left-state.safetensors" in str(caught.value) and "delete it" in str(caught.value)


def test_the_state_of_more_processes_is_one_line(left):
    settings = json.loads(_metadata(left)["training"])["settings"]
    with pytest.raises(InputError, match=r"processes is 1 there and 2 here"):
        read_state(left, {**settings, "processes": 2})


def test_the_state_of_another_network_is_one_line(left, splits):
    torch.manual_seed(1)
    wider = nn.Sequential(ConvNet((1, 8, 8), 10, width=5), nn.Dropout(0.1))
    with pytest.raises(InputError, match=r"training state [^\n]*: made for another network"):
        train(wider, splits[0], epochs=2, state=left)


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_a_damaged_state_is_one_line_and_stays(left, splits, damage):
    content = left.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 1
    left.write_bytes({"cut": content[:-50], "flip": bytes(flipped), "text": b"hello world", "empty": b""}[damage])
    with pytest.raises(InputError, match=r"training state [^\n]*left-state.safetensors: it is damaged"):
        train(network(), splits[0], epochs=2, state=left)
    assert left.exists()


def test_a_loss_that_is_no_number_names_the_last_good_state(splits, tmp_path):
    class Nothing(Defence):
        def term(self, model, x, y, logits):
            self.steps = getattr(self, "steps", 0) + 1
            return logits.sum() * float("nan") if self.steps > 6 else 0.0

    state = tmp_path / "good-state.safetensors"
    with pytest.raises(InputError, match=r"training diverged: the loss is nan in epoch 2; .*good-state.safetensors"):
        train(network(), splits[0], [Nothing()], epochs=3, batch_size=24, state=state, save_seconds=0)
    settings = json.loads(_metadata(state)["training"])["settings"]
    kept = read_state(state, settings)
    assert all(torch.isfinite(value).all() for value in kept.part("model").values())
    assert (kept.epoch, kept.step) == (1, 2)


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


# --- The command


RECIPE = """
name = "killed"
data = { name = "digits", limit = 20 }
threat = { eps = [0.1] }
[[models]]
name = "a"
architecture = { name = "convnet", options = { width = 4 } }
train = { epochs = 3 }
[[attacks]]
id = "art:fgsm"
"""

#: Runs the command with a kill at a step, and with a state after each step.
KILLED = """
import os, signal, sys
from art_qplugins import cli
from art_qplugins.training import loop

step, left = loop.Loop._step, int(sys.argv.pop(1))

def counted(self, number, batch):
    global left
    self.save_seconds = 0
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, number, batch)

loop.Loop._step = counted
cli.main(sys.argv[1:])
"""


def test_kill_9_and_the_same_command_again(tmp_path, artq):
    (tmp_path / "r.toml").write_text(RECIPE)

    def command(out, left=0):
        argv = [
            sys.executable,
            "-c",
            KILLED,
            str(left),
            "train",
            str(tmp_path / "r.toml"),
            "--out",
            str(tmp_path / out),
        ]
        environment = {**os.environ, "RANK": "0", "OMP_NUM_THREADS": "1"}  # as many threads as here
        return subprocess.run(argv, capture_output=True, text=True, timeout=300, env=environment)

    for left in (30, 20):  # killed twice
        assert command("killed", left).returncode == -signal.SIGKILL
        (state,) = (tmp_path / "killed" / "checkpoints").glob("a-*-state.safetensors")
        assert _metadata(state) is not None
    done = command("killed")
    assert done.returncode == 0, done.stderr
    assert artq("train", tmp_path / "r.toml", "--out", tmp_path / "whole")[0] == 0
    files = [sorted((tmp_path / out / "checkpoints").iterdir()) for out in ("killed", "whole")]
    assert [f.name for f in files[0]] == [f.name for f in files[1]]  # and no state is left
    for one, other in zip(*files, strict=True):
        if one.suffix == ".safetensors":
            assert one.read_bytes() == other.read_bytes()
