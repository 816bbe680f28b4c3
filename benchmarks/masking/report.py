"""The report on the zoo: pure functions from the records of ``one_run.measure`` to Markdown."""

from __future__ import annotations

import datetime
import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rates import corrected_within, rate, rates
from tables import TOOK, VERDICTS, counts, percent, table, took

import art_qplugins
from art_qplugins.diagnostics import INDICATORS

__all__ = ["report"]

Record = dict[str, Any]
#: Indicators with a value to choose a threshold on: what they are about, and whether large (1) or small (-1) is bad.
_ROC = {
    "large-logits": (("scale",), 1),
    "gradient-underflow": (("scale",), 1),
    "gradient-alignment": (("rugged",), -1),
    "unfaithful-gradient": (("no-gradient", "bad-gradient"), -1),
    "noisy-gradient": (("random",), -1),
}


def report(records: Sequence[Record], notes: str = "") -> str:
    """The tables, those of each number of images apart.

    :param notes: what a person says of them, in Markdown.
    """
    if not records:
        return "Nothing was measured yet."
    datasets, seeds = sorted({r["dataset"] for r in records}), sorted({r["seed"] for r in records})
    versions = Counter(r["version"] for r in records)
    lines = [
        "# The diagnostics, measured on the zoo",
        "",
        f"{datetime.date.today()}; art_qplugins {art_qplugins.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}; test images of {' and of '.join(datasets)}, {len({r['row'] for r in records})} "
        f"rows, seeds {', '.join(map(str, seeds))}, {len(records)} runs; one CPU thread each. "
        f"By version of the code: {', '.join(f'{v} {k} runs' for v, k in versions.most_common())}.",
        "`python benchmarks/masking/measure.py --workers 2 --reference` measures, `--report-only` prints this again.",
        "",
        "Rates are shares of runs. Only plants that took count: the number claimed is more than "
        f"{100 * TOOK:.0f} points above the strongest attack known; the others are listed. After each rate are two 95 % "
        "intervals, by families of rows and by trained networks drawn anew. Thresholds are tuned on half A and checked "
        "on B; C is sealed until the end. A family of rows is in one half only.",
        "",
        *([notes.strip(), ""] if notes.strip() else []),
    ]
    sizes = sorted({r["n"] for r in records}, key=lambda n: (-sum(r["n"] == n for r in records), n))
    for n in sizes:
        mine = [r for r in records if r["n"] == n]
        lines += [f"## {n} images ({', '.join(sorted({r['dataset'] for r in mine}))})", "", *rates(mine)]
        for part in (_confusion, _corrected, _cost, _apart):
            lines += part(mine)
    for part in (_indicators, _roc, _every):
        lines += part([r for r in records if r["n"] == sizes[0]])
    return "\n".join(lines)


# --- The parts, in their order


def _confusion(records: Sequence[Record]) -> list[str]:
    number = Counter((r["half"], r["kind"], " or ".join(r["expected"]), r["verdict"]) for r in records if counts(r))
    keys = sorted({key[:3] for key in number})
    lines = table(
        ["half", "kind", "expected", *VERDICTS],
        [(*key, *(number[(*key, v)] for v in VERDICTS)) for key in keys],
    )
    return [
        "### Confusion matrix",
        "",
        "Expected (rows) against given; plants that did not take are left out.",
        "",
        *lines,
    ]


def _indicators(records: Sequence[Record]) -> list[str]:
    counted = [r for r in records if counts(r)]
    names = [*dict.fromkeys([*INDICATORS, *(name for r in counted for name in r["values"])])]

    def line(name: str) -> Sequence[object]:
        must = [r for r in counted if name in r["must_fire"] and name in r["values"] and name not in r["not_run"]]
        fired = [r for r in counted if name in r["fired"]]
        ran = [r for r in counted if r["kind"] == "honest" and name in r["values"] and name not in r["not_run"]]
        return (
            name,
            rate(must, lambda r: name in r["fired"]),
            rate(fired, lambda r: r["kind"] != "honest"),
            rate(ran, lambda r: name in r["fired"]),
            sum(name in r["not_run"] for r in counted),
        )

    return [
        "## Indicators",
        "",
        "Recall: of the runs whose plant has to set it off, where it was run. Precision: the share of its firings that were not on honest "
        f"models. All halves, {records[0]['n']} images.",
        "",
        *table(["indicator", "recall", "precision", "fired on honest", "not run"], map(line, names)),
    ]


