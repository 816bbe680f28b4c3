"""The ``artq`` command: exit statuses, one line for a mistake, 80 columns, nothing heavy before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from art_qplugins import ATTACKS
from art_qplugins.attacks.suites import SUITES
from art_qplugins.data import DATASETS
from art_qplugins.defences import DEFENCES
from art_qplugins.models import MODELS

RECIPE = """
name = "small"
[data]
name = "digits"
limit = 10
[threat]
eps = [0.1]
[claim]
attack = "art:fgsm"
eps = 0.1
[[models]]
name = "fp32"
architecture = { name = "convnet", options = { width = 2 } }
train = { epochs = 1 }
[[attacks]]
id = "art:fgsm"
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("ARTQ_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.toml").write_text(RECIPE)


def python(*arguments, **settings):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment, **settings
    )


def here():
    return sorted(str(p) for p in Path().rglob("*"))


def narrow(text):
    return all(len(line) <= 80 for line in text.splitlines())


# --- Light on its feet


def seconds(*arguments):
    took = []
    for _ in range(5):
        start = time.perf_counter()
        assert python(*arguments).returncode == 0
        took.append(time.perf_counter() - start)
    return min(took)


def test_help_comes_at_once():
    assert seconds("-m", "art_qplugins", "--help") < seconds("-c", "pass") + 0.45


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["--version"], ["ls", "attacks"], ["run", "no.toml"]]
)
def test_what_needs_no_network_imports_no_torch(arguments):
    code = (
        "import sys\nfrom art_qplugins.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'art', 'torchattacks', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("given", "holds"), [(None, "passive"), ("active", "active")])
def test_threads_that_wait_hold_no_core_unless_they_are_told_to(given, holds, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    code = (
        "from art_qplugins.cli import main\nmain(['--version'])\nimport os, sys\nprint(os.environ['OMP_WAIT_POLICY'])"
    )
    assert python("-c", code + "\nassert 'torch' not in sys.modules").stdout.split()[-1] == holds


# --- What it shows


def test_every_command_has_help_that_fits(artq):
    status, out, err = artq("--help")
    assert (status, err) == (0, "")
    commands = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.strip()]
    assert {"run", "diagnose", "replay", "train", "report", "compare", "ls", "doctor"} <= set(commands)
    for command in commands:
        status, out, err = artq(command, "--help")
        assert (status, err) == (0, "") and out.startswith("Usage: artq") and narrow(out)


@pytest.mark.parametrize(
    ("kind", "registry"),
    [
        ("models", MODELS),
        ("defences", DEFENCES),
        ("attacks", ATTACKS),
        ("suites", SUITES),
        ("datasets", DATASETS),
    ],
)
def test_ls_lists_every_name_with_its_help(kind, registry, artq):
    status, out, err = artq("ls", kind)
    assert (status, err) == (0, "") and narrow(out)
    shown = " ".join(out.split())
    for name, entry in registry.items():
        assert any(line.startswith(name) for line in out.splitlines()), name
        assert all(word in shown for word in entry.help.split()), name
    assert "[/" not in out


def test_ls_says_what_an_attack_asks_costs_and_lacks(artq, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "foolbox" else object())
    _, out, _ = artq("ls", "attacks")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("art", "foolbox"))}
    assert rows["art:fgsm"] == ["white-box", "Linf", "L2", "L1", "1", "1", "yes"]
    assert rows["art:hop-skip-jump"][0] == "black-box" and rows["art:hop-skip-jump"][-2:] == ["25k", "yes"]
    assert rows["foolbox:pgd"][-1] == "no" and "type: pip install 'art_qplugins[foolbox]'" in " ".join(out.split())
    assert rows["art:patch"][1] == rows["art:patch"][-1] == "-", "it cannot be chosen"
    _, out, _ = artq("ls", "suites")
    listed = out.split("\ndq\n")[1].split("\nmu-law\n")[0]
    first = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert [word for word in first if word in ATTACKS] == [n for n, _ in SUITES["dq"].attacks]
    assert first.count("note:") == 2
    assert "max_iter = 10, rel_eps_step = 0.125" in listed


