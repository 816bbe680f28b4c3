"""What ``artq`` shows in a terminal: progress, plans and tables, at 80 columns and where nobody watches."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shlex
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from art_qplugins.errors import InputError
from art_qplugins.evaluation.records import Finding, Interval, ModelResult, Results
from art_qplugins.registry import Entry
from art_qplugins.report import Run, ladder, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from art_qplugins.attacks import Attack
    from art_qplugins.attacks.suites import Suite
    from art_qplugins.evaluation.compare import Comparison
    from art_qplugins.evaluation.outcome import Outcome
    from art_qplugins.evidence import Replay

__all__ = [
    "LiveProgress",
    "LoggedProgress",
    "show_comparison",
    "show_diagnosis",
    "show_health",
    "show_plan",
    "show_registries",
    "show_replay",
    "show_results",
]

_STYLES = {"MASKED": "bold red", "INVALID": "bold red", "SUSPECT": "yellow", "NOT_REFUTED": "green"}


def _console() -> Console:
    return Console(highlight=False, soft_wrap=False)


class LiveProgress:
    """A line per finished model and cell, and bars on a terminal. See :class:`~art_qplugins.runner.Progress`.

    A cell's line ends in what all attacks so far leave of the model at its budget, and the time left at the pace so far.
    """

    def __init__(self) -> None:
        self.console = _console()
        self.reused = self.computed = 0
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._worst: dict[tuple[str, str, float], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        self._total, self._start = 0, time.monotonic()

    def __enter__(self) -> LiveProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bars.stop()

    def training(self, model: str, epoch: int, epochs: int, loss: float) -> None:
        task = self._tasks.get(model)
        if task is None:
            task = self._tasks[model] = self._bars.add_task(f"train {model}", total=epochs)
        self._bars.update(task, completed=epoch, description=f"train {model}, loss {loss:.3f}")
        if epoch == epochs:
            self._bars.remove_task(task)
            self.console.print(f"trained {model}: {epochs} epochs, loss {loss:.4f}")

    def cells(self, total: int) -> None:
        """May be called again: what a diagnosis needs is known as it goes."""
        if not self._total:  # what came before was data and training
            self._start = time.monotonic()
        self._total = total
        if "cells" not in self._tasks:
            self._tasks["cells"] = self._bars.add_task("attack", total=total)
        self._bars.update(self._tasks["cells"], total=total)

    def cell(self, outcome: Outcome, reused: bool) -> None:
        cell = outcome.cell
        so_far = self._so_far(outcome)
        self.reused, self.computed = self.reused + reused, self.computed + (not reused)
        self._bars.update(self._tasks["cells"], advance=1, description=f"{cell.model}: {cell.label}"[:40])
        if not reused:
            source = "" if cell.source == cell.model else f" from {cell.source}"
            budget = "" if cell.eps == 0 else f" {cell.norm} {cell.eps:.3g}"
            left = "FAILED" if cell.accuracy is None else f"{100 * cell.accuracy:5.1f} %"
            if cell.rows is not None:
                left += f" of {cell.n}"
            done = self.reused + self.computed
            line = f"{done:3}/{self._total} {cell.model}: {cell.label}{source}{budget} -> {left}"
            if so_far is not None:
                line += f", so far {100 * so_far:.1f} %"
            if seconds := self._time_left():
                line += f", {words.duration(seconds)} left"
            self.console.print(line, markup=False)

    def _so_far(self, outcome: Outcome) -> float | None:
        """What every attack of the recipe so far leaves at this cell's budget, image by image; None for other cells."""
        cell = outcome.cell
        if cell.role != "attack" or not outcome.ok or "check" in cell.params:
            return None
        correct, selection = outcome.column("correct"), outcome.column("selection")
        key = (cell.model, cell.norm, cell.eps)
        if key in self._worst:
            before = self._worst[key]
            better = np.isnan(selection) | (before[1] <= selection)
            correct, selection = (np.where(better, *pair) for pair in zip(before, (correct, selection), strict=True))
        self._worst[key] = correct, selection
        return None if np.isnan(correct).any() else float(correct.mean())

    def _time_left(self) -> float:
        """Seconds for the cells that are left, at the pace of those computed here."""
        left = self._total - self.reused - self.computed
        return left * (time.monotonic() - self._start) / self.computed if self.computed else 0.0


