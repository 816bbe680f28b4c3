"""What stochastic quantization costs: a draw beside relu6, a training step beside the plain quantized one.

    python benchmarks/speed/stochastic.py [--rounds 15]

A round measures all sides one after the other, in seconds of the processor. A ratio is that of the fastest runs, because all else only makes a run slower; behind
it is the median of the ratios within rounds. Noise is drawn afresh, not frozen. The peak memory is what the process holds at most
beyond what it held before, in a process of its own. ``stochastic.md`` is the table.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_qplugins import StochasticQuantizer, quantize
from art_qplugins.defences.information import BinSpacing, MutualInformation
from art_qplugins.models.resnet import ResNet18

HERE = Path(__file__).parent
ELEMENTS = 2_000_000
ALPHAS = (1.0, 1.5, 2.0, 3.0)
BITS = (1, 2, 4, 8)
Runs = Mapping[str, Callable[[], object]]


def backward(module: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> None:
    """Forward and backward."""
    module(x.detach().requires_grad_()).backward(grad)


def draws(elements: int) -> Runs:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, elements // 16, generator=generator).mul_(2).add_(3)  # in place: the peak must come later
    grad = torch.randn(x.shape, generator=generator)

    def run(module: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: backward(module, x, grad)

    found = {"relu6": run(F.relu6)}
    for alpha in ALPHAS:
        for bits in BITS:
            found[f"alpha = {alpha:g}, {bits} bits"] = run(StochasticQuantizer(bits, alpha=alpha))
    return found


def step(network: nn.Module, penalties: list[MutualInformation | BinSpacing]) -> Callable[[], object]:
    """One training step of a batch of 32 images of CIFAR-10's size."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(32, 3, 32, 32, generator=generator), torch.arange(32) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    for penalty in penalties:
        penalty.start(network)

    def run() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        for penalty in penalties:
            loss = loss + penalty.penalty(network)
        loss.backward()
        optimizer.step()

    return run


def steps() -> Runs:
    torch.manual_seed(0)
    network = ResNet18((3, 32, 32), 10).train()
    plain = quantize(network, activation_bits=2)
    drawn = {alpha: quantize(network, activation_bits=2, alpha=alpha) for alpha in (2.0, 1.5)}
    whole = quantize(network, activation_bits=2, alpha=2.0)
    return {
        "plain 2 bits": step(plain, []),
        **{f"stochastic, alpha = {alpha:g}": step(one, []) for alpha, one in drawn.items()},
        "stochastic with the full objective, alpha = 2": step(whole, [MutualInformation(), BinSpacing()]),
    }


def compared(runs: Runs, rounds: int) -> list[str]:
    """Rows of the table: each run beside the first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if number:  # the first makes tables and caches
                seconds[name].append(time.process_time() - began)
    base, *others = seconds
    rows = []
    for name in others:
        ratio = min(seconds[name]) / min(seconds[base])
        within = statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
        rows.append(f"| {name} | {ratio:.2f} | {within:.2f} |")
        print(rows[-1], flush=True)
    return rows


def peak(name: str) -> float:
    """MiB that a draw takes beyond what the process holds without it."""
    command = [sys.executable, __file__, "--peak", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def held() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        small = torch.rand(16, 16)
        for run in (F.relu6, StochasticQuantizer(2), StochasticQuantizer(2, alpha=1.5)):
            backward(run, small, small)
        runs = draws(16 * ELEMENTS)  # so many that what the process held before is little beside them
        before = held()
        runs[arguments.peak]()
        print(held() - before)
        return
    # First, because a child begins with the most that its parent ever held.
    peaks = {name: peak(name) for name in ("relu6", "alpha = 2, 2 bits", "alpha = 1.5, 2 bits", "alpha = 1.5, 8 bits")}
    lines = [
        "# Stochastic quantization",
        "",
        f"`python benchmarks/speed/stochastic.py`, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, {platform.machine()}, "
        f"one thread, {arguments.rounds} rounds.",
        "",
        f"A draw, forward and backward with all gradients, on {ELEMENTS:,} elements, beside `relu6`. "
        "Targets: 4 at alpha = 2, 8 at others.",
        "",
        "| draw | ratio of the fastest | median within rounds |",
        "|---|---|---|",
        *compared(draws(ELEMENTS), arguments.rounds),
        "",
        "A training step of ResNet-18, 32 images, beside the plain quantized one. Target: 1.3.",
        "",
        "| step | ratio of the fastest | median within rounds |",
        "|---|---|---|",
        *compared(steps(), max(arguments.rounds // 5, 1)),
        "",
        "Peak memory of a draw beside that of `relu6`. Target: 3.",
        "",
        "| draw | ratio |",
        "|---|---|",
    ]
    lines += [f"| {name} | {held / peaks['relu6']:.2f} |" for name, held in peaks.items() if name != "relu6"]
    (HERE / "stochastic.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