def test_ls_alone_lists_everything(artq):
    status, out, _ = artq("ls")
    assert status == 0 and narrow(out)
    assert all(kind in out for kind in ("models", "defences", "attacks", "datasets", "art:pgd", "digits", "convnet"))


def test_doctor_says_what_there_is(artq):
    status, out, err = artq("doctor")
    assert (status, err) == (0, "")
    for part in ("python", "torch", "ART", "torchattacks", "AutoAttack", "scikit-learn"):
        assert any(line.split()[:2] == ["ok", f"{part}:"] for line in out.splitlines()), part


def test_doctor_names_what_is_missing(artq, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    status, out, _ = artq("doctor")
    assert status == 1
    assert any(
        line.startswith("missing") and "torchattacks" in line and "pip install" in line for line in out.splitlines()
    )


def test_version(artq):
    from art_qplugins import __version__

    assert artq("--version") == (0, f"artq, version {__version__}\n", "")


# --- Runs


def test_a_dry_run_lists_the_cells_and_writes_nothing(artq):
    before = here()
    status, out, err = artq("run", "small.toml", "--dry-run", "--set", "threat.eps=[0.05, 0.1]", "--limit", 3)
    assert (status, err) == (0, "") and narrow(out)
    assert here() == before
    assert "art:fgsm" in out and "0.05 0.1" in out and "fp32" in out and "on 3 images of digits" in out


def test_a_folder_does_not_hide_a_recipe_that_comes_along(artq):
    """``--out digits`` makes one of the recipe's name."""
    Path("digits").mkdir()
    assert artq("run", "digits", "--dry-run")[0] == 0


def test_a_dry_run_says_what_a_suite_leaves_out_and_changes(artq):
    both = "attacks=[{suite='mu-law'}, {suite='dq'}, {id='art:fgsm'}]"
    status, out, err = artq("run", "small.toml", "--dry-run", "--set", both, "--set", "threat.eps=['8/255', 0.1]")
    assert (status, err) == (0, "") and narrow(out)
    lines = " ".join(out.split())
    assert "suite mu-law leaves out art:cw-l2: it has no norm Linf." in lines
    assert "suite mu-law: the paper gives no settings" in lines and "suite dq: PGD starts anywhere" in lines
    assert "max_iter = 10 " in lines and "max_iter = 29 " in lines and " 8/255 0.1 " in lines
    assert "suite" not in artq("run", "small.toml", "--dry-run")[1]


def test_a_run_and_the_same_again(artq):
    status, out, err = artq("run", "small.toml", "--out", "out")
    assert (status, err) == (0, ""), err
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("report:"))
    assert "\x1b" not in out  # no colours where nobody watches
    for name in ("results.json", "samples.jsonl", "results.md", "results.csv", "report.html"):
        assert (Path("out") / name).stat().st_size > 0
    results = json.loads(Path("out/results.json").read_text())
    assert results["status"] == "success"
    assert f"{len(results['cells'])} cells computed, 0 reused, 0 failed." in out
    assert f"{100 * results['models'][0]['clean_accuracy']:.1f} %" in out and results["models"][0]["verdict"] in out

    status, out, _ = artq("run", "small.toml", "--out", "out")
    assert status == 0 and f"0 cells computed, {len(results['cells'])} reused, 0 failed." in out

    page = Path("out/report.html").read_text()
    Path("out/report.html").unlink()
    status, out, _ = artq("report", "out")
    assert status == 0 and "report.html" in out
    assert Path("out/report.html").read_text()[:200] == page[:200]