class LoggedProgress(LiveProgress):
    """The same, and every loss and every accuracy of the recipe's attacks sent to a tracker.

    :param log: ``tensorboard:FOLDER`` or ``mlflow:URI``.
    :raises InputError: for another tracker, or one whose package is not installed.
    """

    def __init__(self, log: str) -> None:
        super().__init__()
        tracker, _, target = log.partition(":")
        if tracker not in _TRACKERS or not target:
            raise InputError(f"--log {log}: write tensorboard:FOLDER or mlflow:URI")
        try:
            self._scalar, self._close = _TRACKERS[tracker](target)
        except ImportError:
            raise InputError(
                f"--log {log}: {tracker} is not installed; type: pip install {tracker}, or leave --log out"
            ) from None

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._close()

    def training(self, model: str, epoch: int, epochs: int, loss: float) -> None:
        super().training(model, epoch, epochs, loss)
        self._scalar(f"{model}/loss", loss, epoch)

    def cell(self, outcome: Outcome, reused: bool) -> None:
        super().cell(outcome, reused)
        cell = outcome.cell
        if cell.accuracy is not None and cell.role != "probe":  # a diagnosis attacks what still stands
            budget = "" if cell.eps == 0 else f"/{cell.norm} {cell.eps:.3g}"
            self._scalar(f"{cell.model}/{cell.label}{budget}", cell.accuracy, self.reused + self.computed)


_Tracker = tuple[Callable[[str, float, int], None], Callable[[], None]]


def _tensorboard(folder: str) -> _Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)
    return writer.add_scalar, writer.close


def _mlflow(uri: str) -> _Tracker:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("artq")
    mlflow.start_run()

    def scalar(name: str, value: float, step: int) -> None:
        # The only signs that its names may have.
        mlflow.log_metric(re.sub(r"[^\w./ -]", "_", name), value, step)

    return scalar, mlflow.end_run


_TRACKERS: Mapping[str, Callable[[str], _Tracker]] = {"tensorboard": _tensorboard, "mlflow": _mlflow}


def show_plan(recipe: Any, subjects: Sequence[Any], cells: Sequence[Any]) -> None:
    """What a recipe would run."""
    console = _console()
    table = Table("model", "what it is", box=None, pad_edge=False)
    for subject in subjects:
        table.add_row(subject.name, subject.description)
    console.print(table)
    console.print()
    table = Table("model", "attack", "crafted on", "eps", "why", box=None, pad_edge=False)
    grouped: dict[tuple[Any, ...], list[float]] = {}
    for cell in cells:
        gap = "" if cell.gap is None else f", logits to gap {cell.gap:g}"
        grouped.setdefault((cell.model, cell.attack + gap, cell.source, cell.role), []).append(cell.eps)
    for (model, attack, source, role), budgets in grouped.items():
        table.add_row(model, attack, source, " ".join(f"{e:.3g}" for e in budgets), role)
    console.print(table)
    images = "all" if recipe.data.limit is None else str(recipe.data.limit)
    console.print(f"\n{len(cells)} cells on {images} images of {recipe.data.name}; nothing was run.")


def show_results(results: Results, progress: LiveProgress, report: Path) -> None:
    """The models' answers in one table, then where to read more."""
    console = _console()
    table = Table("model", "clean", "claimed", "really at most", "verdict", box=None, pad_edge=False, padding=(0, 1))
    for m in results.models:
        table.add_row(
            m.name,
            f"{100 * m.clean_accuracy:.1f} %",
            "-" if m.claim.accuracy is None else f"{100 * m.claim.accuracy:.1f} %",
            _bound(m.claim.corrected, m.claim.interval),
            f"[{_STYLES.get(m.verdict, 'default')}]{m.verdict}[/]",
        )
    console.print()
    console.print(table)
    budget = next((m.claim for m in results.models if m.claim.eps is not None), None)
    if budget is not None:
        console.print(
            f"{budget.norm} eps = {budget.eps:.4g}, n = {results.models[0].n}, [95 % intervals]", markup=False
        )
    failed = sum(c.status == "error" for c in results.cells)
    console.print(f"\n{progress.computed} cells computed, {progress.reused} reused, {failed} failed.")
    console.print(f"report: {report}", soft_wrap=True)


def show_diagnosis(model: ModelResult, run: Run) -> None:
    """One model's diagnosis: the verdict, the claim, why, what was tried and at what cost, and where the proof is."""
    console = _console()
    console.print(f"\n[bold]{escape(model.name)}[/]: [{_STYLES.get(model.verdict, 'default')}]{model.verdict}[/]")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(model):
        facts.add_row(name, escape(_spaced(value)))
    console.print(facts)
    rungs = ladder.rungs(model, run)
    if rungs:
        console.print()
        for line in _ladder(rungs, console.width):
            console.print(line, markup=False, soft_wrap=True)
    if model.evidence is not None:
        path = str(run.folder / model.evidence)
        console.print(f"\nevidence: {path}", soft_wrap=True, markup=False)
        console.print(
            f"ask again: artq replay {shlex.quote(path)} --model MODULE:FACTORY", soft_wrap=True, markup=False
        )


