"""The null attack: what evaluations report of a random network under attacks that can do nothing.

    python benchmarks/sq/null_attack.py --data digits --seeds 0 1 2

A network with stochastic quantizers is attacked at eps = 1e-6, where no attack changes what it computes beyond rounding. So its
robust accuracy is its clean accuracy, and what is reported below that is the error of the evaluation. An evaluation that takes the
worst of many noisy answers counts unlucky draws as successes.

``here`` is the worst case of a run: attacks see draws of their own, one bank of draws chooses the strongest attack on each
image, another scores it. ``score_draws`` is such that the draws give the accuracy a standard error of at most
``--error`` points; a first look at the clean images says how many that takes. ``rand`` is AutoAttack's own count of images
that it did not break (version "rand", pyautoattack, by hand), and ``rand, scored`` the accuracy on the very images that it
returned, by our draws. ``clean`` has draws that nothing else used, so that differences, in points, have the error of two banks.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins import QuantizedClassifier, Threat, evaluate, load, quantize, train
from art_qplugins.evaluation.score import score
from art_qplugins.guard import isolated
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import draws_from
from art_qplugins.seeds import derive_seed

THREAT = Threat("Linf", 1e-6)
_ATTACKS = ("artq:single-draw", "artq:eot", "artq:frozen-seed", "artq:apgd-margin", "artq:random")
_FIRST_LOOK = 100  # draws that say how many are needed
_MOST = 10_000
_WITHIN = 0.5  # points
_BATCH = 250


def network(arguments: argparse.Namespace, seed: int) -> tuple[StochasticEnsemble, Tensor, Tensor]:
    """A trained network, and test images with their labels."""
    images, labels = (load(arguments.data, split, root=arguments.data_root) for split in ("train", "test"))
    if arguments.train_images is not None:
        images = images.take(arguments.train_images, seed=0)
    torch.manual_seed(seed)
    plain = ConvNet(images.shape, 10, width=arguments.width)
    random = quantize(plain, activation_bits=arguments.bits, alpha=2.0, seed=seed)
    trained = train(random, images, epochs=arguments.epochs, seed=seed)
    used = labels.take(arguments.images, seed=0)
    return StochasticEnsemble(trained, arguments.members).eval(), used.x(), used.y()


def variance_of_draws(correct: NDArray[np.float64], draws: int) -> float:
    """The mean over images of p (1 - p), without bias, from the share of right draws of each image."""
    return float((correct * (1 - correct)).mean()) * draws / (draws - 1)


def autoattack_rand(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, float]:
    """The images of AutoAttack "rand", and the accuracy that it counts itself: images whose answer it did not change."""
    from pyautoattack import AutoAttack

    with isolated(model, seed), draws_from(model, seed):
        attack = AutoAttack(model, norm=THREAT.norm, eps=THREAT.eps, seed=seed, version="rand", device="cpu")
        x_adv, answers = attack.run_standard_evaluation(x, y, batch_size=_BATCH)
    return x_adv, float((answers == y).double().mean())


def measured(arguments: argparse.Namespace, seed: int) -> tuple[str, ...]:
    """One row of the table."""
    model, x, y = network(arguments, seed)
    first = score(model, x, y, seed=seed, batch_size=_BATCH, draws=_FIRST_LOOK)["correct"]
    wanted = variance_of_draws(first, _FIRST_LOOK) / (len(x) * (arguments.error / 100) ** 2)
    draws = min(max(math.ceil(wanted), _FIRST_LOOK), _MOST)
    started = time.perf_counter()
    estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, device_type="cpu")
    options = {"recipe": {"score_draws": draws}, "seed": seed, "batch_size": _BATCH}
    run = evaluate(estimator, (x.numpy(), y.numpy()), THREAT, _ATTACKS, **options)
    seconds, found = time.perf_counter() - started, run.models[0]
    other = score(model, x, y, seed=derive_seed(seed, "reference"), batch_size=_BATCH, draws=draws)["correct"]
    clean, here = float(other.mean()), found.robust[0].accuracy
    last = [found.clean_tries[1].accuracy, found.robust[0].tries[1].accuracy]
    error = math.sqrt(variance_of_draws(other, draws) / (len(x) * draws))
    started = time.perf_counter()
    x_adv, counted = autoattack_rand(model, x, y, seed)
    taken = time.perf_counter() - started
    scored = float(score(model, x_adv, y, seed=seed, batch_size=_BATCH, draws=draws)["correct"].mean())
    return (
        *(str(seed), str(len(x)), str(draws), f"{100 * error:.2f}", f"{100 * clean:.2f}"),
        *(f"{100 * here:.2f} ({100 * (here - clean):+.2f})", "yes" if abs(here - clean) * 100 <= _WITHIN else "**no**"),
        f"{100 * counted:.2f} ({100 * (counted - clean):+.2f})",
        f"{100 * scored:.2f} ({100 * (scored - clean):+.2f})",
        f"{100 * last[1]:.2f} / {100 * last[0]:.2f}",
        f"{seconds:.0f} s, {taken:.0f} s",
    )


def table(arguments: argparse.Namespace) -> Iterator[str]:
    """Lines of a Markdown table, each as soon as it is known."""
    head = ["seed", "n", "score draws", "standard error", "clean", "here", f"within {_WITHIN}", "rand", "rand, scored"]
    head += ["after 10 tries, attacked / clean", "time here, of rand"]
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join(['---'] * len(head))} |"
    for seed in arguments.seeds:
        yield f"| {' | '.join(measured(arguments, seed))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="a data set of ten classes, e.g. digits or mnist")
    parser.add_argument("--data-root", type=Path, help="folder of data sets; by default ARTQ_DATA")
    parser.add_argument("--train-images", type=int, help="train on so many; by default on all")
    parser.add_argument("--images", type=int, default=500, help="test images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=8, help="channels of the first convolution")
    parser.add_argument("--bits", type=int, default=2, help="of activations; fewer are noisier")
    parser.add_argument("--members", type=int, default=1, help="draws of one prediction")
    parser.add_argument("--error", type=float, default=0.15, help="the largest standard error by draws, in points")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for line in table(arguments):
        print(line, flush=True)


if __name__ == "__main__":
    main()
