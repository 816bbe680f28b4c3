"""Where an attack runs: in which norms, at which eps, and on how many images."""

from __future__ import annotations

import copy
from html import unescape

import numpy as np
import pytest
import torch
from torch import nn

import art_qplugins
from art_qplugins.data import from_arrays
from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.cell import cell_id
from art_qplugins.evaluation.compare import compare
from art_qplugins.recipes.checks import doubts
from art_qplugins.recipes.load import change, parse_recipe
from art_qplugins.report import read_run
from art_qplugins.runner.plan import plan
from art_qplugins.runner.progress import Progress

LINF, L2 = {"norm": "Linf", "eps": ["2/255", "8/255"]}, {"norm": "L2", "eps": [0.5]}
BASE = {
    "name": "r",
    "data": {"name": "digits", "limit": 20},
    "threat": [LINF, L2],
    "models": [{"name": "a", "train": {"epochs": 0}}, {"name": "b", "train": {"epochs": 0}}],
    "attacks": [{"id": "art:pgd"}],
}
ONE = {"threat": LINF}


def tables(**changes):
    return copy.deepcopy({**BASE, **changes})


def threats_of(attack, **changes):
    recipe = parse_recipe(tables(attacks=[attack], **changes))
    return [(t.norm, t.eps) for t in recipe.threats_of(recipe.attacks[0])]


