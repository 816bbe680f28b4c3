"""What several models answer to the same images."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import pytest
from made import MODELS, build_run, write_results

from art_qplugins.report import read_run, write_report
from art_qplugins.report.answers import section


def shown(folder: Path) -> str | None:
    found = section(read_run(folder))
    return None if found is None else unescape(found).replace("\N{NO-BREAK SPACE}", " ")


def test_each_model_has_a_column_and_images_about_which_they_differ_come_first(folder: Path) -> None:
    html = shown(folder)
    assert html is not None
    assert [html.count(f'<th scope="col">{name}</th>') for name in MODELS] == [1] * len(MODELS)
    rows = html.split("<tr>")[2:]
    assert len(rows) == 6 and all(row.count("<img") == 1 + len(MODELS) for row in rows)
    assert all("<b>" in row and row.count("<b>") < len(MODELS) for row in rows)
    assert "by art:pgd within" in html


def test_the_page_has_it(html: str) -> None:
    assert "The same images, model by model" in html


def test_a_model_alone_or_too_many_have_none(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    write_results(tmp_path, results.model_copy(update={"models": results.models[:1]}))
    assert shown(tmp_path) is None


def test_images_that_are_gone_are_left_out(tmp_path: Path) -> None:
    results = build_run(tmp_path)
    claims = {model.claim.cell for model in results.models[:3]}
    for cell in claims:
        (tmp_path / "cells" / f"{cell}.npz").unlink()
    write_report(tmp_path)
    assert shown(tmp_path) is None


@pytest.mark.parametrize("probability", [None, 0.934])
def test_the_probability_of_an_answer_is_told_where_it_is_known(probability: float | None, tmp_path: Path) -> None:
    build_run(tmp_path)
    lines = (tmp_path / "samples.jsonl").read_text()
    if probability is not None:
        lines = lines.replace('"measures":{}', f'"measures":{{"confidence":{probability}}}')
        (tmp_path / "samples.jsonl").write_text(lines)
    assert (", 93.4 %" in (shown(tmp_path) or "")) == (probability is not None)
