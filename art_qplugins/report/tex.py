"""``results.tex``: the table of models for a paper, with booktabs."""

from __future__ import annotations

from art_qplugins.evaluation.fields import Interval
from art_qplugins.evaluation.records import Cell, ModelResult
from art_qplugins.report import select, words
from art_qplugins.report.files import Run

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # Some font encodings print these three characters as others.
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{EN DASH}": "--",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}


def text(run: Run) -> str:
    r"""A ``table`` environment to ``\input``. It needs ``\usepackage{booktabs}`` and nothing else.

    Accuracies are in percent. A robust accuracy is the worst case over attacks, an upper bound with its 95 % interval.
    """
    models = run.results.models
    grids = [select.on_grid(model, run) for model in models]
    gridded = any(grids)
    clean = [select.with_reference(select.clean(model, run.results)) for model in models]
    claimed = [select.with_reference(select.claimed(model, run.results)) for model in models]
    head = ["Model", "$n$", "Clean", *(["Paper"] if any(clean) else []), "Threat", "Claimed"]
    head += [*(["Paper"] if any(claimed) else []), r"At most"]
    head += [f"Rounded to {_levels(grids)} levels"] if gridded else []
    head += ["Claim", "Verdict"]
    lines = [
        "% Needs \\usepackage{booktabs}. Percent; brackets hold 95 % intervals for the number of images.",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{_caption(run)}}}",
        rf"  \begin{{tabular}}{{lrr{'r' * any(clean)}lrr{'r' * any(claimed)}{'r' * gridded}ll}}",
        r"    \toprule",
        f"    {' & '.join(head)} \\\\",
        r"    \midrule",
    ]
    for i, (model, grid) in enumerate(zip(models, grids, strict=True)):
        row = [
            escape(model.name),
            f"{model.n}",
            _bounded(model.clean_accuracy, model.clean_interval) if model.n else "--",
            *([_paper(clean[i])] if any(clean) else []),
            escape(words.threat(*(select.threat(model, run.results) or (None, None)))),
            _percent(model.claim.accuracy),
            *([_paper(claimed[i])] if any(claimed) else []),
            _at_most(model),
            *([_bounded(grid.accuracy, grid.interval) if grid else "--"] if gridded else []),
            words.CLAIMS[model.claim.status],
            words.verdict(model.verdict).lower(),
        ]
        lines.append(f"    {' & '.join(row)} \\\\")
    lines += [r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _caption(run: Run) -> str:
    name = run.results.data.get("name")
    return (
        f"Accuracy{f' on {escape(str(name))}' if name else ''} in percent on clean images, and in the worst case over all "
        r"attacks that were run, image by image, with 95\,\% Wilson intervals."
    )


def _levels(grids: list[select.OnGrid | None]) -> str:
    return "/".join(dict.fromkeys(f"{grid.levels}" for grid in grids if grid))


def _at_most(model: ModelResult) -> str:
    if model.verdict == "INVALID":
        return "--"
    return _bounded(model.claim.corrected, model.claim.interval)


def _paper(cell: Cell | None) -> str:
    return _percent(None if cell is None else cell.reference)


def _bounded(value: float | None, bounds: Interval | None) -> str:
    shown = _percent(value)
    return shown if bounds is None or value is None else f"{shown} [{_percent(bounds[0])}, {_percent(bounds[1])}]"


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.1f}"


def escape(text: str) -> str:
    r"""Free text as LaTeX shows it: ``a_b`` as ``a\_b``. Line breaks become spaces.

    >>> escape("50 % of $x_1$")
    '50 \\% of \\$x\\_1\\$'
    """
    return "".join(_SPECIAL.get(sign, sign) for sign in " ".join(text.split(" ")).replace("\n", " ").replace("\r", " "))
