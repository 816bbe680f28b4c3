"""Plans, results, diagnoses, comparisons and replays as tables."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from art_qplugins.evaluation.compare import Comparison
from art_qplugins.evaluation.fields import Interval
from art_qplugins.evaluation.order import Learnt
from art_qplugins.evaluation.records import Cell, Finding, ModelResult
from art_qplugins.report import Run as Written
from art_qplugins.report import select, steps, words
from art_qplugins.terminal.console import STYLES, console, number, show_warnings, spaced
from art_qplugins.terminal.progress import LiveProgress

if TYPE_CHECKING:
    from art_qplugins.deployment.export import Exported
    from art_qplugins.evidence import Replay
    from art_qplugins.runner.costs import Work
    from art_qplugins.runner.export import Agreement
    from art_qplugins.runner.run import Run

__all__ = ["show_comparison", "show_diagnosis", "show_export", "show_order", "show_plan", "show_replay", "show_results"]


#: Number of rows of a table of a plan. Nobody reads more, and a table of thousands takes a minute.
_ROWS = 200


def show_plan(
    recipe: Any,
    models: Sequence[Any],
    cells: Sequence[Any],
    warnings: Iterable[str] = (),
    work: Sequence[Work] = (),
) -> None:
    """Show the models and cells of a recipe, the code that it runs, what is surely a mistake in it, and what it costs."""
    from art_qplugins.recipes.describe import code_of_others  # it knows networks, and other tables need none

    screen = console()
    _show_rows(screen, ("model", "what it is"), [(model.name, model.description) for model in models])
    for line in code_of_others(recipe):
        screen.print(f"runs code: {line}", soft_wrap=True)
    show_warnings(screen, warnings)
    screen.print()
    grouped: dict[tuple[Any, ...], list[float]] = {}
    several = len({cell.norm for cell in cells if cell.role == "attack"}) > 1
    for cell in cells:
        options = {} if cell.role == "clean" else cell.options
        limit = [] if cell.limit is None else [f"limit = {cell.limit}"]
        attack = "\n  ".join([cell.attack, *(f"{name} = {number(value)}" for name, value in options.items()), *limit])
        norm = cell.norm if several and cell.role == "attack" else ""
        budgets = grouped.setdefault((cell.model, attack, cell.source, norm, cell.role), [])
        budgets += [] if cell.role == "corruption" else [cell.eps]
    rows = [
        (model, attack, source, " ".join([*([norm] if norm else []), *map(words.eps, budgets)]), role)
        for (model, attack, source, norm, role), budgets in grouped.items()
    ]
    _show_rows(screen, ("model", "attack", "crafted on", "eps", "why"), rows)
    if recipe.suite_notes:
        screen.print()
    for note in recipe.suite_notes:
        screen.print(f"{note}.")
    if work:
        screen.print()
        _show_work(screen, work)
    images = "all" if recipe.data.limit is None else str(recipe.data.limit)
    screen.print(f"\n{len(cells)} cells on {images} images of {recipe.data.name}; nothing was run.")


def _show_work(screen: Console, work: Sequence[Work]) -> None:
    """The passes and the time of each part of a run, and of all models together."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for head in ("model", "part"):
        table.add_column(head, overflow="fold")
    for head in ("images", "fwd/img", "bwd/img", "forward", "backward", "time"):
        table.add_column(head, justify="right", no_wrap=True)
    parts: dict[str, list[Work]] = {}
    for i, row in enumerate(work):
        parts.setdefault(row.part, []).append(row)
        if i < _ROWS:
            each = (words.count(round(passes, 1)) for passes in (row.each.queries, row.each.gradients))
            table.add_row(row.model, row.part, f"{row.images:,}", *each, *_in_total([row]))
    if len(work) > _ROWS:
        table.add_row(f"and {len(work) - _ROWS} rows more")
    if len(work) > len(parts):
        for part, rows in parts.items():
            table.add_row("all models", part, "", "", "", *_in_total(rows))
    screen.print(table)
    screen.print(
        "\nTimes are at the pace of this process and its device, measured on random images; workers of a cluster share "
        "them. Attacks stop early at images that break, and a diagnosis runs only the steps that it needs: theirs are "
        "the most that they may take. What is finished already is not taken off."
    )
    if any(row.seconds is None for row in work):
        screen.print("?: a network could not be timed.")
    if unknown := sorted({attack for row in work for attack in row.unknown}):
        screen.print(f"Not counted, because nobody knows their passes: {', '.join(unknown)}.")


