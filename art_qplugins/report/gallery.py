"""A few images that the strongest attack broke: clean, adversarial, and ten times their difference, as PNG data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from art_qplugins.evaluation.records import Cell, ModelResult, Sample
from art_qplugins.report import select
from art_qplugins.report.files import Run

MAX_PAIRS = 6
AMPLIFIED = 10


@dataclass(frozen=True, kw_only=True)
class Pair:
    clean: str  # data URI
    adversarial: str
    difference: str  # ten times, about grey
    label: str
    prediction: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class Gallery:
    cell: Cell
    beyond_claim: bool  # all images shown withstood the claimed attack
    pairs: list[Pair]


def gallery(model: ModelResult, run: Run) -> Gallery | None:
    """Images that were right when clean and that the strongest attack with images on disk made wrong.

    Those that the claimed attack had left standing come first: each is a proof by itself. None where nothing was found.
    """
    clean_cell = select.clean(model, run.results)
    clean_images = None if clean_cell is None else run.images(clean_cell.id)
    if clean_cell is None or clean_images is None:
        return None
    rows = {sample.sample: row for row, sample in enumerate(run.samples[clean_cell.id]) if sample.correct >= 0.5}
    claimed = select.claimed(model, run.results)
    stood = {sample.sample for sample in run.samples.get(claimed.id, []) if sample.correct >= 0.5} if claimed else set()
    for cell, broken in _strongest(select.at_budget(model, run.results), run, set(rows), stood):
        images = run.images(cell.id)
        if images is None or images.shape[1:] != clean_images.shape[1:]:
            continue
        chosen = _choose(broken, stood)
        pairs = [
            Pair(
                clean=data_uri(clean_images[rows[sample.sample]]),
                adversarial=data_uri(images[row]),
                difference=data_uri(difference(clean_images[rows[sample.sample]], images[row])),
                label=_class_name(run, sample.label),
                prediction=_class_name(run, sample.prediction),
                distance=sample.distance,
            )
            for row, sample in chosen
        ]
        return Gallery(cell=cell, beyond_claim=all(sample.sample in stood for _, sample in chosen), pairs=pairs)
    return None


def _strongest(
    cells: list[Cell], run: Run, right: set[str], stood: set[str]
) -> list[tuple[Cell, list[tuple[int, Sample]]]]:
    """Cells with the rows that they broke, those first that broke most of what the claimed attack had left standing.

    Counted and not averaged, since some cells attacked fewer images than others.
    """
    found = []
    for cell in cells:
        broken = [
            (row, sample)
            for row, sample in enumerate(run.samples.get(cell.id, []))
            if sample.correct < 0.5 and sample.prediction != sample.label and sample.sample in right
        ]
        if broken:
            found.append((sum(sample.sample in stood for _, sample in broken), len(broken), cell, broken))
    return [(cell, broken) for *_, cell, broken in sorted(found, key=lambda item: (-item[0], -item[1], item[2].id))]


def _choose(broken: list[tuple[int, Sample]], stood: set[str]) -> list[tuple[int, Sample]]:
    """Proofs first, then one image a label before a second of the same, otherwise in the order of the data."""
    ranked, seen = [], {}
    for row, sample in sorted(broken, key=lambda item: (item[1].sample not in stood, item[0])):
        repeats = seen[sample.label] = seen.get(sample.label, -1) + 1
        ranked.append((sample.sample not in stood, repeats, row, sample))
    return [(row, sample) for _, _, row, sample in sorted(ranked, key=lambda item: item[:3])[:MAX_PAIRS]]


def difference(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """Ten times the change of each pixel about mid-grey, clipped: lighter where it was raised. (C, H, W) in [0, 1]."""
    return np.clip(0.5 + AMPLIFIED * (adversarial - clean), 0.0, 1.0)


def _class_name(run: Run, index: int) -> str:
    classes = run.results.data.get("classes")
    return str(classes[index]) if isinstance(classes, list) and 0 <= index < len(classes) else str(index)


def data_uri(image: np.ndarray) -> str:
    """(C, H, W) float32 in [0, 1], C 1 or 3, as a PNG in a data URI. The page enlarges it, so that no pixel blurs."""
    from PIL import Image  # Matplotlib depends on it

    pixels = np.rint(image * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
