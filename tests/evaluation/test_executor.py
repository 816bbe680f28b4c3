"""Cells in shards: whoever works on them, in whichever order, however often it is cut short, the answer is one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins.attacks.adapters import artq as own
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation import executor, worker
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.executor import Serial, run_cells
from art_qplugins.evaluation.store import Memory, Store
from art_qplugins.evaluation.worker import attempt
from art_qplugins.seeds import derive_seed

N, SHARD = 7, 3  # shards of 3, 3 and 1
IDS = [f"i{i}" for i in range(N)]
PGD = CellSpec(model="a", source="a", attack="art:pgd", norm="Linf", eps=0.1, seed=0, options={"max_iter": 3})
FGSM = dataclasses.replace(PGD, attack="art:fgsm", options={})


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()


def evaluator(shard=SHARD, x=None, batch_size=4):
    x = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25 if x is None else x
    model = network()
    estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
    return Evaluator({"a": estimator}, x, model(x).argmax(1), IDS, batch_size, shard)


class Backwards:
    """All shards, from the last to the first."""

    def __init__(self, evaluator):
        self.evaluator, self.worked_on = evaluator, []

    def map(self, shards):
        for shard in reversed(list(shards)):
            self.worked_on.append(shard.number)
            yield attempt(self.evaluator, shard)


class CutShort(Serial):
    """Interrupted after one shard."""

    def map(self, shards):
        yield next(super().map(shards))
        raise KeyboardInterrupt


def one(here, spec, store, by=None):
    ((_, outcome, reused),) = run_cells(here, [spec], store, by or Serial(here))
    return outcome, reused


def untimed(outcome):
    return outcome.cell.model_copy(update={"seconds": 0.0}), list(outcome.samples())


def watched(monkeypatch):
    """The numbers of the shards that are worked on."""
    numbers = []
    monkeypatch.setattr(executor, "attempt", lambda here, shard: numbers.append(shard.number) or attempt(here, shard))
    return numbers


def names(store):
    return sorted(p.name for p in (store.folder / "cells").iterdir())


# --- What a cell of several shards is


def test_an_attack_without_chance_gives_in_shards_what_it_gives_at_once():
    whole, parts = Memory(), Memory()
    a, _ = one(evaluator(shard=N), FGSM, whole)
    b, _ = one(evaluator(), FGSM, parts)
    np.testing.assert_allclose(parts.images(b.cell.id), whole.images(a.cell.id), atol=1e-6)
    assert [row.sample for row in list(b.samples())] == IDS and {row.cell for row in list(b.samples())} == {b.cell.id}
    assert [row.prediction for row in list(b.samples())] == [row.prediction for row in list(a.samples())]
    same = ("accuracy", "interval", "n", "forward_samples", "backward_samples", "rows", "of", "params")
    assert [getattr(b.cell, name) for name in same] == [getattr(a.cell, name) for name in same]
    assert a.cell.id != b.cell.id


def test_the_first_shard_is_what_a_cell_of_these_images_alone_would_be():
    store, alone = Memory(), Memory()
    a, _ = one(evaluator(), PGD, store)
    b, _ = one(evaluator(), dataclasses.replace(PGD, rows=(0, 1, 2)), alone)
    np.testing.assert_array_equal(store.images(a.cell.id)[:SHARD], alone.images(b.cell.id))


def test_shards_have_random_numbers_of_their_own(monkeypatch):
    """The same images in two shards begin at different points, and are judged by different draws."""
    judged = []
    score = worker.score
    monkeypatch.setattr(worker, "score", lambda *a, seed, **k: judged.append(seed) or score(*a, seed=seed, **k))
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
    store = Memory()
    outcome, _ = one(evaluator(x=image.repeat(N, 1, 1, 1)), PGD, store)
    images = store.images(outcome.cell.id)
    assert not np.array_equal(images[:3], images[3:6])
    assert judged == [0, derive_seed(0, "shard/1"), derive_seed(0, "shard/2")]


def test_chosen_rows_are_sharded_in_their_order():
    spec = dataclasses.replace(FGSM, rows=(6, 0, 4, 2))
    outcome, _ = one(evaluator(), spec, Memory())
    assert [row.sample for row in list(outcome.samples())] == ["i6", "i0", "i4", "i2"]
    assert (outcome.cell.rows, outcome.cell.of, outcome.cell.n) == ([6, 0, 4, 2], N, 4)


def test_all_shards_of_an_attack_see_the_same_network(monkeypatch):
    """Logits are divided by one temperature, the first shard's."""
    seen, craft = [], worker.craft

    def watched(*args, **kwargs):
        made = craft(*args, **kwargs)
        seen.append(made.options["temperature"])
        return made

    monkeypatch.setattr(worker, "craft", watched)
    here = evaluator()
    outcome, _ = one(here, dataclasses.replace(PGD, gap=5.0), Memory())
    with torch.no_grad():
        top = here.estimators["a"].model(here.x[:SHARD]).topk(2, dim=1).values
    assert len(seen) == 3 and len(set(seen)) == 1
    assert outcome.cell.params["temperature"] == seen[0] == pytest.approx(float((top[:, 0] - top[:, 1]).median()) / 5)


