"""Cascades: which images go on is checked on records made by hand, what comes of it on small runs."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import art_qplugins
from art_qplugins import QuantizedClassifier, Threat
from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.evaluation.cell import CellSpec, images_key
from art_qplugins.evaluation.cost import Cost, exceeds, expected_cost
from art_qplugins.evaluation.order import shipped
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Sample
from art_qplugins.evaluation.store import Store
from art_qplugins.evaluation.strategy import narrowed, ordered
from art_qplugins.runner.progress import Progress


def spec(attack="art:pgd", eps=0.1, model="a", source=None, **more):
    return CellSpec(model=model, source=source or model, attack=attack, norm="Linf", eps=eps, seed=0, **more)


def outcome(of, correct, rows=None, n=6):
    cell = Cell(
        id=f"{of.model}-{of.attack}-{of.eps}",
        model=of.model,
        source=of.source,
        attack=of.attack,
        role=of.role,
        params=ATTACKS[of.attack].resolve(of.options),
        norm=of.norm,
        eps=of.eps,
        seed=0,
        n=len(correct),
        accuracy=float(np.mean(correct)),
        interval=(0, 1),
        forward_samples=0,
        backward_samples=0,
        seconds=0,
        status="success",
        rows=rows,
        of=None if rows is None else n,
    )
    known = {"label": 0, "prediction": 0, "distance": 0, "margin": None, "loss": None}
    return Outcome.from_samples(
        cell, [Sample(cell=cell.id, sample=f"i{i}", correct=c, selection=c, **known) for i, c in enumerate(correct)]
    )


CLEAN = spec("artq:clean", 0.0, role="clean")
RIGHT = outcome(CLEAN, [1, 1, 1, 1, 1, 0])  # the last is wrong as it is


@pytest.mark.parametrize(
    ("known", "asked", "rows"),
    [
        ([], spec(), (0, 1, 2, 3, 4)),
        ([outcome(spec("art:fgsm"), [0, 1, 1, 1, 1, 0])], spec(), (1, 2, 3, 4)),
        # broken at a smaller eps: broken at a larger one, and not the other way round
        ([outcome(spec("art:fgsm", 0.05), [0, 1, 1, 1, 1, 0])], spec(), (1, 2, 3, 4)),
        ([outcome(spec("art:fgsm", 0.2), [0, 1, 1, 1, 1, 0])], spec(), (0, 1, 2, 3, 4)),
        # withstood the same attack at a larger eps: not attacked again; another attack may try
        ([outcome(spec(eps=0.2), [0, 0, 1, 1, 1, 0])], spec(), (0, 1)),
        ([outcome(spec(eps=0.2, options={"max_iter": 5}), [0, 0, 1, 1, 1, 0])], spec(), (0, 1, 2, 3, 4)),
        # another start at the same eps is another chance
        ([outcome(spec(), [0, 1, 1, 1, 1, 0])], spec(restart=1), (1, 2, 3, 4)),
        # what an attack was not run on, it was not withstood by
        ([outcome(spec(eps=0.2), [1, 1], rows=[0, 1])], spec(), (2, 3, 4)),
        # fractions: broken means certainly broken, withstood that nothing more is lost
        ([outcome(spec("art:fgsm"), [0.1, 0, 1, 1, 1, 0])], spec(), (0, 2, 3, 4)),
        ([outcome(spec(eps=0.2), [0.4, 1, 1, 1, 1, 0])], spec(), (0,)),
        # nothing is left
        ([outcome(spec("art:fgsm"), [0] * 6)], spec(), None),
    ],
)
def test_only_images_that_still_stand_go_on(known, asked, rows):
    found = narrowed([asked], {"a": [RIGHT, *known]}.get, [])
    assert [s.rows for s in found] == ([] if rows is None else [rows])


def test_claims_and_clean_cells_are_on_every_image():
    broken = {"a": [RIGHT, outcome(spec("art:fgsm"), [0] * 6)]}
    assert narrowed([spec()], broken.get, [spec()]) == [spec()]
    assert narrowed([CLEAN], {"a": []}.get, []) == [CLEAN]


def test_a_model_whose_clean_cell_failed_is_not_attacked():
    failed = Outcome(RIGHT.cell.model_copy(update={"status": "error"}))
    assert narrowed([spec()], {"a": [failed]}.get, []) == []


def test_one_sources_images_are_crafted_for_all_of_its_targets_together():
    to_b, to_c = spec(source="a", model="b"), spec(source="a", model="c")
    group = [spec(), to_b, to_c]
    assert ordered(group) == [group]
    known = {
        "a": [RIGHT, outcome(spec("art:fgsm"), [0, 0, 0, 0, 1, 0])],
        "b": [RIGHT, outcome(spec("art:fgsm"), [0, 1, 0, 0, 0, 0])],
        "c": [RIGHT, outcome(spec("art:fgsm"), [0] * 6)],
    }
    found = narrowed(group, known.get, [])
    assert [(s.model, s.rows) for s in found] == [("a", (1, 4)), ("b", (1, 4))]


def test_the_order_is_the_given_one_then_by_cost_and_from_the_largest_budget_down():
    listed = [spec("autoattack:standard"), spec(eps=0.1), spec(eps=0.3), spec("art:fgsm"), CLEAN]
    listed += [spec(options={"num_random_init": 5}), spec("artq:worst-case")]
    first = ["art:bim", "artq:worst-case"]
    order = [(g[0].attack, g[0].eps, dict(g[0].options)) for g in ordered(listed, first)]
    assert order == [
        ("artq:clean", 0.0, {}),
        ("artq:worst-case", 0.1, {}),
        ("art:fgsm", 0.1, {}),
        ("art:pgd", 0.3, {}),
        ("art:pgd", 0.1, {}),
        ("art:pgd", 0.1, {"num_random_init": 5}),
        ("autoattack:standard", 0.1, {}),
    ]


def test_by_default_the_order_is_the_learnt_one_and_images_of_others_come_after_it():
    listed = [spec(name) for name in shipped()[::-1]]
    transferred = spec(shipped()[0], source="b")
    assert [g[0].attack for g in ordered([transferred, *listed])] == [*shipped(), transferred.attack]


def test_cells_share_images_if_they_differ_in_the_scored_model_role_or_rows_alone():
    base = spec()
    for change in ({"model": "b"}, {"role": "probe"}, {"rows": (1, 2)}, {"options": {"max_iter": 20}}):
        assert images_key(dataclasses.replace(base, **change)) == images_key(base), change
    changes = {"source": "b", "attack": "art:bim", "norm": "L2", "eps": 0.2, "seed": 1, "restart": 1, "gap": 5.0}
    changes |= {"options": {"max_iter": 21}, "check": "binarization", "start": ("a-cell",)}
    others = [images_key(dataclasses.replace(base, **{key: value})) for key, value in changes.items()]
    assert len({*others, images_key(base)}) == len(changes) + 1


# --- Costs


@pytest.mark.parametrize(
    ("attack", "options", "gradients", "queries"),
    [
        ("art:fgsm", {}, 1, None),
        ("art:pgd", {"max_iter": 40, "num_random_init": 5}, 200, None),
        ("torchattacks:mifgsm", {"max_iter": 7}, 7, None),
        ("autoattack:square", {"n_queries": 1000}, 0, 1000),
        ("autoattack:apgd-ce", {}, 100, None),
        ("artq:worst-case", {"effort": "quick"}, 80, 250),
        ("artq:worst-case", {"effort": "thorough"}, 700, 5_000),
        ("artq:worst-case", {"budget": 30.0}, 30, None),
    ],
)
def test_costs_follow_the_options(attack, options, gradients, queries):
    found = expected_cost(attack, options)
    assert found.gradients == pytest.approx(gradients, rel=0.15)
    assert queries is None or found.queries == pytest.approx(queries, rel=0.15)


def test_a_budget_is_per_image_of_the_whole_set():
    about = {"of": 100, "passes": 1, "spent": Cost(10, 0), "queries": None}
    assert exceeds(spec(), 50, gradients=25, **about) is None  # 10 + 20 * 50 / 100
    reason = exceeds(spec(), 100, gradients=25, **about)
    assert reason == "it may take 20 gradient evaluations per image, and 15 of 25 are left of the budget"
    assert exceeds(spec(), 50, gradients=25, **about | {"passes": 4}) is not None
    assert "queries" in exceeds(spec("autoattack:square"), 100, gradients=None, **about | {"queries": 100})


# --- Runs

N = 24
RECIPE = {
    "name": "small",
    "data": {"name": "digits", "limit": N},
    "threat": {"norm": "Linf", "eps": [0.05, 0.15, 0.3]},
    "claim": {"attack": "art:pgd", "eps": 0.3},
    "diagnose": False,
    "models": [
        {"name": "a", "architecture": {"name": "convnet", "options": {"width": 4}}, "train": {"epochs": 4}},
        {
            "name": "b",
            "base": "a",
            "architecture": {"name": "convnet", "options": {"width": 4}},
            "quantize": {"weight_bits": 4},
            "train": {"epochs": 0},
        },
        {
            "name": "s",
            "role": "substitute",
            "architecture": {"name": "convnet", "options": {"width": 3}},
            "train": {"epochs": 1},
        },
    ],
    "attacks": [
        {"id": "artq:apgd-margin", "options": {"max_iter": 30}},
        {"id": "art:pgd", "options": {"max_iter": 10}},
        {"id": "art:fgsm"},
        {"id": "art:pgd", "source": "s", "options": {"max_iter": 10}},
    ],
    "transfer": {"attack": "art:pgd", "options": {"max_iter": 10}, "eps": [0.15]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cascade")


def run(folder, where, *, progress=None, **changes):
    recipe = copy.deepcopy(RECIPE) | changes
    return art_qplugins.run(recipe, out=folder / where, progress=progress).results


@pytest.fixture(scope="module")
def matrix(folder):
    return run(folder, "matrix")


@pytest.fixture(scope="module")
def cascade(folder):
    return run(folder, "cascade", strategy="cascade")


def lines(scale):
    """Ten grey values to the left or to the right of a plane; logits times ``scale``, and what each budget leaves of them.

    Image i is i + 1/2 hundredths of the pixels from the plane, so eps of k hundredths breaks the first k.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    sign = torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0)
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([sign, -sign]) * scale)
        model[1].bias.zero_()
    heights = (torch.arange(10) + 0.5) / 100 * torch.where(torch.arange(10) % 2 == 0, 1.0, -1.0)
    x = (0.5 + heights[:, None] * sign).reshape(10, 1, 4, 4)
    estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 4, 4), 2, device_type="cpu")
    return estimator, x, model(x).argmax(1)