def _in_total(rows: Sequence[Work]) -> tuple[str, str, str]:
    """Forward passes, backward passes and time."""
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return (
        words.short(sum(row.images * row.each.queries for row in rows)),
        words.short(sum(row.images * row.each.gradients for row in rows)),
        words.rough(sum(seconds)) if len(seconds) == len(rows) else "?",
    )


def _show_rows(screen: Console, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*heads, box=None, pad_edge=False)
    for row in rows[:_ROWS]:
        table.add_row(*row)
    screen.print(table)
    if len(rows) > _ROWS:
        screen.print(f"and {len(rows) - _ROWS} rows more")


def show_results(run: Run, progress: LiveProgress) -> None:
    """Show the results of all models in one table, those of a paper in another, then the path of the report."""
    screen, results = console(), run.results
    table = Table("model", "clean", "claimed", "really at most", "verdict", box=None, pad_edge=False, padding=(0, 1))
    for m in results.models:
        table.add_row(
            m.name,
            f"{100 * m.clean_accuracy:.1f} %" + _rejected(m),
            "-" if m.claim.accuracy is None else f"{100 * m.claim.accuracy:.1f} %",
            _bound(m.claim.corrected, m.claim.interval),
            _verdict(m),
        )
    screen.print()
    screen.print(table)
    at = dict.fromkeys(f"{m.claim.norm} eps = {m.claim.eps:.4g}" for m in results.models if m.claim.eps is not None)
    if at:
        screen.print(f"{' and '.join(at)}, n = {results.models[0].n}, [95 % intervals]")
    _show_papers(screen, select.referenced(results))
    failed = sum(c.status == "error" for c in results.cells)
    screen.print(f"\n{progress.computed} cells computed, {progress.reused} reused, {failed} failed.")
    screen.print(f"report: {run.report}", soft_wrap=True)


def _show_papers(screen: Console, cells: Sequence[Cell]) -> None:
    """Accuracies beside those of a paper."""
    if not cells:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for head in ("model", "attack", "threat"):
        table.add_column(head, overflow="fold")
    for head in ("here", "[95 %]", "paper", "points", "inside"):
        table.add_column(head, justify="right", no_wrap=True)
    names = select.names(cells)
    for cell in cells:
        low, high = cell.interval or (None, None)
        beyond = cell.beyond_reference
        table.add_row(
            cell.model,
            ("clean" if cell.role == "clean" else names[cell.id]) + ("" if cell.rows is None else f", n = {cell.n}"),
            f"{cell.norm} {words.eps(cell.eps)}" if select.has_threat(cell) else "",
            "-" if cell.accuracy is None else f"{100 * cell.accuracy:.1f}",
            "" if low is None or high is None else f"{100 * low:.1f}, {100 * high:.1f}",
            f"{100 * (cell.reference or 0.0):.1f}",
            "-" if beyond is None else words.signed(beyond),
            "-" if beyond is None else "yes" if cell.holds_reference else "no",
        )
    screen.print()
    screen.print(table)
    screen.print("In percent; points: here minus paper; inside: our interval holds the paper's.")


def _rejected(model: ModelResult) -> str:
    return "" if model.clean_rejected is None else f", {100 * model.clean_rejected:.1f} % rejected"


def show_diagnosis(model: ModelResult, run: Written) -> None:
    """Show the diagnosis of one model: verdict, claim, reasons, steps with their cost, and the path of the evidence."""
    screen = console()
    screen.print(f"\n{model.name}", style="bold", end="", soft_wrap=True)
    screen.print(":", _verdict(model))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(model):
        facts.add_row(name, spaced(value))
    screen.print(facts)
    rows = steps.steps(model, run)
    if rows:
        screen.print()
        for line in _steps(rows, screen.width):
            screen.print(line, soft_wrap=True)
    if model.evidence is not None:
        path = str(run.folder / model.evidence)
        screen.print(f"\nevidence: {path}", soft_wrap=True)
        screen.print(f"check it: artq replay {shlex.quote(path)} --model MODULE:FACTORY", soft_wrap=True)


def _facts(model: ModelResult) -> Iterable[tuple[str, str]]:
    claim = model.claim
    yield "verdict", model.summary or words.VERDICTS[model.verdict].short
    if claim.accuracy is not None:
        at = f"{claim.attack}, {words.threat(claim.norm, claim.eps)}, {words.counted(model)}"
        yield "claim", f"{words.percent(claim.accuracy)} ({at}): {claim.status}"
    if claim.corrected is not None and model.verdict != "INVALID":
        over = words.overstated(claim)
        yield "at most", f"{words.accuracy(claim.corrected, claim.interval)}{f', {over}' if over else ''}"
    if model.layer is not None:
        yield "lost at", words.layer(model.layer)
    for mechanism in model.mechanisms:
        yield mechanism.end, f"{mechanism.id}{f', by {mechanism.control}' if mechanism.control else ''}"
    for outcome, word in words.OUTCOMES.items():
        some = [f for f in words.ordered(model.findings) if f.answer == outcome]
        if not some:
            continue
        if outcome == "fired":
            # One finding per line, because their names matter to the reader.
            told = [f"{f.id} {f.title}{_aside(f)}" for f in some]
            yield word, "\n".join(told)
        else:
            yield word, f"{len(some)}: {' '.join(f.id for f in some)}"