def _facts(model: ModelResult) -> Iterable[tuple[str, str]]:
    claim = model.claim
    yield "verdict", model.summary or words.VERDICTS[model.verdict].short
    if claim.accuracy is not None:
        at = f"{claim.attack}, {words.budget(claim.norm, claim.eps)}, {words.counted(model)}"
        yield "claim", f"{words.percent(claim.accuracy)} ({at}): {claim.status}"
    if claim.corrected is not None and model.verdict != "INVALID":
        over = words.overstated(claim)
        yield "at most", f"{words.accuracy(claim.corrected, claim.interval)}{f', {over}' if over else ''}"
    if model.layer is not None:
        yield "lost at", words.layer(model.layer)
    for outcome, word in words.OUTCOMES.items():
        some = [f for f in words.ordered(model.findings) if f.fired is outcome]
        if not some:
            continue
        if outcome:
            # One a line: these are what a reader has to know by name.
            told = [f"{f.id} {f.title}{' (of that attack, not of the model)' if _of_attack(f) else ''}" for f in some]
            yield word, "\n".join(told)
        else:
            yield word, f"{len(some)}: {' '.join(f.id for f in some)}"


def _of_attack(finding: Finding) -> bool:
    return words.subject(finding) == words.ABOUT_THE_ATTACK


def _ladder(rungs: Sequence[ladder.DiagnosisStep], width: int) -> Iterable[str]:
    """The steps as columns; a step without an answer says why across all of them."""
    wide = max(len("step"), *(len(rung.id) for rung in rungs))
    yield f"level  {'step':{wide}}  standing  broke  grad/img  fwd/img"
    for rung in rungs:
        start = f"{rung.level:<5}  {rung.id:{wide}}  "
        if rung.status != "run":
            margins = {"initial_indent": start, "subsequent_indent": " " * len(start)}
            yield from textwrap.wrap(_spaced(rung.told), max(width, 2 * len(start)), **margins)
            continue
        counts = ["-" if value is None else str(value) for value in (rung.standing, rung.broke)]
        passes = [words.count(value) for value in (rung.backward, rung.forward)]
        at = f"  at {_spaced(rung.at)}" if rung.at else ""
        yield f"{start}{counts[0]:>8}  {counts[1]:>5}  {passes[0]:>8}  {passes[1]:>7}{at}"