def test_a_cascade_reaches_the_worst_case_for_less(tmp_path):
    """In closed form, also where large logits leave PGD on cross-entropy without a gradient."""
    models = {"plain": lines(1.0)[0], "large": lines(1e4)[0]}
    threats = [Threat("Linf", eps) for eps in (0.02, 0.05, 0.08)]
    attacks = [("artq:apgd-margin", {"max_iter": 30}), ("art:pgd", {"max_iter": 10}), "art:fgsm"]
    spent = {}
    for strategy in ("matrix", "cascade"):
        recipe = {"strategy": strategy, "diagnose": False}
        results = art_qplugins.evaluate(
            models, lines(1.0)[1:], threats, attacks, out=tmp_path / strategy, recipe=recipe
        )
        for model in results.models:
            assert [(r.eps, r.accuracy) for r in model.robust] == [(0.02, 0.8), (0.05, 0.5), (0.08, 0.2)]
        spent[strategy] = sum(c.backward_samples for c in results.cells if c.role != "clean")
    assert spent["cascade"] < 0.6 * spent["matrix"]


def test_the_same_images_are_never_crafted_twice(folder, matrix, cascade):
    for name, results in (("matrix", matrix), ("cascade", cascade)):
        attacks = [c for c in results.cells if c.role == "attack"]
        crafted = [
            (c.source, c.attack, c.eps, str(c.params)) for c in attacks if c.crafted_in is None and c.backward_samples
        ]
        assert len(crafted) == len(set(crafted))
        shared = [c for c in attacks if c.crafted_in]
        assert shared and all((c.forward_samples, c.backward_samples) == (0, 0) for c in shared)
        by_id, store = {c.id: c for c in results.cells}, Store(folder / name)
        for c in shared:
            assert by_id[c.crafted_in].source == c.source
            np.testing.assert_array_equal(store.images(c.id), store.images(c.crafted_in))


