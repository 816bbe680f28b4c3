"""Existing images scored on another model and on a grid, against the models' own answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import Threat
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.executor import Serial, run_cells
from art_qplugins.evaluation.score import on_grid
from art_qplugins.evaluation.sharing import SharedImages, scored_on_grid
from art_qplugins.evaluation.store import Memory

N = 7
X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
ON_A = CellSpec(model="a", source="a", attack="art:fgsm", norm="Linf", eps=0.1, seed=0)
ON_B = dataclasses.replace(ON_A, model="b")


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()


@pytest.fixture
def models():
    return {"a": network(0), "b": network(1)}


@pytest.fixture
def here(models):
    estimators = {
        name: QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
        for name, model in models.items()
    }
    return Evaluator(estimators, X, models["b"](X).argmax(1), [f"i{i}" for i in range(N)], 4, shard=N)


def crafted(here, store, spec=ON_A):
    ((_, outcome, _),) = run_cells(here, [spec], store, Serial(here))
    shared = SharedImages(here, store)
    shared.add(spec, outcome)
    return shared, outcome


@pytest.mark.parametrize("rows", [None, (5, 0, 2)])
def test_a_cell_from_shared_images_is_what_its_model_answers_to_them(here, models, rows):
    store = Memory()
    shared, source = crafted(here, store)
    outcome = shared.scored(dataclasses.replace(ON_B, rows=rows, role="probe"))
    chosen = list(range(N)) if rows is None else list(rows)
    images = torch.from_numpy(store.images(source.cell.id))[chosen]
    right = (models["b"](images).argmax(1) == here.y[chosen]).double().numpy()
    cell = outcome.cell
    assert (cell.model, cell.source, cell.role, cell.crafted_in) == ("b", "a", "probe", source.cell.id)
    assert (cell.n, cell.accuracy) == (len(chosen), pytest.approx(right.mean()))
    assert (cell.rows, cell.of) == ((None, None) if rows is None else (list(rows), N))
    assert (cell.forward_samples, cell.backward_samples) == (0, 0)
    assert list(outcome.ids) == [f"i{i}" for i in chosen]
    assert outcome.columns["correct"].tolist() == right.tolist()
    expected = np.full(N, np.nan)
    expected[chosen] = right
    np.testing.assert_array_equal(outcome.column("correct"), expected)
    np.testing.assert_array_equal(outcome.columns["distance"], source.columns["distance"][chosen])
    np.testing.assert_array_equal(store.images(cell.id), images.numpy())
    assert shared.scored(dataclasses.replace(ON_B, rows=rows, role="probe")) is None  # it is finished


def test_images_are_held_for_the_cells_that_they_were_crafted_for(here):
    shared, _ = crafted(here, Memory(), dataclasses.replace(ON_A, rows=(1, 3, 4)))
    assert shared.holds(dataclasses.replace(ON_B, rows=(4, 1)))
    for change in ({"rows": (1, 2)}, {"rows": None}, {"eps": 0.2}, {"source": "b"}, {"seed": 1}, {"restart": 1}):
        other = dataclasses.replace(ON_B, **{"rows": (1,), **change})
        assert not shared.holds(other) and shared.scored(other) is None, change


def test_images_of_cells_that_crafted_none_are_not_shared(here):
    store = Memory()
    shared, source = crafted(here, store)
    again = SharedImages(here, store)
    again.add(ON_B, shared.scored(ON_B))  # these are another cell's images
    again.add(ON_A, source.with_cell(status="error"))
    again.add(dataclasses.replace(ON_A, role="clean"), source)
    assert not again.holds(ON_A)


def test_of_cells_that_differ_in_their_model_the_one_with_the_most_images_crafts(here):
    shared = SharedImages(here, Memory())
    clean = dataclasses.replace(ON_A, attack="artq:clean", eps=0.0, role="clean")
    specs = {
        "few": dataclasses.replace(ON_A, rows=(0, 1)),
        "more": dataclasses.replace(ON_B, rows=(0, 1, 2)),
        "other": dataclasses.replace(ON_A, eps=0.2, rows=(0,)),
        "all of it": dataclasses.replace(ON_B, eps=0.2),
        "clean": clean,
        "clean too": dataclasses.replace(clean, model="b", source="b"),
    }
    first, later = shared.split(specs)
    assert set(first) == {"more", "all of it", "clean", "clean too"} and set(later) == {"few", "other"}
    held, _ = crafted(here, Memory())
    assert set(held.split({"few": specs["few"], "other": specs["other"]})[0]) == {"other"}


def test_on_a_grid_the_rounded_images_are_scored_and_the_stored_ones_stay(here, models):
    store = Memory()
    spec = dataclasses.replace(ON_A, rows=(6, 2, 3))
    _, outcome = crafted(here, store, spec)
    before = store.images(outcome.cell.id).copy()
    found = scored_on_grid(here, spec, outcome, store, 5)
    rounded = on_grid(X[[6, 2, 3]], torch.from_numpy(before), Threat("Linf", 0.1), 5)
    assert not np.array_equal(rounded, before)
    right = (models["a"](rounded).argmax(1) == here.y[[6, 2, 3]]).double().numpy()
    assert (found.cell.grid, found.cell.grid_accuracy) == (5, pytest.approx(right.mean()))
    assert found.columns["grid_correct"].tolist() == right.tolist()
    np.testing.assert_array_equal(found.columns["correct"], outcome.columns["correct"])
    np.testing.assert_array_equal(store.images(outcome.cell.id), before)


def test_a_cell_is_scored_on_a_grid_once_and_only_where_one_is_asked_for(here):
    store = Memory()
    _, outcome = crafted(here, store)
    found = scored_on_grid(here, ON_A, outcome, store, 16)
    assert found is not outcome and scored_on_grid(here, ON_A, found, store, 16) is found
    assert scored_on_grid(here, ON_A, found, store, 8).cell.grid == 8
    assert scored_on_grid(here, ON_A, outcome, store, None) is outcome
    failed = outcome.with_cell(status="error")
    assert scored_on_grid(here, ON_A, failed, store, 16) is failed
    test = dataclasses.replace(ON_A, check="binarization")
    assert scored_on_grid(here, test, outcome, store, 16) is outcome


@pytest.mark.parametrize("rows", [None, (6, 2)])
def test_images_are_scored_on_the_device_of_their_model(rows, here, monkeypatch):
    """The device "meta" holds no numbers, so what computes with them is replaced."""
    store, seen = Memory(), []
    spec = dataclasses.replace(ON_A, rows=rows)
    shared, outcome = crafted(here, store, spec)

    def record(*tensors):
        seen.extend(one.device.type for one in tensors)

    def answers(model, x, y, **_):
        record(x, y)
        return {"correct": np.ones(len(x))}

    def rounded(x, x_adv, threat, levels):
        record(x, x_adv)
        return x_adv

    monkeypatch.setattr("art_qplugins.evaluation.sharing.score", answers)
    monkeypatch.setattr("art_qplugins.evaluation.sharing.on_grid", rounded)
    monkeypatch.setattr("art_qplugins.evaluation.sharing.check_legal", lambda x, x_adv, threat: record(x, x_adv))
    for estimator in here.estimators.values():
        monkeypatch.setattr(estimator, "_device", torch.device("meta"))
    scored_on_grid(here, spec, outcome, store, 5)
    assert seen == ["meta"] * 6
    shared.scored(dataclasses.replace(ON_B, rows=rows))
    assert seen == ["meta"] * 8
