"""What is drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from made import CLAIM_EPS, MODELS, N, build_run, plain, with_bits, write_results

from art_qplugins.report import read_run, select, words, write_report
from art_qplugins.report.figures import bits, histograms, transfer


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
    (sweep,) = bits.bit_sweeps(results)
    assert sweep.what == "activation bits"
    named = [(number, [model.name for model in models]) for number, models in sweep.models]
    assert named == [("2", ["dq-2bit", "sq-ensemble"]), ("3", ["mu-law-3bit"])]
    write_results(tmp_path, results)
    write_report(tmp_path)
    svg = (tmp_path / "figures" / "bits-1.svg").read_text(encoding="utf-8")
    assert "3 (mu-law-3bit): clean 97 %, claimed 95 %, at most 5 %" in plain(svg)
    models = results.spec["resolved"]["models"]
    models[2]["quantize"] = models[2]["quantize"] | {"clip": 1.0}  # more than the bits differs now
    assert bits.bit_sweeps(results) == []


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