def test_the_transfer_matrix_is_full_and_a_substitute_is_attacked_by_nobody(matrix):
    assert [m.name for m in matrix.models] == ["a", "b"]
    pairs = {(c.source, c.model) for c in matrix.cells if c.attack == "art:pgd" and c.eps == 0.15}
    assert pairs == {(s, t) for s in "abs" for t in "ab"}


def test_what_is_judged_from_shared_images_is_what_its_own_attack_would_say(folder, matrix):
    """A model's answers to images that were crafted for another's cell, against a run that asks for them alone."""
    shared = next(c for c in matrix.cells if c.crafted_in and c.eps == 0.3)
    alone = {"claim": None, "threat": {"eps": [0.3]}, "transfer": None}
    alone["attacks"] = [
        {"id": "art:pgd", "source": shared.source, "models": [shared.model], "options": {"max_iter": 10}}
    ]
    results = run(folder, "alone", **alone)
    other = next(c for c in results.cells if c.role == "attack")
    assert other.crafted_in is None and other.backward_samples > 0
    assert (other.id, other.accuracy) == (shared.id, shared.accuracy)
    mine, theirs = (list(Store(folder / n).load(shared.id).samples()) for n in ("matrix", "alone"))
    for one, two in zip(mine, theirs, strict=True):
        assert one.correct == two.correct and one.distance == pytest.approx(two.distance)
        assert one.margin == pytest.approx(two.margin, abs=1e-4)


