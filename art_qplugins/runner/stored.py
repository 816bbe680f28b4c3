"""The stored images of cells, which are measured after the last cell."""

from __future__ import annotations

import torch
from torch import Tensor

from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.records import Cell
from art_qplugins.evaluation.store import Storage

__all__ = ["on_all_images", "pairs"]


def on_all_images(cell: Cell | CellSpec) -> bool:
    """Whether it attacked every image, or the first ones of the recipe's limit.

    Cells of a cascade or of a diagnosis did not: they hold only images that were hard to break.
    """
    chosen = cell.rows is not None and cell.limit is None
    test = cell.check if isinstance(cell, CellSpec) else cell.params.get("check")
    return cell.role in ("attack", "corruption") and not chosen and test is None


def pairs(evaluator: Evaluator, store: Storage, cell: Cell, n: int) -> tuple[Tensor, Tensor]:
    """The first n images of a cell, clean and crafted, on the device of the model that they are scored on."""
    images = torch.from_numpy(store.images(cell.id))
    device = evaluator.estimators[cell.model].device
    rows = evaluator.rows(cell.rows)[:n]
    return evaluator.x[rows].to(device), images[: len(rows)].to(device)
