"""One cell: an illegal image fails it, its key holds what changes its answer, its streams of draws are apart."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins.attacks.adapters import artq as own
from art_qplugins.attacks.views import LogitScale
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation import worker
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.executor import Serial, run_cells
from art_qplugins.evaluation.store import Memory, Store
from art_qplugins.fingerprint import fingerprint
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize
from art_qplugins.quantizers.stochastic import StochasticQuantizer
from art_qplugins.seeds import derive_seed


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()


def ensemble(draws=2):
    return StochasticEnsemble(quantize(network(), activation_bits=2, clip=1.0, alpha=2.0), draws).eval()


def classifier(model):
    return QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")


X = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
IDS = [f"i{i}" for i in range(7)]


def evaluator(x=X, ids=IDS, batch_size=4, **models):
    models = models or {"a": network(), "b": network(1)}
    y = next(iter(models.values()))(X).argmax(1)
    return Evaluator({name: classifier(m) for name, m in models.items()}, x, y, ids, batch_size, shard=len(X))


def one(here, spec, store):
    ((_, outcome, reused),) = run_cells(here, [spec], store, Serial(here))
    return outcome, reused


SPEC = CellSpec(model="a", source="a", attack="art:fgsm", norm="Linf", eps=0.1, seed=0)
CLEAN = CellSpec(
    model="a", source="a", attack="artq:clean", norm="Linf", eps=0.0, seed=0, role="clean", options={"radius": 0.01}
)


# --- What a cell holds


def test_a_cell_is_what_the_target_says_to_the_images():
    here, store = evaluator(), Memory()
    outcome, reused = one(here, SPEC, store)
    assert outcome.ok and not reused
    x_adv = torch.from_numpy(store.images(outcome.cell.id))
    with torch.no_grad():
        answers = here.estimators["a"].model(x_adv).argmax(1)
    assert [row.prediction for row in list(outcome.samples())] == answers.tolist()
    assert [row.correct for row in list(outcome.samples())] == (answers == here.y).double().tolist()
    assert [row.sample for row in list(outcome.samples())] == IDS
    assert {row.cell for row in list(outcome.samples())} == {outcome.cell.id}
    np.testing.assert_allclose(outcome.column("distance"), (x_adv - X).abs().flatten(1).amax(1), atol=1e-7)
    assert outcome.cell.accuracy == pytest.approx(outcome.column("correct").mean())
    assert (outcome.cell.n, outcome.cell.forward_samples, outcome.cell.backward_samples) == (7, 7, 7)
    assert outcome.cell.interval[0] <= outcome.cell.accuracy <= outcome.cell.interval[1]


def test_transfer_is_crafted_on_the_source_and_scored_on_the_target():
    here, store = evaluator(), Memory()
    transfer, _ = one(here, dataclasses.replace(SPEC, source="b"), store)
    home, _ = one(here, dataclasses.replace(SPEC, source="b", model="b"), store)
    np.testing.assert_array_equal(store.images(transfer.cell.id), store.images(home.cell.id))
    with torch.no_grad():
        answers = here.estimators["a"].model(torch.from_numpy(store.images(transfer.cell.id))).argmax(1)
    assert [row.prediction for row in list(transfer.samples())] == answers.tolist()


def test_the_clean_cell_alone_measures_gradient_and_fidelity():
    here = evaluator()
    clean, _ = one(here, CLEAN, Memory())
    attacked, _ = one(here, SPEC, Memory())
    assert all(row.measures["gradient"] > 0 and row.measures["fidelity"] is not None for row in list(clean.samples()))
    assert all("gradient" not in row.measures for row in list(attacked.samples()))
    assert clean.cell.facts["reaches_pixels"] and not attacked.cell.facts
    assert clean.cell.accuracy == 1.0


def test_what_json_cannot_hold_becomes_none():
    class Overflowing(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 10), torch.inf).index_fill(1, torch.tensor([1]), -torch.inf)

    here = Evaluator({"a": classifier(Overflowing())}, X, torch.ones(7, dtype=torch.int64), IDS)
    outcome, _ = one(here, dataclasses.replace(SPEC, attack="artq:clean"), Memory())
    assert outcome.ok, outcome.cell.error
    assert all(row.margin is None and row.loss is None for row in list(outcome.samples()))
    assert "NaN" not in next(outcome.samples()).model_dump_json()


# --- Failures


@pytest.mark.parametrize(
    ("give", "reason"),
    [
        (lambda x: x + 0.2, "more than eps = 0.1"),
        (lambda x: x.index_fill(0, torch.tensor([3]), torch.nan), "1 images are not finite"),
        (lambda x: x[1:], "shape (6, 1, 8, 8)"),
        (lambda x: torch.where(x == x.min(), -0.01, x), "outside [0, 1]"),
    ],
)
def test_an_attack_that_returns_illegal_images_fails_its_cell_and_nobody_clips(give, reason, monkeypatch, tmp_path):
    monkeypatch.setattr(own, "clean", lambda estimator, attack, x, y, **_: give(x.clone()))
    here, store = evaluator(), Store(tmp_path)
    spec = dataclasses.replace(SPEC, attack="artq:clean")
    outcome, reused = one(here, spec, store)
    assert not outcome.ok and not reused
    assert (outcome.cell.accuracy, outcome.cell.interval, outcome.cell.n, list(outcome.samples())) == (
        None,
        None,
        0,
        [],
    )
    cost = outcome.cell.forward_samples, outcome.cell.backward_samples, outcome.cell.seconds
    assert cost == (0, 0, 0)  # what a failed cell took is not known, and counts in no budget
    assert "IllegalImage" in outcome.cell.error and reason in outcome.cell.error
    assert list((tmp_path / "cells").iterdir()) == []  # the next run tries again
    monkeypatch.undo()
    outcome, reused = one(here, spec, store)
    assert outcome.ok and not reused


def test_an_interruption_is_no_failed_cell(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(own, "clean", interrupt)
    with pytest.raises(KeyboardInterrupt):
        one(evaluator(), CLEAN, Memory())


# --- Draws


@pytest.mark.parametrize(
    "attack",
    ["art:pgd", pytest.param("autoattack:rand", marks=pytest.mark.slow), "autoattack:square", "artq:clean"],
)
def test_a_stochastic_model_is_scored_on_draws_that_no_attack_saw(attack, monkeypatch):
    model = ensemble()
    here = evaluator(a=model)
    phases = {"craft": set(), "score": set(), "measure": set(), "answer": set()}
    phase = None

    def during(name):
        function = getattr(worker, name)

        def wrapped(*args, **kwargs):
            nonlocal phase
            phase = name
            return function(*args, **kwargs)

        monkeypatch.setattr(worker, name, wrapped)

    for name in phases:
        during(name)
    for layer in model.modules():
        if isinstance(layer, StochasticQuantizer):
            layer.register_forward_pre_hook(lambda m, _: phases[phase].add((m.seed, m.draw + m.call)))
    options = {"max_iter": 2} if attack == "art:pgd" else {"n_queries": 5} if attack == "autoattack:square" else {}
    role = "clean" if attack == "artq:clean" else "attack"
    outcome, _ = one(here, dataclasses.replace(SPEC, attack=attack, options=options, role=role), Memory())
    assert outcome.ok, outcome.cell.error
    seen = {name: {seed for seed, _ in keys} for name, keys in phases.items()}
    asked_again = derive_seed(0, "answer/0")  # for clean images, before and after the attack
    assert seen["score"] - {asked_again} == {derive_seed(0, "judge"), derive_seed(0, "select")}
    assert not seen["score"] & (seen["craft"] | seen["measure"] | seen["answer"])
    assert seen["craft"] == (set() if attack == "artq:clean" else {derive_seed(0, "attack")})
    if seen["craft"]:
        assert len(phases["craft"]) > 1  # fresh draws at every call
    assert outcome.cell.accuracy == pytest.approx(outcome.column("correct").mean())


# --- Keys


def test_the_key_holds_everything_that_changes_the_answer():
    here = evaluator()
    other = evaluator(a=network(2), b=network(1))
    base = here.id_of(SPEC)
    transfer = dataclasses.replace(SPEC, source="b")
    assert base == evaluator().id_of(SPEC)
    assert base == here.id_of(dataclasses.replace(SPEC, role="probe"))  # who asks changes nothing
    pgd = dataclasses.replace(SPEC, attack="art:pgd")
    assert here.id_of(pgd) == here.id_of(dataclasses.replace(pgd, options={"max_iter": 20}))  # the default, written out
    others = [
        here.id_of(dataclasses.replace(SPEC, seed=1)),
        here.id_of(dataclasses.replace(SPEC, eps=0.1 + 1e-9)),
        here.id_of(dataclasses.replace(SPEC, norm="L2")),
        here.id_of(pgd),
        here.id_of(dataclasses.replace(pgd, options={"max_iter": 21})),
        here.id_of(dataclasses.replace(pgd, gap=1.0)),
        here.id_of(dataclasses.replace(pgd, gap=5.0)),
        here.id_of(dataclasses.replace(pgd, gradient_scale=2.0**60)),
        here.id_of(transfer),
        other.id_of(SPEC),
        evaluator(a=network(), b=network(3)).id_of(transfer),
        evaluator(X.flip(0)).id_of(SPEC),
        evaluator(X + 1e-6).id_of(SPEC),
        evaluator(ids=IDS[::-1]).id_of(SPEC),
        evaluator(batch_size=5).id_of(SPEC),
    ]
    assert len({base, *others}) == len(others) + 1
    assert evaluator(a=network(), b=network(3)).id_of(SPEC) == base  # a model that has no part in it


def test_a_new_version_of_the_attacks_library_computes_again(monkeypatch):
    import importlib.metadata

    here = evaluator()
    before = here.id_of(SPEC)
    version = importlib.metadata.version
    for package in ("adversarial-robustness-toolbox", "torch"):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", lambda name, p=package: "9.9" if name == p else version(name))
            assert here.id_of(SPEC) != before


def test_an_id_is_a_file_name():
    here = evaluator(**{"../é/a b": network()})
    name = here.id_of(dataclasses.replace(SPEC, model="../é/a b", source="../é/a b"))
    assert "/" not in name and " " not in name and not name.startswith("/")


def test_finished_cells_are_used_again_under_the_name_and_role_that_ask(tmp_path):
    here, store = evaluator(), Store(tmp_path)
    first, _ = one(here, SPEC, store)
    again, reused = one(here, dataclasses.replace(SPEC, role="probe"), store)
    assert reused and again.cell.role == "probe"
    assert again.cell.model_copy(update={"role": "attack"}) == first.cell
    assert list(again.samples()) == list(first.samples())


def test_a_fingerprint_knows_weights_structure_and_settings():
    model = network()
    prints = [
        fingerprint(model),
        fingerprint(network(1)),
        fingerprint(nn.Sequential(*model, nn.Identity())),
        fingerprint(quantize(model, activation_bits=2)),
        fingerprint(quantize(model, activation_bits=3)),
        fingerprint(quantize(model, activation_bits=2, clip=5.0)),
        fingerprint(quantize(model, weight_bits=3)),
        fingerprint(ensemble(2)),
        fingerprint(ensemble(3)),
        fingerprint(LogitScale(model, 1.0)),
        fingerprint(LogitScale(model, 1e4)),  # a plain attribute, in no repr
    ]
    assert len(set(prints)) == len(prints)


def test_a_fingerprint_is_not_changed_by_use():
    model = ensemble()
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    model(X)
    model.train()
    model.requires_grad_(False)
    assert fingerprint(model) == before


class Shifted(nn.Module):
    """What it subtracts is no parameter, no buffer and no plain number."""

    def __init__(self, network, shift):
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, x):
        return self.network(x) - torch.as_tensor(self.shift)


def test_a_fingerprint_knows_tensors_and_lists_that_a_module_holds():
    values = [torch.zeros(10), torch.ones(10), [0.0] * 10, [1.0] * 10, (1.0,) * 10, np.ones(10)]
    prints = [fingerprint(Shifted(network(), shift)) for shift in values]
    assert len(set(prints[:4])) == 4
    assert prints == [fingerprint(Shifted(network(), copy.deepcopy(shift))) for shift in values]


def test_a_fingerprint_knows_the_code_of_somebodys_own_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "from torch import nn\nclass Own(nn.Module):\n    def forward(self, x):\n        return {} * x\n"
    prints = []
    for factor in (1, 1, 2):
        (tmp_path / "own_module.py").write_text(source.format(factor))
        sys.modules.pop("own_module", None)
        importlib.invalidate_caches()
        prints.append(fingerprint(importlib.import_module("own_module").Own()))
    sys.modules.pop("own_module", None)
    assert prints[0] == prints[1] != prints[2]


def test_the_key_holds_the_loss_that_the_attack_sees():
    def key(loss):
        estimator = QuantizedClassifier(network(), loss, (1, 8, 8), 10, device_type="cpu")
        return Evaluator({"a": estimator}, X, torch.zeros(7, dtype=torch.int64), IDS).id_of(SPEC)

    assert key(nn.CrossEntropyLoss()) == key(nn.CrossEntropyLoss()) != key(nn.MultiMarginLoss())


def test_the_judge_sees_what_is_around_the_module():
    """Both in the answers and in the id of a cell."""
    from art.defences.preprocessor import FeatureSqueezing

    defences = [FeatureSqueezing(clip_values=(0, 1), bit_depth=bits) for bits in (1, 2)]
    settings = [{}, *({"preprocessing_defences": [d]} for d in defences), {"preprocessing": (0.5, 1)}]
    names = set()
    for setting in settings:
        estimator = QuantizedClassifier(network(), nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu", **setting)
        here = Evaluator({"a": estimator}, X, torch.zeros(7, dtype=torch.int64), IDS)
        outcome, _ = one(here, SPEC, store := Memory())
        answers = estimator.predict(store.images(outcome.cell.id)).argmax(1)
        assert [row.prediction for row in outcome.samples()] == answers.tolist()
        names.add(outcome.cell.id)
    assert len(names) == len(settings)
    same = QuantizedClassifier(network(), nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu", preprocessing=(0, 1))
    assert Evaluator({"a": same}, X, torch.zeros(7, dtype=torch.int64), IDS).id_of(SPEC) in names


def test_ids_of_different_names_differ_and_fit_a_file_name(tmp_path):
    names = ["a b", "a_b", "m" * 300, "m" * 301, "\N{CJK UNIFIED IDEOGRAPH-6A21}" * 80]
    here, store = evaluator(**{name: network() for name in names}), Store(tmp_path)
    specs = [dataclasses.replace(SPEC, model=name, source=source) for name in names for source in (name, names[-1])]
    ids = {one(here, spec, store)[0].cell.id for spec in specs}
    assert len(ids) == 2 * len(names) - 1
    assert all(store.load(name) is not None for name in ids)