def _aside(finding: Finding) -> str:
    """What a finding does not bear on, in brackets."""
    if words.check_class(finding) == words.ABOUT_THE_ATTACK:
        return " (a symptom of that attack, not of the model)"
    return "" if finding.decides else " (a note)"


def _steps(rows: Sequence[steps.StepRow], width: int) -> Iterable[str]:
    """The steps in columns. A step without a result shows its reason instead."""
    wide = max(len("step"), *(len(step.id) for step in rows))
    yield f"level  {'step':{wide}}  attacked  broke  grad/img  fwd/img"
    for step in rows:
        start = f"{step.level:<5}  {step.id:{wide}}  "
        if step.status != "run":
            wide_enough = max(width, 2 * len(start))
            yield from textwrap.wrap(
                spaced(step.result), wide_enough, initial_indent=start, subsequent_indent=" " * len(start)
            )
            continue
        counts = ["-" if value is None else str(value) for value in (step.robust, step.broke)]
        passes = [words.count(value) for value in (step.backward, step.forward)]
        at = f"  at {spaced(step.at)}" if step.at else ""
        yield f"{start}{counts[0]:>8}  {counts[1]:>5}  {passes[0]:>8}  {passes[1]:>7}{at}"


def show_comparison(found: Comparison) -> None:
    """Show two runs: a row for each model, norm and eps that both have, and the names of models in only one run."""
    screen = console()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("model", overflow="fold")
    table.add_column("accuracy")
    for head in ("A", "B", "B - A [95 %]", "p", "Holm"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.rows:
        low, high = (words.signed(bound) for bound in row.interval)
        table.add_row(
            row.first,
            "clean" if row.eps is None else f"{row.norm} {words.eps(row.eps)}",
            spaced(words.percent(row.first_accuracy)),
            spaced(words.percent(row.second_accuracy)),
            f"{words.signed(row.difference)} [{low}, {high}]",
            words.p_value(row.p_value),
            words.p_value(row.p_holm),
        )
    screen.print(table)
    screen.print(
        f"n = {' and '.join(map(str, sorted({row.n for row in found.rows})))} images, paired; differences in points."
        if found.rows
        else "The runs have nothing in common."
    )
    for run, names in (("A", found.only_first), ("B", found.only_second)):
        if names:
            screen.print(f"only in {run}: {', '.join(names)}")


def show_order(order: Sequence[Learnt]) -> None:
    """Show an order of attacks, and the line of a recipe that uses it."""
    screen = console()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("attack", overflow="fold")
    for head in ("standing", "broken", "passes", "broken per 1,000 passes"):
        table.add_column(head, justify="right")
    for row in order:
        worth = 1000 * row.broken / row.passes if row.passes else 0.0
        table.add_row(row.attack, str(row.standing), str(row.broken), words.count(row.passes), f"{worth:.3g}")
    screen.print(table)
    screen.print(f"order = {[row.attack for row in order if row.broken]}".replace("'", '"'), soft_wrap=True)


def show_replay(replay: Replay) -> None:
    """Show the predictions of a module on the images of an evidence file."""
    console().print(str(replay), soft_wrap=True)


def _verdict(model: ModelResult) -> Text:
    return Text(model.verdict, style=STYLES.get(model.verdict, "default"))


def _bound(accuracy: float | None, interval: Interval | None) -> str:
    if accuracy is None or interval is None:
        return "-"
    return f"{100 * accuracy:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def show_export(made: Exported, agreements: Mapping[str, Agreement]) -> None:
    """Show what was written, what is not as in the network, and how often labels agree."""
    screen = console()
    integer = sum(layer.kernel == "integer" for layer in made.layers)
    layers = f", {integer} of {len(made.layers)} layers with weights in integers" if made.layers else ""
    screen.print(f"{made.path}: {made.path.stat().st_size / 1e6:.2f} MB{layers}")
    for note in made.notes:
        screen.print(f"  {note}")
    for what, found in agreements.items():
        low, high = found.interval
        share = found.agreeing / found.images
        screen.print(f"labels of {what} agree: {share:.2%} [{low:.2%}, {high:.2%}] of {found.images} images")
