"""What the harness costs: an attack as a cell of a run, against the same attack by hand.

    python benchmarks/speed/harness.py [--rounds 3] [--images 64]

Interleaved in one process; the median of the rounds' ratios counts. The loop of ``artq:worst-case`` is held against the same
passes without anything around them, on images that never break. PGD-20 is held against a bare loop of 20 forward and
backward passes on ResNet-18 and 32 x 32 pixels, AutoAttack (standard) against pyautoattack called by hand on a small
network, where both must leave the same robust images. The cell's side has what a run does besides: watching the path,
checking every image, asking the target again, records.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
import warnings

import torch
from torch import Tensor, nn

import art_qplugins
from art_qplugins import QuantizedClassifier, Threat, load, train
from art_qplugins.attacks.adaptive.cosine import cosine_ascent
from art_qplugins.attacks.adaptive.objectives import direct, margin_loss
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.executor import Serial, run_cells
from art_qplugins.evaluation.store import Memory
from art_qplugins.gradients.margin import logit_margin
from art_qplugins.models import MODELS
from art_qplugins.models.convnet import ConvNet
from art_qplugins.seeds import derive_seed


def evaluator(model: nn.Module, x: Tensor, y: Tensor) -> Evaluator:
    estimator = QuantizedClassifier(model.eval(), nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, device_type="cpu")
    return Evaluator({"m": estimator}, x, y, [str(i) for i in range(len(x))], 250)


def spec(attack: str, eps: float, **options: object) -> CellSpec:
    return CellSpec(model="m", source="m", attack=attack, norm="Linf", eps=eps, seed=0, options=options)


def cell(here: Evaluator, wanted: CellSpec) -> tuple[float, list[bool]]:
    started = time.perf_counter()
    ((_, outcome, _),) = run_cells(here, [wanted], Memory(), Serial(here))
    assert outcome.ok, outcome.cell.error
    return time.perf_counter() - started, (outcome.column("correct") > 0.5).tolist()


def bare_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int = 20) -> float:
    started = time.perf_counter()
    for p in model.parameters():
        p.requires_grad_(False)
    point = x + eps * (2 * torch.rand_like(x) - 1)
    for _ in range(steps):
        point = point.clamp(0, 1).requires_grad_()
        loss = nn.functional.cross_entropy(model(point), y)
        (gradient,) = torch.autograd.grad(loss, point)
        point = (x + (point.detach() + eps / 8 * gradient.sign() - x).clamp(-eps, eps)).detach()
    return time.perf_counter() - started


def bare_passes(model: nn.Module, x: Tensor, y: Tensor, steps: int = 20) -> float:
    """So many forward and backward passes, and one forward pass."""
    started = time.perf_counter()
    for _ in range(steps):
        point = x.clone().requires_grad_()
        torch.autograd.grad(logit_margin(model(point), y).sum(), point)
    with torch.no_grad():
        model(x)
    return time.perf_counter() - started


def loop(model: nn.Module, x: Tensor, y: Tensor, steps: int = 20) -> float:
    """The same in the loop of the worst case."""
    started = time.perf_counter()
    settings = {"batch_size": len(x), "seed": 0, "max_iter": steps}
    run = AttackRun(name="artq:worst-case", module=model, x=x, y=y, threat=Threat("Linf", 1e-6), **settings)
    run.maximize(direct(model, y, margin_loss(y)), run.starts("margin"), ascent=cosine_ascent)
    took = time.perf_counter() - started
    assert len(run.robust_rows()) == len(x), "an image broke, so the loop had fewer passes"
    return took


def bare_autoattack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> tuple[float, list[bool]]:
    from pyautoattack import AutoAttack

    started = time.perf_counter()
    attack = AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=derive_seed(0, "attack"), device="cpu")
    x_adv = attack.run_standard_evaluation(x, y, batch_size=250)[0]
    with torch.no_grad():
        right = (model(x_adv).argmax(1) == y).tolist()
    return time.perf_counter() - started, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    large = MODELS["resnet18"].load()(input_shape=(3, 32, 32), nb_classes=10).eval()
    x, y = torch.rand(arguments.images, 3, 32, 32), torch.arange(arguments.images) % 10
    print(f"{datetime.date.today()}; art_qplugins {art_qplugins.__version__}, torch {torch.__version__}, Python")
    print(f"{platform.python_version()}, CPU, {torch.get_num_threads()} threads, {arguments.rounds} rounds")
    here = evaluator(large, x, y)
    for attack in ("art:pgd", "torchattacks:pgd"):
        ratios = []
        for _ in range(arguments.rounds):
            bare = bare_pgd(large, x, y, 8 / 255)
            ratios.append(cell(here, spec(attack, 8 / 255, max_iter=20))[0] / bare)
        shown = ", ".join(f"{r:.2f}" for r in ratios)
        print(f"{attack}, 20 steps, ResNet-18, {len(x)} images: {statistics.median(ratios):.2f} x bare ({shown})")
    with torch.no_grad():
        predicted = large(x).argmax(1)
    ratios = [loop(large, x, predicted) / bare_passes(large, x, predicted) for _ in range(arguments.rounds)]
    shown = ", ".join(f"{r:.2f}" for r in ratios)
    print(f"the loop of the worst case, ResNet-18, 20 steps: {statistics.median(ratios):.2f} x bare passes ({shown})")
    images = load("digits", "test").take(100, seed=0)
    small = train(ConvNet((1, 8, 8), 10, width=8), load("digits", "train"), epochs=6).eval()
    here, ratios = evaluator(small, images.x(), images.y()), []
    for _ in range(arguments.rounds):
        seconds, by_hand = bare_autoattack(small, images.x(), images.y(), 0.1)
        mine, in_a_run = cell(here, spec("autoattack:standard", 0.1))
        ratios.append(mine / seconds)
        assert by_hand == in_a_run, "not the same robust images"
    shown = ", ".join(f"{r:.2f}" for r in ratios)
    print(f"AutoAttack standard, small network, 100 images: {statistics.median(ratios):.2f} x by hand ({shown});")
    print(f"the same {sum(by_hand)} robust images")


if __name__ == "__main__":
    main()