def refusal(**changes):
    with pytest.raises(InputError) as caught:
        parse_recipe(tables(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


AT_LINF, AT_L2 = [("Linf", 2 / 255), ("Linf", 8 / 255)], [("L2", 0.5)]


@pytest.mark.parametrize(
    ("attack", "changes", "found"),
    [
        # an attack runs at each threat whose norm it has
        ({"id": "art:pgd"}, {}, AT_LINF + AT_L2),
        ({"id": "art:pgd"}, {"threat": [L2, LINF]}, AT_L2 + AT_LINF),
        ({"id": "art:bim"}, {}, AT_LINF),
        ({"id": "art:cw-l2"}, {}, AT_L2),
        ({"id": "art:pgd"}, ONE, AT_LINF),
        # unless it names one
        ({"id": "art:pgd", "norm": "L2"}, {}, AT_L2),
        ({"id": "art:pgd", "norm": "L2", "eps": [0.1, 1]}, {}, [("L2", 0.1), ("L2", 1.0)]),
        ({"id": "art:pgd", "norm": "L1", "eps": [3]}, {}, [("L1", 3.0)]),
        ({"id": "art:cw-l2", "eps": [0.1]}, {}, [("L2", 0.1)]),
        ({"id": "art:cw-l2", "norm": "L2", "eps": [0.1]}, ONE, [("L2", 0.1)]),
        ({"id": "art:pgd", "eps": ["4/255"]}, ONE, [("Linf", 4 / 255)]),
    ],
)
def test_where_an_attack_runs(attack, changes, found):
    assert threats_of(attack, **changes) == found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"threat": [LINF, LINF]}, "threat: 'Linf' is there twice; remove one"),
        ({"threat": []}, "threat: it is empty; give at least one"),
        ({"threat": [LINF, {"norm": "L2", "eps": 3}]}, "threat.L2.eps: input should be a valid list"),
        ({"threat": [LINF, {"norm": "L3", "eps": [3]}]}, "threat.L3.norm: input should be 'Linf', 'L2', 'L1' or 'L0'"),
        ({"threat": [{"eps": [8]}, L2]}, "threat.Linf.eps: it is 8 and pixels are in [0, 1]"),
        ({"threat": 3}, "threat: input should be a valid dictionary"),
        (
            {"attacks": [{"id": "art:pgd", "eps": [0.1]}]},
            "attacks.art:pgd: its eps may be in Linf or L2; give norm too",
        ),
        (
            {"attacks": [{"id": "art:jsma"}]},
            "attacks.art:jsma: it has L0, and the recipe's threats are in Linf and L2; give norm and eps",
        ),
        ({"attacks": [{"id": "art:pgd", "norm": "L1"}]}, "attacks.art:pgd: the recipe has no eps in L1; give eps too"),
        ({"attacks": [{"id": "art:bim", "norm": "L2"}]}, "attacks.art:bim: art:bim has no norm L2; it has Linf"),
        ({"attacks": [{"id": "art:pgd", "norm": "Linf", "eps": [8]}]}, "attacks.art:pgd.eps: it is 8"),
        ({"attacks": [{"id": "art:pgd", "limit": 0}]}, "limit: it is 0; give a whole number of at least 1"),
        ({"transfer": {"attack": "art:pgd", "eps": [0.1]}}, "transfer: its eps may be in Linf or L2; give norm too"),
        ({"attacks": [{"suite": "quick", "eps": [0.1]}]}, "attacks.quick: its eps may be in Linf or L2; give norm too"),
        ({"attacks": [{"id": "torchattacks:gn"}]}, "attacks.torchattacks:gn: "),
        # claims
        ({"claim": {"attack": "art:pgd", "eps": 0.4}}, "claim: art:pgd is not run at eps 0.4; it is in Linf at ["),
        (
            {"claim": {"attack": "art:pgd", "eps": 0.5, "norm": "Linf"}},
            "claim: art:pgd is not run in Linf at eps 0.5; it is in Linf at [",
        ),
        (
            {"threat": [{"eps": [0.5]}, L2], "claim": {"attack": "art:pgd", "eps": 0.5}},
            "claim: art:pgd runs at eps 0.5 in Linf and in L2; give norm too",
        ),
        (
            {"attacks": [{"id": "art:pgd", "limit": 5}], "claim": {"attack": "art:pgd", "eps": 0.5}},
            "claim: art:pgd has a limit, and a claim is about all images; set data.limit instead",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(changes, expected):
    assert expected in refusal(**changes)


@pytest.mark.parametrize(
    ("threat", "claim", "norm"),
    [
        ([LINF, L2], {"eps": 0.5}, "L2"),
        ([{"eps": [0.5]}, L2], {"eps": 0.5, "norm": "L2"}, "L2"),
        (LINF, {"eps": "8/255"}, "Linf"),
    ],
)
def test_a_claim_is_in_the_norm_in_which_its_attack_runs(threat, claim, norm):
    recipe = parse_recipe(tables(threat=threat, claim={"attack": "art:pgd", **claim}))
    for asked in (recipe, recipe.claims_alone()):
        models, cells = plan(asked)
        assert all((m.claim.norm, m.clean.norm, m.claim.eps) == (norm, norm, recipe.claim.eps) for m in models)
        assert all(m.claim in cells for m in models)
    assert {(c.norm, c.eps) for c in cells if c.role == "attack"} == {(norm, recipe.claim.eps)}


def test_a_table_of_one_threat_stays_a_table_and_a_list_a_list():
    for threat in (LINF, [LINF, L2]):
        recipe = parse_recipe(tables(threat=threat))
        dumped = recipe.model_dump(mode="json")
        assert isinstance(dumped["threat"], type(threat))
        assert parse_recipe(dumped) == recipe


@pytest.mark.parametrize(
    ("given", "changes", "found"),
    [
        (tables(), ["threat.L2.eps=[0.1, 0.2]"], [2, 2]),
        (tables(), ["threat.0.eps=[0.1]"], [1, 1]),
        (tables(sweep={"threat.L2.eps": [0.1, 0.2, 0.3]}), [], [2, 3]),
        (tables(sweep={"threat": {"Linf": {"eps": [0.1]}}}), [], [1, 1]),
    ],
)
def test_the_eps_of_one_of_several_threats_can_be_changed_and_swept(given, changes, found):
    assert [len(t.eps) for t in parse_recipe(change(given, changes)).threats] == found


@pytest.mark.parametrize("path", ["eps", "threat.eps"])
def test_a_sweep_of_eps_says_of_which_threat(path):
    assert "e.g. threat.Linf.eps=value" in refusal(sweep={path: [0.1]})


def test_a_suite_runs_in_each_norm_that_it_has():
    recipe = parse_recipe(tables(attacks=[{"suite": "mu-law", "limit": 7}]))
    found = {(a.id, a.norm, a.eps and tuple(a.eps), a.limit) for a in recipe.attacks}
    both = {(name, norm, None, 7) for name in ("art:fgsm", "art:pgd", "art:mifgsm") for norm in ("Linf", "L2")}
    assert found == both | {("art:bim", "Linf", None, 7), ("art:cw-l2", "L2", None, 7)}
    assert {"suite mu-law leaves out art:bim: it has no norm L2"} <= set(recipe.suite_notes)
    alone = parse_recipe(tables(attacks=[{"suite": "mu-law", "norm": "L2", "eps": [1.5]}]))
    assert {(a.norm, *a.eps) for a in alone.attacks} == {("L2", 1.5)}


def test_a_suite_that_runs_in_one_of_the_norms_says_so():
    threats = [LINF, {"norm": "L0", "eps": [3]}]
    recipe = parse_recipe(tables(threat=threats, attacks=[{"suite": "standard"}]))
    assert [(a.id, a.norm) for a in recipe.attacks] == [("autoattack:standard", "Linf")]
    assert "suite standard: no attack of it runs in L0" in recipe.suite_notes


def test_a_suite_whose_options_change_with_eps_keeps_each_eps():
    recipe = parse_recipe(tables(attacks=[{"suite": "dq", "norm": "Linf"}]))
    assert [(a.eps, a.options["max_iter"]) for a in recipe.attacks if a.id == "art:pgd"] == [
        ([2 / 255], 2),
        ([8 / 255], 10),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attacks": [{"id": "art:bim"}]}, "threat.L2 has no effect, because no attack runs in L2"),
        ({"attacks": [{"id": "art:pgd", "limit": 21}]}, "art:pgd: limit has no effect, because data.limit is 20"),
        (
            {"attacks": [{"id": i, "limit": 21} for i in ("art:pgd", "art:bim")] + [{"id": "art:fgsm", "limit": 9}]},
            "art:pgd, art:bim: limit has no effect, because data.limit is 20",
        ),
    ],
)
def test_what_has_no_effect_is_doubted(changes, expected):
    assert expected in list(doubts(parse_recipe(tables(**changes))))
    assert not list(doubts(parse_recipe(tables())))


