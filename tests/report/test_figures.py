"""What is drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made import CLAIM_EPS, MODELS, N, build_run, plain, with_bits, write_results
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from art_qplugins.report import read_run, select, words, write_report
from art_qplugins.report.figures import costs, histograms, sweeps, transfer
from art_qplugins.report.figures.style import legend_above, legend_columns, legend_height
from art_qplugins.report.figures.svg import to_svg


def test_transfer_is_the_fullest_matrix(folder: Path) -> None:
    matrix = transfer.transfer(read_run(folder).results)
    assert matrix is not None and (matrix.attack, matrix.norm, matrix.eps) == ("art:pgd", "Linf", CLAIM_EPS)
    assert matrix.sources == ["fp32"] and matrix.targets == ["dq-2bit", "mu-law-3bit", "sq-ensemble"]
    left = {target: matrix.cells["fp32", target].accuracy for target in matrix.targets}
    assert left == {name: pytest.approx(MODELS[name][3][2] + 0.12) for name in left}
    svg = (folder / "figures" / "transfer.svg").read_text(encoding="utf-8")
    assert "fp32 to mu-law-3bit 17" in plain(svg)


def test_a_model_alone_has_no_transfer_matrix(folder: Path) -> None:
    results = read_run(folder).results
    assert transfer.transfer(results.model_copy(update={"models": results.models[:2]})) is None


def test_bits_are_read_from_the_recipe(tmp_path: Path) -> None:
    results = with_bits(build_run(tmp_path))
    (sweep,) = sweeps.sweeps(results)
    assert sweep.what == "activation bits"
    named = [(number, [model.name for model in models]) for number, models in sweep.named]
    assert named == [("2", ["dq-2bit", "sq-ensemble"]), ("3", ["mu-law-3bit"]), ("none", ["fp32"])]
    write_results(tmp_path, results)
    write_report(tmp_path)
    svg = (tmp_path / "figures" / "sweep-1.svg").read_text(encoding="utf-8")
    assert "3 (mu-law-3bit): clean 97 %, claimed 95 %, at most 5 %" in plain(svg)
    models = results.spec["resolved"]["models"]
    models[2]["quantize"] = models[2]["quantize"] | {"clip": 1.0}  # more than the bits differs now
    assert sweeps.sweeps(results) == []


def test_a_network_without_quantizers_stands_beside_its_quantized_forms(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    quantize = {"weight_bits": None, "clip": 6.0}
    models = [
        {"name": "fp32", "quantize": None, "train": {"epochs": 3}},
        {"name": "dq-2bit", "quantize": quantize | {"activation_bits": 2}, "train": {"epochs": 3}},
        {"name": "mu-law-3bit", "quantize": quantize | {"activation_bits": 3}, "train": {"epochs": 3}},
        {"name": "sq-ensemble", "quantize": quantize | {"activation_bits": 4}, "train": {"epochs": 4}},
    ]
    (sweep,) = sweeps.sweeps(results.model_copy(update={"spec": {"resolved": {"models": models}}}))
    assert [(value, model.name) for value, (model,) in sweep.named] == [
        ("2", "dq-2bit"),
        ("3", "mu-law-3bit"),
        ("none", "fp32"),
    ]


def test_what_the_recipe_sweeps_is_an_axis(tmp_path: Path) -> None:
    results = build_run(tmp_path)

    def model(name: str, beta: float, decay: float = 0.0) -> dict[str, object]:
        defences = [{"name": "orthogonality", "options": {"beta": beta}}, {"name": "convex-aggregation", "options": {}}]
        return {"name": name, "quantize": None, "defences": defences, "train": {"weight_decay": decay}}

    models = [model("fp32", 1e-3), model("dq-2bit", 2e-3), model("mu-law-3bit", 3e-4), model("sq-ensemble", 3e-4, 1e-4)]
    axis = {"models.dq.defences.orthogonality.options.beta": [1e-3, 2e-3, 3e-4]}
    spec = {"given": {"sweep": {**axis, "seed": [0, 1]}}, "resolved": {"models": models}}
    (sweep,) = sweeps.sweeps(results.model_copy(update={"spec": spec}))
    assert sweep.what == "beta"
    assert [(value, one.name) for value, (one,) in sweep.named] == [
        ("0.0003", "mu-law-3bit"),
        ("0.001", "fp32"),
        ("0.002", "dq-2bit"),
    ]
    both = {**axis, "models": {"dq": {"train": {"weight_decay": [0.0, 1e-4]}}}}
    spec = {"given": {"sweep": both}, "resolved": {"models": models}}
    (sweep,) = sweeps.sweeps(results.model_copy(update={"spec": spec}))
    assert sweep.what == "beta / weight decay" and [value for value, _ in sweep.named] == [
        "0.0003 / 0",
        "0.0003 / 0.0001",
        "0.001 / 0",
        "0.002 / 0",
    ]
    for broken in ({"sweep": 3}, {"sweep": {"models": 5}}, 7, {"sweep": {"models": {"a": []}}}):
        assert (
            sweeps.sweeps(results.model_copy(update={"spec": {"given": broken, "resolved": {"models": models}}})) == []
        )


def test_zero_gradients_have_a_bar_of_their_own(folder: Path) -> None:
    svg = plain((folder / "figures" / "gradients-mu-law-3bit.svg").read_text(encoding="utf-8"))
    run = read_run(folder)
    clean = select.clean(run.results.models[2], run.results)
    assert clean is not None
    zeros = sum(sample.measures["gradient"] == 0 for sample in run.samples[clean.id])
    assert 0 < zeros < N and f"exactly zero on {words.percent(zeros / N)}".replace("\xa0", " ") in svg
    assert f">{zeros}</text>" in svg and ">zero</text>" in svg
    none = (folder / "figures" / "gradients-fp32.svg").read_text(encoding="utf-8")
    assert ">zero</text>" not in none


@pytest.mark.parametrize("values", [[0.0], [1.0], [0.0, 1e-45, 1e30], [3e-7] * 5])
def test_gradients_of_any_size_can_be_drawn(values: list[float]) -> None:
    low, high = histograms.gradient_histogram(values).axes[0].get_xlim()
    assert low < high


def test_what_gradients_bought_is_the_worst_case_over_all_attacks_that_cost_no_more(folder: Path) -> None:
    run = read_run(folder)
    model = run.results.models[0]
    found = select.spending(model, run)
    assert len(found) > 1
    assert [spent.gradients for spent in found] == sorted(spent.gradients for spent in found)
    clean = select.clean(model, run.results)
    assert clean is not None
    so_far = {sample.sample: sample.correct for sample in run.samples[clean.id]}
    for spent in found:
        assert spent.cell.knowledge == "white-box" and spent.cell.rows is None
        rows = {sample.sample: sample.correct for sample in run.samples[spent.cell.id]}
        so_far = {name: min(correct, rows[name]) for name, correct in so_far.items()}
        assert spent.worst == pytest.approx(sum(so_far.values()) / len(so_far))
        assert spent.worst <= spent.accuracy
    svg = plain((folder / "figures" / "gradients-spent.svg").read_text(encoding="utf-8"))
    assert f"{model.name}: {words.percent(found[0].worst)}".replace("\xa0", " ") in svg


def test_without_samples_nothing_is_known_of_what_gradients_bought(folder: Path) -> None:
    run = read_run(folder)
    assert select.spending(run.results.models[0], dataclasses.replace(run, samples={})) == []


def test_costs_within_one_power_of_ten_have_no_formulas_on_their_axis(folder: Path) -> None:
    run = read_run(folder)
    found = select.spending(run.results.models[0], run)
    near = [dataclasses.replace(attack, gradients=20.0 + 10 * place) for place, attack in enumerate(found)]
    assert len(near) > 1
    assert "math" not in to_svg(costs.spending({"a": near}), alt="", prefix="a-")


@pytest.mark.parametrize(
    ("names", "columns"), [(["plain", "dq"], 2), (["plain", "dq-weight_decay=0.0005-beta=0.002"], 1)]
)
def test_a_legend_keeps_apart_what_a_sweep_names(names: list[str], columns: int) -> None:
    figure = Figure()
    legend_above(figure, [Line2D([], []) for _ in names], names)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert legend_columns(names) == columns and legend_height(names) == pytest.approx(0.2 * 2 / columns)