def _roc(records: Sequence[Record]) -> list[str]:
    """How well a value separates the plants that it is about from honest models, at any threshold."""
    from sklearn.metrics import roc_auc_score, roc_curve

    rows = []
    for name, (mechanisms, direction) in _ROC.items():
        values = [(r, r["values"].get(name)) for r in records]
        known = [(r, direction * v) for r, v in values if v is not None and np.isfinite(v)]
        bad = [v for r, v in known if r["mechanism"] in mechanisms and took(r)]
        good = [v for r, v in known if r["kind"] == "honest"]
        if not bad or not good:
            continue
        truth, scores = [1] * len(bad) + [0] * len(good), bad + good
        false, true, at = roc_curve(truth, scores, drop_intermediate=False)
        points = [max(np.flatnonzero(false <= limit)) for limit in (0.0, 0.01, 0.05, 0.1)]
        cells = [f"{100 * true[i]:.0f} at {direction * at[i]:.3g}" for i in points]
        ends = [
            max((v for r, v in known if r["half"] == "A" and r["kind"] == "honest"), default=None),
            min((v for r, v in known if r["half"] == "A" and r["mechanism"] in mechanisms and took(r)), default=None),
        ]
        cells += ["–" if v is None else f"{direction * v:.3g}" for v in ends]
        rows.append((name, " ".join(mechanisms), len(bad), len(good), f"{roc_auc_score(truth, scores):.3f}", *cells))
    if not rows:
        return []
    limits = ["no false alarm", "1 %", "5 %", "10 %"]
    return [
        "## Values and thresholds",
        "",
        "Area under the ROC curve, and recall in percent (at which threshold) where so many honest models would set it off. "
        "Last, of half A alone: the worst value of an honest model, and the least bad one of a plant.",
        "",
        *table(["indicator", "against", "plants", "honest", "AUROC", *limits, "A: honest", "A: plants"], rows),
    ]


def _corrected(records: Sequence[Record]) -> list[str]:
    pairs = [r for r in records if "reference" in r and r["corrected"] is not None]
    lines = []
    far = [r for r in pairs if r["verdict"] == "MASKED" and not corrected_within(r, TOOK)]
    for kind in ("masked", "misleading", "weak", "honest"):
        errors = [100 * (r["corrected"] - r["reference"]) for r in pairs if r["kind"] == kind and counts(r)]
        if errors:
            numbers = (np.mean(errors), np.median(errors), np.quantile(errors, 0.9), max(errors))
            within = (f"{sum(e <= limit + 1e-9 for e in errors)} of {len(errors)}" for limit in (1, 2))
            lines.append((kind, len(errors), *(f"{v:.1f}" for v in numbers), *within))
    if not lines:
        return []
    return [
        "### Corrected accuracy",
        "",
        "Corrected minus the strongest attack known, in points.",
        "",
        *table(["kind", "runs", "mean", "median", "90 % below", "largest", "within 1 point", "within 2"], lines),
        f"Of {sum(r['verdict'] == 'MASKED' for r in pairs)} that are MASKED, further off than {100 * TOOK:.0f} points: "
        + (", ".join(f"{r['row']} ({r['dataset']}, seed {r['seed']}, {_error(r)})" for r in far) or "none")
        + ".",
        "",
    ]


def _error(record: Record) -> str:
    return f"{100 * (record['corrected'] - record['reference']):.1f}"


