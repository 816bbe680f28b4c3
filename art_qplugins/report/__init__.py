"""A run's records as tables, figures and one self-contained page.

Everything here is read from ``results.json``, ``samples.jsonl`` and ``cells/*.npz``; no number of the records is computed
again (only the worst case on a pixel grid is computed here, image by image) and neither torch nor ART is imported, so that a report can be made anywhere from a copied folder.
"""

from __future__ import annotations

from pathlib import Path

from art_qplugins.report.files import Run, read_run, write_text

__all__ = ["Run", "read_run", "write_report"]


def write_report(folder: Path) -> list[Path]:
    """Write tables, ``figures/*.svg`` and ``report.html`` into a run's folder.

    Tables are ``results.md``, ``results.csv`` and ``results.tex``; where pyarrow is installed ``results.parquet`` and
    ``samples.parquet``; for a model that its leaderboards would take, RobustBench's JSON entry. The same records give the same bytes. Each file is replaced as a whole, so that a reader never sees half of one.

    :param folder: the folder of a run, holding ``results.json`` and, where cells were scored, ``samples.jsonl``.
    :return: the files written, ``report.html`` last.
    :raises InputError: where ``results.json`` or ``samples.jsonl`` cannot be read. Nothing has been written then.
    """
    # matplotlib, jinja2 and scipy only where a report is made
    from art_qplugins.report import html, parquet, plots, robustbench, tables, tex

    run = read_run(folder)
    figures = plots.figures(run)
    files = {
        "results.md": tables.markdown(run),
        "results.csv": tables.csv_text(run),
        "results.tex": tex.table(run),
        **robustbench.entries(run),
        **{f"figures/{figure.name}.svg": figure.svg for figure in figures.all()},
        "report.html": html.page(run, figures),
    }
    for stale in (*run.folder.glob("robustbench*.json"), *(run.folder / name for name in parquet.NAMES)):
        if stale.name not in files:  # of other records than these
            stale.unlink(missing_ok=True)
    binary = parquet.write(run)
    return [*binary, *(write_text(run.folder / name, text) for name, text in files.items())]
