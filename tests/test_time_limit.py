"""``--time-limit``: a command ends as an interrupt ends it, and the same command goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from art_qplugins.cli import artq as commands
from art_qplugins.evaluation import executor
from art_qplugins.terminal.progress import LiveProgress
from art_qplugins.terminal.time_limit import OutOfTime, seconds_of, time_limit

RECIPE = """
name = "small"
data = { name = "digits", limit = 10 }
threat = { eps = [0.1, 0.2] }
models = [ { name = "fp32", architecture = { name = "convnet", options = { width = 2 } }, train = { epochs = 2 } } ]
attacks = [ { id = "art:fgsm" } ]
"""


@pytest.fixture(autouse=True)
def _recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(RECIPE)


def status():
    return json.loads(Path("out/results.json").read_text())["status"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5d", 129600), (" 1h ", 3600)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "h", "1 h", "1e3", "nan", "2w", "1h30m", "400d", "９９x"])
def test_other_durations_are_refused(artq, text):
    code, _, err = artq("run", "small.toml", "--time-limit", text)
    assert code == 2 and err.count("\n") == 1 and "30m" in err


def test_every_command_has_it():
    for command in commands.commands.values():
        assert "--time-limit" in [name for option in command.params for name in option.opts]


def test_a_wait_ends_and_the_timer_is_gone():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), time_limit(0.05):
        time.sleep(30)
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with time_limit(30):
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_finished_cells_are_kept_and_the_same_command_goes_on(artq, monkeypatch):
    real, ran = executor.attempt, []

    def slow_third(evaluator, shard):
        ran.append(shard.cell)
        if len(ran) == 3:
            signal.raise_signal(signal.SIGALRM)  # the time is up within this cell, on a machine of any speed
        return real(evaluator, shard)

    monkeypatch.setattr(executor, "attempt", slow_third)
    code, _, err = artq("run", "small.toml", "--out", "out", "--time-limit", "1h")
    line = err.strip().splitlines()[-1]
    assert (code, status()) == (124, "cancelled")
    assert line == (
        "artq: the time limit of 3600 s is up; 2 of 3 known cells are finished; the same command again continues from here"
    )
    code, out, err = artq("run", "small.toml", "--out", "out", "--time-limit", "1h")
    assert (code, status()) == (0, "success") and len(ran) == 4
    assert "2 reused" in out + err


def test_within_a_training(artq, monkeypatch):
    told = LiveProgress.training

    def up(self, model, progress):
        told(self, model, progress)
        signal.raise_signal(signal.SIGALRM)

    with monkeypatch.context() as patch:
        patch.setattr(LiveProgress, "training", up)
        code, _, err = artq("train", "small.toml", "--out", "out", "--time-limit", "1h")
    assert code == 124 and "fp32 is not finished" in err
    code, _, _ = artq("train", "small.toml", "--out", "out", "--time-limit", "1h")
    assert code == 0


@pytest.mark.parametrize("alarm", [True, False])
def test_an_interrupt_that_was_raised_anew_is_still_its(alarm, monkeypatch):
    if not alarm:  # as on Windows
        monkeypatch.delattr(signal, "setitimer")

    def work():
        try:
            for _ in range(3000):
                time.sleep(0.01)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with pytest.raises(OutOfTime), time_limit(0.05):
        work()


@pytest.mark.slow
def test_on_a_ray_cluster(artq, monkeypatch):
    pytest.importorskip("ray")
    told, ended = LiveProgress.cell, []

    def up(self, outcome, reused):
        told(self, outcome, reused)
        ended.append(outcome.cell.id)
        if len(ended) == 2:
            signal.raise_signal(signal.SIGALRM)

    command = ("run", "small.toml", "--out", "out", "--executor", "ray", "--workers", "1", "--time-limit", "1h")
    with monkeypatch.context() as patch:
        patch.setattr(LiveProgress, "cell", up)
        code, _, err = artq(*command)
    assert (code, status()) == (124, "cancelled") and "2 of 3 known cells are finished" in err
    code, out, err = artq(*command)
    assert (code, status()) == (0, "success") and "2 reused" in out + err


def test_an_interrupt_stays_one(artq, monkeypatch):
    def stop(evaluator, shard):
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "attempt", stop)
    assert artq("run", "small.toml", "--out", "out", "--time-limit", "1h")[0] == 130


def test_it_is_an_interrupt():
    assert issubclass(OutOfTime, KeyboardInterrupt)
