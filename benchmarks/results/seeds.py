"""One table of the runs of a recipe with several seeds, from their records.

    python benchmarks/results/seeds.py benchmarks/results/cifar10-small     # FOLDER/*.json, each a results.json, make FOLDER.md

    python benchmarks/results/seeds.py FOLDER RUN [RUN ...]                 # the same, after the records of these runs went there

Where models differ in their bits, a figure of them is drawn beside the records. Models that are files stand beside the networks that
they were exported from, with what they cost. A number is followed by its 95 % Wilson interval over images, in percent. The rows of all
seeds are means, with the least and the greatest of them.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from page import read_records, without_details

from art_qplugins.evaluation.records import ModelResult, Results
from art_qplugins.report import select, words
from art_qplugins.report.figures import bits, svg
from art_qplugins.report.figures import deployment as costs


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


def files(folder: Path, run: Results) -> str:
    """Each file of the first seed beside its network."""
    if not run.deployment:
        return ""
    at = costs.threat_of(run)
    assert at is not None
    models = {model.name: model for model in run.models}
    lines = [
        "",
        "## Files beside their networks",
        "",
        "Each file was attacked as itself, along the gradient of the network that it was exported from; in parentheses are that network's",
        "numbers. Levels that differ are those of the layer with the most of them. Times are of ONNX Runtime on one thread, in turn with",
        "the same network in float32; the ratio is the median over rounds.",
        "",
        f"| file | clean | at most at {words.eps(at[1])} | same labels, clean | attacked | levels that differ | MB (float32) | "
        "times float32's speed, 1 image | 32 images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, record in run.deployment.items():
        model, network = models[name], models.get(record.of or "")
        own, other = select.robust_at(model, *at), network and select.robust_at(network, *at)
        agreed = [one for one in (record.clean, record.adversarial) if one is not None]
        flips = max((layer.flips for one in agreed for layer in one.layers), default=None)
        size = f"{record.size / 1e6:.3f}" + (f" ({record.float_size / 1e6:.3f})" if record.float_size else "")
        cells = [
            f"{100 * model.clean_accuracy:.1f}" + (f" ({100 * network.clean_accuracy:.1f})" if network else ""),
            (percent(own.accuracy, own.interval) if own else "") + (f" ({100 * other.accuracy:.1f})" if other else ""),
            *(percent(one.same, one.interval) for one in agreed),
            "" if flips is None else f"{100 * flips:.2f} %",
            size,
            *(f"{speed.ratio[1]:.2f}" if speed.ratio else "" for speed in record.speeds),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    points = costs.placed(run)
    drawing = svg.drawn("section-deployment-costs", costs.costs_alt(points), costs.costs(points, at))
    (folder / f"{drawing.name}.svg").write_text(drawing.svg)
    vnni = next(iter(run.deployment.values())).vnni
    lines += ["", f"The processor has {'' if vnni else 'no '}VNNI.", ""]
    lines += [f"![Robustness against size and time]({folder.name}/{drawing.name}.svg)", ""]
    return "\n".join(lines)


def take(folder: Path, run: Path, name: str) -> None:
    """Write what the page shows of a run to the folder."""
    results, _ = read_records(run)
    cells = [cell for cell in results.cells if cell.role in ("clean", "attack")]
    slim = results.model_copy(update={"models": [without_details(model) for model in results.models], "cells": cells})
    (folder / f"{name}.json").write_text(slim.model_dump_json(indent=1) + "\n")


def main() -> None:
    folder = Path(sys.argv[1])
    for number, run in enumerate(sys.argv[2:]):
        take(folder, Path(run), str(number))
    paths = sorted(folder.glob("*.json"))
    runs = {path.stem: Results.model_validate_json(path.read_bytes()) for path in paths}
    first = next(iter(runs.values()))
    page = table(runs) + figures(folder, first) + files(folder, first)
    folder.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
