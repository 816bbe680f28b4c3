"""Selects records for the report: the cells at a norm and eps, the kind of each attack, the strongest attack."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from art_qplugins import metrics
from art_qplugins.evaluation.fields import Interval
from art_qplugins.evaluation.records import Cell, ModelResult, Results, Robust, Sample
from art_qplugins.report.files import Run

Kind = Literal["white-box", "transfer", "black-box", "adaptive", "corruption"]
#: The kinds of attacks.
KINDS: tuple[Kind, ...] = ("white-box", "adaptive", "transfer", "black-box")


def kind(cell: Cell) -> Kind:
    """The kind of an attack. An adaptive attack was added by the diagnosis. A corruption is no attack."""
    if cell.role == "corruption":
        return "corruption"
    if cell.source != cell.model:
        return "transfer"
    if cell.knowledge == "black-box":
        return "black-box"
    return "adaptive" if cell.role == "probe" else "white-box"


def threat(model: ModelResult, results: Results) -> tuple[str, float] | None:
    """The norm and eps of the model's main numbers: those of its claim, else the largest eps of the norm attacked first."""
    if model.claim.norm is not None and model.claim.eps is not None:
        return model.claim.norm, model.claim.eps
    cells = [cell for cell in results.cells if cell.model == model.name and cell.role == "attack"]
    attacked = [(robust.norm, robust.eps) for robust in model.robust] or [(cell.norm, cell.eps) for cell in cells]
    if not attacked:
        return None
    norms = [norm for norm, _ in attacked]
    norm = next((cell.norm for cell in cells if cell.norm in norms), norms[0])
    return norm, max(eps for one, eps in attacked if one == norm)


def has_threat(cell: Cell) -> bool:
    """Whether a norm and eps limit its images: it is neither clean nor a corruption."""
    return cell.role in ("attack", "probe")


def threats(results: Results) -> list[tuple[str, float]]:
    """Every norm and eps at which a model has a worst case, sorted."""
    return sorted({(robust.norm, robust.eps) for model in results.models for robust in model.robust})


def robust_at(model: ModelResult, norm: str, eps: float) -> Robust | None:
    """The model's worst case at exactly this norm and eps."""
    return next((robust for robust in model.robust if (robust.norm, robust.eps) == (norm, eps)), None)


def attacks(model: ModelResult, results: Results) -> list[Cell]:
    """The cells that attacked every image at the model's norm and eps, strongest first.

    Cells on fewer images are left out, because their accuracies are over other images.
    """
    return [cell for cell in at_threat(model, results) if cell.rows is None]


def at_threat(model: ModelResult, results: Results) -> list[Cell]:
    """All scored cells at the model's norm and eps, also those on fewer images. The lowest accuracy comes first."""
    at = threat(model, results)
    cells = [
        cell
        for cell in results.cells
        if at is not None
        and cell.model == model.name
        and has_threat(cell)
        and cell.status == "success"
        and cell.accuracy is not None
        and cell.norm == at[0]
        and math.isclose(cell.eps, at[1], rel_tol=1e-6)
    ]
    return sorted(cells, key=lambda cell: (cell.accuracy, cell.id))


def referenced(results: Results) -> list[Cell]:
    """The cells for which a paper gives a number."""
    return [cell for cell in results.cells if cell.reference is not None]


def with_reference(cell: Cell | None) -> Cell | None:
    """The cell, if a paper gives a number for it."""
    return None if cell is None or cell.reference is None else cell


def claimed(model: ModelResult, results: Results) -> Cell | None:
    """The cell of the claimed attack, if it was run."""
    return next((cell for cell in attacks(model, results) if is_claimed(model, cell)), None)


def is_claimed(model: ModelResult, cell: Cell) -> bool:
    """Whether this cell is the one of the claimed attack."""
    return model.claim.cell == cell.id


def clean(model: ModelResult, results: Results) -> Cell | None:
    """The cell of the model's clean images."""
    return next((cell for cell in results.cells if cell.model == model.name and cell.role == "clean"), None)


def clean_margins(model: ModelResult, run: Run) -> list[float]:
    """The finite logit margins of the clean images."""
    cell = clean(model, run.results)
    samples: list[Sample] = run.samples.get(cell.id, []) if cell else []
    return [sample.margin for sample in samples if sample.margin is not None and math.isfinite(sample.margin)]


