"""What the training engine costs: a step against a bare loop, memory, and two processes against one.

    python benchmarks/speed/training.py [PART ...]      # all of: engine quantized crafting compiled memory processes

Steps are measured in turn within each round, so that what else the machine does falls on both sides. A ratio is that of the
fastest steps, because all else only makes a step slower; behind it is the median of the ratios within rounds. Each part
replaces its rows in training.md.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import art_qplugins
from art_qplugins import quantize, train
from art_qplugins.defences.adversarial import AdversarialTraining
from art_qplugins.defences.base import Defence
from art_qplugins.defences.lipschitz import Orthogonality
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.resnet import ResNet8, ResNet18
from art_qplugins.models.wide_resnet import WideResNet

HERE = Path(__file__).parent
Row = tuple[str, str, str, bool]  # what, figure, target, whether it is met
Images = tuple[Tensor, Tensor]


def images(count: int, *shape: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((count, *shape), generator=generator), torch.arange(count) % 10


def compared(what: str, target: float, one: list[float], bare: list[float]) -> Row:
    """A row about the seconds of rounds of one against those of a bare loop."""
    ratio, within = min(one) / min(bare), statistics.median(a / b for a, b in zip(one, bare, strict=True))
    return what, f"{ratio:.3f} ({within:.3f})", f"at most {target:g}", ratio <= target


# --- A plain step


class Clock(Defence):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_step(self, model: nn.Module) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Of a step, without the first."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def bare_loop(network: nn.Module, data: Images, batch_size: int) -> float:
    """Seconds of a step of the loop that everybody writes, without its first."""
    x, y = data
    steps = len(x) // batch_size
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ends = []
    network.train()
    for rows in torch.randperm(len(x)).split(batch_size):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
        ends.append(time.perf_counter())
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def engine() -> Iterator[Row]:
    for what, make, data, batch_size, rounds, target in (
        ("a plain step, ResNet-18, batch 32", lambda: ResNet18((3, 32, 32), 10), images(96, 3, 32, 32), 32, 15, 1.05),
        ("a plain step, digits convnet, batch 64", lambda: ConvNet((1, 8, 8), 10), images(3200, 1, 8, 8), 64, 30, 1.15),
    ):
        ours, bare = [], []
        for _ in range(rounds + 1):
            clock = Clock()
            train(make(), data, [clock], epochs=1, batch_size=batch_size, learning_rate=0.01)
            ours.append(clock.seconds())
            bare.append(bare_loop(make(), data, batch_size))
        yield compared(what, target, ours[1:], bare[1:])


# --- Quantized and adversarial steps


def in_turn(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round but the first, which warms up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - started)
    return {name: seconds[1:] for name, seconds in found.items()}


def step_of(num_bits: int | None, beta: float) -> Callable[[], None]:
    """A training step of WRN-16-4, in batches of 32."""
    torch.manual_seed(0)
    network: nn.Module = WideResNet((3, 32, 32), 10, depth=16, widen_factor=4)
    if num_bits is not None:
        network = quantize(network, activation_bits=num_bits)
    network.train()
    penalty = Orthogonality(beta).penalty if beta > 0 else None
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x, y = images(32, 3, 32, 32)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(network(x), y)
        if penalty is not None:
            loss = loss + penalty(network)
        loss.backward()
        optimizer.step()

    return step


def quantized() -> Iterator[Row]:
    arms = {
        "orthogonality penalty, WRN-16-4, batch 32": (None, 2e-3, 1.05),
        "4-bit activations": (4, 0.0, 1.25),
        "both": (4, 2e-3, 1.3),
    }
    plain = {"plain": step_of(None, 0.0)}
    found = in_turn(plain | {name: step_of(bits, beta) for name, (bits, beta, _) in arms.items()}, rounds=10)
    for name, (_, _, target) in arms.items():
        yield compared(name, target, found[name], found["plain"])


def crafting(steps: int = 7) -> Iterator[Row]:
    for what, network, data, rounds in (
        ("PGD-7 adversarial training, digits convnet", ConvNet((1, 8, 8), 10), images(64, 1, 8, 8), 30),
        ("PGD-7 adversarial training, ResNet-18", ResNet18((3, 32, 32), 10), images(32, 3, 32, 32), 4),
    ):
        eight, several = [], []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            network.train()
            for _ in range(steps + 1):
                network.zero_grad(set_to_none=True)
                F.cross_entropy(network(data[0]), data[1]).backward()
            eight.append(time.perf_counter() - started)
            clock = Clock()
            # Two epochs of one step each: between their ends lies one whole step.
            train(network, data, [AdversarialTraining(steps=steps), clock], epochs=2, batch_size=64, learning_rate=1e-3)
            several.append(clock.seconds())
        yield compared(f"{what}, against eight bare passes", 1.05, several[1:], eight[1:])


# --- torch.compile


def compiled() -> Iterator[Row]:
    """Steps of compiled training by those of plain training, without the first, which compiles."""
    for what, quantization in (
        ("compiled ResNet-8, batch 64", {}),
        ("the same with 4-bit activations", {"activation_bits": 4}),
        ("the same with stochastic 2-bit activations", {"activation_bits": 2, "alpha": 2.0}),
    ):
        found: dict[bool, list[float]] = {False: [], True: []}
        first = 0.0
        for _ in range(3):
            for compile in found:
                torch.manual_seed(0)
                network: nn.Module = ResNet8((3, 32, 32), 10)
                network = quantize(network, **quantization) if quantization else network
                clock, started = Clock(), time.perf_counter()
                data = images(768, 3, 32, 32)
                train(network, data, [clock], epochs=1, batch_size=64, learning_rate=0.01, compile=compile)
                first = max(first, clock.ends[0] - started)
                found[compile] += [b - a for a, b in itertools.pairwise(clock.ends[1:])]
        what, figure, _, _ = compared(what, math.inf, found[True], found[False])
        yield f"{what}; its first step took {first:.0f} s", figure, "", True


# --- Memory


MEMORY = """
import json, sys
import numpy as np, torch
from art_qplugins import train
from art_qplugins.data.dataset import make_dataset
from art_qplugins.models.resnet import ResNet8

