"""Outcomes: which cells count at a threat, the columns of partly attacked sets, and the worst image of each."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from art_qplugins.evaluation.outcome import (
    Outcome,
    check,
    clean_tries,
    legal_at,
    means,
    robust_at,
    worst_case,
    worst_images,
)
from art_qplugins.evaluation.records import Cell


def outcome(
    name, correct, selection=None, *, rows=None, n=4, eps=0.1, norm="Linf", status="success", params=None, draws=None
):
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
    if draws is not None:
        columns["draws"] = np.full(count, float(draws))
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


# --- Several tries


def test_several_tries_are_of_the_strongest_attack_on_each_image_beside_the_clean_ones():
    clean = outcome("clean", [1, 1, 0.5, 1], eps=0.0, draws=20)
    first = outcome("first", [0.5, 1, 0.5, 1], draws=20)
    part = outcome("part", [0.0, 0.75], [0.25, 0.5], rows=[3, 1], draws=20)
    pairs = {0.5: 10 * 9 / (20 * 19), 0.75: 15 * 14 / (20 * 19)}
    found = {t.tries: t for t in robust_at([clean, first, part], "Linf", 0.1).tries}
    ten = [math.comb(round(20 * s), 10) / math.comb(20, 10) for s in (0.5, 0.75, 0.5, 0.0)]
    assert found[1].accuracy == pytest.approx(np.mean([0.5, 0.75, 0.5, 0]))
    assert found[10].accuracy == pytest.approx(np.mean(ten))
    assert (found[100].counted, found[100].accuracy) == (20, 0.0)
    assert {t.tries: t.counted for t in clean_tries(clean)} == {1: 1, 10: 10, 100: 20}
    assert clean_tries(clean)[2].accuracy == 0.75  # three images never failed
    assert 0 < pairs[0.5] < pairs[0.75]


def test_the_interval_of_several_tries_counts_images_and_not_draws():
    few, many = (robust_at([outcome("a", [1, 1, 0, 0], draws=d)], "Linf", 0.1).tries[0] for d in (20, 2000))
    assert few.interval == many.interval == pytest.approx(tuple(binomtest(2, 4).proportion_ci(method="wilson")))


def test_tries_need_the_draws_of_every_attack():
    """Records of earlier versions and deterministic models have none."""
    old, new = outcome("old", [1, 1, 1, 0]), outcome("new", [1, 1, 0.5, 0], draws=10)
    assert robust_at([old], "Linf", 0.1).tries == robust_at([old, new], "Linf", 0.1).tries == []
    assert means(old.columns)["tries"] == [] == clean_tries(outcome("clean", [1, 1, 1, 1], eps=0.0))
    assert len(robust_at([new], "Linf", 0.1).tries) == 3


def test_attacks_with_different_numbers_of_draws_count_the_fewest():
    pair = [outcome("a", [1, 1, 1, 0.5], draws=200), outcome("b", [1, 1, 0.5, 1], draws=40)]
    assert [t.counted for t in robust_at(pair, "Linf", 0.1).tries] == [1, 10, 40]


def test_a_rejected_clean_image_is_not_right_at_any_try():
    clean = outcome("clean", [1, 1, 1, 1], eps=0.0, draws=4)
    clean.columns["rejected"] = np.array([0, 0.5, 1, 0])
    assert clean_tries(clean)[1].accuracy == 0.5


def test_tries_that_are_not_those_of_the_images_are_refused():
    cell = outcome("a", [1, 0.5, 1, 0], draws=10)
    cell.columns.update({name: np.zeros(4) for name in ("label", "prediction", "distance")})
    honest = cell.with_cell(tries=means(cell.columns)["tries"])
    check(honest)
    forged = [honest.cell.tries[0], honest.cell.tries[1].model_copy(update={"accuracy": 0.9}), honest.cell.tries[2]]
    with pytest.raises(ValueError, match="tries are not those of its images"):
        check(honest.with_cell(tries=forged))
    del honest.columns["draws"]
    with pytest.raises(ValueError, match="tries are not those of its images"):
        check(honest)
