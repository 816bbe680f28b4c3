"""Models of a recipe that are put together of others: what they are made of, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from art_qplugins.errors import InputError
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.models.mixture import Mixture
from art_qplugins.quantizers import is_stochastic
from art_qplugins.recipes.build import build_estimators, build_models
from art_qplugins.recipes.describe import describe
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.rehearse import rehearse
from art_qplugins.runner.costs import costs
from art_qplugins.runner.plan import plan
from art_qplugins.runner.runner import Runner

SMALL = {"name": "convnet", "options": {"width": 2}}
GOOD = {
    "name": "mixtures",
    "threads": 1,
    "data": {"name": "digits", "limit": 20},
    "threat": {"eps": [0.1]},
    "diagnose": False,
    "models": [
        {"name": "a", "architecture": SMALL, "train": {"epochs": 1}, "role": "substitute"},
        {"name": "b", "base": "a", "architecture": SMALL, "quantize": {"weight_bits": 4}, "train": {"epochs": 0}},
        {"name": "both", "members": ["a", "b"], "rule": "mean-logits"},
        {"name": "any", "members": ["a", "b"], "random": True},
    ],
    "attacks": [{"id": "art:fgsm"}],
}


def recipe(*changes, **more):
    """GOOD with (model, key, value) set."""
    tables = copy.deepcopy(GOOD) | more
    for model, key, value in changes:
        next(m for m in tables["models"] if m["name"] == model)[key] = value
    return parse_recipe(tables, where="r.toml")


def by_name(of):
    return {model.name: model for model in of.models}


def test_a_mixture_is_made_of_the_trained_networks_of_its_members(digits, tmp_path):
    made = [
        build_models(recipe(), digits[0], tmp_path, device=torch.device("cpu")) for _ in range(2)
    ]  # the second from checkpoints
    assert sorted(path.stem[0] for path in tmp_path.glob("*.safetensors")) == ["a", "b"]  # it has no weights of its own
    x = digits[1].x()[:9]
    for models in made:
        a, b, both = models["a"], models["b"], models["both"]
        assert isinstance(both, Mixture) and not both.training and list(both.members) == [a, b]
        torch.testing.assert_close(both(x), (a(x) + b(x)) / 2)
    torch.testing.assert_close(made[0]["both"](x), made[1]["both"](x), rtol=0, atol=0)


def test_it_is_judged_as_what_it_is(digits, tmp_path):
    models = by_name(recipe())
    assert [models[name].stochastic for name in ("both", "any")] == [False, True]
    assert not models["both"].trained and models["both"].parents == ["a", "b"]
    assert describe(models["both"]) == "mean-logits of a, b"
    assert describe(models["any"]) == "one of a, b, at random for each image"
    made = build_estimators(recipe(), digits[0], tmp_path, device=torch.device("cpu"))
    assert all(type(made[name]) is QuantizedClassifier for name in ("both", "any"))
    assert [is_stochastic(made[name].model) for name in ("both", "any")] == [False, True]


def test_it_runs_and_resumes(tmp_path):
    runs = [Runner(recipe(), out=tmp_path).run() for _ in range(2)]
    records = [{cell.model: cell for cell in run.results.cells if cell.role == "clean"} for run in runs]
    assert set(records[0]) == {"b", "both", "any"}
    assert [model.stochastic for model in runs[0].results.models] == [False, False, True]
    assert records[0]["both"].id == records[1]["both"].id and runs[1].results.status == "success"


def test_a_dry_run_builds_it_and_counts_no_training(digits):
    given = recipe()
    assert rehearse(given, digits[1], {}) == []
    work = costs(given, Runner(given).prepare(), *plan(given))
    assert {w.model for w in work if w.part == "training"} == {"a"}
    assert {w.model for w in work if w.part == "attacks"} == {"b", "both", "any"}


def test_a_swept_seed_mixes_members_of_that_seed():
    found = by_name(recipe(sweep={"seed": [0, 1]}))
    assert found["both-seed=1"].members == ["a-seed=1", "b-seed=1"]
    assert found["both-seed=1"].replicate_of == "both" and len(found) == 8


def test_a_swept_setting_of_a_member_makes_a_mixture_of_each():
    found = by_name(recipe(sweep={"models.b.quantize.weight_bits": [2, 4], "seed": [0, 1]}))
    assert found["any-weight_bits=2-seed=1"].members == ["a-seed=1", "b-weight_bits=2-seed=1"]
    assert len(found) == 2 + 3 * 4


def test_a_seed_makes_no_other_mixture_of_members_that_have_none():
    found = recipe(("a", "checkpoint", "a.safetensors"), ("a", "train", {}), sweep={"seed": [0, 1]})
    assert [model.name for model in found.models] == ["a", "b", "both", "any"]


def test_defaults_of_models_are_not_those_of_mixtures():
    found = by_name(recipe(defaults={"train": {"epochs": 3}, "architecture": SMALL}))
    assert found["both"].model_fields_set == {"name", "members", "rule"}


STOCHASTIC = {"activation_bits": 2, "alpha": 2.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([("both", "members", ["a", "c"])], "models.both.members: no model 'c' above it; there is: a, b"),
        ([("both", "members", ["a", "any"])], "models.both.members: no model 'any' above it"),  # no cycles
        ([("both", "members", ["a", "both"])], "models.both.members: no model 'both' above it"),
        ([("both", "members", ["a", "a"])], "'a' is there twice"),
        ([("both", "members", ["a"])], "models.both.members: it has one; give two or more"),
        ([("both", "members", [])], "it is empty"),
        ([("both", "train", {"epochs": 2})], "models.both.train: the network comes from its members; leave train out"),
        ([("both", "base", "a")], "models.both.base: the network comes from its members"),
        ([("both", "draws", 3)], "models.both.draws: the network comes from its members"),
        ([("both", "checkpoint", "a.safetensors")], "models.both.checkpoint: the network comes from its members"),
        ([("both", "factory", "a:b")], "models.both: it has factory and members, and each makes its network"),
        ([("both", "abstain", 1)], "models.both.abstain: each output of a network that is built here"),
        ([("any", "rule", "mean-logits")], "models.any.rule: a random mixture answers with one of its members"),
        ([("a", "random", True)], "models.a.random: it has no members to draw one of"),
        ([("b", "quantize", STOCHASTIC)], "models.both.members: 'b' draws noise"),
        ([("b", "quantize", STOCHASTIC), ("b", "frozen", True)], "models.both.members: 'b' draws noise"),
        ([("both", "members", ["any", "b"])], "models.both.members: no model 'any' above it"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, expected):
    with pytest.raises(InputError) as caught:
        recipe(*changes)
    assert expected in str(caught.value)


def test_members_with_other_classes_are_refused_before_any_training(digits):
    given = recipe(
        models=[*GOOD["models"][:1], {"name": "f", "factory": "wide:net"}, GOOD["models"][2] | {"members": ["a", "f"]}]
    )
    estimator = QuantizedClassifier(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 11)), torch.nn.CrossEntropyLoss(), (1, 8, 8), 11
    )
    with pytest.raises(InputError, match=r"models.both: members: they give \[10, 11\] logits"):
        rehearse(given, digits[1], {"f": estimator})
