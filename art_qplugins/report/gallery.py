"""A few images that the strongest attack broke: the clean image, the adversarial image, and ten times their difference.

Each picture is a PNG in a data URI, so that the page needs no other file.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from art_qplugins.evaluation.records import Cell, ModelResult, Sample
from art_qplugins.report import select
from art_qplugins.report.files import Run

MAX_PAIRS = 6
AMPLIFIED = 10


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One image before and after the attack. The three pictures are data URIs."""

    clean: str
    adversarial: str
    difference: str  # ten times, about grey
    label: str
    prediction: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Images that one cell broke. ``beyond_claim``: the claimed attack broke none of them."""

    cell: Cell
    beyond_claim: bool
    pairs: list[Pair]


def gallery(model: ModelResult, run: Run) -> Gallery | None:
    """Images that are classified correctly when clean, and wrongly after the strongest attack whose images are on disk.

    Images that the claimed attack did not break come first, because each is a proof. ``None`` if there is no image.
    """
    clean_cell = select.clean(model, run.results)
    clean_images = None if clean_cell is None else run.images(clean_cell.id)
    if clean_cell is None or clean_images is None:
        return None
    rows = {sample.sample: row for row, sample in enumerate(run.samples[clean_cell.id]) if _labelled(sample)}
    claimed = select.claimed(model, run.results)
    robust = (
        {sample.sample for sample in run.samples.get(claimed.id, []) if sample.correct >= 0.5} if claimed else set()
    )
    for cell, broken in _strongest(select.at_threat(model, run.results), run, set(rows), robust):
        images = run.images(cell.id)
        if images is None or images.shape[1:] != clean_images.shape[1:]:
            continue
        chosen = _choose(broken, robust)
        pairs = [
            Pair(
                clean=data_uri(clean_images[rows[sample.sample]]),
                adversarial=data_uri(images[row]),
                difference=data_uri(difference(clean_images[rows[sample.sample]], images[row])),
                label=class_name(run, sample.label),
                prediction=class_name(run, sample.prediction),
                distance=sample.distance,
            )
            for row, sample in chosen
        ]
        return Gallery(cell=cell, beyond_claim=all(sample.sample in robust for _, sample in chosen), pairs=pairs)
    return None


def _labelled(sample: Sample) -> bool:
    return sample.correct - (sample.measures.get("rejected") or 0.0) >= 0.5


def _strongest(
    cells: list[Cell], run: Run, right: set[str], robust: set[str]
) -> list[tuple[Cell, list[tuple[int, Sample]]]]:
    """Cells with the rows that they broke. Cells that broke the most images beyond the claimed attack come first.

    Images are counted and not averaged, because some cells attacked fewer images than others.

    :param right: images that are classified correctly when clean.
    :param robust: images that the claimed attack did not break.
    """
    found = []
    for cell in cells:
        broken = [
            (row, sample)
            for row, sample in enumerate(run.samples.get(cell.id, []))
            if sample.correct < 0.5 and sample.prediction != sample.label and sample.sample in right
        ]
        if broken:
            found.append((sum(sample.sample in robust for _, sample in broken), len(broken), cell, broken))
    return [(cell, broken) for *_, cell, broken in sorted(found, key=lambda item: (-item[0], -item[1], item[2].id))]


def _choose(broken: list[tuple[int, Sample]], robust: set[str]) -> list[tuple[int, Sample]]:
    """Sort proofs first, then one image per label before a second one of the same label, then by the order of the data."""
    ranked: list[tuple[bool, int, int, Sample]] = []
    repeats: Counter[int] = Counter()
    for row, sample in sorted(broken, key=lambda item: (item[1].sample not in robust, item[0])):
        ranked.append((sample.sample not in robust, repeats[sample.label], row, sample))
        repeats[sample.label] += 1
    return [(row, sample) for _, _, row, sample in sorted(ranked, key=lambda item: item[:3])[:MAX_PAIRS]]


def difference(clean: NDArray[np.float32], adversarial: NDArray[np.float32]) -> NDArray[np.float32]:
    """Ten times the change of each pixel around mid-grey, clipped, (C, H, W) in [0, 1]. Raised pixels are lighter."""
    return np.asarray(np.clip(0.5 + AMPLIFIED * (adversarial - clean), 0.0, 1.0), dtype=np.float32)


def class_name(run: Run, index: int) -> str:
    classes = run.results.data.get("classes")
    return str(classes[index]) if isinstance(classes, list) and 0 <= index < len(classes) else str(index)


def data_uri(image: NDArray[np.float32]) -> str:
    """A PNG in a data URI. The page enlarges it without blur.

    :param image: (C, H, W) float32 in [0, 1], with C 1 or 3.
    """
    from PIL import Image  # Matplotlib depends on it

    pixels = np.rint(image * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    out = io.BytesIO()
    picture.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
