"""How long recipes of many models take to check and to plan, and what checking adds to a run of the digits recipe.

    python benchmarks/speed/resolve.py [--rounds 3]

Prints the shortest of some rounds for each. Wanted: 1,000 models in at most 2 s, 5,000 in at most 10 s, and at most 20 ms
for the digits recipe: its checks, and one try of each of its networks. Nothing is trained.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from art_qplugins.data import Dataset, load
from art_qplugins.recipes.load import parse_recipe, read_tables
from art_qplugins.recipes.rehearse import rehearse
from art_qplugins.runner.plan import plan
from art_qplugins.terminal.results import show_plan

torch.set_num_threads(1)


def many(models: int, **more: Any) -> dict[str, Any]:
    """A recipe of so many models: float, quantized, random, and quantized after training, in turn."""
    kinds: list[dict[str, Any]] = [
        {},
        {"quantize": {"activation_bits": 2}, "defences": [{"name": "orthogonality"}]},
        {"quantize": {"activation_bits": 2, "alpha": 2.0}},
        {"base": "m0", "quantize": {"weight_bits": 3, "mu": 255.0}, "train": {"epochs": 0}},
    ]
    names = [f"m{i}" for i in range(models)]
    return {
        "name": "many",
        "data": {"name": "digits", "limit": 100},
        "threat": {"eps": [0.05, 0.1]},
        "claim": {"attack": "art:pgd", "eps": 0.1},
        "models": [{"name": name, "seed": i, **kinds[i % len(kinds)]} for i, name in enumerate(names)],
        "attacks": [
            {"id": "art:fgsm"},
            {"id": "art:pgd"},
            {"id": "art:bim", "models": names},
            {"id": "art:pgd", "source": "m0"},
            {"suite": "quick"},
        ],
        **more,
    }


def dry_run(given: dict[str, Any], images: Dataset) -> None:
    """What ``artq run --dry-run`` does after it has read the file and loaded the images."""
    recipe = parse_recipe(given)
    with contextlib.redirect_stdout(io.StringIO()):
        show_plan(recipe, *plan(recipe), rehearse(recipe, images, {}))


def shortest(task: Callable[[], Any], rounds: int) -> float:
    """Seconds of the processor: whatever else the machine does does not count. One thread computes."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        task()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    images = load("digits", "test")
    for models, wanted in ((1000, 2), (5000, 10)):
        given = many(models)
        checked = shortest(partial(parse_recipe, given), rounds)
        planned = shortest(partial(dry_run, given, images), rounds)
        print(f"{models} models: {checked:.2f} s to check, {planned:.2f} s for a dry run; wanted at most {wanted} s")
    matrix = shortest(partial(dry_run, many(150, transfer={"attack": "art:pgd"}), images), rounds)
    print(f"150 models with a transfer matrix: {matrix:.2f} s for a dry run")
    given = read_tables(Path("digits"))
    recipe = parse_recipe(given)
    checks = shortest(partial(parse_recipe, given), 5 * rounds) + shortest(
        partial(rehearse, recipe, images, {}), 5 * rounds
    )
    print(f"the digits recipe: {1000 * checks:.1f} ms to check and to try its networks; wanted at most 20 ms")


if __name__ == "__main__":
    main()
