"""One table of the runs of a recipe with several seeds, from their records.

    python benchmarks/results/seeds.py benchmarks/results/cifar10-small     # FOLDER/*.json, each a results.json, make FOLDER.md

Where models differ in their bits, a figure of them is drawn beside the records. A number is followed by its 95 % Wilson interval over images, in percent. The rows of all seeds are means, with the least and the
greatest of them.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from art_qplugins.evaluation.records import ModelResult, Results
from art_qplugins.report import words
from art_qplugins.report.figures import bits


def percent(share: float, interval: Sequence[float]) -> str:
    return f"{100 * share:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def numbers(model: ModelResult) -> dict[str, tuple[float, Sequence[float]]]:
    """Clean accuracy, the claim, and the worst case at each eps, with their intervals."""
    assert model.clean_accuracy is not None and model.clean_interval is not None and model.claim is not None
    found: dict[str, tuple[float, Sequence[float]]] = {"clean": (model.clean_accuracy, model.clean_interval)}
    if model.claim.accuracy is not None:
        found[f"{model.claim.attack} at {words.eps(model.claim.eps)}"] = (model.claim.accuracy, ())
    for worst in model.robust:
        if worst.accuracy is not None and worst.interval is not None:
            found[f"worst case at {words.eps(worst.eps)}"] = (worst.accuracy, worst.interval)
    return found


def validation(run: Results, name: str) -> str:
    """The last of the curve of its training."""
    curve = run.training.get(name, [])
    last = curve[-1] if curve else None
    if last is None or last.validation_accuracy is None:
        return ""
    robust = last.robust_validation_accuracy
    return f"{100 * last.validation_accuracy:.1f}" + ("" if robust is None else f", PGD-10 {100 * robust:.1f}")


def table(runs: dict[str, Results]) -> str:
    first = next(iter(runs.values()))
    names = [model.name for model in first.models]
    columns = list(numbers(first.models[0]))
    lines = [
        f"# {first.spec['resolved']['title']}",
        "",
        "Accuracy in percent, with the 95 % Wilson interval over images. The worst case is over all attacks that ran, image by image,",
        "and an upper bound. `valid` is on images of the train split that no model is trained on.",
        "",
        "| model | seed | valid | " + " | ".join(columns) + " | claim | verdict |",
        "|---|---|---|" + "---|" * (len(columns) + 2),
    ]
    for name in names:
        found = []
        for seed, run in runs.items():
            model = next(model for model in run.models if model.name == name)
            values = numbers(model)
            found.append(values)
            cells = [percent(*values[key]) if values[key][1] else f"{100 * values[key][0]:.1f}" for key in columns]
            assert model.claim is not None
            claim = model.claim.status.lower()
            lines.append(
                f"| {name} | {seed} | {validation(run, name)} | "
                + " | ".join(cells)
                + f" | {claim} | {model.verdict} |"
            )
        if len(runs) > 1:
            spread = [[100 * values[key][0] for values in found] for key in columns]
            cells = [f"**{statistics.mean(of):.1f}** ({min(of):.1f} to {max(of):.1f})" for of in spread]
            lines.append(f"| {name} | all | | " + " | ".join(cells) + " | | |")
    made = sorted({made_with(run) for run in runs.values()})
    source = f" ({first.data['source']})" if first.data.get("source") else ""
    lines += ["", f"Images: {first.data['name']}{source}, n = {first.models[0].n}, the same for every seed."]
    lines += [f"Recorded with {' and with '.join(made)}."]
    return "\n".join(lines) + "\n"


def made_with(run: Results) -> str:
    """The versions and the device of a run."""
    made = run.environment
    return f"art_qplugins {made.packages['art_qplugins']}, torch {made.packages['torch']}, {made.device}"


def figures(folder: Path, run: Results) -> str:
    """Accuracy against bits, of the first seed, where its models differ in them."""
    lines = []
    for drawing, one in bits.drawings(run):
        (folder / f"{drawing.name}.svg").write_text(drawing.svg)
        lines.append(f"\n![Accuracy over {one.axis}]({folder.name}/{drawing.name}.svg)\n")
    return "".join(lines)


def main() -> None:
    folder = Path(sys.argv[1])
    paths = sorted(folder.glob("*.json"))
    runs = {path.stem: Results.model_validate_json(path.read_bytes()) for path in paths}
    page = table(runs) + figures(folder, next(iter(runs.values())))
    folder.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