# --- A limit


def test_a_limit_takes_the_first_images_of_the_order():
    attacks = [{"id": "art:pgd"}, {"id": "art:cw-l2", "limit": 3}, {"id": "art:fgsm", "source": "a", "limit": 4}]
    recipe = parse_recipe(tables(attacks=attacks, transfer={"attack": "art:bim", "limit": 5}))
    rows = {c.attack: (c.rows, c.limit) for c in plan(recipe, [9, 1, 5, 3, 7, 2])[1]}
    assert rows.pop("artq:clean") == rows.pop("art:pgd") == (None, None)
    assert rows == {"art:cw-l2": ((1, 5, 9), 3), "art:fgsm": ((1, 3, 5, 9), 4), "art:bim": ((1, 3, 5, 7, 9), 5)}


@pytest.mark.parametrize("limit", [6, 7])
def test_a_limit_of_all_images_is_none(limit):
    recipe = parse_recipe(tables(attacks=[{"id": "art:pgd", "limit": limit}]))
    assert all((c.rows, c.limit) == (None, None) for c in plan(recipe, range(6))[1])


def test_the_id_of_a_cell_depends_on_its_images_and_not_on_why():
    recipe = parse_recipe(tables(attacks=[{"id": "art:pgd", "limit": 3}]))
    limited = plan(recipe, range(6))[1][-1]
    facts = {"target": "t", "source": "s", "data": "d", "batch_size": 8}
    by_hand = plan(parse_recipe(tables()))[1][-1]
    assert cell_id(limited, **facts) != cell_id(by_hand, **facts)
    object.__setattr__(by_hand, "rows", (0, 1, 2))
    assert cell_id(limited, **facts) == cell_id(by_hand, **facts) and limited == by_hand


# --- Runs, on a network whose robust accuracy is known


