"""Sweeps: which models come of one, what their references become, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch

from art_qplugins.errors import InputError
from art_qplugins.recipes.build import build_models
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.sweep import MAX_MODELS, expand_sweep

BASE = {
    "name": "swept",
    "data": {"name": "digits"},
    "threat": {"eps": [0.1]},
    "models": [
        {"name": "fp32"},
        {"name": "dq", "quantize": {"activation_bits": 2}, "defences": [{"name": "orthogonality"}]},
        {"name": "mu", "base": "dq", "quantize": {"weight_bits": 3, "mu": 255.0}, "train": {"epochs": 0}},
        {"name": "sq", "quantize": {"activation_bits": 2, "alpha": 2.0}},
    ],
    "attacks": [{"id": "art:fgsm"}],
}
BITS = "models.dq.quantize.activation_bits"


def swept(sweep, **more):
    return parse_recipe(copy.deepcopy(BASE) | {"sweep": sweep} | more)


def names(recipe):
    return [m.name for m in recipe.models]


@pytest.mark.parametrize(
    ("sweep", "path", "values"),
    [
        ({BITS: [2, 3, 8]}, lambda m: m.quantize.activation_bits, [2, 3, 8]),
        ({"models": {"dq": {"quantize": {"activation_bits": [2, 3]}}}}, lambda m: m.quantize.activation_bits, [2, 3]),
        ({"models.1.train.epochs": [1]}, None, "there is no model '1'"),
        (
            {"models.dq.defences.orthogonality.options.beta": [1e-3, 2e-3]},
            lambda m: m.defences[0].options["beta"],
            [1e-3, 2e-3],
        ),
    ],
)
def test_a_path_makes_a_model_of_every_value(sweep, path, values):
    if path is None:
        with pytest.raises(InputError, match=values):
            swept(sweep)
        return
    found = [m for m in swept(sweep).models if m.name.startswith("dq-")]
    assert [path(m) for m in found] == values
    assert all(m.replicate_of is None and m.seed is None for m in found)


def test_names_are_short_and_stable_and_a_base_takes_what_starts_from_it_along():
    recipe = swept({BITS: [2, 3], "models.mu.quantize.mu": [50.0, 255.0], "models.sq.quantize.alpha": [1.5]})
    assert names(recipe) == [
        "fp32",
        "dq-activation_bits=2",
        "dq-activation_bits=3",
        "mu-activation_bits=2-mu=50",
        "mu-activation_bits=2-mu=255",
        "mu-activation_bits=3-mu=50",
        "mu-activation_bits=3-mu=255",
        "sq-alpha=1.5",
    ]
    assert [m.base for m in recipe.models[3:7]] == ["dq-activation_bits=2"] * 2 + ["dq-activation_bits=3"] * 2


def test_a_name_says_more_where_the_last_word_is_not_enough():
    recipe = swept({BITS: [2], "models.mu.quantize.activation_bits": [4]})
    assert names(recipe)[2] == "mu-dq.quantize.activation_bits=2-mu.quantize.activation_bits=4"


def test_seeds_make_replicates():
    recipe = swept({"seed": [0, 7], BITS: [2, 3]})
    assert names(recipe)[:4] == [
        "fp32-seed=0",
        "fp32-seed=7",
        "dq-activation_bits=2-seed=0",
        "dq-activation_bits=2-seed=7",
    ]
    by_name = {m.name: m for m in recipe.models}
    mu = by_name["mu-activation_bits=3-seed=7"]
    assert (mu.base, mu.seed, mu.replicate_of) == ("dq-activation_bits=3-seed=7", 7, "mu-activation_bits=3")


def test_a_seed_of_its_own_keeps_a_model_apart_from_the_others():
    models = [*BASE["models"], {"name": "substitute", "role": "substitute", "seed": 100}]
    recipe = swept({"seed": [0, 7]}, models=models, attacks=[{"id": "art:fgsm", "source": "substitute"}])
    seeds = {m.name: m.seed for m in recipe.models}
    assert [seeds[f"substitute-seed={seed}"] for seed in (0, 7)] == [100, 107]
    assert [seeds[f"fp32-seed={seed}"] for seed in (0, 7)] == [0, 7]


def test_a_replicate_is_trained_by_its_seed(digits, tmp_path):
    small = {"architecture": {"name": "convnet", "options": {"width": 2}}}
    models = [
        {"name": "a", "train": {"epochs": 1}, **small},
        {"name": "b", "base": "a", "quantize": {"weight_bits": 8}, "train": {"epochs": 0}, **small},
    ]
    recipe = swept({"seed": [0, 1]}, models=models)
    found = build_models(recipe, digits[0], tmp_path, device=torch.device("cpu"))
    assert not torch.equal(found["a-seed=0"].fc2.weight, found["a-seed=1"].fc2.weight)
    for seed in (0, 1):
        off = found[f"a-seed={seed}"].fc2.weight - found[f"b-seed={seed}"].fc2.weight
        assert off.abs().max() < 0.01
    plain = build_models(swept({"eps": [0.1]}, models=models[:1]), digits[0], tmp_path, device=torch.device("cpu"))
    assert torch.equal(plain["a"].fc2.weight, found["a-seed=0"].fc2.weight)  # the recipe's own seed is 0


def test_given_weights_have_no_replicates():
    models = copy.deepcopy(BASE["models"])
    models[1]["checkpoint"] = "dq.safetensors"
    recipe = swept({"seed": [0, 1]}, models=models)
    assert names(recipe) == ["fp32-seed=0", "fp32-seed=1", "dq", "mu", "sq-seed=0", "sq-seed=1"]


def test_budgets_are_swept_too():
    assert swept({"threat.eps": [0.05, "8/255"]}).threat.eps == [0.05, 8 / 255]
    assert swept({"eps": [0.2]}).threat.eps == [0.2]


def test_references_follow():
    attacks = [
        {"id": "art:fgsm", "models": ["dq", "sq"]},
        {"id": "art:pgd", "source": "fp32", "models": ["dq"]},
        {"id": "art:bim", "source": "dq-activation_bits=3-seed=1", "models": ["fp32-seed=0"]},
        {"id": "art:pgd"},
    ]
    recipe = swept(
        {BITS: [2, 3], "seed": [0, 1]},
        attacks=attacks,
        claim={"attack": "art:pgd", "eps": 0.1},
        transfer={"attack": "art:pgd", "models": ["fp32", "dq-activation_bits=2-seed=0"]},
    )
    dq = [f"dq-activation_bits={b}-seed={s}" for b in (2, 3) for s in (0, 1)]
    assert recipe.attacks[0].models == [*dq, "sq-seed=0", "sq-seed=1"]
    # images of a replicate go to the models of the same seed
    assert [(a.source, a.models) for a in recipe.attacks[1:3]] == [
        ("fp32-seed=0", [dq[0], dq[2]]),
        ("fp32-seed=1", [dq[1], dq[3]]),
    ]
    assert (recipe.attacks[3].source, recipe.attacks[3].models) == (dq[3], ["fp32-seed=0"])
    assert recipe.transfer.models == ["fp32-seed=0", "fp32-seed=1", "dq-activation_bits=2-seed=0"]


def test_the_tables_given_stay_as_they_are():
    given = copy.deepcopy(BASE) | {"sweep": {BITS: [2, 3]}}
    before = copy.deepcopy(given)
    assert "sweep" not in expand_sweep(given)
    assert given == before
    assert expand_sweep(BASE) is BASE


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (3, "sweep: it is 3; give a list of values"),
        ({BITS: 2}, f"sweep.{BITS}: it is 2; give a list of values, e.g. [2, 3, 4]"),
        ({BITS: []}, f"sweep.{BITS}: it is []; give a list"),
        ({BITS: [2, 2]}, f"sweep.{BITS}: 2 is there twice"),
        ({BITS: [[2]]}, f"sweep.{BITS}: [2] is no single value"),
        (
            {BITS: [2, 99]},
            "models.dq-activation_bits=99.quantize.activation_bits: it is 99; give a whole number from 1 to 16",
        ),
        ({BITS: [True]}, "models.dq-activation_bits=True.quantize.activation_bits: it is True; give a whole number"),
        ({"seed": [0.5]}, "sweep.seed: 0.5 is no whole number"),
        ({"seed": list(range(MAX_MODELS))}, f"it makes more than {MAX_MODELS} models"),
        ({"sede": [1]}, "sweep.sede: sweep seed, threat.eps or a setting of a model"),
        ({"models.dp.draws": [1]}, "sweep.models.dp.draws: there is no model 'dp'; did you mean 'dq'?"),
        ({"models.dq.quantise.clip": [1.0]}, "quantise: unknown key; did you mean 'quantize'?"),
        ({"models.dq.name.x": [1.0]}, "sweep.models.dq.name.x: 'name' is a value, not a table"),
        (
            {"models.dq.defences.orthogonal.options.beta": [1.0]},
            "there is no 'orthogonal'; did you mean 'orthogonality'?",
        ),
        ({"eps": [0]}, "threat.eps.0: it is 0; give a number above 0"),
    ],
)
def test_a_mistake_is_one_line(sweep, expected):
    with pytest.raises(InputError) as caught:
        swept(sweep)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_without_a_name_is_refused_also_where_an_attack_has_no_source():
    models = [{"name": ""}, {"name": "dq"}]
    with pytest.raises(InputError, match=r"models.*name: it is ''"):
        parse_recipe(copy.deepcopy(BASE) | {"models": models, "sweep": {"seed": [0, 1]}})
