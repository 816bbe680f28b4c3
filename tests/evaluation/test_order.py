"""The order of a cascade, learnt from records."""

from __future__ import annotations

import json

import pytest

from art_qplugins.attacks import ATTACKS
from art_qplugins.errors import InputError
from art_qplugins.evaluation.order import Learnt, as_json, learn, shipped
from art_qplugins.evaluation.records import Cell, Environment, Results, Sample

N = 10


def run_of(*attacks, model="a", clean=range(N), n=N):
    """A run whose cells are (attack, rows that it breaks, passes for an image) and further fields of the cell."""
    cells, samples = [], {}
    for number, (attack, broken, passes, *more) in enumerate([("artq:clean", set(range(n)) - set(clean), 1), *attacks]):
        fields = {
            **{"id": f"{number}", "model": model, "source": model, "attack": attack, "params": {}, "norm": "Linf"},
            **{"role": "attack" if number else "clean", "eps": 0.1 * bool(number), "seed": 0, "n": n, "seconds": 0.1},
            **{"status": "success", "accuracy": 1 - len(broken) / n, "interval": (0.0, 1.0)},
            **{"forward_samples": passes * n, "backward_samples": 0},
        }
        cell = Cell(**fields | (more[0] if more else {}))
        cells.append(cell)
        samples[cell.id] = [
            Sample(
                **{
                    "cell": cell.id,
                    "sample": f"s/{row}",
                    "label": 0,
                    "prediction": int(row in broken),
                    "distance": 0.0,
                },
                **{
                    "correct": float(row not in broken),
                    "selection": float(row not in broken),
                    "margin": None,
                    "loss": None,
                },
            )
            for row in range(n)
        ]
    environment = Environment(packages={}, python="", platform="", device="cpu", git=None)
    results = Results(
        **{"status": "success", "created": "2026-01-01T00:00:00Z", "spec": {}, "models": [], "cells": cells},
        **{"data": {"name": "s", "sha256": "ab"}, "environment": environment},
    )
    return results, samples


def test_what_breaks_most_of_the_rest_for_its_passes_is_next():
    strong, cheap, same = set(range(9)), {0, 1, 2, 3}, {0, 1, 2}
    order = learn([run_of(("art:pgd", strong, 40), ("art:fgsm", cheap, 2), ("art:bim", same, 2))])
    assert order == [
        Learnt("art:fgsm", 10, 4, 20.0),  # 0.2 a pass; art:pgd has 0.0225
        Learnt("art:pgd", 6, 5, 240.0),
        Learnt("art:bim", 1, 0, 2.0),  # what it breaks was broken
    ]


def test_attacks_given_first_keep_their_order_and_the_rest_is_learnt():
    strong, cheap, same = set(range(9)), {0, 1, 2, 3}, {0, 1, 2}
    runs = [run_of(("art:pgd", strong, 40), ("art:fgsm", cheap, 2), ("art:bim", same, 2))]
    assert learn(runs, first=["art:pgd", "artq:search"]) == [
        Learnt("art:pgd", 10, 9, 400.0),
        *(Learnt("art:fgsm", 1, 0, 2.0), Learnt("art:bim", 1, 0, 2.0)),
    ]


def test_what_was_wrong_before_counts_for_nobody():
    (row,) = learn([run_of(("art:fgsm", {0, 1, 2}, 2), clean=range(2, N))])
    assert row == Learnt("art:fgsm", 8, 1, 16.0)


def test_runs_networks_and_budgets_count_together():
    one = run_of(("art:fgsm", {0}, 2), ("art:pgd", {0, 1, 2, 3}, 10))
    other = run_of(("art:fgsm", set(), 2), ("art:pgd", set(range(N)), 10), model="b")
    order = learn([one, other])
    assert order == [Learnt("art:pgd", 20, 14, 200.0), Learnt("art:fgsm", 6, 0, 12.0)]


@pytest.mark.parametrize(
    "fields",
    [{"rows": list(range(N)), "of": 20}, {"source": "b"}, {"role": "probe"}, {"status": "error", "accuracy": None}],
    ids=["some images", "transfer", "probe", "failed"],
)
def test_only_a_models_own_cells_on_all_images_count(fields):
    run = run_of(("art:fgsm", {0}, 2), ("art:pgd", {0, 1}, 2, fields))
    assert [row.attack for row in learn([run])] == ["art:fgsm"]
    with pytest.raises(InputError, match="no run has an attack on all its images"):
        learn([run_of(("art:pgd", {0}, 2, fields))])


def test_a_model_whose_clean_images_failed_counts_not():
    results, samples = run_of(("art:fgsm", {0}, 2))
    failed = [results.cells[0].model_copy(update={"status": "error", "accuracy": None}), *results.cells[1:]]
    del samples[results.cells[0].id]
    with pytest.raises(InputError, match="no run has an attack on all its images"):
        learn([(results.model_copy(update={"cells": failed}), samples)])


def test_of_an_attack_with_several_options_the_cheapest_counts():
    for cells in (("art:pgd", {0}, 10), ("art:pgd", {0, 1}, 40)), (("art:pgd", {0, 1}, 40), ("art:pgd", {0}, 10)):
        assert learn([run_of(*cells)]) == [Learnt("art:pgd", 10, 1, 100.0)]


def test_the_shipped_order_is_of_known_attacks_that_broke_something():
    order = shipped()
    assert len(order) == len(set(order)) > 1 and all(name in ATTACKS for name in order)
    assert "artq:worst-case" in order


def test_the_file_holds_what_was_learnt():
    order = learn([run_of(("art:fgsm", {0}, 2))])
    assert json.loads(as_json(order)) == {
        "order": [{"attack": "art:fgsm", "standing": 10, "broken": 1, "passes": 20.0}]
    }
