"""Accuracy against bits: which models are one line, where float32 comes from, and which interval a point has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made import CLAIM_EPS, MODELS, build_run, plain, write_results

from art_qplugins.evaluation.records import Results
from art_qplugins.report import read_run, write_report
from art_qplugins.report.bits import section
from art_qplugins.report.figures.bits import FLOAT, curves, drawings, over_bits


def model(name: str, bits: int | None = None, axis: str = "activation_bits", **more: Any) -> dict[str, Any]:
    quantize = None if bits is None else {axis: bits, "clip": 6.0}
    return {"name": name, "base": None, "quantize": quantize, "train": {"epochs": 4}, **more}


def with_models(results: Results, *models: dict[str, Any], given: Any = None) -> Results:
    """The records of a run whose recipe has these models, in place of those that were made up."""
    return results.model_copy(update={"spec": {"given": given, "resolved": {"models": list(models)}}})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return build_run(tmp_path)


def renamed(results: Results, names: dict[str, str]) -> Results:
    models = [one.model_copy(update={"name": names.get(one.name, one.name)}) for one in results.models]
    return results.model_copy(update={"models": models})


def test_a_family_ends_in_the_network_that_was_quantized(results: Results) -> None:
    """Its training differs from theirs, so it is no part of the sweep of bits; but they were made of it."""
    whole = model("fp32", train={"epochs": 20})
    two, three = model("dq-2bit", 2, base="fp32"), model("sq-ensemble", 3, base="fp32")
    (found,) = over_bits(with_models(results, whole, two, three))
    (family,) = found.families
    assert (found.axis, found.threat, found.bits) == ("activation bits", ("Linf", CLAIM_EPS), [2.0, 3.0, FLOAT])
    assert {bits: point.models for bits, point in family.points.items()} == {
        2.0: ["dq-2bit"],
        3.0: ["sq-ensemble"],
        FLOAT: ["fp32"],
    }
    by_name = {one.name: one for one in results.models}
    for bits, name in ((2.0, "dq-2bit"), (FLOAT, "fp32")):
        point, one = family.points[bits], by_name[name]
        robust = next(robust for robust in one.robust if robust.eps == CLAIM_EPS)
        assert point.clean == (one.clean_accuracy, one.clean_interval) and point.clean[0] == MODELS[name][1]
        assert point.worst == (robust.accuracy, robust.interval)
    assert family.name == "dq-2bit to sq-ensemble"


def test_families_are_lines_and_settings_are_figures(results: Results) -> None:
    names = {"fp32": "a-bits=2", "dq-2bit": "a-bits=4", "mu-law-3bit": "b-2", "sq-ensemble": "b-4"}
    results = renamed(results, names)
    given = {"models": [{"name": "a"}, {"name": "b"}, {"name": 3}, 4]}
    models = [model("a-bits=2", 2), model("a-bits=4", 4), model("b-2", 2, clip=1), model("b-4", 4, clip=1)]
    (found,) = over_bits(with_models(results, *models, given=given))
    assert [(family.name, list(family.points)) for family in found.families] == [("a", [2.0, 4.0]), ("b", [2.0, 4.0])]
    weights = [model("b-2", 2, "weight_bits"), model("b-4", 4, "weight_bits")]
    both = over_bits(with_models(results, *models[:2], *weights, given=given))
    assert [one.axis for one in both] == ["activation bits", "weight bits"]
    assert len(drawings(with_models(results, *models[:2], *weights, given=given))) == 2


def test_another_swept_setting_makes_families(results: Results) -> None:
    names = {"fp32": "a-2-x", "dq-2bit": "a-4-x", "mu-law-3bit": "a-2-y", "sq-ensemble": "a-4-y"}
    values = ((2, 0.1), (4, 0.1), (2, 0.5), (4, 0.5))
    models = [model(name, bits, beta=beta) for name, (bits, beta) in zip(names.values(), values, strict=True)]
    given = {"models": [{"name": "a"}], "sweep": {"models": {"a": {"beta": [0.1, 0.5]}}}}
    (found,) = over_bits(with_models(renamed(results, names), *models, given=given))
    assert [(family.name, list(family.points)) for family in found.families] == [
        ("a, beta 0.1", [2.0, 4.0]),
        ("a, beta 0.5", [2.0, 4.0]),
    ]


def test_of_several_seeds_a_point_is_their_mean_and_reaches_from_the_lowest_to_the_highest(results: Results) -> None:
    models = [model("fp32", 2, seed=0), model("dq-2bit", 2, seed=1), model("sq-ensemble", 3)]
    (found,) = over_bits(with_models(results, *models))
    point = found.families[0].points[2.0]
    low, high = MODELS["dq-2bit"][1], MODELS["fp32"][1]
    assert point.models == ["fp32", "dq-2bit"]
    assert point.clean == (pytest.approx((low + high) / 2), (low, high))


def test_no_number_of_an_invalid_model_is_drawn(results: Results) -> None:
    invalid = [one.model_copy(update={"verdict": "INVALID"} if one.name == "dq-2bit" else {}) for one in results.models]
    results = with_models(results.model_copy(update={"models": invalid}), model("dq-2bit", 2), model("fp32", 3))
    (found,) = over_bits(results)
    assert found.families[0].points[2.0].worst is None
    ((drawing, _),) = drawings(results)
    assert "2: clean 94 %, at most –" in plain(drawing.alt)


def test_the_figure_has_a_mark_and_whiskers_for_each_point(results: Results) -> None:
    (found,) = over_bits(with_models(results, model("fp32"), model("dq-2bit", 2), model("sq-ensemble", 8)))
    (axes,) = curves(found).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "8", "float32"]
    clean, worst = axes.containers
    assert list(clean.lines[0].get_ydata()) == pytest.approx([MODELS[n][1] for n in ("dq-2bit", "sq-ensemble", "fp32")])
    bars = worst.lines[2][0].get_segments()
    expected = [point.worst[1] for point in found.families[0].points.values() if point.worst is not None]
    assert [(low[1], high[1]) for low, high in bars] == [pytest.approx(ends) for ends in expected]


def test_a_run_without_bits_has_no_section(results: Results, tmp_path: Path) -> None:
    write_results(tmp_path, with_models(results, model("fp32"), model("dq-2bit", 2)))
    assert section(read_run(tmp_path)) is None


def test_the_section_is_on_the_page_and_the_figure_is_a_file(results: Results, tmp_path: Path) -> None:
    write_results(tmp_path, with_models(results, model("fp32"), model("dq-2bit", 2), model("sq-ensemble", 8)))
    write_report(tmp_path)
    page = plain((tmp_path / "report.html").read_text(encoding="utf-8"))
    told = page.split("Accuracy against bits")[-1]
    assert "Filled marks are upper bounds" in told and "Accuracy over activation bits at Linf" in told
    (row,) = (line for line in told.splitlines() if line.startswith("<tr>") and ">float32<" in line)
    assert ">96.5 % [93, 98.3]<" in row and ">≤ 15.5 % [11.1, 21.2]<" in row
    assert "Accuracy over activation bits at Linf" in plain((tmp_path / "figures" / "section-bits-1.svg").read_text())