def test_the_claim_is_on_every_image_and_the_rest_on_what_stands(cascade):
    claim = [c for c in cascade.cells if c.attack == "art:pgd" and c.eps == 0.3 and c.source == c.model]
    assert all(c.rows is None and c.n == N for c in claim)
    assert any(c.rows is not None and c.n < N for c in cascade.cells)


def test_a_cascade_resumes(folder, cascade):
    class Watch(Progress):
        computed = 0

        def cell(self, outcome, reused):
            self.computed += not reused

    watch = Watch()
    again = run(folder, "cascade", strategy="cascade", progress=watch)
    assert watch.computed == 0
    assert again.models == cascade.models and again.cells == cascade.cells


@pytest.mark.parametrize("strategy", ["matrix", "cascade"])
def test_a_budget_skips_what_may_exceed_it_and_says_so(folder, strategy):
    results = run(folder, f"budget-{strategy}", strategy=strategy, budget={"gradients": 45})
    assert results.status == "success"
    skipped = [c for c in results.cells if c.status == "skipped"]
    assert skipped and all("left of the budget" in c.notes[0] and c.accuracy is None for c in skipped)
    for model in results.models:
        spent = sum(c.backward_samples for c in results.cells if c.model == model.name and c.role != "clean") / N
        assert model.spent.gradients == pytest.approx(spent) and 0 < spent <= 45
        assert model.spent.queries >= model.spent.gradients
        assert not set(model.robust[0].attacks) & {c.id for c in skipped}


def test_a_cascade_may_be_diagnosed(folder):
    results = run(folder, "diagnosed", strategy="cascade", diagnose=True, transfer=None)
    assert results.status == "success", [c.error for c in results.cells if c.error]
    assert {m.verdict for m in results.models}.isdisjoint({"INVALID"})


def test_the_verdict_on_the_pixel_grid_stands_beside_the_other(folder, matrix):
    results = run(folder, "matrix", grid=4)  # judged again; nothing is crafted again
    for plain, found in zip(matrix.cells, results.cells, strict=True):
        assert (found.id, found.accuracy, found.backward_samples) == (plain.id, plain.accuracy, plain.backward_samples)
        assert found.grid == 4 and plain.grid is None
        samples = list(Store(folder / "matrix").load(found.id).samples())
        assert found.grid_accuracy == pytest.approx(np.mean([s.measures["grid_correct"] for s in samples]))
        low, high = found.grid_interval
        assert low <= found.grid_accuracy <= high
    assert any(c.grid_accuracy != c.accuracy for c in results.cells)  # 4 levels are few
