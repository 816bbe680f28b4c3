"""Kills, full disks, damaged and foreign files: nothing finished is lost, nothing damaged believed, all told in a line."""

from __future__ import annotations

import copy
import errno
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import art_qplugins
from art_qplugins import files
from art_qplugins.errors import InputError
from art_qplugins.evaluation.records import Results, Sample
from art_qplugins.evaluation.store import Store
from art_qplugins.runner.progress import Progress

_KILL = Path(__file__).parents[2] / "benchmarks" / "faults" / "kill.py"
SMALL = {"name": "convnet", "options": {"width": 2}}
RECIPE = {
    "name": "small",
    "threads": 1,
    "batch_size": 8,
    "diagnose": False,
    "data": {"name": "digits", "limit": 20},
    "threat": {"norm": "Linf", "eps": [0.05, 0.15]},
    "models": [{"name": "net", "architecture": SMALL, "train": {"epochs": 1}}],
    "attacks": [{"id": "art:fgsm"}, {"id": "art:pgd", "options": {"max_iter": 3}}],
}


def run(out, recipe=RECIPE, progress=None):
    return art_qplugins.run(recipe, out=out, progress=progress).results


def everything(folder):
    """What a run leaves, without times."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name == "results.json":
            results = Results.model_validate_json(path.read_bytes())
            cells = [c.model_copy(update={"seconds": 0.0}) for c in results.cells]
            # The commit that runs may change under a test, too.
            curves = {
                model: [epoch.model_copy(update={"images_per_second": 0.0}) for epoch in curve]
                for model, curve in results.training.items()
            }
            same = {"created": "", "environment": None, "cells": cells, "training": curves}
            found[name] = results.model_copy(update=same)
        elif name.startswith("checkpoints/") and path.suffix == ".json":
            found[name] = json.loads(path.read_bytes())
            for epoch in found[name]["training"]:
                del epoch["images_per_second"]
        elif name in ("report.html", "results.md", "results.csv", "results.tex", "results.parquet"):
            found[name] = path.stat().st_size > 0  # they show times and dates
        elif path.is_file() and not (name.startswith("cells/") and path.suffix == ".json"):
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run(folder).status == "success"
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# --- Kills and full disks


@pytest.mark.parametrize(
    ("job", "kills"),
    [("run", 1), pytest.param("run", 25, marks=pytest.mark.slow), pytest.param("diagnose", 25, marks=pytest.mark.slow)],
)
def test_what_was_killed_ends_as_if_nobody_had_killed_it(job, kills):
    """``artq run`` of a recipe, and ``artq diagnose --model``."""
    command = [sys.executable, str(_KILL), job, "--kills", str(kills), "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.stdout.splitlines()[-1:] == [f"{kills} kills: {kills} identical results"], done.stdout + done.stderr


@pytest.mark.parametrize("room", [0, 3, 7, 12, 16])
def test_a_full_disk_is_named_and_costs_nothing_that_was_finished(room, finished, tmp_path, monkeypatch):
    """The disk takes some files and then no more, not even the records of the run's end."""
    fsync, written = os.fsync, []

    def full(handle):
        if len(written) == room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(handle)
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.+'") as caught:
            run(tmp_path / "run")
    assert str(tmp_path / "run") in caught.value.filename
    assert not list((tmp_path / "run").rglob("*.part"))
    run(tmp_path / "run")
    assert everything(tmp_path / "run") == everything(finished)


def test_what_a_killed_process_left_half_written_goes(finished, copied):
    folders = [copied, *(path for path in copied.iterdir() if path.is_dir())]
    assert {"cells", "checkpoints", "figures"} <= {folder.name for folder in folders}
    for folder in folders:
        (folder / ".half.json.abcdefgh.part").write_bytes(b"{")
    run(copied)
    assert everything(copied) == everything(finished)


def test_a_folder_that_cannot_be_written_into_is_one_line(copied, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system")

    before = everything(copied)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"cannot write there \(Read-only file system\); choose another .* --out"):
        run(copied)
    assert everything(copied) == before


# --- Folders of somebody else


