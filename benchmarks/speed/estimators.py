"""How fast the estimators are, as ratios: against ART's ``PyTorchClassifier`` and against a bare loop of passes.

    python benchmarks/speed/estimators.py [--rounds 15] [--threads 1] [--out FILE.md]

Every arm of a comparison is run in turn within each round, so that what else the machine does falls on all of them; the
ratio is the median over rounds of the ratio within a round. With randomness off, our results are compared with ART's
first: a difference above 1e-6 (relative to the largest value) ends the program.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn import functional as F

import art_qplugins
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.resnet import ResNet18
from art_qplugins.models.wide_resnet import WideResNet
from art_qplugins.quantizers import QuantReLU, quantize

Arms = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One ratio and its target; ``at_most`` True where smaller is better."""

    what: str
    ratio: float
    target: float
    at_most: bool

    def __str__(self) -> str:
        met = self.ratio <= self.target if self.at_most else self.ratio >= self.target
        off = "" if met else f", missed by {abs(self.ratio / self.target - 1):.0%}"
        return f"| {self.what} | {self.ratio:.2f} | {'≤' if self.at_most else '≥'} {self.target:g} | {'met' if met else 'missed'}{off} |"


def times(arms: Arms, rounds: int) -> dict[str, list[float]]:
    """Seconds of every arm in every round; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def same(ours: np.ndarray, arts: np.ndarray, what: str) -> None:
    difference = float(np.abs(ours - arts).max() / np.abs(arts).max())
    if difference > 1e-6:
        sys.exit(f"{what}: our result differs from ART's by {difference:.2g} of the largest value")


def network_rows(
    name: str, network: nn.Module, n: int, shape: tuple[int, int, int], rounds: int, classes: int
) -> list[Row]:
    """All micro-benchmarks of one network."""
    network.eval()
    rng = np.random.default_rng(0)
    x = rng.random((n, *shape), dtype=np.float32)
    y = np.arange(n) % classes
    one_hot = np.eye(classes, dtype=np.float32)[y]
    loss, contract = nn.CrossEntropyLoss(), (shape, classes)
    device = "cpu" if not torch.cuda.is_available() else "gpu"
    ours = QuantizedClassifier(network, loss, *contract, device_type=device)
    arts = {
        "ART": PyTorchClassifier(network, loss, *contract, clip_values=(0, 1), device_type=device),
        "ART, preprocessing None": PyTorchClassifier(
            network, loss, *contract, clip_values=(0, 1), preprocessing=None, device_type=device
        ),
    }
    tensor, labels = torch.from_numpy(x).to(ours.device), torch.from_numpy(y).to(ours.device)

    def bare_gradient() -> object:
        leaf = tensor.clone().requires_grad_()
        return torch.autograd.grad(loss(network(leaf), labels), leaf)

    def bare_forward() -> object:
        with torch.no_grad():
            return network(tensor)

    rows = []
    for art_name, art in arts.items():
        same(ours.predict(x), art.predict(x), f"{name} predict")
        same(ours.loss_gradient(x, one_hot), art.loss_gradient(x, one_hot), f"{name} loss_gradient")
        same(ours.class_gradient(x, label=y), art.class_gradient(x, label=y), f"{name} class_gradient(array)")
        if classes <= 10:
            same(ours.class_gradient(x), art.class_gradient(x), f"{name} class_gradient")
        label_array = {
            "ours": lambda: ours.class_gradient(x, label=y),
            "art": lambda art=art: art.class_gradient(x, label=y),
        }
        seconds = times(label_array, max(3, rounds // 3))
        target = 8 if classes <= 10 else 30
        rows.append(
            Row(
                f"{name}: class_gradient(array), {classes} classes, faster than {art_name}",
                ratio(seconds, "art", "ours"),
                target,
                False,
            )
        )
        if classes > 10:
            continue
        seconds = times(
            {
                "bare": bare_gradient,
                "ours": lambda: ours.loss_gradient(x, one_hot),
                "art": lambda art=art: art.loss_gradient(x, one_hot),
            },
            rounds,
        )
        if art_name == "ART":
            rows.append(Row(f"{name}: loss_gradient over the bare passes", ratio(seconds, "ours", "bare"), 1.05, True))
        rows.append(Row(f"{name}: loss_gradient, faster than {art_name}", ratio(seconds, "art", "ours"), 1.3, False))
        everything = {"ours": lambda: ours.class_gradient(x), "art": lambda art=art: art.class_gradient(x)}
        seconds = times(everything, max(3, rounds // 3))
        rows.append(Row(f"{name}: class_gradient, faster than {art_name}", ratio(seconds, "art", "ours"), 1.4, False))
        seconds = times({"bare": bare_forward, "ours": lambda: ours.predict(x, batch_size=n)}, rounds)
        if art_name == "ART":
            rows.append(Row(f"{name}: predict over the bare pass", ratio(seconds, "ours", "bare"), 1.1, True))

        def pgd(estimator: PyTorchClassifier) -> object:
            attack = ProjectedGradientDescentPyTorch(
                estimator, eps=8 / 255, eps_step=1 / 255, max_iter=20, batch_size=n, verbose=False
            )
            return attack.generate(x, one_hot)

        seconds = times({"ours": lambda: pgd(ours), "art": lambda art=art: pgd(art)}, max(3, rounds // 5))
        rows.append(
            Row(f"{name}: PGD-20 through ART, faster than on {art_name}", ratio(seconds, "art", "ours"), 1.3, False)
        )
    return rows


def eot_rows(rounds: int) -> list[Row]:
    """16 draws in one call against 16 calls of one draw, the last third of the activations stochastic."""
    rows = []
    networks = {
        "small CNN": (ConvNet((3, 32, 32), 10), 1, (3, 32, 32), 16),
        "ResNet-18": (ResNet18((3, 32, 32), 10), 6, (3, 32, 32), 4),
    }
    for name, (network, last, shape, n) in networks.items():
        stochastic = quantize(network.eval(), activation_bits=4, alpha=2.0, activation_layers=last).eval()
        together, single = StochasticEnsemble(stochastic, 16).eval(), StochasticEnsemble(stochastic, 1).eval()
        x = torch.rand(n, *shape)

        def gradient(module: nn.Module, calls: int, x: torch.Tensor = x) -> None:
            for _ in range(calls):
                leaf = x.clone().requires_grad_()
                torch.autograd.grad(F.cross_entropy(module(leaf), torch.zeros(len(x), dtype=torch.long)), leaf)

        arms: Arms = {"one": partial(gradient, together, 1), "many": partial(gradient, single, 16)}
        seconds = times(arms, max(3, rounds // 3))
        rows.append(Row(f"{name}: EOT with 16 draws over 16 passes", ratio(seconds, "one", "many"), 0.6, True))
    return rows


def quantizer_rows(rounds: int) -> list[Row]:
    x = torch.randn(32, 64, 32, 32) * 3

    def both(activation: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor = x) -> None:
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(activation(leaf), leaf, x)

    seconds = times({"ours": lambda: both(QuantReLU(4)), "relu6": lambda: both(F.relu6)}, rounds)
    rows = [Row("QuantReLU over relu6, 2 million elements", ratio(seconds, "ours", "relu6"), 1.9, True)]
    images, labels = torch.rand(16, 3, 32, 32), torch.zeros(16, dtype=torch.long)
    plain = ResNet18((3, 32, 32), 10, activation=nn.ReLU6).eval()
    quantized = quantize(plain, activation_bits=4).eval()

    def gradient(network: nn.Module) -> None:
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(network(leaf), labels), leaf)

    seconds = times({"ours": lambda: gradient(quantized), "relu6": lambda: gradient(plain)}, max(5, rounds // 2))
    rows.append(Row("QuantReLU over relu6 in a ResNet-18 gradient", ratio(seconds, "ours", "relu6"), 1.05, True))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module="art")
    rounds = arguments.rounds
    rows = quantizer_rows(rounds) + eot_rows(rounds)
    rows += network_rows("small CNN", ConvNet((3, 32, 32), 10), 64, (3, 32, 32), rounds, 10)
    rows += network_rows("small CNN", ConvNet((3, 32, 32), 100), 64, (3, 32, 32), rounds, 100)
    rows += network_rows("ResNet-18", ResNet18((3, 32, 32), 10), 16, (3, 32, 32), rounds, 10)
    rows += network_rows("WRN-16-4", WideResNet((3, 32, 32), 10, depth=16, widen_factor=4), 16, (3, 32, 32), rounds, 10)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {arguments.threads} threads"
    lines = [
        "# Speed of the estimators",
        "",
        f"{datetime.date.today()}; art_qplugins {art_qplugins.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}; {platform.machine()}, {device}; medians of {rounds} interleaved rounds.",
        "",
        "| what | ratio | target | |",
        "|---|---|---|---|",
        *map(str, rows),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