def finished(correct, *, attack="art:pgd", role="attack", rows=None, eps=0.1):

    from art_qplugins.evaluation.outcome import Outcome
    from art_qplugins.evaluation.records import Cell

    cell = Cell(
        **{
            "id": "c",
            "model": "net [b]",
            "source": "net [b]",
            "attack": attack,
            "role": role,
            "params": {},
            "norm": "Linf",
        },
        **{"eps": eps, "seed": 0, "n": len(correct), "accuracy": sum(correct) / len(correct), "interval": None},
        **{"forward_samples": 1, "backward_samples": 1, "seconds": 1.0, "status": "success"},
        **{"rows": rows, "of": 4 if rows else None},
    )
    return Outcome(
        cell,
        [str(i) for i in range(len(correct))],
        {name: np.array(correct, float) for name in ("correct", "selection")},
    )


@pytest.fixture
def clock(monkeypatch):
    from art_qplugins.terminal import progress

    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_each_cell_says_what_is_left_so_far(capsys):
    from art_qplugins.terminal.progress import LiveProgress

    with LiveProgress() as progress:
        progress.cells(5)
        told = []
        for outcome in (
            finished([1, 1, 1, 0], role="clean", eps=0),
            finished([1, 1, 0, 0]),
            finished([0, 1, 1, 1], attack="art:fgsm"),
            finished([0], attack="art:bim", rows=[1]),  # on the one image that is still robust
        ):
            progress.left(None, "end")
            progress.cell(outcome, False)
            told.append(" ".join(capsys.readouterr().out.split()))
    assert told == [
        "1/5 net [b]: art:pgd -> 75.0 %",
        "2/5 net [b]: art:pgd Linf 0.1 -> 50.0 %, so far 50.0 %",
        "3/5 net [b]: art:fgsm Linf 0.1 -> 75.0 %, so far 25.0 %",
        "4/5 net [b]: art:bim Linf 0.1 -> 0.0 % of 1, so far 0.0 %",
    ]


def test_the_time_left_is_that_of_the_passes_left(capsys, clock):
    """A cheap cell says what a dear one takes: 2 passes took 10 s, and 100 are expected."""
    from art_qplugins.terminal.progress import LiveProgress

    with LiveProgress() as progress:
        progress.cells(4)

        def told(passes, until, *, seconds=10, reused=False):
            clock[0] += seconds
            progress.left(passes, until)
            progress.cell(finished([1]), reused)
            return " ".join(capsys.readouterr().out.split())

        assert told(100, "diagnosis", seconds=0, reused=True) == ""
        assert told(100, "diagnosis").endswith(", 8 min to diagnosis")
        assert told(8, "end").endswith(", 40 s left")
        assert told(None, "end").endswith("so far 100.0 %"), "rather nothing than a wrong number"
        assert told(0, "end").endswith("so far 100.0 %")
        assert told(None, "").startswith("6 net [b]: art:pgd"), "how many there will be is not known"


def test_nothing_is_known_before_anything_was_measured(capsys, clock):
    from art_qplugins.terminal.progress import LiveProgress

    with LiveProgress() as progress:
        progress.cells(2)
        clock[0] += 10
        progress.left(100, "end")
        cell = finished([1]).with_cell(forward_samples=0, backward_samples=0)
        progress.cell(cell, False)
    assert " left" not in capsys.readouterr().out


def _long_lines(capsys):
    from art_qplugins.terminal.progress import LiveProgress

    with LiveProgress() as progress:
        progress.cells(1)
        progress.left(1e6, "diagnosis")
        progress.cell(
            finished([1]).with_cell(model="a-model-with-a-long-name", source="a-model-with-a-long-name"), False
        )
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_line_is_broken_between_its_parts(capsys):
    first, second = _long_lines(capsys)
    assert (
        first.endswith("-> 100.0 %, so far 100.0 %,")
        and second.startswith("        ")
        and second.endswith(" to diagnosis")
    )
    assert narrow(first) and narrow(second)


