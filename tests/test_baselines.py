"""Models that name a baseline: the recipe's key, the differences in a run's records, and the section of the report."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from art_qplugins.errors import InputError
from art_qplugins.evaluation.outcome import left_by_image, outcomes_of
from art_qplugins.evaluation.significance import clustered_bootstrap, paired_test
from art_qplugins.recipes.build import stored_at
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.report import read_run, write_report
from art_qplugins.report.baselines import follows, section, summary
from art_qplugins.report.figures import grids
from art_qplugins.runner.runner import Runner

NET = {"architecture": {"name": "convnet", "options": {"width": 2}}, "train": {"epochs": 1}}
RECIPE = {
    "name": "baselines",
    "data": {"name": "digits", "limit": 30, "train_limit": 200},
    "threat": {"eps": [0.05, 0.3]},
    "attacks": [{"id": "art:fgsm"}, {"id": "artq:random", "limit": 10}],
    "models": [
        {"name": "plain", **NET},
        {"name": "dq", "baseline": "plain", "quantize": {"activation_bits": 1}, **NET},
    ],
    "sweep": {
        "models.dq.quantize.activation_bits": [1, 4],
        "models.dq.quantize.clip": [0.5, 6.0],
        "seed": [0, 1],
    },
}
VARIANTS = [f"dq-activation_bits={bits}-clip={clip}" for bits in (1, 4) for clip in (0.5, 6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("baselines")
    Runner(parse_recipe(RECIPE), out=out, asked=RECIPE).run()
    return out


def test_every_variant_is_compared_with_the_seeds_of_its_baseline(folder):
    run = read_run(folder)
    rows = run.results.differences
    eps = [None, 0.05, 0.3]
    assert [(row.first, row.second, row.eps) for row in rows] == [
        ("plain", name, at) for name in VARIANTS for at in eps
    ]
    assert {row.replicates for row in rows} == {(2, 2)}
    assert {(row.eps, row.n) for row in rows} == {(None, 30), (0.05, 10), (0.3, 10)}
    outcomes = outcomes_of(run.results, run.samples)
    row = rows[2]
    first, second = (
        [
            list(left_by_image([o for o in outcomes if o.cell.model == f"{name}-seed={seed}"], "Linf", 0.3).values())
            for seed in (0, 1)
        ]
        for name in ("plain", VARIANTS[0])
    )
    assert row.difference == pytest.approx(np.mean(second) - np.mean(first))
    assert row.interval == pytest.approx(clustered_bootstrap(second, first))
    assert row.p_value == paired_test(first, second) and row.p_holm >= row.p_value


def test_the_report_shows_a_table_and_a_grid_for_each_number(folder):
    html = unescape(section(read_run(folder)) or "").replace("\N{NO-BREAK SPACE}", " ")
    assert html.count("<figure") == 3 and html.count("<tr>") == 1 + 3 * len(VARIANTS)
    for about in ("Clean accuracy, against plain.", "Worst case at Linf, eps 0.05, against plain."):
        assert about in html
    write_report(folder)
    assert "Against the baseline" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_grid_has_a_square_for_each_pair_of_values(folder):
    results = read_run(folder).results
    found = grids.grids(results)
    assert [grid.axes for grid in found] == [("activation bits", "clip")] * 3
    assert list(found[0].cells) == [(1, 0.5), (1, 6), (4, 0.5), (4, 6)]
    assert [row.second for row in found[0].cells.values()] == VARIANTS
    better = found[2].cells[1, 6].model_copy(update={"difference": 0.5, "p_holm": 0.01})
    drawn = grids.Grid(axes=found[2].axes, cells={**found[2].cells, (1, 6): better})
    said = {
        text.get_text()
        for axes in grids.heat_map(
            replace(drawn, cells={(1, 6): better, (4, 6): better.model_copy(update={"invalid": True})})
        ).axes
        for text in axes.texts
    }
    assert said >= {"+50", "invalid"}
    weights = {text.get_text(): text.get_fontweight() for axes in grids.heat_map(drawn).axes for text in axes.texts}
    assert weights["+50"] == "bold" and len(weights) <= 4
    assert "1, 6: +50 (significant)" in grids.heat_map_alt(drawn)


@pytest.mark.parametrize(
    ("difference", "p_holm", "invalid", "said", "counted"),
    [
        (0.2, 0.01, False, "Significantly better than plain.", (1, 0, 0)),
        (-0.2, 0.01, False, "Significantly worse than plain.", (0, 1, 0)),
        (0.2, 0.05, False, "No significant difference.", (0, 0, 1)),
        (0.2, 0.01, True, "Says nothing: a verdict is INVALID.", (0, 0, 0, 1)),
    ],
)
def test_what_follows_from_a_difference(folder, difference, p_holm, invalid, said, counted):
    row = next(row for row in read_run(folder).results.differences if row.eps == 0.3)
    row = row.model_copy(update={"difference": difference, "p_holm": p_holm, "invalid": invalid})
    assert follows(row) == said
    assert tuple(map(int, re.findall(r": (\d+)", summary([row])))) == (1, *counted)


def test_a_run_without_baselines_has_no_section(folder):
    run = read_run(folder)
    assert section(run) is not None
    assert section(replace(run, results=run.results.model_copy(update={"differences": []}))) is None


def test_a_baseline_does_not_change_a_training(tmp_path):
    """Its key would be another one, and a run would train again what it has."""
    alone, compared = ({**RECIPE["models"][1], "baseline": name, "name": "dq"} for name in (None, "plain"))
    keys = set()
    for model in (alone, compared):
        recipe = parse_recipe({**RECIPE, "models": [RECIPE["models"][0], model], "sweep": {"seed": [0]}})
        data = Runner(recipe).prepare().train
        keys.add(stored_at(recipe, recipe.models[-1], data, tmp_path, {}))
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("baseline", "more", "expected"),
    [
        ("plian", {}, "models.dq.baseline: no other model 'plian'; did you mean 'plain'?"),
        ("dq", {}, "models.dq.baseline: no other model 'dq'"),
        ("other", {}, "models.dq.baseline: no other model 'other'"),
        ("plain", {"role": "substitute"}, "models.dq.baseline: the accuracy of a substitute"),
    ],
)
def test_a_baseline_that_is_none_is_refused(baseline, more, expected):
    other = {"name": "other", "role": "substitute", **NET}
    models = [RECIPE["models"][0], other, {"name": "dq", "baseline": baseline, **NET, **more}]
    with pytest.raises(InputError) as caught:
        parse_recipe({**RECIPE, "models": models, "sweep": {"seed": [0, 1]}})
    assert expected in str(caught.value) and "\n" not in str(caught.value)
