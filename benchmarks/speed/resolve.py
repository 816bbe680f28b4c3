"""How long recipes of many models take to check and to plan, and what checking adds to a run of the digits recipe.

    python benchmarks/speed/resolve.py [--rounds 3]

Prints the shortest of some rounds for each. Wanted: 1,000 models in at most 2 s, 5,000 in at most 10 s, and at most 20 ms
for the digits recipe. Nothing is trained.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

from art_qplugins.recipes.load import parse_recipe
from art_qplugins.runner.plan import plan
from art_qplugins.terminal.results import show_plan


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


def transfer(models: int) -> dict[str, Any]:
    """Every model on every model."""
    return many(models, transfer={"attack": "art:pgd"})


def dry_run(given: dict[str, Any]) -> None:
    """What ``artq run --dry-run`` does after it has read the file."""
    recipe = parse_recipe(given)
    with contextlib.redirect_stdout(io.StringIO()):
        show_plan(recipe, *plan(recipe))


def shortest(task: Callable[[], Any], rounds: int) -> float:
    """Seconds."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        task()
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    for models, wanted in ((1000, 2.0), (5000, 10.0)):
        given = many(models)
        checked = shortest(lambda given=given: parse_recipe(given), rounds)
        planned = shortest(lambda given=given: dry_run(given), rounds)
        print(
            f"{models} models: checked in {checked:.2f} s, with the plan {planned:.2f} s; wanted at most {wanted:.0f} s"
        )
    print(f"transfer over 150 models: {shortest(lambda: dry_run(transfer(150)), rounds):.2f} s")


if __name__ == "__main__":
    main()
