"""The committed pages of results: each is made of its committed records."""

from __future__ import annotations

import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from art_qplugins.evaluation.reading import read_records
from art_qplugins.metrics import pooled_accuracy
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.runner.runner import Runner

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture
def script(monkeypatch):
    """Import a script of the folder, which finds its neighbours there."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(RESULTS)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(RESULTS.parent)):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["dq", "mu-law", "sq"])
def test_a_page_is_made_of_its_records(script, tmp_path, name):
    page = script(name.replace("-", "_")).PAGE
    shutil.copytree(page.folder, tmp_path / name)
    replace(page, folder=tmp_path / name).write([])
    committed = page.folder.with_suffix(".md").read_text(encoding="utf-8")
    assert (tmp_path / f"{name}.md").read_text(encoding="utf-8") == committed


def test_a_mean_over_columns_counts_images_once(script):
    mean_difference = script("mu_law").mean_difference
    rng = np.random.default_rng(0)
    correct = (rng.random((3, 200)) < [[0.4], [0.6], [0.5]]).astype(float)

    def column(values, start=0):
        return {str(start + i): list(of) for i, of in enumerate(values.T)}

    one = mean_difference([column(correct)])
    mean, (low, high) = pooled_accuracy(correct)
    assert one == pytest.approx((mean, low, high))
    assert mean_difference([column(correct)] * 5) == pytest.approx(one)
    single = correct[:1]
    alone = mean_difference([column(single)])
    disjoint = mean_difference([column(single), column(single, start=200)])
    assert disjoint.mean == pytest.approx(alone.mean)
    assert (disjoint.high - disjoint.mean) / (alone.high - alone.mean) == pytest.approx(0.5**0.5, rel=0.02)
    opposite = mean_difference([column(single), column(-single)])
    assert opposite == pytest.approx((0, 0, 0))
    assert mean_difference([column(np.full((2, 9), 0.25))]) == pytest.approx((0.25, 0.25, 0.25))


def test_the_means_of_a_run_are_those_of_its_columns(script, tmp_path):
    """A row that is 1 on every image against one that is 0 on half of them, and loses the rest in the worst case."""
    mu_law = script("mu_law")
    run = tmp_path / "run"
    recipe = {
        "name": "mu-law-made-small",
        "data": {"name": "digits", "limit": 20, "train_limit": 200},
        "threat": {"eps": [0.1]},
        "diagnose": False,
        "attacks": [{"id": "art:fgsm"}, {"id": "artq:random"}, {"id": "art:pgd"}],
        "defaults": {"architecture": {"name": "convnet", "options": {"width": 2}}, "train": {"epochs": 2}},
        "models": [
            {"name": "fl", "reference": {"clean": 0.9, "art:fgsm": 0.5}},
            {
                "name": "mu-fl",
                "base": "fl",
                "train": {"epochs": 0},
                "quantize": {"mu": 255, "mu_layers": 1},
                "reference": {"clean": 0.8, "art:fgsm": 0.7},
            },
            {
                "name": "gain-fl",
                "base": "fl",
                "train": {"epochs": 0},
                "quantize": {"mu": 255, "mu_layers": 1, "mu_gain_only": True},
            },
        ],
    }
    Runner(parse_recipe(recipe), out=run, asked=recipe).run()
    results, samples = read_records(run)
    by_cell = {
        (cell.model, cell.attack): {sample.sample: sample.correct for sample in samples[cell.id]}
        for cell in results.cells
    }

    def left(model):
        attacked = [by_cell[model, name] for name in ("artq:clean", "art:fgsm", "artq:random", "art:pgd")]
        return {image: min(of[image] for of in attacked) for image in attacked[0]}

    rows = mu_law.means((results, samples))
    assert [(row["model"], row["compared with"], row["columns"]) for row in rows] == [
        ("mu-fl", "fl", 2),
        ("gain-fl", "fl", 2),
    ]
    assert rows[0]["slides"] == pytest.approx(0.05) and rows[1]["slides"] is None
    for row in rows:
        one, other = row["model"], "fl"
        columns = [
            np.mean(list(by_cell[one, a].values())) - np.mean(list(by_cell[other, a].values()))
            for a in ("artq:clean", "art:fgsm")
        ]
        assert row["measured"] == pytest.approx(np.mean(columns))
        worst = np.mean(list(left(one).values())) - np.mean(list(left(other).values()))
        assert row["left"] == pytest.approx(np.mean([columns[0], worst]))
        assert row["measured low"] <= row["measured"] <= row["measured high"]
    mu_law.keep((results, samples), tmp_path / "made.json")
    table = "\n".join(mu_law.told(tmp_path / "made.json", results))
    assert "| mu-fl | fl | +5 | " in table and "| gain-fl | fl | – | " in table


def test_the_first_table_of_stochastic_quantization_has_one_draw_beside_eot_and_ten_tries(script, tmp_path):
    sq = script("sq")
    folder, run = tmp_path / "sq", tmp_path / "run"
    folder.mkdir()
    for name in ("head.md", "foot.md"):
        (folder / name).write_text(name)
    recipe = {
        "name": "sq-mnist-small",
        "title": "Made",
        "data": {"name": "digits", "limit": 12, "train_limit": 600},
        "threat": {"eps": [0.1]},
        "claim": {"attack": "artq:single-draw", "eps": 0.1},
        "diagnosis": {"level": 0},
        "score_draws": 10,
        "information": 12,
        "attacks": [{"id": "artq:single-draw"}, {"id": "artq:eot", "options": {"max_iter": 2}}],
        "models": [
            {
                "name": "sq",
                "architecture": {"name": "convnet", "options": {"width": 8}},
                "train": {"epochs": 8},
                "quantize": {"activation_bits": 2, "alpha": 2.0},
                "draws": 4,
                "reference": {"artq:single-draw": 0.5},
            }
        ],
    }
    Runner(parse_recipe(recipe), out=run, asked=recipe).run()
    replace(sq.PAGE, folder=folder).write([run])
    results, _ = read_records(run)
    cells = {cell.attack: cell for cell in results.cells}
    table = (tmp_path / "sq.md").read_text(encoding="utf-8").split("## ")[0]
    row = next(line for line in table.splitlines() if line.startswith("| mnist | sq |")).split(" | ")
    assert row[2:4] == ["Linf, eps 0.1", "50 %"]
    for value, attack in zip(row[4:6], ("artq:single-draw", "artq:eot"), strict=True):
        assert value.startswith(f"{100 * cells[attack].accuracy:.3g} %") and "n = 12" in value
    assert "(clean " in row[7] and row[8].startswith(results.models[0].verdict)
    assert "AUROC" in (tmp_path / "sq.md").read_text(encoding="utf-8")


def test_runs_of_several_seeds_count_as_the_one_run_that_has_them_all(script, tmp_path):
    page = script("page")
    recipe = {
        "name": "made-small",
        "data": {"name": "digits", "limit": 20, "train_limit": 100},
        "threat": {"eps": [0.1]},
        "diagnose": False,
        "attacks": [{"id": "art:fgsm"}],
        "defaults": {"architecture": {"name": "convnet", "options": {"width": 2}}, "train": {"epochs": 1}},
        "models": [
            {"name": "plain", "reference": {"art:fgsm": 0.5}},
            {"name": "bits", "baseline": "plain", "quantize": {"activation_bits": 2}},
        ],
    }

    def run(*seeds):
        asked = {**recipe, "sweep": {"seed": list(seeds)}}
        out = tmp_path / str(seeds)
        Runner(parse_recipe(asked), out=out, asked=asked).run()
        return read_records(out)

    whole, several = run(0, 1), [run(0), run(1)]
    results, samples = page.joined(several)
    pooled = {(row.model, row.measured) for row in page.pooled_cells(results, page.outcomes_of(results, samples))}
    assert pooled == {(row.model, row.measured) for row in whole[0].pooled}
    assert all(row.trainings == 2 for row in page.pooled_cells(results, page.outcomes_of(results, samples)))
    assert results.differences == whole[0].differences
    assert samples == whole[1]
    with pytest.raises(SystemExit, match="give runs of different seeds"):
        page.joined([several[0], several[0]])
