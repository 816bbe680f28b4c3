"""The report on a synthetic run, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import build_run

from art_qplugins.report import write_report


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    build_run(folder)
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def masked(html: str) -> str:
    return html.split('id="model-3"')[1].split("</section>")[0]