def show_comparison(found: Comparison) -> None:
    """Two runs, a row for each model and budget that both have, and by name what only one of them has."""
    console = _console()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("model", overflow="fold")
    table.add_column("accuracy")
    for head in ("A", "B", "B - A [95 %]", "p", "Holm"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.rows:
        low, high = (words.signed(bound) for bound in row.interval)
        table.add_row(
            escape(row.first),
            "clean" if row.eps is None else f"{row.norm} {words.eps(row.eps)}",
            _spaced(words.percent(row.first_accuracy)),
            _spaced(words.percent(row.second_accuracy)),
            escape(f"{words.signed(row.difference)} [{low}, {high}]"),
            words.p_value(row.p_value),
            words.p_value(row.p_holm),
        )
    console.print(table)
    console.print(f"n = {found.rows[0].n} images, paired; differences in points." if found.rows else "Nothing to pair.")
    for run, names in (("A", found.only_first), ("B", found.only_second)):
        if names:
            console.print(f"only in {run}: {', '.join(names)}", markup=False)


def show_replay(replay: Replay) -> None:
    """What a module answers to the images of an evidence file."""
    _console().print(str(replay), markup=False, soft_wrap=True)


def _spaced(text: str) -> str:
    """With plain spaces, which every terminal breaks lines at."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


def _bound(accuracy: float | None, interval: Interval | None) -> str:
    if accuracy is None or interval is None:
        return "-"
    return rf"{100 * accuracy:.1f} % \[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def show_registries(kind: str | None) -> None:
    """Names with one line each."""
    from art_qplugins.attacks import ATTACKS
    from art_qplugins.attacks.suites import SUITES
    from art_qplugins.data import DATASETS
    from art_qplugins.defences import DEFENCES
    from art_qplugins.models import MODELS

    registries: Mapping[str, Mapping[str, Entry]] = {
        "models": MODELS,
        "defences": DEFENCES,
        "attacks": ATTACKS,
        "suites": SUITES,
        "datasets": DATASETS,
    }
    console = _console()
    for name, registry in registries.items():
        if kind not in (None, name):
            continue
        if kind is None:
            console.print(f"[bold]{name}[/]")
        show: Callable[[Iterable[Entry], Console], None]
        show = {"attacks": _list_attacks, "suites": _list_suites}.get(name, _list)
        show(registry.values(), console)
        if kind is None:
            console.print()


def _list(entries: Iterable[Entry], console: Console) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for entry in entries:
        table.add_row(entry.name, "; ".join([entry.help, *_options(entry)]))
    console.print(table)


def _options(entry: Entry) -> Iterable[str]:
    if entry.options:
        yield "options: " + ", ".join(f"{k} = {'auto' if v is None else v}" for k, v in entry.options.items())


def _list_attacks(attacks: Iterable[Entry], console: Console) -> None:
    """A line of facts in columns for each, and what it does below it."""
    rows = [cast("Attack", attack) for attack in attacks]
    wide = max(len(row.name) for row in rows)
    norms = max(len(" ".join(row.norms)) for row in rows)
    line = f"{{:{wide}}} {{:9}} {{:{norms}}} {{:>5}} {{:>4}} {{}}"
    console.print(line.format("attack", "knowledge", "norms", "grads", "fwds", "here"), soft_wrap=True)
    for row in rows:
        cost = [_thousands(passes) for passes in row.cost or ()] or ["-", "-"]
        here = "-" if row.refused else "no" if row.missing() else "yes"
        facts = line.format(row.name, row.knowledge, " ".join(row.norms) or "-", *cost, here)
        console.print(facts, markup=False, soft_wrap=True)
        about = [row.help, *_options(row)]
        if row.missing() and not row.refused:
            about.append(f"type: pip install {row.to_install()}")
        text = textwrap.wrap("; ".join(about), max(console.width, 40), initial_indent="    ", subsequent_indent="    ")
        console.print("\n".join(text), markup=False, soft_wrap=True)
    console.print("\ngrads, fwds: gradients and forward passes for one image that stands, at the defaults.")


def _thousands(count: int) -> str:
    return f"{count}" if count < 1000 else f"{count / 1000:.2g}k"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def _list_suites(suites: Iterable[Entry], console: Console) -> None:
    """The attacks of each suite, below what it is for."""
    from art_qplugins.attacks import ATTACKS

    for suite in (cast("Suite", suite) for suite in suites):
        console.print(f"[bold]{suite.name}[/]")
        console.print("\n".join(textwrap.wrap(suite.help, max(console.width, 40))), markup=False)
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, options in suite.attacks:
            row = ATTACKS[name]
            about = [row.knowledge, " ".join(row.norms)]
            about += [f"for {row.models} models"] if row.models != "any" else []
            about += ["not installed"] if row.missing() else []
            table.add_row(f"  {name}", "; ".join(about), ", ".join(f"{k} = {_number(v)}" for k, v in options.items()))
        console.print(table)


def show_health() -> bool:
    """Whether what the suite needs is there and works; False where something is missing."""
    console = _console()
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", platform.python_version),
        ("torch", _torch),
        ("torchvision", lambda: _package("torchvision", "torchvision")),
        ("ART", lambda: _package("art.estimators.classification", "adversarial-robustness-toolbox")),
        ("torchattacks", lambda: _package("torchattacks", "torchattacks")),
        ("AutoAttack", _autoattack),
        ("scikit-learn", lambda: _package("sklearn", "scikit-learn")),
        ("cores", lambda: f"{os.cpu_count()}"),
        ("data root", _data_root),
    ]
    healthy = True
    for name, check in checks:
        try:
            console.print(f"[green]ok[/]       {name}: {check()}", soft_wrap=True)
        except Exception as error:
            healthy = False
            console.print(f"[red]missing[/]  {name}: {error}; type: pip install --upgrade art_qplugins", soft_wrap=True)
    return healthy


def _package(module: str, distribution: str) -> str:
    importlib.import_module(module)
    return importlib.metadata.version(distribution)


def _torch() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{torch.__version__} ({device})"


def _autoattack() -> str:
    try:
        return f"pyautoattack {_package('pyautoattack', 'pyautoattack')}"
    except ImportError:
        return f"autoattack {_package('autoattack', 'autoattack')}"


def _data_root() -> str:
    from art_qplugins.data.cache import user_folder

    return str(user_folder("ARTQ_DATA"))