def test_every_shard_starts_from_its_own_images(monkeypatch):
    here, store, starts = evaluator(), Memory(), []
    first, _ = one(here, FGSM, store)
    craft = worker.craft
    monkeypatch.setattr(worker, "craft", lambda *a, start, **k: starts.append(start) or craft(*a, start=start, **k))
    spec = dataclasses.replace(PGD, attack="artq:apgd-margin", options={"max_iter": 2}, start=(first.cell.id,))
    outcome, _ = one(here, spec, store)
    assert outcome.ok, outcome.cell.error
    np.testing.assert_array_equal(torch.cat(starts), store.images(first.cell.id))
    assert [len(start) for start in starts] == [3, 3, 1]


# --- Orders and interruptions


def test_the_order_of_the_work_changes_nothing(tmp_path):
    here, forwards, backwards = evaluator(), Store(tmp_path / "a"), Store(tmp_path / "b")
    specs = [PGD, FGSM, dataclasses.replace(PGD, eps=0.2)]
    a = {spec: outcome for spec, outcome, _ in _by_eps(run_cells(here, specs, forwards, Serial(here)))}
    b = {spec: outcome for spec, outcome, _ in _by_eps(run_cells(here, specs, backwards, Backwards(here)))}
    assert a.keys() == b.keys() and len(a) == 3
    for key, outcome in a.items():
        assert untimed(outcome) == untimed(b[key])
        name = outcome.cell.id
        np.testing.assert_array_equal(forwards.images(name), backwards.images(name))
    assert (
        names(forwards) == names(backwards) == sorted(f"{o.cell.id}.{e}" for o in a.values() for e in ("json", "npz"))
    )


def _by_eps(found):
    return (((spec.attack, spec.eps), outcome, reused) for spec, outcome, reused in found)


def test_an_interruption_costs_the_shard_under_way(tmp_path, monkeypatch):
    here, store, whole = evaluator(), Store(tmp_path / "cut"), Store(tmp_path / "whole")
    wanted, _ = one(here, PGD, whole)
    for expected in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            one(here, PGD, store, CutShort(here))
        assert len(names(store)) == 2 * expected
        assert store.load(wanted.cell.id) is None
    worked_on = watched(monkeypatch)
    found, reused = one(here, PGD, Store(tmp_path / "cut"))
    assert worked_on == [2] and not reused
    assert untimed(found) == untimed(wanted)
    assert names(store) == names(whole)
    np.testing.assert_array_equal(store.images(found.cell.id), whole.images(found.cell.id))
    assert one(here, PGD, store)[1]


def test_a_kill_before_the_shards_are_put_together_or_away(tmp_path, monkeypatch):
    here, store, whole = evaluator(), Store(tmp_path / "cut"), Store(tmp_path / "whole")
    wanted, _ = one(here, PGD, whole)

    def killed(*_):
        raise KeyboardInterrupt

    for method in ("end", "drop_shards"):
        with monkeypatch.context() as patch:
            patch.setattr(f"art_qplugins.evaluation.executor._Unfinished.{method}", killed)
            with pytest.raises(KeyboardInterrupt):
                one(here, PGD, store)
        assert len(names(store)) == (6 if method == "end" else 8)
    found, reused = one(here, PGD, store)
    assert reused and untimed(found) == untimed(wanted)
    assert names(store) == names(whole)


