"""The recipes of Defensive Quantization's tables and figures: each is one, under each of its profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from art_qplugins.recipes.load import load_recipe

FOLDER = Path(__file__).parents[2] / "benchmarks" / "dq"
FILES = sorted(FOLDER.glob("*.toml"))
PAPER = {*(f"table{n}" for n in range(1, 7)), *(f"figure{n}" for n in (1, 3, 5, 6, 7))}


def test_every_table_and_figure_has_one():
    assert {path.stem for path in FILES} >= PAPER


@pytest.mark.parametrize("profile", ["", "small", "cpu"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_a_recipe_under_every_profile(path, profile):
    recipe, _ = load_recipe(path, profiles=[profile] if profile else [])
    assert recipe.name == f"dq-{path.stem}" + (f"-{profile}" if profile else "")
    seeds = {model.seed for model in recipe.models}
    assert seeds == ({0, 1, 2} if profile == "cpu" else {None})
    if profile:
        assert recipe.data.limit == 200 if profile == "small" else recipe.data.limit >= 200
        assert max(model.train.epochs for model in recipe.models) <= 10
    text = path.read_text()
    assert f"artq run benchmarks/dq/{path.name} --profile small" in text and "Needs " in text


def test_table_1_is_the_papers():
    recipe, _ = load_recipe(FOLDER / "table1.toml")
    assert len(recipe.models) == 24
    best = next(model for model in recipe.models if model.name == "dq-1e-3-5bit")
    assert best.reference == {"clean": 0.958, "art:fgsm": 0.518}
    assert best.quantize is not None and best.quantize.activation_bits == 5 and best.train.epochs == 200
    assert best.architecture.options == {"depth": 28, "widen_factor": 10, "aggregation": True}
    assert [d.name for d in best.defences] == ["orthogonality", "convex-aggregation"]


@pytest.mark.parametrize(("table", "data", "epochs"), [("table2", "svhn", 160), ("table3", "cifar10", 200)])
def test_tables_2_and_3_have_every_number_of_the_paper(table, data, epochs):
    recipe, _ = load_recipe(FOLDER / f"{table}.toml")
    models = [model for model in recipe.models if model.role == "subject"]
    assert (recipe.data.name, models[0].train.epochs, len(models)) == (data, epochs, 6 if table == "table2" else 8)
    assert all(len(model.reference) == 7 for model in models)
    assert all(len(by_eps) == 3 for model in models for by_eps in model.reference.values() if isinstance(by_eps, dict))
