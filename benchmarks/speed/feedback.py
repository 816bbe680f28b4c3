"""What a margin search takes beside its forward passes: time, passes for each margin, and memory.

    python benchmarks/speed/feedback.py [--rounds 7]

Networks are MNIST's and a WRN-10-1. Their weights are random: only the costs are measured, and margins exist all the same. A round is
one search and one plain loop of as many passes of full batches, one after the other; the ratio is of their times. The memory is the
most that the process holds during a search, in a process of its own for each size. ``feedback.md`` is the table.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from art_qplugins import margins, random_directions
from art_qplugins.models.mnist_cnn import MnistCNN
from art_qplugins.models.wide_resnet import WideResNet

HERE = Path(__file__).parent
BATCH = 128
NETWORKS = {
    "mnist-cnn, width 8": (lambda: MnistCNN((1, 28, 28), 10, width=8), (1, 28, 28)),
    "mnist-cnn": (lambda: MnistCNN((1, 28, 28), 10), (1, 28, 28)),
    "WRN-10-1": (lambda: WideResNet((3, 32, 32), 10, depth=10, widen_factor=1), (3, 32, 32)),
}
#: (images, directions) whose peaks of memory are compared.
SIZES = ((20, 50), (200, 50), (200, 200))


def setting(name: str, images: int, directions: int) -> tuple[nn.Module, Tensor, Tensor, Tensor, float]:
    """A network, images that it answers with their labels, directions, and the largest distance."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network, x = make().eval(), torch.rand(images, *shape)
    with torch.no_grad():
        y = torch.cat([network(part) for part in x.split(BATCH)]).argmax(1)
    return network, x, y, random_directions(directions, shape), x[0].numel() ** 0.5


def search(name: str, tolerance: float, rounds: int) -> str:
    """One row: time beside bare passes, and passes for each margin that was found."""
    network, x, y, directions, largest = setting(name, 24, 20)
    found = margins(network, x, y, directions, largest=largest, tolerance=tolerance, batch_size=BATCH)
    known = found.distance.isfinite() & (found.distance > 0)
    batch, ratios = x[torch.arange(BATCH) % len(x)], []
    for _ in range(rounds):
        ratios.append(
            timed(lambda: margins(network, x, y, directions, largest=largest, tolerance=tolerance, batch_size=BATCH))
        )
        ratios[-1] /= timed(lambda: bare(network, batch, found.passes))
    pairs = found.distance.numel()
    return (
        f"| {name} | {tolerance:g} | {int(known.sum())} of {pairs} | {found.passes / pairs:.1f} | {median(ratios):.2f} "
        f"| {min(ratios):.2f} to {max(ratios):.2f} |"
    )


@torch.no_grad()
def bare(network: nn.Module, batch: Tensor, passes: int) -> None:
    for begin in range(0, passes, len(batch)):
        network(batch[: passes - begin])


def timed(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak(images: int, directions: int) -> float:
    """MiB that a process holds at most in a search of this size."""
    command = [sys.executable, __file__, "--peak", str(images), str(directions)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", nargs=2, type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        network, x, y, directions, largest = setting("mnist-cnn, width 8", *arguments.peak)
        margins(network, x, y, directions, largest=largest, tolerance=0.1, batch_size=BATCH)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    lines = [
        "# Margin search",
        "",
        f"`python benchmarks/speed/feedback.py`, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, {platform.machine()}, one thread.",
        f"24 images, 20 directions, batches of {BATCH}; times are medians of {arguments.rounds} interleaved rounds.",
        "",
        "| network | tolerance | margins found | passes each | time beside bare passes | rounds |",
        "|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        for tolerance in (1e-3, 0.05):
            lines.append(search(name, tolerance, arguments.rounds))
            print(lines[-1], flush=True)
    lines += ["", "| images | directions | peak memory, MiB |", "|---|---|---|"]
    for images, directions in SIZES:
        lines.append(f"| {images} | {directions} | {peak(images, directions):.0f} |")
        print(lines[-1], flush=True)
    (HERE / "feedback.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