def clean_gradients(model: ModelResult, run: Run) -> list[float]:
    """The largest entry of the loss gradient at each clean image with a measurement."""
    cell = clean(model, run.results)
    samples = run.samples.get(cell.id, []) if cell else []
    found = [sample.measures.get("gradient") for sample in samples]
    return [value for value in found if value is not None and math.isfinite(value) and value >= 0]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One attack on every image, its cost, and the worst case over it and all cheaper ones."""

    cell: Cell
    gradients: float  # per image
    accuracy: float
    worst: float


def spending(model: ModelResult, run: Run) -> list[Spent]:
    """The white-box attacks on the model itself at its norm and eps, the cheapest first."""
    cells = [c for c in attacks(model, run.results) if c.knowledge == "white-box" and c.source == c.model and c.n]
    cells = [c for c in cells if c.backward_samples and run.samples.get(c.id)]
    first = clean(model, run.results)
    if first is None or not run.samples.get(first.id):
        return []
    order = [sample.sample for sample in run.samples[first.id]]

    def columns(cell: Cell) -> tuple[list[float], list[float]]:
        rows = {sample.sample: sample for sample in run.samples[cell.id]}
        return [rows[name].correct for name in order], [rows[name].selection for name in order]

    found: list[Spent] = []
    known = [columns(first)]
    for cell in sorted(cells, key=lambda c: c.backward_samples):
        known.append(columns(cell))
        worst = metrics.worst_case([correct for correct, _ in known], [selection for _, selection in known])
        gradients = cell.backward_samples / cell.n
        found.append(Spent(cell=cell, gradients=gradients, accuracy=cell.accuracy or 0.0, worst=float(worst.mean())))
    return found


@dataclass(frozen=True, kw_only=True)
class OnGrid:
    """The worst case after pixels were rounded to ``levels`` values, at the model's norm and eps."""

    levels: int
    accuracy: float
    interval: Interval


def on_grid(model: ModelResult, run: Run) -> OnGrid | None:
    """The worst case over the cells that were also scored on a grid; ``None`` where none was.

    For a random model, independent draws choose the worst attack on each image, as without a grid.
    """
    at = threat(model, run.results)
    if at is None:
        return None
    cells = [cell for cell in run.results.cells if cell.grid and run.samples.get(cell.id) and _counts(cell, model, at)]
    levels = {cell.grid for cell in cells}
    if len(levels) != 1 or all(cell.role == "clean" for cell in cells):
        return None
    places = {name: i for i, name in enumerate(dict.fromkeys(s.sample for c in cells for s in run.samples[c.id]))}
    rounded, chosen_by = np.full((2, len(cells), len(places)), np.nan)
    for row, cell in enumerate(cells):
        for sample in run.samples[cell.id]:
            correct = sample.measures.get("grid_correct")
            rounded[row, places[sample.sample]] = np.nan if correct is None else correct
            chosen_by[row, places[sample.sample]] = sample.selection
    chosen_by = np.where(np.isnan(rounded), np.nan, chosen_by) if model.stochastic else rounded
    # A number over some images would look like a number over all images.
    if len(places) != model.n or np.isnan(rounded).all(axis=0).any():
        return None
    accuracy, interval = metrics.accuracy(metrics.worst_case(rounded, chosen_by))
    return OnGrid(levels=next(level for level in levels if level), accuracy=accuracy, interval=interval)


def _counts(cell: Cell, model: ModelResult, at: tuple[str, float]) -> bool:
    """Whether a cell's images are legal at this norm and eps. A corruption does not count, nor a test, which changes no image."""
    within = cell.eps == 0 or (cell.norm == at[0] and cell.eps <= at[1] * (1 + 1e-6))
    fit = cell.role != "corruption" and "check" not in cell.params
    return cell.model == model.name and cell.status == "success" and within and fit


def groups(cells: Iterable[Cell], key: Callable[[Cell], Hashable]) -> dict[Hashable, list[Cell]]:
    """Cells by ``key``, in the order of the run."""
    found: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        found.setdefault(key(cell), []).append(cell)
    return found


def names(cells: Iterable[Cell]) -> dict[str, str]:
    """Short names by cell id. They differ among cells at the same norm and eps, which have a column of their own."""
    found: dict[str, str] = {}
    for group in groups(cells, lambda cell: (cell.model, cell.norm, cell.eps)).values():
        found |= labels(group)
    return found


def labels(cells: list[Cell]) -> dict[str, str]:
    """Short names by cell id: the attack, the source model, and the settings that differ among ``cells``."""
    names = {cell.id: cell.label + (f" from {cell.source}" if cell.source != cell.model else "") for cell in cells}
    counts = Counter(names.values())
    for cell in cells:
        if counts[names[cell.id]] > 1:
            twins = [other for other in cells if (other.label, other.source) == (cell.label, cell.source)]
            differ = [key for key in cell.params if any(other.params.get(key) != cell.params[key] for other in twins)]
            detail = ", ".join(f"{key}={_short(cell.params[key])}" for key in differ)
            names[cell.id] += f" ({detail})" if detail else ""
    return names


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