def status(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))

path, count, size, steps = sys.argv[1], *map(int, sys.argv[2:])
class Some:  # a data set whose images are in a mapped file
    def __init__(self, images):
        self.images, self.labels, self.scale = images, np.arange(len(images)) % 10, 255
few = Some(np.zeros((64, 3, size, size), np.uint8))
torch.manual_seed(0)
network = ResNet8((3, size, size), 10, width=4)
def stop(told):
    if told.step >= steps:
        raise KeyboardInterrupt
def some_steps(data):
    try:
        train(network, data, epochs=1, batch_size=32, augment=["flip"], progress=stop)
    except KeyboardInterrupt:
        pass
import art_qplugins.training.loop as loop
loop._TELL = 0.0
some_steps(few)
before = [status(key) for key in ("VmRSS", "RssAnon")]
many = Some(np.load(path, mmap_mode="r"))  # kept, so that its pages are counted
some_steps(many)
print(json.dumps([status(key) - was for key, was in zip(("VmRSS", "RssAnon"), before)]))
"""


def memory() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for count, size, steps, key, what, target in (
            (50_000, 32, 1562, 0, "an epoch of 50,000 images of 32x32: host memory in MiB above the framework's", 200),
            (
                100_000,
                224,
                60,
                1,
                "60 batches of 100,000 images of 224x224: the same, without the pages of the file",
                200,
            ),
        ):
            path = Path(folder, f"{count}.npy")
            pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, size, size))
            if key == 0:  # the other file stays one with holes, since it would take 15 GB
                pixels[:] = 1
            pixels.flush()
            found = json.loads(_python(MEMORY, str(path), *map(str, (count, size, steps))).splitlines()[-1])
            yield what, f"{found[key]:.0f}", f"at most {target}", found[key] <= target


# --- Two processes


TOGETHER = """
import os, sys, time, torch
from torch import nn
from art_qplugins import train
torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(),
    nn.Conv2d(64, 64, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 49, 10),
)
generator = torch.Generator().manual_seed(0)
data = torch.rand((4096, 3, 32, 32), generator=generator), torch.arange(4096) % 10
told = []
train(network, data, epochs=2, batch_size=128, devices=int(sys.argv[2]), learning_rate=0.01,
      progress=lambda p: told.append(time.perf_counter()) if p.ends_epoch else None)
if os.environ.get("LOCAL_RANK", "0") == "0":
    torch.save([network.state_dict(), told[1] - told[0]], sys.argv[1])
"""


def processes() -> Iterator[Row]:
    ratios, apart = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "together.py")
        script.write_text(TOGETHER)
        for _ in range(3):
            results = []
            for devices in (1, 2):
                out = Path(folder, f"{devices}.pt")
                _python(None, str(script), str(out), str(devices))
                results.append(torch.load(out))
            (one, alone), (two, together) = results
            ratios.append(together / alone)
            apart = max(apart, *(float((one[k] - two[k]).abs().max()) for k in one))
    yield "greatest difference of a weight, two processes and one", f"{apart:.1e}", "rounding", apart < 1e-4
    ratio = statistics.median(ratios)
    yield "seconds of the second epoch, two processes by one", f"{ratio:.2f}", "at most 0.65", ratio <= 0.65


def _python(code: str | None, *arguments: str) -> str:
    command = [sys.executable, *(("-c", code) if code is not None else ()), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


PARTS = {
    "engine": engine,
    "quantized": quantized,
    "crafting": crafting,
    "compiled": compiled,
    "memory": memory,
    "processes": processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help=argparse.SUPPRESS)
    wanted = parser.parse_args().parts or list(PARTS)
    torch.set_num_threads(1)
    path = HERE / "training.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for part in wanted:
        rows = [list(row) for row in PARTS[part]()]
        kept[part] = {
            "about": f"{datetime.date.today()}, torch {torch.__version__}, Python {platform.python_version()}, "
            f"{platform.machine()}, one thread, art_qplugins {art_qplugins.__version__}",
            "rows": rows,
        }
        for row in rows:
            print(*row, sep=" | ", flush=True)
        path.write_text(json.dumps(kept, indent=1))
        (HERE / "training.md").write_text(table(kept))


def table(kept: dict[str, dict[str, object]]) -> str:
    lines = ["# What training costs", "", "| part | what | figure | target | |", "|---|---|---|---|---|"]
    for part in PARTS:
        for what, figure, target, met in kept.get(part, {}).get("rows", []):  # type: ignore[attr-defined]
            lines.append(
                f"| {part} | {what} | {figure} | {target} | {('met' if met else 'missed') if target else ''} |"
            )
    lines += ["", "Ratios: of the fastest steps, and in brackets the median of the ratios within rounds.", ""]
    lines += [f"{part}: {kept[part]['about']}." for part in PARTS if part in kept]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
