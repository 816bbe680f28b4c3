"""Transfer: the accuracy of every target model on images crafted on every source model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from art_qplugins.evaluation.records import Cell, Results
from art_qplugins.report import select, words
from art_qplugins.report.figures.style import INK, SOFT, WIDTH, cut, heat_map_axes, heat_map_square, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Attack = tuple[str, str, int, str, float]  # label, settings as JSON, number of images, norm, eps
_Pairs = dict[tuple[str, str], Cell]  # by source and target


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One attack on ``n`` images at one norm and eps, by source and target. ``cells`` holds the pairs that were run."""

    attack: str
    n: int
    norm: str
    eps: float
    sources: list[str]
    targets: list[str]
    cells: Mapping[tuple[str, str], Cell]


def transfer(results: Results) -> Transfer | None:
    """The transfer matrix with the most pairs in the records.

    It is for one attack at one norm and eps and has at least two pairs of different models. Among matrices of equal size,
    the one at the norm and eps of the first model's claim is chosen, else the one with the largest eps.
    """
    at = select.threat(results.models[0], results) if results.models else None
    groups = _groups(results)
    ranked = sorted(
        ((_crossings(cells), key[3:] == at, key[4], key) for key, cells in groups.items()), key=lambda item: item[:3]
    )
    if not ranked or ranked[-1][0] < 2:
        return None
    key = ranked[-1][3]
    cells = groups[key]
    order = [model.name for model in results.models]
    order += sorted({name for pair in cells for name in pair} - set(order))  # substitutes
    # Leave out a model without a pair with another model. Its own accuracy is shown elsewhere.
    crossing = {name for source, target in cells if source != target for name in (source, target)}
    return Transfer(
        attack=key[0],
        n=key[2],
        norm=key[3],
        eps=key[4],
        sources=[name for name in order if name in crossing and any(source == name for source, _ in cells)],
        targets=[name for name in order if name in crossing and any(target == name for _, target in cells)],
        cells=cells,
    )


def _groups(results: Results) -> dict[_Attack, _Pairs]:
    """Scored cells of the finished models on the same images, by attack, norm and eps: on all, or on those of a limit."""
    groups: dict[_Attack, _Pairs] = defaultdict(dict)
    finished = {model.name for model in results.models}
    for cell in results.cells:
        scored = cell.status == "success" and cell.accuracy is not None and (cell.rows is None or cell.n == cell.limit)
        if scored and cell.role == "attack" and cell.model in finished:
            key = (cell.label, json.dumps(cell.params, sort_keys=True, default=str), cell.n, cell.norm, cell.eps)
            groups[key].setdefault((cell.source, cell.model), cell)
    return groups


def _crossings(cells: Mapping[tuple[str, str], Cell]) -> int:
    return sum(source != target for source, target in cells)


@styled
def heat_map(matrix: Transfer) -> Figure:
    """Accuracy of each target (column) on images crafted on each source (row). The diagonal is framed."""
    from matplotlib.figure import Figure

    rows = len(matrix.sources)
    sources, targets = ([cut(name, 20) for name in names] for names in (matrix.sources, matrix.targets))
    above = 0.35 + 0.062 * max(map(len, targets))
    height = 0.42 * rows + above
    figure = Figure(figsize=(WIDTH, height))
    left = min(0.34, 0.04 + 0.0165 * max(map(len, sources)))
    axes = figure.add_axes((left, 0.02, 0.97 - left, 0.42 * rows / height))
    for row, source in enumerate(matrix.sources):
        for column, target in enumerate(matrix.targets):
            _square(axes, row, column, matrix.cells.get((source, target)), framed=source == target)
    heat_map_axes(axes, sources, targets, rotation=90)
    figure.text(0.01, 1 - 0.08 / height, "crafted on (row), scored on (column); accuracy, %", va="top", color=SOFT)
    return figure


def _square(axes: Axes, row: int, column: int, cell: Cell | None, *, framed: bool) -> None:
    from matplotlib.patches import Rectangle

    share = 0.0 if cell is None or cell.accuracy is None else cell.accuracy
    fill = "#f4f4f1" if cell is None else _shade(share)
    text = words.NONE if cell is None else f"{100 * share:.0f}"
    heat_map_square(axes, row, column, text, fill=fill, dark=cell is not None and share > 0.5)
    if framed:
        corner = (column + 0.04, row + 0.05)
        axes.add_patch(Rectangle(corner, 0.92, 0.9, facecolor="none", edgecolor=INK, linewidth=1.4))


def _shade(share: float) -> tuple[float, float, float]:
    """From nearly white for 0 to dark blue for 1."""
    light, dark = (0.92, 0.95, 0.98), (0.0, 0.27, 0.49)
    red, green, blue = (a + (b - a) * share for a, b in zip(light, dark, strict=True))
    return red, green, blue


def heat_map_alt(matrix: Transfer) -> str:
    """Alternative text of the heat map."""
    pairs = [
        f"{source} to {target} {words.percent(cell.accuracy)}"
        for source in matrix.sources
        for target in matrix.targets
        if (cell := matrix.cells.get((source, target))) is not None
    ]
    at = words.threat(matrix.norm, matrix.eps)
    return (
        f"Transfer of {matrix.attack} at {at}, accuracy on {matrix.n} images by source and target: {', '.join(pairs)}."
    )
