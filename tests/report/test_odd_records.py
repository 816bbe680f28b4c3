"""Runs that are unfinished, failed, damaged or have odd names."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from made import EVIL, Page, build_run, make_cell, plain, write_results

from art_qplugins.errors import InputError
from art_qplugins.evaluation.records import Claim, ModelResult, Results
from art_qplugins.report import read_run, select, words, write_report


def test_partial_cells_are_never_shown_as_whole_ones(folder: Path, html: str) -> None:
    results = read_run(folder).results
    model = next(m for m in results.models if m.name == "mu-law-3bit")
    assert all(cell.rows is None for cell in select.attacks(model, results))
    assert len(select.at_threat(model, results)) == len(select.attacks(model, results)) + 1
    assert "apgd-margin" not in (folder / "figures" / "attacks-mu-law-3bit.svg").read_text(encoding="utf-8")
    markdown = plain((folder / "results.md").read_text(encoding="utf-8"))
    for text in (plain(Page(html).text), markdown):
        assert "190 of 200 images (those not broken before)" in text and "5.3 % [3, 9] of those" in text
    for row in csv.DictReader(io.StringIO((folder / "results.csv").read_text(encoding="utf-8"))):
        assert (row["of"] == "200") == (row["attack"] == "artq:apgd-margin")


@pytest.mark.parametrize(
    "path",
    ["javascript:alert(1)", "/etc/passwd", "evidence/../../x.npz", "https://a.b/x", "evidence", "..\\evidence\\x"],
)
def test_evidence_elsewhere_is_no_link(path: str, tmp_path: Path) -> None:
    results = build_run(tmp_path)
    models = [model.model_copy(update={"evidence": path}) for model in results.models]
    write_results(tmp_path, results.model_copy(update={"models": models}))
    page = Page(write_report(tmp_path)[-1].read_text(encoding="utf-8"))
    assert not [link for link in page.links if not link.startswith(("#", "data:"))]
    assert path in page.text


def test_a_finished_run_with_a_failed_cell_says_what_failed() -> None:
    cell = make_cell("net", "art:pgd", 0.1, None, error="Traceback\nRuntimeError: out of memory")
    results = Results.model_construct(status="error", cells=[cell], models=[ModelResult.model_construct(name="net")])
    (note,) = words.troubles(results)
    assert plain(note) == (
        "1 of 1 cells failed and count in no number: net, art:pgd at Linf, eps 0.1: RuntimeError: out of memory."
    )
    for changes in ({"status": "cancelled"}, {"models": []}):
        notes = words.troubles(results.model_copy(update=changes))
        assert len(notes) == 2 and "not complete" in notes[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_names_are_escaped_everywhere(tmp_path: Path, channels: int) -> None:
    build_run(tmp_path, rename={"mu-law-3bit": EVIL}, channels=channels)
    written = write_report(tmp_path)
    for path in written:
        assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name) and path.is_relative_to(tmp_path)
        if path.suffix not in (".csv", ".parquet", ".tex"):
            ours = int(path.name == "report.html")
            assert path.read_text(encoding="utf-8").lower().count("<script") == ours
    assert not re.search(r"(?<!\\)\]\(", (tmp_path / "results.md").read_text(encoding="utf-8")), "a name became a link"
    page = Page(written[-1].read_text(encoding="utf-8"))
    assert EVIL in page.text and page.tags.count("script") == 1


@pytest.mark.parametrize("status", ["started", "error"])
def test_a_run_without_models(tmp_path: Path, status: str) -> None:
    build_run(tmp_path)
    results = read_run(tmp_path).results.model_copy(update={"models": [], "cells": [], "status": status})
    write_results(tmp_path, results)
    (tmp_path / "samples.jsonl").unlink()
    text = Page(write_report(tmp_path)[-1].read_text(encoding="utf-8")).text
    assert "holds no finished model" in text and f"status: {status}" in text


def test_sparse_records_are_reported_as_far_as_they_go(tmp_path: Path) -> None:
    """No claim, no interval, no images, one eps, no findings."""
    build_run(tmp_path)
    results = read_run(tmp_path).results
    for file in (tmp_path / "cells").iterdir():
        file.unlink()
    bare = {"claim": Claim(status="NONE"), "findings": [], "description": "", "summary": ""}
    models = [model.model_copy(update=bare | {"robust": model.robust[:1]}) for model in results.models]
    models[1] = models[1].model_copy(update={"robust": []})
    cells = [cell.model_copy(update={"interval": None}) for cell in results.cells]
    write_results(tmp_path, results.model_copy(update={"models": models, "cells": cells, "data": {}}))
    text = plain(Page(write_report(tmp_path)[-1].read_text(encoding="utf-8")).text)
    assert "No claim was made" in text and "No check was run" in text
    assert "None" not in text


def test_warnings_and_temperatures_are_shown(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    change = {"notes": ["loss did not <move>"], "params": {"temperature": 331.234567}}
    cells = [cell.model_copy(update=change) if cell.role == "probe" else cell for cell in results.cells]
    write_results(tmp_path, results.model_copy(update={"cells": cells}))
    texts = [path for path in write_report(tmp_path) if path.suffix != ".parquet"]
    written = {path.name: path.read_text(encoding="utf-8") for path in texts}
    assert "Warning: loss did not <move>" in Page(written["report.html"]).text
    for name in ("report.html", "results.md", "attacks-fp32.svg"):
        assert "art:pgd, logits / 331" in written[name]
    assert "loss did not &lt;move&gt;" in written["results.md"] and "loss did not <move>" in written["results.csv"]


def test_an_invalid_model_gets_no_headline_number(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    models = [model.model_copy(update={"verdict": "INVALID"}) for model in results.models[:1]]
    write_results(tmp_path, results.model_copy(update={"models": models}))
    page = write_report(tmp_path)[-1].read_text(encoding="utf-8")
    text = plain(Page(page).text)
    assert "17.5 % claimed. No number of this model counts." in text and "○ HOLDS" not in text
    claim = results.models[0].claim
    invalid = {"verdict": "INVALID", "claim": claim, "robust": []}
    models = [model.model_copy(update=invalid) for model in results.models[:2]]
    write_results(tmp_path, results.model_copy(update={"models": models}))
    page = write_report(tmp_path)[-1].read_text(encoding="utf-8")
    assert re.findall(r'<p class="figure-number">(.*?)</p>', page) == ["– <small>no number counts</small>"] * 2
    assert "2 of 2 models could not be evaluated: fp32, dq-2bit." in Page(page).text


def test_all_cells_failed(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    failed = {"status": "error", "accuracy": None, "interval": None, "error": None}
    cells = [cell.model_copy(update=failed) for cell in results.cells]
    write_results(tmp_path, results.model_copy(update={"cells": cells}))
    text = Page(write_report(tmp_path)[-1].read_text(encoding="utf-8")).text
    assert "83 of 83 cells failed" in text and "no message was recorded" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not the JSON that belongs there"),
        ("[]", "a list in place of an object"),
        ("{}", "schema_version is None"),
        ('{"schema_version": true}', "schema_version is True"),
        ('{"schema_version": "1"}', "schema_version is '1'"),
        ("[" * 100_000, "nested more than 50 deep"),
        ('{"schema_version": NaN}', "the number NaN"),
        ('{"schema_version": ' + "1" * 5000 + "}", "a whole number of 5000 digits"),
        ('{"schema_version": 2}', "schema_version is 2"),
        ('{"schema_version": 1, "status": "done"}', "status"),
    ],
)
def test_results_that_cannot_be_read(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"results.json"}


def test_a_damaged_sample_names_its_line(tmp_path: Path) -> None:
    build_run(tmp_path)
    (tmp_path / "samples.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"samples\.jsonl, line 1"):
        write_report(tmp_path)


def test_damaged_images_cost_the_gallery_only(tmp_path: Path) -> None:
    build_run(tmp_path)
    for file in (tmp_path / "cells").iterdir():
        file.write_bytes(b"PK\x03\x04 not a zip")
    assert "data:image/png" not in write_report(tmp_path)[-1].read_text(encoding="utf-8")


def test_clean_images_that_could_not_be_scored_have_no_accuracy(tmp_path: Path) -> None:
    """The record then says 0 of 0 images, which is no 0 %."""
    results = build_run(tmp_path)
    nothing = {"n": 0, "clean_accuracy": 0.0, "clean_interval": (0.0, 1.0), "robust": [], "findings": []}
    invalid = results.models[0].model_copy(update={**nothing, "verdict": "INVALID", "claim": Claim(status="NONE")})
    write_results(tmp_path, results.model_copy(update={"models": [invalid, *results.models[1:]]}))
    write_report(tmp_path)
    summary = next(
        line
        for line in (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| fp32 |")
    )
    assert summary.startswith(f"| fp32 | 0 | {words.NONE} |")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "[0, 100]" not in plain(page)
    curves = (tmp_path / "figures" / "robust-accuracy.svg").read_text(encoding="utf-8")
    assert "fp32: clean not known" in curves


def test_a_skipped_cell_says_why(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    skipped = results.cells[-1].model_copy(
        update={"status": "skipped", "error": None, "notes": ["no <budget> is left"]}
    )
    write_results(tmp_path, results.model_copy(update={"cells": [*results.cells[:-1], skipped]}))
    write_report(tmp_path)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "83 cells, 0 failed, 1 not run." in text and "Not run: no <budget> is left" in text
    assert "not run: no &lt;budget&gt; is left |" in (tmp_path / "results.md").read_text(encoding="utf-8")
