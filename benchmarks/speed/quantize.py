"""What ``quantize()`` costs: seconds for networks of torchvision, and a calibrated one beside its forward passes.

    python benchmarks/speed/quantize.py [--rounds 5] [--images 64]

A round measures all sides one after the other, in seconds of the processor, on one thread and with random weights. The fastest
run counts, because all else only makes a run slower. A ratio is that of the fastest runs; behind it is the median of the ratios
within rounds. ``quantize.md`` is the table.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from art_qplugins import quantize

HERE = Path(__file__).parent


def seconds_of(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if number:  # the first makes caches
                found[name].append(time.process_time() - began)
    return found


@torch.no_grad()
def passes(network: nn.Module, x: Tensor) -> None:
    """The images through the network, in the batches of a calibration."""
    for batch in x.split(16):
        network(batch)


def alone(rounds: int) -> list[str]:
    resnet = torchvision.models.resnet18(weights=None).eval()
    vit = torchvision.models.vit_b_16(weights=None).eval()
    sides = {
        "ResNet-18, 8-bit activations and weights, target 1": partial(quantize, resnet, 8, 8),
        "the same with batch norm folded": partial(quantize, resnet, 8, 8, fold_batch_norm=True),
        "ViT-B/16, 8-bit activations and weights, target 5": partial(quantize, vit, 8, 8),
    }
    return [f"| {name} | {min(took):.2f} |" for name, took in seconds_of(sides, rounds).items()]


def calibrated(rounds: int, images: int) -> list[str]:
    x = torch.rand(images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rows = []
    for name in ("resnet18", "mobilenet_v3_large"):
        network = getattr(torchvision.models, name)(weights=None).eval()
        sides: dict[str, Callable[[], object]] = {"passes": partial(passes, network, x)}
        for ranges in ("min-max", "percentile", "mse"):
            sides[ranges] = partial(quantize, network, 8, 8, ranges=ranges, calibration=x)
        took = seconds_of(sides, rounds)
        for ranges in list(sides)[1:]:
            ratio = min(took[ranges]) / min(took["passes"])
            within = statistics.median(a / b for a, b in zip(took[ranges], took["passes"], strict=True))
            rows.append(f"| {name}, {ranges} | {ratio:.2f} | {within:.2f} |")
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# quantize()",
        "",
        f"`python benchmarks/speed/quantize.py`, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, {platform.machine()}, one thread, {arguments.rounds} rounds.",
        "",
        "Without calibration.",
        "",
        "| network | seconds, fastest |",
        "|---|---|",
        *alone(arguments.rounds),
        "",
        f"Calibrated on {arguments.images} images of 224 x 224, beside their forward passes through the network in float. "
        "Target for ResNet-18: 1.2.",
        "",
        "| network, ranges | ratio of the fastest | median within rounds |",
        "|---|---|---|",
        *calibrated(arguments.rounds, arguments.images),
    ]
    (HERE / "quantize.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
