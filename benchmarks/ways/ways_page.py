"""The page of ``results.json``: pure functions from records to Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["page"]

Record = Mapping[str, Any]

_COLUMNS = {
    "way": lambda r: r["way"],
    "version": lambda r: r["version"],
    "what is quantized": lambda r: r["settings"],
    "PGD of ART / torchattacks / Foolbox": lambda r: _libraries(r["libraries"]),
    "verdict": lambda r: r["verdict"],
    "right": lambda r: _percent(r["right"]),
    "claimed": lambda r: _percent(r["claimed"]),
    "left": lambda r: f"{_percent(r['left'])} {_interval(r['interval'])}",
    "left by the float network's images": lambda r: _percent(r["left_by_twin"]),
    "left by both": lambda r: _percent(r["left_by_both"]),
    "same labels, clean": lambda r: _percent(r["same_clean"]),
    "same labels, adversarial": lambda r: _percent(r["same_adversarial"]),
    "size, of float32": lambda r: f"{r['bytes']:,} ({r['bytes'] / r['float_bytes']:.2f})",
    "latency, of float32": lambda r: f"{r['latency']:.2f}",
}


def page(results: Record) -> str:
    """The table of all ways with what was run."""
    ways, base = results["ways"], results["float"]
    lines = [
        "# Ways to quantize, and what an attack sees of them",
        "",
        f"{results['date']}; {results['versions']}; {results['processor']}. One small network (two convolutions, two linear "
        f"layers) on digits; {results['n']} test images, Linf, eps = {results['eps']}. `python benchmarks/ways/ways.py` measures, "
        "`--page-only` makes this page again.",
        "",
        f"The float32 network is right on {_percent(base['right'])} % of the images, and a diagnosis leaves "
        f"{_percent(base['left'])} % {_interval(base['interval'])}. Numbers are in percent.",
        "",
        *_table(list(_COLUMNS), [[str(show(r)) for show in _COLUMNS.values()] for r in ways]),
        "",
        "- *PGD*: 20 steps on 32 images, each library on a module of its own that has answered before. *moves nothing*: it "
        "returns the clean images. At its first answer without a gradient, `Linear4bit` packs its weights for processors with "
        "AVX512_BF16; from then on no gradient passes it.",
        "- *claimed*: what `art:pgd` leaves within the suite. *left*: the worst case over all that `diagnose` ran, scored on the "
        "quantized network, with the 95 % interval.",
        "- *left by the float network's images*: its strongest images, scored on the quantized network; *both*: an image stands "
        "only where it stands in both columns.",
        "- *same labels*: as the float32 network, on clean images and on its strongest images.",
        "- *size*: of the saved state dict, or of the ONNX file, against float32 in the same form. *latency*: a batch of 64, "
        "medians of 60 interleaved rounds, against float32 in the same runtime. Below 1 is faster.",
        "",
        *_findings(ways),
    ]
    return "\n".join(lines) + "\n"


def _findings(ways: Sequence[Record]) -> list[str]:
    """What the records say in a sentence each."""
    blind = [r for r in ways if r["verdict"] == "MASKED"]
    gap = max((r["left"] - r["left_by_both"] for r in ways), default=0.0)
    worst = [r["way"] for r in ways if r["left"] - r["left_by_both"] == gap]
    return [
        f"{len(ways)} ways have a verdict and a number. {len(blind)} of them hide their gradient: "
        f"{', '.join(r['way'] for r in blind)}.",
        "",
        f"The float network's images break at most {_percent(gap)} points that the diagnosis of the quantized network alone did "
        f"not break ({', '.join(worst)}).",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _libraries(found: Mapping[str, str]) -> str:
    """One word where all libraries end in the same way."""
    return next(iter(found.values())) if len({*found.values()}) == 1 else " / ".join(found.values())


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(ends: Sequence[float]) -> str:
    return f"[{_percent(ends[0])}, {_percent(ends[1])}]"
