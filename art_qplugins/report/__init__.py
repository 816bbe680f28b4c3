"""A run's records as tables, figures and one self-contained page.

Everything is read from ``results.json``, ``samples.jsonl`` and ``cells/*.npz``. Neither torch nor ART is imported, so a
report can be made anywhere from a copied folder. No number of the records is computed again. Two things are computed
here: image by image, the worst case on a pixel grid; and what weaker strengths of an attack foretell of stronger ones.
"""

from __future__ import annotations

from pathlib import Path

from art_qplugins.files import check_places
from art_qplugins.report.files import Run, read_run, write_text
from art_qplugins.report.sections import SECTIONS, Section

__all__ = ["SECTIONS", "Run", "Section", "read_run", "write_report"]


def write_report(folder: Path) -> list[Path]:
    """Write tables, ``figures/*.svg`` and ``report.html`` into a run's folder.

    Tables are ``results.md``, ``results.csv`` and ``results.tex``. With pyarrow installed, also ``results.parquet`` and
    ``samples.parquet``. A model that RobustBench's leaderboards would accept gets its JSON entry. The same records give
    the same bytes. Each file is replaced as a whole, so that a reader never sees half of one.

    :param folder: the folder of a run with ``results.json`` and, if cells were scored, ``samples.jsonl``.
    :return: the files written, ``report.html`` last.
    :raises InputError: where ``results.json`` or ``samples.jsonl`` cannot be read or contradict each other, or a folder is in
        the place of a file. Nothing is written then.
    """
    # matplotlib, jinja2 and scipy are imported only where a report is made
    from art_qplugins.report import csv_table, html, markdown, parquet, robustbench, tex
    from art_qplugins.report.figures import draw

    run = read_run(folder)
    figures = draw(run)
    files = {
        "results.md": markdown.text(run),
        "results.csv": csv_table.text(run),
        "results.tex": tex.text(run),
        **robustbench.entries(run),
        **{f"figures/{figure.name}.svg": figure.svg for figure in figures.all()},
        "report.html": html.page(run, figures),
    }
    check_places(run.folder, [*files, *parquet.NAMES])
    for stale in (*run.folder.glob("robustbench*.json"), *(run.folder / name for name in parquet.NAMES)):
        if stale.name not in files:  # entries of earlier records
            stale.unlink(missing_ok=True)
    binary = parquet.write(run)
    return [*binary, *(write_text(run.folder / name, text) for name, text in files.items())]