def test_two_runs_do_not_write_into_one_folder(copied):
    before = everything(copied)
    with Store(copied).alone("small"), pytest.raises(InputError, match="another run is writing there"):
        run(copied)
    assert everything(copied) == before
    run(copied)  # the lock went with its holder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r["spec"]["resolved"].update(name="other"), "holds results of recipe 'other', and this is 'small'"),
        (lambda r: r["spec"]["resolved"].pop("name"), "holds results of no recipe, and this is 'small'"),
        (lambda r: r.update(schema_version=99), "its schema is 99 and this version writes"),
    ],
    ids=["recipe", "python", "schema"],
)
def test_results_of_another_recipe_or_schema_are_left_alone(change, reason, copied):
    results = json.loads((copied / "results.json").read_bytes())
    change(results)
    (copied / "results.json").write_text(json.dumps(results))
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=reason) as caught:
        run(copied)
    assert "--out" in str(caught.value) and "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


def test_other_values_of_the_same_recipe_go_on_in_its_folder(finished, copied):
    recipe = copy.deepcopy(RECIPE)
    recipe["attacks"].append({"id": "art:pgd", "options": {"max_iter": 4}, "eps": [0.15]})
    seen = Seen()
    assert run(copied, recipe, seen).status == "success"
    assert [reused for _, reused in seen.seen] == [True] * 5 + [False]


class Seen(Progress):
    def __init__(self):
        self.seen = []

    def cell(self, outcome, reused):
        self.seen.append((outcome.cell.id, reused))


# --- Damage


def flip_a_number(content):
    return content.replace(b'"correct": [1.0', b'"correct": [0.0', 1)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("json", lambda content: content[: len(content) // 2]),
        ("json", flip_a_number),
        ("npz", lambda content: content[:-40]),
        ("npz", lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:]),
    ],
    ids=["cut-records", "changed-records", "cut-images", "changed-images"],
)
def test_a_damaged_cell_is_computed_again(kind, damage, finished, copied):
    victim = sorted((copied / "cells").glob(f"*pgd*.{kind}"))[0]
    victim.write_bytes(damage(victim.read_bytes()))
    assert victim.read_bytes() != (finished / "cells" / victim.name).read_bytes()
    seen = Seen()
    run(copied, progress=seen)
    assert [name for name, reused in seen.seen if not reused] == [victim.stem]
    assert everything(copied) == everything(finished)


@pytest.mark.parametrize("name", ["samples.jsonl", "results.json"])
def test_cut_records_of_the_run_are_written_anew(name, finished, copied):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) * 2 // 3])
    run(copied)
    assert everything(copied) == everything(finished)


def test_a_changed_checkpoint_is_refused(copied):
    (weights,) = (copied / "checkpoints").glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = everything(copied)
    with pytest.raises(InputError, match=r"it is corrupt \(its SHA-256 is not the one recorded"):
        run(copied)
    assert everything(copied) == before


class Canary:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_is_never_loaded(tmp_path):
    weights, canary = tmp_path / "weights.safetensors", tmp_path / "canary"
    weights.write_bytes(pickle.dumps(Canary(canary)))
    recipe = {**RECIPE, "models": [{"name": "net", "architecture": SMALL, "checkpoint": str(weights)}]}
    with pytest.raises(InputError, match="not a safetensors file"):
        run(tmp_path / "run", recipe)
    assert not canary.exists()


# --- Memory


def test_a_run_holds_columns_and_no_rows(tmp_path):
    """However many cells it has: a row takes ten times the memory of its numbers."""

    class Counting(Progress):
        most = 0

        def cell(self, outcome, reused):
            self.most = max(self.most, sum(type(o) is Sample for o in gc.get_objects()))

    def most(eps, folder):
        recipe = {**RECIPE, "threat": {"norm": "Linf", "eps": list(eps)}, "attacks": [{"id": "art:fgsm"}]}
        counting = Counting()
        gc.collect()
        before = sum(type(o) is Sample for o in gc.get_objects())
        run(folder, recipe, counting)
        return counting.most - before

    few = most(np.linspace(0.01, 0.05, 3), tmp_path / "few")
    many = most(np.linspace(0.01, 0.05, 8), tmp_path / "many")
    assert few == many == 0
    assert len((tmp_path / "many" / "samples.jsonl").read_text().splitlines()) == 20 * 9
