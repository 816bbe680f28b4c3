"""The results page of Defensive Quantization, from the records of its recipes.

python benchmarks/results/dq.py          # benchmarks/results/dq/*.json make benchmarks/results/dq.md
python benchmarks/results/dq.py RUN ...  # the same, after taking what it needs of these runs' results.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from page import Page

from art_qplugins.evaluation.records import PooledCell, Results
from art_qplugins.report import words


def gains(file: Path, results: Results) -> list[str]:
    """Of table 1: by how much the best number of bits is above full precision under FGSM, as the paper's "quantize gain"."""
    left: dict[str, dict[str, PooledCell]] = {}
    cells = {cell.id: cell for cell in results.cells}
    for row in results.pooled:
        if cells[row.cell].role != "clean" and row.measured is not None:
            arm, _, bits = row.model.rpartition("-")
            left.setdefault(arm, {})[bits] = row
    lines = ["| training | paper: gain | measured: gain | worst case: gain |", "|---|---|---|---|"]
    for arm, by_bits in left.items():
        plain, quantized = by_bits.get("fp"), [row for bits, row in by_bits.items() if bits != "fp"]
        if plain is None or not quantized:
            continue
        values = []
        for take in (
            lambda r: r.paper,
            lambda r: r.measured and r.measured.accuracy,
            lambda r: r.left and r.left.accuracy,
        ):
            numbers_, base = [take(row) for row in quantized], take(plain)
            known = base is not None and all(value is not None for value in numbers_)
            values.append(words.signed(max(numbers_) - base) if known else words.NONE)
        lines.append(f"| {arm} | " + " | ".join(values) + " |")
    return lines if len(lines) > 2 else []


PAGE = Page(
    folder=Path(__file__).parent / "dq",
    order=(
        *(f"table{n}" for n in range(1, 7)),
        *(f"figure{n}" for n in (1, 3, 5, 6, 7)),
        *("beyond-mnist", "reasons", "beyond-cifar10", "beyond-clip", "beyond-decay"),
    ),
    ahead="beyond-mnist",
    middle=True,
    more={"table1": gains},
)

if __name__ == "__main__":
    PAGE.write(sys.argv[1:])