def _cost(records: Sequence[Record]) -> list[str]:
    ran = [r for r in records if r["backward"] or r["forward"]]
    levels = sorted({level for r in ran for level in r["levels"]})
    rows = [
        (kind, *_costs([r for r in ran if r["kind"] == kind], levels))
        for kind in ("honest", "masked", "misleading", "weak")
        if any(r["kind"] == kind for r in ran)
    ]
    header = ["kind", "gradients", "passes", "seconds", "gradients / AutoAttack's"]
    note = "Per image, median (largest). AutoAttack's standard version is on the same model, or on its honest twin."
    honest = [r for r in ran if r["kind"] == "honest"]
    first = [sum(r["levels"].get(level, {"backward": 0.0})["backward"] for level in "01") for r in honest]
    whole = [r["backward"] / r["autoattack_backward"] for r in honest if r.get("autoattack_backward")]
    within = (
        f"Levels 0 and 1 of honest models: at most 80 gradients in {sum(v <= 80 for v in first)} of {len(first)} runs; "
        f"all levels: at most a third of AutoAttack's in {sum(v <= 1 / 3 for v in whole)} of {len(whole)}."
    )
    names = [*header, *(f"level {level}: gradients" for level in levels)]
    return ["### Cost", "", note, "", *table(names, rows), within, ""]


def _costs(records: Sequence[Record], levels: Sequence[str]) -> list[str]:
    shares = [r["backward"] / r["autoattack_backward"] for r in records if r.get("autoattack_backward")]
    return [
        *(_spread([r[key] for r in records], d) for key, d in (("backward", 0), ("forward", 0), ("seconds", 1))),
        _spread(shares, 2),
        *(_spread([r["levels"][level]["backward"] for r in records if level in r["levels"]], 0) for level in levels),
    ]


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{np.median(values):.{digits}f} ({max(values):.{digits}f})" if values else "–"


def _apart(records: Sequence[Record]) -> list[str]:
    """What the rates leave out, and the honest models whose number is most too high."""
    missed = [r for r in records if not counts(r)]
    far = [r for r in records if r["kind"] == "honest" and r["claimed"] is not None and took(r)]
    far = sorted(far, key=lambda r: r.get("reference", r["corrected"]) - r["claimed"])[:12]

    def listed(some: Sequence[Record]) -> list[str]:
        keys = ("claimed", "corrected", "reference")
        body = ((r["row"], r["dataset"], r["seed"], r["verdict"], *(percent(r.get(k)) for k in keys)) for r in some)
        return table(["row", "data", "seed", "verdict", *keys], body)

    lines = ["### Plants that did not take", "", *(listed(missed) if missed else ["None.", ""])]
    return [*lines, "### Honest models with the largest gaps", "", *(listed(far) if far else ["None.", ""])]


def _every(records: Sequence[Record]) -> list[str]:
    lines = []
    for name, dataset in dict.fromkeys((r["row"], r["dataset"]) for r in records):
        mine = [r for r in records if (r["row"], r["dataset"]) == (name, dataset)]
        fired = Counter(i for r in mine for i in r["fired"])
        numbers = ("clean", "claimed", "corrected", "reference")
        lines.append(
            (
                name,
                dataset,
                mine[0]["half"],
                " or ".join(mine[0]["expected"]),
                ", ".join(map(_verdict, mine)),
                ", ".join(r["claim"] for r in mine),
                *(", ".join(percent(r.get(key)) for r in mine) for key in numbers),
                " ".join(i if k == len(mine) else f"{i}({k})" for i, k in fired.items()),
            )
        )
    header = [
        "row",
        "data",
        "half",
        "expected",
        "verdict",
        "claim",
        "clean",
        "claimed",
        "corrected",
        "reference",
        "fired",
    ]
    note = (
        "Verdicts and numbers by seed; accuracies in percent; in brackets, how many seeds, if not all. Bold: not as "
        "expected. `*`: this plant did not take."
    )
    return ["## Every row", "", note, "", *table(header, lines)]


def _verdict(record: Record) -> str:
    star = "" if counts(record) else "*"
    right = record["verdict"] in record["expected"]
    return (record["verdict"] if right else f"**{record['verdict']}**") + star
