"""A recipe with ``sensitivity``: what is recorded, and what the report shows."""

from __future__ import annotations

from html import unescape

import pytest

import art_qplugins
from art_qplugins.report.figures.distances import moved

RECIPE = {
    "name": "moved",
    "data": {"name": "digits", "limit": 12},
    "threat": {"eps": [0.05, 0.1]},
    "sensitivity": 8,
    "diagnose": False,
    "models": [
        {"name": "fp", "architecture": {"name": "convnet", "options": {"width": 2}}, "train": {"epochs": 1}},
        {
            "name": "2bit",
            "base": "fp",
            "architecture": {"name": "convnet", "options": {"width": 2}},
            "quantize": {"activation_bits": 2},
            "train": {"epochs": 0},
        },
    ],
    "attacks": [{"id": "art:fgsm"}, {"id": "art:fgsm", "source": "fp", "models": ["2bit"]}],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("moved") / "run"
    return art_qplugins.run(RECIPE, out=out), out


def test_the_records_have_both_measurements(finished):
    results = finished[0].results
    assert set(results.sensitivity) == {"fp", "2bit"}
    record = results.sensitivity["2bit"]
    assert [norm.layer for norm in record.norms] == ["conv1", "conv2", "fc1", "fc2"] and not record.skipped
    cells = {cell.id: cell for cell in results.cells}
    assert [(cells[d.cell].eps, cells[d.cell].source) for d in record.distances] == [
        (0.05, "2bit"),
        (0.1, "2bit"),
        (0.05, "fp"),
        (0.1, "fp"),
    ]
    assert all(list(d.layers) == ["conv1", "conv2", "fc1", "fc2"] and d.n <= 8 for d in record.distances)


def test_the_figures_have_lines_of_both_models(finished):
    own, shared = moved(finished[0].results)
    assert (own.source, shared.source) == (None, "fp")
    assert set(own.found) == set(shared.found) == {"fp", "2bit"} and own.eps == shared.eps == [0.05, 0.1]
    near, far = (mean for _, (mean, _) in own.over_eps["fp"])
    assert near < far


def test_seeds_of_a_model_are_one_line(finished):
    results = finished[0].results
    models = [{**m, "replicate_of": "both"} for m in results.spec["resolved"]["models"]]
    spec = {**results.spec, "resolved": {**results.spec["resolved"], "models": models}}
    (own,) = (one for one in moved(results.model_copy(update={"spec": spec})) if one.source is None)
    (apart,) = (one for one in moved(results) if one.source is None)
    assert set(own.found) == {"both"}
    first, second = (apart.found[name][0.1]["conv2"] for name in ("fp", "2bit"))
    mean, error = own.found["both"][0.1]["conv2"]
    assert mean == pytest.approx((first[0] + second[0]) / 2)
    between = (first[0] - second[0]) ** 2 / 4  # the variance of two, by two
    assert error == pytest.approx(((first[1] ** 2 + second[1] ** 2) / 2 + between) ** 0.5)


def test_the_report_has_the_section(finished):
    page = unescape((finished[1] / "report.html").read_text())
    assert (
        "How far a change is carried" in page
        and "could not be measured" not in page
        and "failed" not in page.split("How far a change is carried")[1].split("</section>")[0]
    )
    assert "Images of art:fgsm on each model." in page and "Images of art:fgsm on fp." in page


def test_the_same_run_again_measures_the_same(finished):
    before, out = finished
    assert art_qplugins.run(RECIPE, out=out).results.sensitivity == before.results.sensitivity


def test_without_the_key_nothing_is_measured(tmp_path):
    results = art_qplugins.run({**RECIPE, "sensitivity": None}, out=tmp_path / "run").results
    assert results.sensitivity == {}
    assert "How far a change is carried" not in (tmp_path / "run" / "report.html").read_text()
