"""The strengths of the slides' attacks: those with which the unmapped networks come closest to the slides' numbers.

    python benchmarks/mu-law/calibrate.py RUN   # a run of calibrate-NAME.toml; writes parts/NAME-attacks.toml

Only the rows "Orig." and "Adv." of the tables of Song et al. (2021, slides) are used. Mapped rows have no part in the choice. The
distance of a strength is the sum of the two differences in accuracy, means over trainings. The file also has the attacks that take
away what hides images, and the slides' numbers at these strengths.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from slides import BLACK_BOX, CIFAR10, MNIST, WHITE_BOX

from art_qplugins.evaluation.compare import replicates
from art_qplugins.evaluation.reading import read_records
from art_qplugins.evaluation.records import Cell, Sample

HERE = Path(__file__).parent
SLIDES = {"mnist": MNIST, "cifar10": CIFAR10}
#: The attack of each column. FGSM and CW are the same of both tables; the strength m stands in the second alone.
IDS = {
    **{"FGSM (w)": "art:fgsm", "FGSM (s)": "art:fgsm", "PGD": "art:pgd", "BIM": "art:bim", "MIM": "art:mifgsm"},
    **{"CW-L2": "art:cw-l2", "normal noise": "artq:random at any eps", "uniform noise": "artq:random"},
}
MEDIUM = "FGSM (m)"
FGSM = ("FGSM (w)", MEDIUM, "FGSM (s)")
#: Options that the slides do not say either: those of Madry et al. (2018), and few iterations of CW.
ITERATED = {
    "mnist": "{ max_iter = 40, rel_eps_step = 0.033333333333333333 }",
    "cifar10": "{ max_iter = 20, rel_eps_step = 0.25 }",
}
CW = "{ max_iter = 20, binary_search_steps = 5 }"
#: The bounds on the distance of CW that are tried. It looks for the nearest image, and what it finds beyond one is no success.
BOUNDS = [round(0.02 * step, 2) for step in range(1, 201)]

#: By strength: its distance, and the mean accuracies of the plain and of the adversarially trained network.
Strengths = dict[float, tuple[float, float, float]]


@dataclass(frozen=True)
class Column:
    """One column of the slides, with its numbers of "Orig." and "Adv." in [0, 1]."""

    name: str
    orig: float
    adv: float

    @property
    def id(self) -> str:
        return "art:fgsm" if self.name == MEDIUM else IDS[self.name]

    @property
    def source(self) -> str | None:
        return "substitute" if self.name == MEDIUM else None


def columns(data: str) -> list[Column]:
    rows = SLIDES[data]
    white = {name: (rows["orig"][0][i], rows["adv"][0][i]) for i, name in enumerate(WHITE_BOX) if i}
    others = {name: (rows["orig"][1][i], rows["adv"][1][i]) for i, name in enumerate(BLACK_BOX) if name not in white}
    return [Column(name, orig / 100, adv / 100) for name, (orig, adv) in (white | others).items()]


def main(folder: str) -> None:
    results, samples = read_records(Path(folder))
    same, data = replicates(results), str(results.data["name"])
    found = {c.name: strengths(c, results.cells, samples, same) for c in columns(data)}
    chosen = choose(found)
    profile = results.spec["resolved"]["name"].rpartition("-")[2]
    trainings = sum(same.get(model.name, model.name) == "orig" for model in results.models)
    lines = [
        "# The attacks of Song et al. (2021), slides, whose strengths the slides do not say. Written by calibrate.py from a run of",
        f"# calibrate-{data}.toml of {results.created[:10]}, profile {profile}, {results.data['n']:,} images, trainings of each network: {trainings}.",
        "#",
        "#                strength   Orig. slides   here   Adv. slides   here",
    ]
    for c in columns(data):
        _, orig, adv = found[c.name][chosen[c.name]]
        numbers = f"{100 * c.orig:14.2f} {100 * orig:6.1f} {100 * c.adv:13.2f} {100 * adv:6.1f}"
        lines.append(f"# {c.name:<14} {chosen[c.name]:>8.4g} {numbers}")
    lines += ["", *attacks(data, chosen), *references(data, chosen)]
    (HERE / "parts" / f"{data}-attacks.toml").write_text("\n".join(lines).rstrip() + "\n")


def choose(found: Mapping[str, Strengths]) -> dict[str, float]:
    """The nearest strength of each column. Those of FGSM rise: of the triples that do, the one of the smallest sum of distances."""
    chosen = {name: min(each, key=lambda size: each[size][0]) for name, each in found.items() if name not in FGSM}
    weak, medium, strong = (found[name] for name in FGSM)
    triples = [(w, m, s) for w in weak for m in medium for s in strong if w < m < s]
    if not triples:
        raise SystemExit("FGSM: fewer than three strengths; try more")
    best = min(triples, key=lambda t: weak[t[0]][0] + medium[t[1]][0] + strong[t[2]][0])
    return chosen | dict(zip(FGSM, best, strict=True))


def strengths(
    column: Column, cells: Sequence[Cell], samples: Mapping[str, Sequence[Sample]], same: Mapping[str, str]
) -> Strengths:
    by_size: dict[float, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        model, source = same.get(cell.model, cell.model), same.get(cell.source, cell.source)
        if model in ("orig", "adv") and source == (column.source or model):
            for size, accuracy in measured(column, cell, samples.get(cell.id, ())):
                by_size[size][model].append(accuracy)
    means = {size: (fmean(of["orig"]), fmean(of["adv"])) for size, of in by_size.items()}
    return {size: (abs(orig - column.orig) + abs(adv - column.adv), orig, adv) for size, (orig, adv) in means.items()}


def measured(column: Column, cell: Cell, samples: Sequence[Sample]) -> Iterator[tuple[float, float]]:
    """The strengths that a cell tells of, and the accuracy at each."""
    attack = f"{cell.attack} at any eps" if cell.role == "corruption" else cell.attack
    if cell.accuracy is None or attack != column.id or cell.role not in ("attack", "corruption"):
        return
    if cell.role == "corruption":
        yield cell.params["std"], cell.accuracy
    elif cell.norm == "Linf":
        yield cell.eps, cell.accuracy
    else:
        for bound in BOUNDS:
            yield bound, 1 - fmean((1 - sample.correct) * (sample.distance <= bound) for sample in samples)


def attacks(data: str, chosen: Mapping[str, float]) -> list[str]:
    """The threats and the attacks with these strengths, as TOML, and those that the slides do not have."""
    weak, medium, strong, pgd = (chosen[name] for name in ("FGSM (w)", MEDIUM, "FGSM (s)", "PGD"))
    linf = sorted({weak, medium, strong, *(chosen[name] for name in ("PGD", "BIM", "MIM", "uniform noise"))})
    lines = table("threat", norm="Linf", eps=linf) + table("threat", norm="L2", eps=[chosen["CW-L2"]])
    lines += ["[claim]", 'attack = "art:fgsm"', 'norm = "Linf"', f"eps = {strong}", ""]
    lines += [
        "[transfer]",
        'attack = "torchattacks:pgd"',
        'norm = "Linf"',
        f"eps = [{pgd}]",
        "limit = 200",
        f"options = {ITERATED[data]}",
    ]
    lines += ['models = ["orig", "mu-orig", "gain-orig", "fl", "mu-fl", "gain-fl"]', ""]
    lines += attack("art:fgsm", norm="Linf", eps=sorted({weak, strong}))
    for name in ("PGD", "BIM", "MIM"):
        lines += attack(IDS[name], norm="Linf", eps=[chosen[name]], limit=1000, options=ITERATED[data])
    lines += attack("art:cw-l2", norm="L2", limit=200, options=CW)
    lines += attack("art:fgsm", source="substitute", norm="Linf", eps=sorted({weak, medium, strong}))
    lines += attack("art:cw-l2", source="substitute", norm="L2", limit=200, options=CW)
    lines += attack("artq:random", options=f'{{ distribution = "normal", std = {chosen["normal noise"]} }}')
    lines += attack("artq:random", eps=[chosen["uniform noise"]])
    lines += [
        "# What the slides do not have: float64, divided logits, other losses, curvature, search, and the worst case.",
        "",
    ]
    float64 = ITERATED[data].replace("{", '{ precision = "float64",')
    lines += attack("artq:pgd", norm="Linf", eps=[pgd], limit=200, options=float64)
    lines += attack("artq:rescaled", norm="Linf", eps=[pgd], limit=1000)
    for scaling in ("jacobian", "hessian"):
        lines += attack("artq:rescaled", norm="Linf", eps=[pgd], limit=200, options=f'{{ scaling = "{scaling}" }}')
    lines += attack("artq:apgd-margin", norm="Linf", eps=sorted({strong, pgd}), limit=200)
    lines += attack("art:apgd-dlr", norm="Linf", eps=[pgd], limit=200, options="{ num_random_init = 1 }")
    lines += attack("artq:search", norm="Linf", eps=[pgd], limit=100, options="{ n_queries = 1000 }")
    worst = '{ effort = "quick" }'
    crafted = sorted(
        {weak, strong, *(chosen[name] for name in ("PGD", "BIM", "MIM"))}
    )  # at each strength of a white-box column
    lines += attack("artq:worst-case", norm="Linf", eps=crafted, limit=200, options=worst)
    return lines + attack("artq:worst-case", norm="L2", limit=200, options=worst)


def attack(name: str, *, options: str = "", **more: object) -> list[str]:
    lines = table("attacks", id=name, **more)
    return [*lines[:-1], f"options = {options}", ""] if options else lines


def table(name: str, **settings: object) -> list[str]:
    return [f"[[{name}]]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items()), ""]


def references(data: str, chosen: Mapping[str, float]) -> list[str]:
    """The slides' numbers of each model at these strengths, as TOML."""
    lines: list[str] = []
    for model, (white, others) in SLIDES[data].items():
        own, moved = dict(zip(WHITE_BOX, white, strict=True)), dict(zip(BLACK_BOX, others, strict=True))
        lines += ["[[models]]", f'name = "{model}"', "", "[models.reference]", f"clean = {share(own.pop('clean'))}"]
        numbers: dict[str, dict[float | None, float]] = defaultdict(dict)
        for name, value in own.items():
            numbers[IDS[name]][chosen[name]] = value
        for name, value in moved.items():
            noise = name.endswith("noise")
            key = IDS[name] if noise else f"{'art:fgsm' if name == MEDIUM else IDS[name]} from substitute"
            numbers[key][chosen[name]] = value
        for key, by_size in numbers.items():
            if key.endswith("any eps"):
                lines.append(f'"{key}" = {share(*by_size.values())}')
            else:
                inner = ", ".join(f'"{size}" = {share(value)}' for size, value in sorted(by_size.items()))
                lines.append(f'"{key}" = {{ {inner} }}')
        lines.append("")
    return lines


def share(percent: float) -> float:
    return round(percent / 100, 4)


if __name__ == "__main__":
    main(*sys.argv[1:])
