"""How many images fall to nothing but further tries: the A/A null of the control experiments.

    python benchmarks/masking/null.py --cache FOLDER        # an hour or so; resumable

A control experiment tries again what the attacks along the model's own gradient have tried, with one thing changed. So it wins
by trying again alone. Here nothing is changed: on honest models, after those attacks, Auto-PGD on the margin runs 16 times
more, from other random starts. The accuracy that it takes away within t tries is the gap that a control experiment
of t tries shows where there is nothing to find.

What is printed is the 95th percentile of these gaps over honest models of half A, by t. Each run counts on blocks of 200
images, the fewest that rates are reported of, where chance weighs most, and as a whole.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from art_qplugins import metrics
from art_qplugins.attacks.craft import craft
from art_qplugins.evaluation.score import score
from art_qplugins.seeds import derive_seed

sys.path.insert(0, str(Path(__file__).parent))
from measure import quiet
from networks import Site
from rows import Row, classifier
from tables import table
from zoo import ROWS

TRIES = (1, 2, 4, 8, 16)
#: Images of a block.
BLOCK = 200
#: Test images of a run: all of digits.
_IMAGES = {"digits": 599, "mnist": 400}
#: What a diagnosis runs along the model's own gradient, after the claimed attack. The numbers are those of ``steps.py``.
_OWN: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("art:fgsm", {}),
    ("art:pgd", {}),
    ("artq:apgd-margin", {}),
    ("artq:apgd-margin", {"max_iter": 50}),
    ("artq:apgd-margin", {}),
    ("artq:multi-targeted", {}),
)
_AGAIN = "artq:apgd-margin"
_RECORDS = Path(__file__).parent / "null.jsonl"

#: Per image: correctness on the draws that score, and on those that choose the worst attack.
_Scores = tuple[NDArray[np.float64], NDArray[np.float64]]


def gaps(row: Row, site: Site, n: int) -> dict[int, list[float]]:
    """By number of tries, the accuracy that they take away from each block of images."""
    x, y = site.test(n)
    model = row.build(site).model
    threat, estimator = row.threat(site.dataset), classifier(model, x)
    clean = score(model, x, y, seed=site.seed)
    found: list[_Scores] = [(clean["correct"], clean["selection"])]

    def attack(number: int, name: str, options: Mapping[str, Any]) -> None:
        """On the images that nothing broke so far."""
        left = np.flatnonzero(metrics.worst_case([s for _, s in found], [s for _, s in found]) > 0)
        if not len(left):
            return
        seed = derive_seed(site.seed, f"null {number}")
        crafted = craft(estimator, name, x[left], y[left], threat=threat, options=dict(options), seed=seed)
        scored = score(model, crafted.x_adv, y[left], seed=site.seed)
        correct, selection = np.full(len(x), np.nan), np.full(len(x), np.nan)
        correct[left], selection[left] = scored["correct"], scored["selection"]
        found.append((correct, selection))

    def accuracies() -> NDArray[np.float64]:
        worst = metrics.worst_case([c for c, _ in found], [s for _, s in found])
        return np.array([part.mean() for part in np.array_split(worst, max(1, len(x) // BLOCK))])

    for number, (name, options) in enumerate(((row.attack, row.options), *_OWN)):
        attack(number, name, options)
    before, taken = accuracies(), {}
    for t in range(1, max(TRIES) + 1):
        attack(100 + t, _AGAIN, {})
        if t in TRIES:
            taken[t] = [float(gap) for gap in before - accuracies()]
    return taken


def null(records: Sequence[Mapping[str, Any]], *, whole: bool) -> dict[int, float]:
    """The 95th percentile by number of tries, over blocks of images or over whole runs."""
    found: dict[int, list[float]] = {t: [] for t in TRIES}
    for record, t in itertools.product(records, TRIES):
        values = record["gaps"][str(t)]
        found[t] += [float(np.mean(values))] if whole else values
    return {t: round(float(np.quantile(values, 0.95)), 4) for t, values in found.items() if values}


def report(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for whole in (False, True):
        yield from ["", "95th percentile over " + ("whole runs" if whole else f"blocks of {BLOCK} images") + ":", ""]
        groups = {f"{d}, seed {s}": (d, s) for d, s in sorted({(r["dataset"], r["seed"]) for r in records})}
        body = [
            (name, *null([r for r in records if (r["dataset"], r["seed"]) == group], whole=whole).values())
            for name, group in groups.items()
        ]
        yield from table(["runs", *(f"t = {t}" for t in TRIES)], [*body, ("all", *null(records, whole=whole).values())])
    worst = sorted(records, key=lambda r: -np.mean(r["gaps"][str(TRIES[-1])]))[:8]
    yield f"Largest at t = {TRIES[-1]}: " + ", ".join(
        f"{r['row']} ({r['dataset']}, seed {r['seed']}, {100 * np.mean(r['gaps'][str(TRIES[-1])]):.1f} points)"
        for r in worst
    )
    yield f"\n{len(records)} runs of {len({r['row'] for r in records})} rows. To ship:\n\n{null(records, whole=False)}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", choices=tuple(_IMAGES), default=list(_IMAGES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--n", type=int, help=f"test images; by default {_IMAGES}")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST; by default ARTQ_DATA")
    parser.add_argument("--cache", type=Path, default=Path("results/masking-weights"), help="folder of trained weights")
    parser.add_argument("--out", type=Path, default=_RECORDS)
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    quiet()
    lines = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.exists() else []
    records = [json.loads(line) for line in lines]
    done = {(r["row"], r["dataset"], r["seed"], r["n"]) for r in records}
    rows = [row for row in ROWS if row.kind == "honest" and row.half == "A"]
    for seed, dataset, row in itertools.product(arguments.seeds, arguments.dataset, rows):
        n = arguments.n or _IMAGES[dataset]
        if arguments.report_only or dataset not in row.eps or (row.name, dataset, seed, n) in done:
            continue
        site = Site(dataset, seed, arguments.data_root, arguments.cache)
        record = {"row": row.name, "dataset": dataset, "seed": seed, "n": n, "gaps": gaps(row, site, n)}
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        records.append(json.loads(json.dumps(record)))
        print(row.name, dataset, seed, *(f"{100 * np.mean(v):.2f}" for v in record["gaps"].values()), file=sys.stderr)
    print("\n".join(report(records)))


if __name__ == "__main__":
    main()
