"""What people name models and folders reaches the terminal as text."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.cells import cell_len
from rich.progress import Task

from art_qplugins.errors import visible
from art_qplugins.terminal import console as consoles
from art_qplugins.terminal.console import Screen, say
from art_qplugins.terminal.progress import LiveProgress, _Name
from art_qplugins.training.progress import TrainingProgress

ODD = ["[/x]", "[bold]a", "[red]b[/red]", ":smile:", "\\[x", "[link=http://a.b]c[/link]", "[/]", "[@click=f]d"]
ESCAPES = {
    "\x1b[31mred": "\\x1b[31mred",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x9b31m": "\\x9b31m",
    "a\rb": "a\\rb",
    "a\x08b": "a\\x08b",
    "\u202eabc": "\\u202eabc",
    "\udcff": "\\udcff",
    "a\x00b": "a\\x00b",
    "a\u2028b": "a\\u2028b",
}


def on_terminal(text: object, **how: object) -> str:
    """What a terminal of 80 columns gets."""
    file = io.StringIO()
    Screen(file=file, force_terminal=True, width=80, color_system=None).print(text, **how)
    return file.getvalue()


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_no_markup(name, capsys):
    from rich.table import Table

    table = Table(name)
    table.add_row(name)
    assert on_terminal(name).strip() == name
    assert on_terminal(table).count(name) == 2
    say(name)
    assert capsys.readouterr().out.strip() == name


@pytest.mark.parametrize(("name", "shown"), ESCAPES.items(), ids=ESCAPES.values())
def test_a_name_does_not_change_the_terminal(name, shown, capsys):
    from rich.table import Table

    table = Table("x")
    table.add_row(name)
    assert visible(name) == shown
    for out in (on_terminal(name), on_terminal(table)):
        assert shown in out and name not in out
    say(name)
    assert capsys.readouterr().out == f"{shown}\n"


def test_what_is_plain_stays():
    for text in ("", "a b", "ä 値", "two\nlines", "1\N{NO-BREAK SPACE}%"):
        assert visible(text) == text
    assert visible("a\tb") == "a b"


@pytest.mark.parametrize("name", [*ODD, *ESCAPES])
def test_bars_show_names_as_text(name):
    """The name of a model is in the description of its bar."""
    task = Task(0, name, 1, 0, _get_time=lambda: 0.0)  # type: ignore[call-arg]
    assert _Name().render(task).plain == ESCAPES.get(name, name)


def test_progress_on_a_terminal_survives_odd_names(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(consoles, "Screen", lambda **_: Screen(file=file, force_terminal=True, width=80))
    with LiveProgress() as progress:
        progress.warn(["[/x] is \x1b[2J odd"])
        for name, epoch in (("[/x]", 1), ("[/x]\x1b[2J", 2)):
            pace = {"learning_rate": 0.1, "images_per_second": 10.0, "seconds_left": 1.0}
            progress.training(name, TrainingProgress(epoch=epoch, epochs=2, step=5 * epoch, steps=10, loss=0.5, **pace))
    assert "[/x]" in file.getvalue() and "\x1b[2J" not in file.getvalue()


# --- A training


LONG = "resnet20-dq-2bit-adversarially-trained-on-cifar10-jpeg-with-seed-3"


def told(epoch, step, **more):
    """The widest numbers that a training is likely to have: 100 epochs of 782 steps."""
    pace = {"learning_rate": 0.1, "images_per_second": 123456.7, "seconds_left": 7300.0}
    return TrainingProgress(epoch=epoch, epochs=100, step=step, steps=78200, **{"loss": 12.3456, **pace, **more})


PERFECT = {"validation_accuracy": 1.0, "robust_validation_accuracy": 1.0}


def bar_after(monkeypatch, name, *messages, width=80):
    """The lines of the bar of a training on a terminal."""
    where = {"force_terminal": True, "width": width, "color_system": None}
    monkeypatch.setattr(consoles, "Screen", lambda **_: Screen(file=io.StringIO(), **where))
    with LiveProgress() as progress:
        for message in messages:
            progress.training(name, message)
        file = io.StringIO()
        Screen(file=file, **where).print(progress._bars.get_renderable())
    return file.getvalue().splitlines()


@pytest.mark.parametrize("name", ["net", LONG, "値" * 60])
def test_a_bar_of_training_shows_everything_in_two_lines(name, monkeypatch):
    first, second = bar_after(monkeypatch, name, told(0, 300), told(98, 76636, **PERFECT), told(99, 78000))
    assert cell_len(first) <= 80 and first.rstrip().endswith("epoch 100/100 2.0 h left") and "━━━━━" in first
    assert first.startswith(name if name == "net" else name[:10])
    assert second == "  loss 12.3, valid 100.0 %, PGD 100.0 %, 123,457 img/s"


def test_a_bar_shows_what_is_known(monkeypatch):
    """The epoch that goes on, and the accuracies of the last one that ended."""
    first, second = bar_after(monkeypatch, "net", told(0, 300))
    assert "epoch 1/100" in first and second == "  loss 12.3, 123,457 img/s"
    ended = told(1, 782, validation_accuracy=0.5)
    first, second = bar_after(monkeypatch, "net", ended)
    assert "epoch 1/100" in first and second == "  loss 12.3, valid 50.0 %, 123,457 img/s"
    first, second = bar_after(monkeypatch, "net", ended, told(1, 900, loss=0.0123))
    assert "epoch 2/100" in first and second == "  loss 0.0123, valid 50.0 %, 123,457 img/s"
    assert bar_after(monkeypatch, "net", ended, told(100, 78200)) == [], "it goes when the training ends"


def test_what_is_measured_after_the_last_cell_is_shown(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(consoles, "Screen", lambda **_: Screen(file=file, force_terminal=True, width=80))
    with LiveProgress() as progress:
        for what in ("distances", "information"):
            assert list(progress.over("[/x]", what, ["a", "b", "c"])) == ["a", "b", "c"]
            assert f"measured [/x]: {what}, 3 parts" in file.getvalue() and not progress._tasks
        for part in progress.over("sq", "information", ["a", "b", "c"]):
            if part == "c":
                progress._bars.refresh()
        assert "2/3" in file.getvalue()
        assert list(progress.over("sq", "nothing", [])) == []
    assert "nothing" not in file.getvalue()


@pytest.mark.parametrize("name", ["net", LONG])
def test_without_a_terminal_an_epoch_is_a_line(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("art_qplugins.terminal.progress._QUIET", 0.0)
    with LiveProgress() as progress:
        for message in (told(0, 300), told(1, 782, **PERFECT), told(1, 900), told(100, 78200, **PERFECT)):
            progress.training(name, message)
    lines = capsys.readouterr().out.splitlines()
    if name == "net":
        assert lines == [
            "net 1/100: loss 12.3, valid 100.0 %, PGD 100.0 %, 123,457 img/s, 2.0 h left",
            "trained net: 100 epochs, loss 12.3, valid 100.0 %, PGD 100.0 %, 123,457 img/s",
        ]
    else:
        assert len(lines) == 4 and " ".join(line.strip() for line in lines).count(LONG) == 2
        assert all(len(line) <= 80 or line.startswith((LONG, "trained ")) for line in lines)


# --- Records


@pytest.mark.parametrize("name", [*ODD, "\x1b[2J"])
def test_names_of_records_are_shown_as_they_are(name, artq, tmp_path):
    from test_compare_cli import write_run

    a, b = (write_run(tmp_path / folder, {name: ({1, 2}, {1}), "gone" + name: (set(), set())}) for folder in "ab")
    results = json.loads((b / "results.json").read_text())
    results["models"].pop()
    (b / "results.json").write_text(json.dumps(results))
    status, out, err = artq("compare", a, b, "--fail-on", "robust_accuracy:-1%")
    assert (status, err) == (1, "") and f"FAILED: gone{visible(name)} is only in A" in out and "\x1b" not in out


def test_a_terminal_without_the_characters_gets_escapes():
    import subprocess

    code = "from art_qplugins.cli import main; from art_qplugins.terminal.console import say; import sys\n"
    code += "try: main(['--version'])\nexcept SystemExit: pass\nsay('値 \\udcff')"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONIOENCODING": "ascii", "PATH": ""}
    )
    assert out.stdout.splitlines()[-1] == b"\\u5024 \\udcff"


# --- What cannot be written


def test_a_folder_in_the_place_of_the_report_is_named_before_anything_is_written(artq, tmp_path):
    from test_compare_cli import write_run

    run = write_run(tmp_path / "run", {"net": ({1}, {1})})
    (run / "report.html").mkdir()
    before = sorted(run.rglob("*"))
    status, out, err = artq("report", run)
    assert (status, out) == (2, "") and sorted(run.rglob("*")) == before
    assert err == f"artq: {run}/report.html: a folder is in the place of this file; move that folder away\n"


@pytest.mark.parametrize("name", ["report.html", "results.json", "samples.jsonl", "cells", "checkpoints", "figures"])
def test_a_run_begins_only_where_it_can_write(name, artq, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).mkdir() if "." in name else (folder / name).write_text("")
    status, out, err = artq("run", "digits", "--out", folder)
    assert (status, out) == (2, "") and f"{folder}/{name}" in err and "move that" in err
    assert [path.name for path in folder.rglob("*")] == [name]


def test_a_write_error_says_which_file_and_what_to_do(artq, monkeypatch, tmp_path):
    from test_compare_cli import write_run

    def full(*_):
        raise OSError(28, "No space left on device")

    run = write_run(tmp_path / "run", {"net": ({1}, {1})})
    monkeypatch.setattr("art_qplugins.files.os.fsync", full)
    status, out, err = artq("report", run)
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert f"{run}/" in err and "No space left on device; free some space; then the same command" in err