def test_no_line_is_broken_where_nobody_says_how_wide_it_may_be(capsys, monkeypatch, artq):
    monkeypatch.delenv("COLUMNS")
    assert len(_long_lines(capsys)) == 1
    _, out, _ = artq("ls", "attacks")
    listed = [line for line in out.splitlines() if line.startswith("    ")]
    assert len(listed) == len(ATTACKS), "the help of each is one line, whatever its length"
    assert not [line for line in artq("ls")[1].splitlines() if line.endswith(" ")], "nor is it filled up with spaces"


def test_a_random_model_is_not_broken_by_lucky_draws(capsys):
    """Which attack was worse is asked of draws that the number is not read from."""

    from art_qplugins.evaluation.outcome import Outcome
    from art_qplugins.terminal.progress import LiveProgress

    with LiveProgress() as progress:
        progress.cells(2)
        for correct, selection in ((0.6, 0.2), (0.1, 0.3)):
            columns = {"correct": np.array([correct]), "selection": np.array([selection])}
            progress.cell(Outcome(finished([correct]).cell, ["0"], columns), False)
    assert "so far 60.0 %" in capsys.readouterr().out.splitlines()[-1]


def fake_mlflow(monkeypatch):
    """The calls that MLflow documents, noted: what was logged by name and step, and the other calls."""
    from types import SimpleNamespace

    logged, calls = {}, []
    fake = SimpleNamespace(
        set_tracking_uri=calls.append,
        set_experiment=calls.append,
        start_run=lambda: calls.append("start"),
        end_run=lambda: calls.append("end"),
        log_metric=lambda name, value, step: logged.__setitem__((name, step), value),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return logged, calls


def test_a_tracker_gets_every_number(artq, monkeypatch):
    logged, calls = fake_mlflow(monkeypatch)
    status, _, err = artq("run", "small.toml", "--out", "out", "--log", "mlflow:file:runs")
    assert (status, err) == (0, "") and calls == ["file:runs", "artq", "start", "end"]
    results = json.loads(Path("out/results.json").read_text())
    clean, fgsm = (cell["accuracy"] for cell in results["cells"] if cell["role"] != "probe")
    (epoch,) = results["training"]["fp32"]
    told = {f"fp32/{name}": epoch[name] for name in ("loss", "learning_rate", "images_per_second")}
    assert logged == {(name, 1): value for name, value in told.items()} | {
        ("fp32/artq_clean", 1): clean,
        ("fp32/art_fgsm/Linf 0.1", 2): fgsm,
    }


def trained_with_a_tracker(monkeypatch):
    """What a tracker got of a training of two epochs that was told of four times, and what else was called."""
    from art_qplugins.terminal.trackers import LoggedProgress
    from art_qplugins.training.progress import TrainingProgress

    logged, calls = fake_mlflow(monkeypatch)
    with LoggedProgress("mlflow:file:runs") as progress:
        for step in range(1, 5):
            found = {} if step % 2 else {"validation_accuracy": 0.1 * step, "robust_validation_accuracy": 0.0}
            pace = {"learning_rate": 0.1 / step, "images_per_second": 10.0 * step, "seconds_left": 1.0}
            message = TrainingProgress(epoch=step // 2, epochs=2, step=step, steps=4, loss=1 / step, **pace, **found)
            progress.training("net", message)
    return logged, calls


def test_a_tracker_gets_every_epoch_and_nothing_between(monkeypatch):
    logged, _ = trained_with_a_tracker(monkeypatch)
    assert logged == {
        (f"net/{name}", step // 2): value
        for step in (2, 4)
        for name, value in {
            "loss": 1 / step,
            "learning_rate": 0.1 / step,
            "validation_accuracy": 0.1 * step,
            "robust_validation_accuracy": 0.0,
            "images_per_second": 10.0 * step,
        }.items()
    }


def test_of_processes_that_train_together_one_sends(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert trained_with_a_tracker(monkeypatch) == ({}, [])
    monkeypatch.setenv("RANK", "0")
    assert len(trained_with_a_tracker(monkeypatch)[0]) == 10


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_not_there_is_one_line(tracker, artq, monkeypatch):
    monkeypatch.setitem(sys.modules, tracker, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    status, out, err = artq("run", "small.toml", "--log", f"{tracker}:x", "--out", "out")
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert f"pip install {tracker}" in err and not Path("out").exists()


def diagnosis(**changes):
    """A model's record, and a folder of a run without samples."""
    from art_qplugins.evaluation.records import Claim, Finding, Layer, ModelResult, Step

    def check(id, fired, **more):
        about = {
            "title": f"Title of {id}",
            "class": "S",
            "value": 1.0,
            "threshold": 0.0,
            "evidence": "",
            "mitigation": "",
        }
        return Finding(id=id, fired=fired, **about, **more)

    values = {
        "name": "net [bold]",
        "description": "",
        "stochastic": False,
        "clean_accuracy": 0.97,
        "clean_interval": (0.9, 0.99),
        "n": 200,
        "robust": [],
        "verdict": "MASKED",
        "summary": "The claimed number is an illusion. " * 5,
        "claim": Claim(
            status="OVERSTATED",
            attack="art:pgd",
            norm="Linf",
            eps=8 / 255,
            accuracy=0.95,
            corrected=0.05,
            interval=(0.027, 0.09),
            overstated_by=0.9,
            overstated_interval=(0.85, 0.94),
        ),
        "findings": [
            check("large-logits", True),
            check("not-converged", True, group="claimed attack"),
            *(check(f"S{i}", False) for i in range(40)),
            check("mean-gradient", None),
        ],
        "steps": [
            Step(id="margin", level=1, title="", status="run", robust=190, forward=21.04, backward=20.0),
            Step(id="scale", level=1, title="", status="skipped", reason="there is nothing to undo here " * 5),
            Step(id="search", level=2, title="", status="failed", reason="RuntimeError: [gone]", robust=3),
        ],
        "layer": Layer(layer="net.[3]", op="Mul", share=0.97),
        "evidence": "evidence/net.npz",
    }
    return ModelResult(**{**values, **changes})


def shown(model, capsys):
    from art_qplugins.evaluation.records import Environment, Results
    from art_qplugins.report import Run
    from art_qplugins.terminal.results import show_diagnosis

    environment = Environment(packages={}, python="", platform="", device="", git=None)
    results = Results(status="success", created="", spec={}, data={}, environment=environment, models=[model], cells=[])
    show_diagnosis(model, Run(folder=Path("my run"), results=results, samples={}))
    return capsys.readouterr().out


def test_a_diagnosis_is_told_at_80_columns(capsys):
    out = shown(diagnosis(), capsys)
    lines = [line.rstrip() for line in out.splitlines()]
    assert all(len(line) <= 80 for line in lines if not line.startswith(("evidence:", "check it:")))
    assert "\x1b" not in out and "\N{NO-BREAK SPACE}" not in out
    words = " ".join(out.split())
    for part in (
        "net [bold]: MASKED",
        "claim 95 % (art:pgd, Linf, eps 8/255, n = 200): OVERSTATED",
        "at most 5 % [2.7, 9], overstated by 90 points [85, 94]",
        "lost at Mul in net.[3], on 97 % of the images",
        "large-logits Title of large-logits not-converged Title of not-converged (a symptom of that attack, not of the model)",
        "not found 40: S0 S1",
        "not run 1: mean-gradient",
        "not run: there is nothing to undo here there is",
        "FAILED: RuntimeError: [gone]",
    ):
        assert part in words, part
    step = next(line for line in lines if line.startswith("1      margin"))
    assert step.split() == ["1", "margin", "190", "0", "20", "21"]
    assert "evidence: my run/evidence/net.npz" in lines
    assert "check it: artq replay 'my run/evidence/net.npz' --model MODULE:FACTORY" in lines


def test_a_diagnosis_that_has_little_is_told_too(capsys):
    from art_qplugins.evaluation.records import Claim

    bare = {"findings": [], "steps": [], "layer": None, "evidence": None, "summary": "", "verdict": "INVALID"}
    out = shown(diagnosis(claim=Claim(status="NONE"), **bare), capsys)
    assert "INVALID" in out and "no robustness number of this" in out
    assert "None" not in out and "evidence" not in out and "level" not in out


def test_diagnose_and_replay(artq):
    """What a diagnosis keeps as evidence breaks the model that it was kept of."""
    Path("mine.py").write_text(
        "from torch import nn\nimport torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    status, out, err = artq(
        *("diagnose", "--model", "mine:make", "--eps", "0.1", "--limit", 10, "--level", 1, "--out", "out")
    )
    assert status in (0, 3) and err == "", err
    model = json.loads(Path("out/results.json").read_text())["models"][0]
    assert f"mine:make: {model['verdict']}" in out and "level  step" in out
    evidence = Path("out") / model["evidence"]
    assert f"evidence: {evidence}" in out
    status, out, err = artq("replay", evidence, "--model", "mine:make")
    assert (status, err) == (0, "") and "images are misclassified" in out


def test_a_model_that_may_reject_is_diagnosed_with_the_index_of_its_rejection(artq):
    """The last of 11 outputs wins on every bright image."""
    Path("rejects.py").write_text(
        "from torch import nn\nimport torch\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.layer = nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        z = self.layer(x.flatten(1))\n"
        "        return torch.cat([z, z.amax(1, keepdim=True) + x.mean((1, 2, 3))[:, None] - 0.3], 1)\n"
    )
    shape = ("--eps", "0.1", "--limit", 10, "--level", 0)
    status, out, err = artq("diagnose", "--model", "rejects:Net", "--abstain", 10, *shape, "--out", "out")
    assert status in (0, 3) and err == "", err
    (model,) = json.loads(Path("out/results.json").read_text())["models"]
    assert 0 < model["clean_rejected"] < 1 and f"{100 * model['clean_rejected']:.1f} % rejected" in " ".join(
        out.split()
    )
    status, out, err = artq("replay", Path("out") / model["evidence"], "--model", "rejects:Net")
    assert (status, err) == (0, "")
    for index, says in ((9, "abstain = 9 is one"), (12, "abstain = 12 is one"), (-1, "x>=0")):
        status, out, err = artq(
            "diagnose", "--model", "rejects:Net", "--abstain", index, *shape, "--out", f"out{index}"
        )
        assert (status, out, err.count("\n")) == (2, "", 1) and says in err, err


def test_train_stops_at_the_checkpoints(artq):
    status, out, _ = artq("train", "small.toml", "--out", "out")
    assert status == 0 and "trained fp32" in out
    assert [p.suffix for p in sorted(Path("out/checkpoints").iterdir())] == [".json", ".safetensors"]
    assert not Path("out/results.json").exists()
    status, out, _ = artq("run", "small.toml", "--out", "out")
    assert status == 0 and "trained fp32" not in out


def test_train_in_another_precision_on_the_device_that_is_asked_for(artq):
    how = ("--accelerator", "cpu", "--devices", "1", "--precision", "bf16-mixed")
    assert artq("train", "small.toml", "--out", "out", *how)[0] == 0
    (description,) = Path("out/checkpoints").glob("*.json")
    assert json.loads(description.read_text())["model"]["train"]["precision"] == "bf16-mixed"
    status, out, _ = artq("run", "small.toml", "--out", "out", *how)
    assert status == 0 and "trained fp32" not in out


def test_tune_prints_an_order_that_a_recipe_takes(artq):
    assert artq("run", "small.toml", "--out", "out", "--set", "diagnose=false")[0] == 0
    status, out, _ = artq("tune", "out", "--out", "order.json")
    assert status == 0 and narrow(out) and "art:fgsm" in out
    assert artq("tune", "out", "--check")[:2] == (0, out)  # there is one attack, so every order is the same
    (row,) = json.loads(Path("order.json").read_text())["order"]
    assert row["attack"] == "art:fgsm" and row["passes"] >= row["standing"] >= row["broken"]
    line = next(line for line in out.splitlines() if line.startswith("order = ")).replace(" = ", "=")
    status, out, _ = artq("run", "small.toml", "--dry-run", "--set", line, "--set", "strategy=cascade")
    assert status == 0 and "no effect" not in out
    assert "order has no effect" in " ".join(artq("run", "small.toml", "--dry-run", "--set", line)[1].split())


def test_a_failed_cell_makes_the_exit_status_1(artq, monkeypatch):
    from art_qplugins.attacks.adapters import artq as adapter

    def broken(*args, **settings):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(adapter, "run", broken)
    status, out, err = artq("run", "small.toml", "--out", "out")
    failed = [c for c in json.loads(Path("out/results.json").read_text())["cells"] if c["status"] == "error"]
    assert failed and {c["attack"].split(":")[0] for c in failed} == {"artq"}
    assert status == 1 and f"{len(failed)} failed" in out and "FAILED" in out and "Traceback" not in out + err
    assert Path("out/report.html").exists()


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command again continues from here"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_a_run_that_is_cut_short_says_how_to_go_on(raised, status, message, artq, monkeypatch):
    from art_qplugins.evaluation.store import Store

    def cut(*_):
        raise raised

    monkeypatch.setattr(Store, "save", cut)
    got, _, err = artq("run", "small.toml", "--out", "out")
    assert got == status
    err = err.removeprefix("\n")  # which ends the line that the terminal's ^C stands on
    assert err.startswith("artq: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "smal.toml"], "did you mean 'small.toml'?"),
        (["run", "small.toml", "--set", "data.limits=3"], "data.limits: unknown key; did you mean 'limit'?"),
        (["run", "small.toml", "--set", "data.limit"], "write it as --set a.b=value"),
        (["run", "small.toml", "--set", "data.name=digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["run", "small.toml", "--set", "data.name=npz:no.npz"], "no.npz"),
        (["run", "small.toml", "--limit", "0"], "--limit"),
        (["run", "small.toml", "--dryrun"], "--dry-run"),
        (["run", "small.toml", "--log", "wandb:x"], "tensorboard:FOLDER or mlflow:URI"),
        (["run", "small.toml", "--log", "mlflow:"], "tensorboard:FOLDER or mlflow:URI"),
        (["compare", "nowhere", "small.toml"], "nowhere"),
        (["compare", "a", "b", "--fail-on", "robust:-1%"], "unknown metric 'robust'"),
        (["run", "small.toml", "--out", "small.toml"], "small.toml"),
        (["run"], "RECIPE"),
        (["rum", "small.toml"], "rum"),
        (["ls", "attack"], "attacks"),
        (["report", "nowhere"], "nowhere"),
        (["tune", "nowhere"], "nowhere"),
        (["tune"], "FOLDERS"),
        (["replay", "no.npz", "--model", "mine:make"], "no.npz"),
        (["diagnose"], "give a RECIPE or --model"),
        (["train", "smal.toml"], "did you mean 'small.toml'?"),
        (["--log-level", "loud", "doctor"], "loud"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_on_stderr_and_writes_nothing(arguments, message, artq):
    before = here()
    status, out, err = artq(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("artq: ") and err.count("\n") == 1 and message in err
    assert here() == before


def test_as_a_module_in_its_own_process():
    done = python("-m", "art_qplugins", "run", "smal.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("artq: smal.toml: no such recipe") and done.stderr.count("\n") == 1
    done = python("-m", "art_qplugins", "ls", "datasets")
    assert done.returncode == 0 and "digits" in done.stdout and done.stderr == ""
    done = python("-m", "art_qplugins", "run", "small.toml", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and Path("out/report.html").exists()
