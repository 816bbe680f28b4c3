"""The files beside the page: each says the same numbers."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import pytest
from made import EVIL, MODELS, N, Page, build_run, on_grid, plain, write_results

from art_qplugins.report import Run, csv_table, read_run, select, tex, words, write_report


def test_writes_every_file_and_says_which(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in write_report(folder)]
    models = [f"figures/{what}-{name}.svg" for what in ("attacks", "margins", "gradients") for name in MODELS]
    run_wide = [f"figures/{name}.svg" for name in ("robust-accuracy", "gradients-spent", "transfer")]
    parquet = ["results.parquet", "samples.parquet"] if importlib.util.find_spec("pyarrow") else []
    tables = ["results.md", "results.csv", "results.tex"]
    assert names == [*parquet, *tables, *run_wide, *models, "report.html"]
    assert not [path for path in folder.rglob(".*") if path.is_file()], "a temporary file was left"


def test_same_records_same_bytes(folder: Path) -> None:
    before = {path: path.read_bytes() for path in write_report(folder)}
    assert {path: path.read_bytes() for path in write_report(folder)} == before


def test_csv_has_each_cell_with_raw_fractions(folder: Path) -> None:
    results = read_run(folder).results
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))
    assert [row["id"] for row in rows] == [cell.id for cell in results.cells]
    for row, cell in zip(rows, results.cells, strict=True):
        assert (float(row["accuracy"]) if row["accuracy"] else None) == cell.accuracy
        assert json.loads(row["params"]) == cell.params
        if cell.interval:
            assert (float(row["lower"]), float(row["upper"])) == cell.interval
    assert rows[-1]["status"] == "error" and "out of <memory>" in rows[-1]["error"]


def test_the_report_says_what_a_suite_leaves_out(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    note = "suite mu-law leaves out art:cw-l2 for <a>: it has no norm Linf"
    told = "Suite mu-law leaves out art:cw-l2 for <a>: it has no norm Linf."
    write_results(tmp_path, results.model_copy(update={"spec": {"resolved": {"suite_notes": [note]}}}))
    written = {
        path.name: path.read_text(encoding="utf-8")
        for path in write_report(tmp_path)
        if path.suffix in (".html", ".md")
    }
    assert told in Page(written["report.html"]).text
    assert f"## Suites\n\n- {told.replace('<', '&lt;').replace('>', '&gt;')}\n" in written["results.md"]
    for spec in ({}, {"resolved": {}}):  # of other versions
        write_results(tmp_path, results.model_copy(update={"spec": spec}))
        assert "## Suites" not in next(p for p in write_report(tmp_path) if p.name == "results.md").read_text("utf-8")


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t=", "\r=", "\n="])
def test_csv_runs_no_formula_in_a_spreadsheet(tmp_path: Path, first: str) -> None:
    name = f'{first}HYPERLINK("http://a.b")'
    results = build_run(tmp_path, rename={"mu-law-3bit": name})
    cells = [c.model_copy(update={"accuracy": -0.5, "notes": [name]}) for c in results.cells if c.model == name]
    run = Run(folder=tmp_path, results=results.model_copy(update={"cells": cells}), samples={})
    rows = list(csv.DictReader(io.StringIO(csv_table.text(run), newline="")))
    assert {(row["model"], row["notes"]) for row in rows} == {(f"'{name}", f"'{name}")}
    assert {row["accuracy"] for row in rows} == {"-0.5"}, "a number stays a number"
    assert all(row["attack"][0].isalpha() for row in rows), "other text is as it was"


def test_markdown_has_each_number_with_n_and_interval(folder: Path) -> None:
    text = plain((folder / "results.md").read_text(encoding="utf-8"))
    head, _, row = (
        next(part for part in text.split("\n\n") if part.startswith("| model | n | clean")).splitlines()[i]
        for i in (0, 1, 4)
    )
    summary = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert summary["model"] == "mu-law-3bit"
    assert summary["n"] == "200"
    assert summary["claimed"] == "95 %"
    assert summary["corrected"] == "≤ 5 % [2.7, 9]"
    assert summary["Linf, eps 0.05"].startswith("≤ 74 %")
    assert (summary["claim"], summary["verdict"]) == ("overstated", "MASKED")
    assert "FAILED: Traceback" in text and "out of &lt;memory&gt;" in text
    assert "1 of 83 cells failed" in text


def test_tables_carry_the_diagnosis(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))))
    mine = [row for row in rows if row["model"] == "mu-law-3bit"]
    assert {row["verdict"] for row in mine} == {"MASKED"} and {row["claim_status"] for row in mine} == {"OVERSTATED"}
    assert {float(row["overstated_by"]) for row in mine} == {0.95 - 0.05}
    assert {(row["blocking_layer"], row["blocking_op"]) for row in mine} == {("head.<scale>", "Mul")}
    places = {row["step"]: row["level"] for row in mine if row["level"]}
    assert places == {"measures": "0", "claim": "0", "margin": "1", "unbounded": "2"}
    text = plain((folder / "results.md").read_text(encoding="utf-8"))
    assert "overstated by 90 points [85, 94]" in text and "Mul in head.&lt;scale&gt;, on 97 % of the images" in text
    assert "| 1 cheap attacks | 19 | 19 |" in text and "| 3 everything | not run | not run |" in text
    assert "broke 180 of 190" in text and "not run: no image is left to attack" in text


def test_latex_is_escaped_and_has_every_model(tmp_path: Path) -> None:
    results = build_run(tmp_path, rename={"mu-law-3bit": EVIL, "fp32": "a_b & 50% #1 {x}^2~"})
    write_report(tmp_path)
    text = (tmp_path / "results.tex").read_text(encoding="utf-8")
    rows = text.split("\\midrule\n")[1].split("    \\bottomrule")[0].splitlines()
    assert len(rows) == len(results.models) and all(row.endswith(r" \\") for row in rows)
    # Whatever opens a group, a command or a column is ours: undo the escapes and nothing special is left in a name.
    for row, name in zip(rows, ("a_b & 50% #1 {x}^2~", "dq-2bit", EVIL), strict=False):
        shown = re.split(r"(?<!\\) & ", row.strip())[0]
        left = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]", "", shown)
        assert not set(left) & set('\\&%$#_{}~^<>|"'), left
        assert len(re.split(r"(?<!\\) & ", row)) == 8
        assert tex.escape(name) == shown
    columns = [part.strip() for part in rows[2].removesuffix(r" \\").split(" & ")]
    assert columns[-7:] == [
        "200",
        "97.0 [93.6, 98.6]",
        "Linf, eps~0.15",
        "95.0",
        "5.0 [2.7, 9.0]",
        "overstated",
        "masked",
    ]


def test_parquet_holds_the_records(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run = read_run(folder)
    cells = parquet.read_table(folder / "results.parquet").to_pylist()
    assert [row["id"] for row in cells] == [cell.id for cell in run.results.cells]
    assert [row["accuracy"] for row in cells] == [cell.accuracy for cell in run.results.cells]
    assert [json.loads(row["params"]) for row in cells] == [cell.params for cell in run.results.cells]
    samples = parquet.read_table(folder / "samples.parquet").to_pylist()
    recorded = [sample for rows in run.samples.values() for sample in rows]
    assert [(r["cell"], r["sample"], r["correct"]) for r in samples] == [
        (s.cell, s.sample, s.correct) for s in recorded
    ]
    assert [r["measures.gradient"] for r in samples] == [s.measures.get("gradient") for s in recorded]


def test_without_pyarrow_nothing_is_said_and_old_tables_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_run(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("samples.parquet", "robustbench.json"):
        (tmp_path / name).write_text("of an earlier run")
    assert not [path for path in write_report(tmp_path) if path.suffix in (".parquet", ".json")]
    assert not (tmp_path / "samples.parquet").exists() and not (tmp_path / "robustbench.json").exists()
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize("stochastic", [False, True])
def test_both_numbers_where_pixels_were_rounded(tmp_path: Path, stochastic: bool) -> None:
    write_results(tmp_path, on_grid(build_run(tmp_path), tmp_path, "fp32", stochastic=stochastic))
    run = read_run(tmp_path)
    model = run.results.models[0]
    cells = [cell for cell in run.results.cells if cell.grid]
    # Each of the odd rows is mended, and of the even ones those stand that no attack broke.
    rows = [[sample.correct for sample in run.samples[cell.id]] for cell in cells]
    left = (N / 2 + sum(min(row[i] for row in rows) for i in range(0, N, 2))) / N
    grid = select.on_grid(model, run)
    assert grid is not None and grid.levels == 256 and grid.accuracy == pytest.approx(left)
    assert select.on_grid(run.results.models[1], run) is None
    written = {
        path.name: plain(path.read_text(encoding="utf-8"))
        for path in write_report(tmp_path)
        if path.suffix in (".html", ".md", ".tex", ".csv")
    }
    shown = plain(words.on_grid(grid))
    assert shown in Page(written["report.html"]).text and shown in written["results.md"]
    assert "Rounded to 256 levels" in written["results.tex"] and f"{100 * left:.1f} [" in written["results.tex"]
    rows_ = csv.DictReader(io.StringIO(written["results.csv"]))
    assert [float(row["grid_accuracy"]) for row in rows_ if row["grid"]] == [cell.grid_accuracy for cell in cells]