def test_a_damaged_shard_is_worked_on_again(tmp_path):
    here, store, whole = evaluator(), Store(tmp_path / "cut"), Store(tmp_path / "whole")
    wanted, _ = one(here, PGD, whole)
    with pytest.raises(KeyboardInterrupt):
        one(here, PGD, store, CutShort(here))
    (images,) = (tmp_path / "cut" / "cells").glob("*.npz")
    images.write_bytes(images.read_bytes()[:-30])
    found, _ = one(here, PGD, Store(tmp_path / "cut"))
    assert untimed(found) == untimed(wanted)


# --- Failures


def breaks_on(here, *numbers):
    """An attack of this package that fails on the images of these shards."""

    def run(estimator, attack, x, y, **_):
        for number in numbers:
            if torch.equal(x[0], here.x[number * SHARD]):
                raise RuntimeError(f"shard {number}")
        return x.clone()

    return run


CLEAN = dataclasses.replace(PGD, attack="artq:clean", options={})


@pytest.mark.parametrize("backwards", [False, True])
def test_the_first_shard_that_fails_speaks_for_its_cell(backwards, monkeypatch, tmp_path):
    here, store = evaluator(), Store(tmp_path)
    monkeypatch.setattr(own, "clean", breaks_on(here, 1, 2))
    outcome, reused = one(here, CLEAN, store, Backwards(here) if backwards else Serial(here))
    assert not outcome.ok and not reused and outcome.cell.id == here.id_of(CLEAN)
    assert "RuntimeError: shard 1" in outcome.cell.error
    assert (outcome.cell.n, outcome.cell.accuracy, list(outcome.samples())) == (0, None, [])
    assert store.load(outcome.cell.id) is None
    monkeypatch.undo()
    mended, reused = one(here, CLEAN, store)
    assert mended.ok and not reused and len(names(store)) == 2


def test_after_a_failure_the_rest_of_a_cell_is_not_worked_on(monkeypatch):
    here, worked_on = evaluator(), watched(monkeypatch)
    monkeypatch.setattr(own, "clean", breaks_on(here, 1))
    outcome, _ = one(here, CLEAN, Memory())
    assert worked_on == [0, 1] and "shard 1" in outcome.cell.error


def test_a_failed_cell_stops_no_other(monkeypatch):
    here = evaluator()
    monkeypatch.setattr(own, "clean", breaks_on(here, 0))
    found = [outcome.ok for _, outcome, _ in run_cells(here, [CLEAN, FGSM], Memory(), Serial(here))]
    assert found == [False, True]


# --- Memory


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")],
    ids=["accelerator", "numpy", "cpu"],
)
def test_out_of_memory_halves_the_batch_and_goes_on(error, monkeypatch):
    craft, sizes = worker.craft, []

    def narrow(*args, batch_size, **kwargs):
        sizes.append(batch_size)
        if batch_size > 1:
            raise error
        return craft(*args, batch_size=batch_size, **kwargs)

    here = evaluator(shard=N)
    wanted, _ = one(here, FGSM, Memory())
    monkeypatch.setattr(worker, "craft", narrow)
    outcome, _ = one(here, FGSM, Memory())
    assert sizes == [4, 2, 1]
    assert [row.prediction for row in list(outcome.samples())] == [row.prediction for row in list(wanted.samples())]
    assert outcome.cell.notes == [
        "out of memory with batches of 4 images; continued with 2",
        "out of memory with batches of 2 images; continued with 1",
    ]


def test_no_memory_for_a_single_image_is_a_failed_cell(monkeypatch):
    def craft(*_, **__):
        raise MemoryError("nothing left")

    monkeypatch.setattr(worker, "craft", craft)
    outcome, _ = one(evaluator(), FGSM, Memory())
    assert not outcome.ok and "MemoryError: nothing left" in outcome.cell.error


def test_another_error_is_not_tried_again(monkeypatch):
    calls = []

    def craft(*_, **__):
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker, "craft", craft)
    assert not one(evaluator(shard=N), FGSM, Memory())[0].ok and calls == [1]
