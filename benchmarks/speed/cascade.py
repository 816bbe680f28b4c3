"""What a cascade with the worst case saves: a recipe run both ways, its worst cases and what they took.

    python benchmarks/speed/cascade.py RECIPE... [--data-root DIR] [--set a.b=c] [--out DIR] [--share 0.25]

The matrix runs every attack on every image, with AutoAttack at every eps where the recipe has ``artq:worst-case`` (``rand``
for random models). The cascade has the recipe's attacks without AutoAttack: cheap ones first, only standing images go on. For
each model and eps there is the robust accuracy of both, and at last the gradient evaluations of each, of attacks alone. Exit
status 1 where a cascade leaves a higher accuracy than its matrix, beyond one image, or takes more than ``--share`` of its
gradients.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import art_qplugins
from art_qplugins.evaluation.records import Results
from art_qplugins.recipes.load import load_recipe
from art_qplugins.recipes.schema import Recipe

_AUTOATTACK = ("autoattack:standard", "autoattack:rand")


def gradients(results: Results) -> float:
    """Backward passes of attacks, per image, summed over models."""
    n = results.data["n"]
    return float(sum(c.backward_samples for c in results.cells if c.role != "clean") / n)


def variant(settings: Recipe, given: dict[str, Any], strategy: str) -> dict[str, Any]:
    """The tables of the recipe for one side."""
    attacks = [attack for attack in given["attacks"] if attack["id"] not in _AUTOATTACK]
    if strategy == "matrix":
        attacks = [attack for attack in attacks if attack["id"] != "artq:worst-case"]
        for model in settings.models:
            quantizers = [] if model.quantize is None else model.quantize.quantizers
            version = "rand" if any(row.random for row in quantizers) else "standard"
            attacks.append({"id": f"autoattack:{version}", "models": [model.name]})
    return given | {"attacks": attacks, "strategy": strategy, "diagnose": False}


def compare(recipe: Path, changes: list[str], folder: Path, data_root: str | None) -> tuple[float, float]:
    """(the most by which the cascade's accuracy is above the matrix's in images, its share of the gradients)."""
    results = {}
    for strategy in ("matrix", "cascade"):
        settings, given = load_recipe(recipe, changes)
        given = variant(settings, given, strategy)
        out = folder / f"{settings.name}-{strategy}"
        trained = folder / f"{settings.name}-matrix" / "checkpoints"
        if strategy == "cascade" and not out.exists():
            shutil.copytree(trained, out / "checkpoints")
        results[strategy] = art_qplugins.run(given, out=out, data_root=data_root).results
        assert results[strategy].status == "success", [c.error for c in results[strategy].cells if c.error]
    print(f"\n{recipe.stem}: {results['matrix'].data['n']} images\n")
    print("| model | eps | matrix | cascade |\n| --- | --- | --- | --- |")
    above = 0.0
    for full, cheap in zip(results["matrix"].models, results["cascade"].models, strict=True):
        for one, other in zip(full.robust, cheap.robust, strict=True):
            above = max(above, (other.accuracy - one.accuracy) * full.n)
            print(f"| {full.name} | {one.eps:.4g} | {one.accuracy:.2%} | {other.accuracy:.2%} |")
    spent = {strategy: gradients(r) for strategy, r in results.items()}
    share = spent["cascade"] / spent["matrix"]
    print(f"\nGradient evaluations per image: {spent['matrix']:.0f} and {spent['cascade']:.0f}, a share of {share:.2f}")
    return above, share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--share", type=float, default=0.25)
    arguments = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in arguments.recipes:
            folder = arguments.out or Path(scratch)
            above, share = compare(recipe, arguments.changes, folder, arguments.data_root)
            missed |= above > 1 + 1e-9 or share > arguments.share
    sys.exit(missed)


if __name__ == "__main__":
    main()
