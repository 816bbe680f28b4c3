"""The recipes of stochastic quantization: each is one under its profiles, and says what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.recipes.load import load_recipe

FOLDER = Path(__file__).parents[2] / "benchmarks" / "sq"
FILES = sorted(FOLDER.glob("*.toml"))


@pytest.mark.parametrize("profile", ["", "small", "cpu"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_a_recipe_under_every_profile(path, profile):
    recipe, _ = load_recipe(path, profiles=[profile] if profile else [])
    assert recipe.name == f"sq-{path.stem}" + (f"-{profile}" if profile else "")
    assert recipe.score_draws == (20 if profile == "small" else 100)  # for what is left after so many tries
    seeds = {model.seed for model in recipe.models}
    assert seeds == ({0, 1, 2} if profile == "cpu" else {None})
    text = path.read_text()
    assert f"artq run benchmarks/sq/{path.name} --profile" in text and "Needs " in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_random_models_meet_one_draw_and_the_mean_over_draws(path):
    recipe, _ = load_recipe(path)
    for model in recipe.models:
        if model.stochastic and not model.random:
            met = {a.id for a in recipe.attacks if a.models is None or model.name in a.models}
            assert {"artq:single-draw", "artq:eot", "artq:worst-case"} <= met
            assert model.claim is not None and model.claim.attack == "artq:single-draw"


def test_the_headline_has_the_baselines_of_the_field():
    for name in ("mnist", "cifar10"):
        recipe, _ = load_recipe(FOLDER / f"{name}.toml")
        models = {model.name: model for model in recipe.models}
        assert models["empir"].members == models["random-precision"].members == ["fp32", "a4w2", "a2w2"]
        assert models["random-precision"].random and not models["empir"].random
        assert [d.name for d in models["adp"].defences] == ["adaptive-diversity"]
        assert models["adp"].architecture.members == models["ensemble"].architecture.members == 3
        assert [d.name for d in models["rse"].defences] == ["random-self-ensemble"]
        assert models["sq-frozen"].base == "sq" and models["sq-frozen"].frozen
        assert recipe.information
        assert {a.id for a in recipe.attacks} >= {"art:fgsm", "art:pgd", "art:square", "torchattacks:eotpgd"}
        assert {a.id for a in recipe.attacks} <= set(ATTACKS)
