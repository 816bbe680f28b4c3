"""Outcomes: which cells count at a threat, the columns of partly attacked sets, and the worst image of each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from art_qplugins.evaluation.outcome import Outcome, legal_at, robust_at, worst_case, worst_images
from art_qplugins.evaluation.records import Cell


def outcome(name, correct, selection=None, *, rows=None, n=4, eps=0.1, norm="Linf", status="success", params=None):
    """A cell by its correctness on the images at ``rows``, by default all."""
    count = n if rows is None else len(rows)
    cell = Cell(
        id=name,
        model="m",
        source="m",
        attack="art:pgd",
        role="attack" if eps else "clean",
        norm=norm,
        eps=eps,
        seed=0,
        n=count,
        accuracy=float(np.mean(correct)),
        interval=(0, 1),
        forward_samples=0,
        backward_samples=0,
        seconds=0,
        status=status,
        params=params or {},
        rows=rows,
        of=None if rows is None else n,
    )
    columns = {"correct": np.array(correct, float), "selection": np.array(selection or correct, float)}
    return Outcome(cell, [f"i{i}" for i in rows or range(n)], columns)


class Kept:
    """Images of cells: all pixels have the number of the cell plus the position of the image."""

    def __init__(self, **of):
        self.of = of

    def images(self, cell_id):
        number, rows = self.of[cell_id]
        return np.array([np.full((1, 2, 2), number + 0.01 * row, np.float32) for row in rows])


def test_cells_count_at_their_eps_and_above_and_clean_cells_always():
    clean = outcome("clean", [1, 1, 1, 1], eps=0.0, norm="L2")
    same, smaller, larger = (outcome(f"at {eps}", [1] * 4, eps=eps) for eps in (0.1, 0.05, np.nextafter(0.1, 1)))
    other = outcome("other", [1] * 4, norm="L2", eps=0.01)
    failed = outcome("failed", [1] * 4, status="error")
    check = outcome("check", [1] * 4, params={"check": "binarization"})
    found = legal_at([same, other, clean, failed, larger, check, smaller], "Linf", 0.1)
    assert [o.cell.id for o in found] == ["at 0.1", "clean", "at 0.05"]


def test_a_column_is_over_all_images_and_unknown_where_none_was_attacked():
    part = outcome("part", [0, 1], rows=[3, 1])
    np.testing.assert_array_equal(part.column("correct"), [np.nan, 1, np.nan, 0])
    np.testing.assert_array_equal(part.column("margin"), [np.nan] * 4)
    whole = outcome("whole", [0, 1, 1, 0])
    whole.column("correct")[0] = 7
    np.testing.assert_array_equal(whole.column("correct"), [0, 1, 1, 0])


def test_robust_accuracy_is_the_mean_of_the_worst_cases_with_its_interval():
    clean = outcome("clean", [1, 1, 1, 0], eps=0.0)
    part = outcome("part", [0, 1], rows=[3, 1])
    found = robust_at([clean, part, outcome("b", [0, 1, 1, 1])], "Linf", 0.1)
    assert (found.accuracy, found.attacks) == (0.5, ["clean", "part", "b"])
    assert found.interval == pytest.approx(tuple(binomtest(2, 4).proportion_ci(method="wilson")))


def test_the_worst_image_is_chosen_by_the_selection_and_not_by_the_scores():
    """By the scored draws, each image would come from the other cell."""
    clean = outcome("clean", [1.0] * 4, eps=0.0)
    a = outcome("a", [0.1, 0.9, 0.5, 0.2], [0.6, 0.2, 0.5, 1.0])
    b = outcome("b", [0.9, 0.1], [0.3, 0.7], rows=[0, 1])
    x = np.zeros((4, 1, 2, 2), np.float32)
    kept = Kept(clean=(0, range(4)), a=(1, range(4)), b=(2, [0, 1]))
    chosen, images = worst_images([clean, a, b], kept, x)
    assert chosen.tolist() == [2, 1, 1, 0]
    np.testing.assert_allclose(images[:, 0, 0, 0], [2.0, 1.01, 1.02, 0.03], atol=1e-6)
    assert not x.any()
    np.testing.assert_allclose(worst_case([clean, a, b]), [0.9, 0.9, 0.5, 0.6])


def test_the_image_of_a_cell_on_some_images_is_found_by_its_position():
    clean = outcome("clean", [1.0] * 4, eps=0.0)
    part = outcome("part", [0.0, 0.0], rows=[3, 1])
    kept = Kept(clean=(0, range(4)), part=(5, [3, 1]))
    _, images = worst_images([clean, part], kept, np.zeros((4, 1, 2, 2), np.float32))
    np.testing.assert_allclose(images[:, 0, 0, 0], [0.0, 5.01, 0.02, 5.03], atol=1e-6)