class Sum(nn.Module):
    """Class 0 where the sum of the pixels is at least 2, class 1 below: its margin is the distance from 2."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, x):
        over = self.slope * (x.flatten(1).sum(1, keepdim=True) - 2)
        return torch.cat([over, -over], 1)


N = 8
#: (N,) how far the sum of the pixels is from 2. Linf takes 4 eps away, L2 takes 2 eps.
MARGINS = 0.05 + 0.1 * np.arange(N)
IMAGES = np.broadcast_to((0.5 + MARGINS / 4)[:, None, None, None], (N, 1, 2, 2)).astype(np.float32)
LABELS = np.zeros(N, dtype=np.int64)


def run(attacks, threat, out=None, progress=None, **more):
    estimator = QuantizedClassifier(Sum(), nn.CrossEntropyLoss(), (1, 2, 2), 2, device_type="cpu")
    given = {"name": "sum", "threat": threat, "attacks": attacks, "shard": 3, **more}
    return art_qplugins.run(given, estimators={"sum": estimator}, data=(IMAGES, LABELS), out=out, progress=progress)


def left(norm, eps):
    return np.mean({"Linf": 4, "L2": 2}[norm] * eps < MARGINS)


SEVERAL = [{"norm": "Linf", "eps": [0.075, 0.1]}, {"norm": "L2", "eps": [0.1]}]


@pytest.mark.parametrize("strategy", ["matrix", "cascade"])
def test_each_norm_has_a_worst_case_of_its_own(strategy):
    result = run([{"id": "art:fgsm"}, {"id": "art:bim"}], SEVERAL, strategy=strategy).models[0]
    found = {(r.norm, r.eps): r.accuracy for r in result.robust}
    assert found == {at: pytest.approx(left(*at)) for at in [("L2", 0.1), ("Linf", 0.075), ("Linf", 0.1)]}
    assert len(set(found.values())) == 3


def test_attacks_of_another_norm_count_in_no_worst_case():
    finished = run([{"id": "art:fgsm", "norm": "L2", "eps": [0.3]}, {"id": "art:bim"}], SEVERAL[0])
    by_id = {cell.id: cell for cell in finished.cells}
    for robust in finished.models[0].robust:
        norms = {by_id[name].norm for name in robust.attacks if by_id[name].role != "clean"}
        assert norms == {robust.norm}
        assert robust.accuracy == pytest.approx(left(robust.norm, robust.eps))


@pytest.fixture
def first():
    """(N,) which images are the first 4 of the order."""
    order = from_arrays(IMAGES, LABELS, name="x", classes=["0", "1"]).order(seed=0)
    return np.isin(np.arange(N), order[:4])


STRONG = {"id": "art:fgsm", "norm": "L2", "eps": [0.1], "limit": 4}
#: Half a step: it takes eps away from the sum.
WEAK = {"id": "art:mifgsm", "norm": "L2", "eps": [0.1], "options": {"max_iter": 1, "rel_eps_step": 0.5}}


@pytest.mark.parametrize("strategy", ["matrix", "cascade"])
def test_an_attack_with_a_limit_alone_makes_no_worst_case(strategy, first):
    finished = run([{"id": "art:bim"}, STRONG], SEVERAL[0], strategy=strategy)
    assert {r.norm for r in finished.models[0].robust} == {"Linf"}
    (cell,) = (c for c in finished.cells if c.norm == "L2")
    assert (cell.limit, cell.of, cell.rows) == (4, N, np.flatnonzero(first).tolist())
    assert cell.accuracy == pytest.approx(np.mean(MARGINS[first] > 0.2))


@pytest.mark.parametrize("strategy", ["matrix", "cascade"])
def test_images_beyond_a_limit_count_as_not_attacked(strategy, first):
    (robust,) = run([STRONG | {"eps": [0.3]}, WEAK | {"eps": [0.3]}], SEVERAL[1], strategy=strategy).models[0].robust
    assert robust.accuracy == pytest.approx(np.mean(np.where(first, 0.6, 0.3) < MARGINS))
    assert np.mean(MARGINS > 0.6) < robust.accuracy < np.mean(MARGINS > 0.3)


def test_the_same_attack_with_and_without_a_limit_is_crafted_once(first):
    finished = run([{**STRONG, "limit": None}, STRONG], SEVERAL[1])
    cells = [c for c in finished.cells if c.role == "attack"]
    assert [(c.n, c.limit, c.crafted_in) for c in cells] == [(N, None, None), (4, 4, cells[0].id)]
    assert cells[1].accuracy == pytest.approx(np.mean(MARGINS[first] > 0.2))


def test_two_runs_are_compared_where_all_images_were_attacked(tmp_path):
    for name in ("a", "b"):
        run([STRONG, {"id": "art:bim"}], SEVERAL[0], out=tmp_path / name)
    rows = compare(read_run(tmp_path / "a"), read_run(tmp_path / "b")).rows
    assert [(row.norm, row.eps) for row in rows] == [(None, None), ("Linf", 0.075), ("Linf", 0.1)]


def test_a_report_says_how_many_images_an_attack_saw(tmp_path):
    run([STRONG, {"id": "art:bim"}], SEVERAL[0], out=tmp_path)
    for name in ("results.md", "report.html"):
        assert f"4 of {N} images (the recipe's limit)" in unescape((tmp_path / name).read_text())


def test_a_stored_cell_that_is_asked_for_with_a_limit_says_so(tmp_path):
    run([STRONG], SEVERAL[1], out=tmp_path)
    (path,) = (tmp_path / "cells").glob("*fgsm*.json")
    watch = Reused()
    assert run([STRONG], SEVERAL[1], out=tmp_path, progress=watch).cells[-1].limit == 4
    assert watch.reused == 2 and path.exists()


class Reused(Progress):
    reused = 0

    def cell(self, outcome, reused):
        self.reused += reused
