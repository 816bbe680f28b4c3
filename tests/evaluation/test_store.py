"""A run's folder: nothing half-written, nothing finished lost, nothing damaged believed."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

from art_qplugins import files
from art_qplugins.errors import InputError
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Sample
from art_qplugins.evaluation.store import Memory, Store, _digest


def outcome(name="m.art-fgsm.0123456789", n=3):
    samples = [
        Sample(
            cell=name,
            sample=f"digits/test/{i:04d}",
            label=i,
            prediction=i,
            correct=1.0,
            selection=1.0,
            distance=0.1,
            margin=0.5 + i,
            loss=None,
        )
        for i in range(n)
    ]
    cell = Cell(
        id=name,
        model="m",
        source="m",
        attack="art:fgsm",
        role="attack",
        params={"max_iter": 3, "rel_eps_step": None},
        norm="Linf",
        eps=0.1,
        seed=0,
        n=n,
        accuracy=1.0,
        interval=(0.4, 1.0),
        forward_samples=n,
        backward_samples=n,
        seconds=0.1,
        status="success",
    )
    return Outcome.from_samples(cell, samples), np.random.default_rng(0).random((n, 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("make", [Memory, Store], ids=["memory", "folder"])
def test_what_is_saved_is_loaded(make, tmp_path):
    store = Memory() if make is Memory else Store(tmp_path)
    saved, x_adv = outcome()
    assert store.load(saved.cell.id) is None
    store.save(saved, x_adv)
    found = store.load(saved.cell.id)
    assert (found.cell, list(found.samples())) == (saved.cell, list(saved.samples()))
    np.testing.assert_array_equal(store.images(saved.cell.id), x_adv)
    assert store.load("another") is None


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Full:
    """A file object on a disk that is full after some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: self.room])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["write", "fsync", "replace", "killed"])
def test_a_crash_in_the_middle_leaves_what_was_there(where, tmp_path, monkeypatch):
    store = Store(tmp_path)
    first, images = outcome("first")
    store.save(first, images)
    before = everything(tmp_path)
    error = KeyboardInterrupt() if where == "killed" else OSError(errno.ENOSPC, "No space left on device")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        if where == "write":
            fdopen = os.fdopen
            patch.setattr(files.os, "fdopen", lambda *a: Full(fdopen(*a), 10))
        else:
            patch.setattr(files.os, "fsync" if where == "fsync" else "replace", fail)
        for name in ("second", "first"):  # a new cell, and one to be overwritten
            with pytest.raises(type(error)):
                store.save(*outcome(name, n=2))
    assert everything(tmp_path) == before
    assert store.load("second") is None
    store.save(*outcome("second"))
    assert store.load("second") is not None


def test_a_crash_between_images_and_records_leaves_no_cell(tmp_path, monkeypatch):
    """The records are written last: an id that loads has its images."""
    store = Store(tmp_path)
    replace = os.replace

    def fail(part, path):
        if str(path).endswith(".json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            store.save(*outcome())
    assert (tmp_path / "cells" / "m.art-fgsm.0123456789.npz").exists()
    assert store.load("m.art-fgsm.0123456789") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"[1, 2]",
        lambda content: b"null",
        lambda content: b"\xff\xfe\x00",
        lambda content: json.dumps({"cell": json.loads(content)["cell"]}).encode(),
        lambda content: content.replace(b'"accuracy": 1.0', b'"accuracy": "high"'),
        lambda content: content.replace(b'"label"', b'"lable"'),
    ],
    ids=["cut", "empty", "list", "null", "binary", "without-samples", "wrong-type", "wrong-key"],
)
def test_a_damaged_cell_counts_as_not_computed(damage, tmp_path):
    store = Store(tmp_path)
    store.save(*outcome())
    path = tmp_path / "cells" / "m.art-fgsm.0123456789.json"
    path.write_bytes(damage(path.read_bytes()))
    assert store.load("m.art-fgsm.0123456789") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["columns"]["correct"].__setitem__(0, None),
        lambda c: c["columns"]["correct"].__setitem__(0, 5.5),
        lambda c: c["columns"]["correct"].__setitem__(0, 0.0),
        lambda c: c["columns"]["selection"].__setitem__(0, None),
        lambda c: c["columns"]["distance"].__setitem__(0, -1.0),
        lambda c: c["columns"]["label"].__setitem__(0, 0.5),
        lambda c: c["columns"]["margin"].pop(),
        lambda c: c["columns"].pop("correct"),
        lambda c: c["ids"].__setitem__(0, c["ids"][1]),
        lambda c: c["ids"].pop(),
        lambda c: c["cell"].update(accuracy=0.5),
        lambda c: c["cell"].update(accuracy="1.0"),
        lambda c: c["cell"].update(n=2),
        lambda c: c["cell"].update(rows=[0, 1, 1], of=5),
        lambda c: c["cell"].update(rows=[0, 1, 5], of=5),
        lambda c: c["cell"].update(eps=-0.1),
        lambda c: c["cell"].update(status="error"),
        lambda c: c.update(ids=5),
        lambda c: c.update(columns=[]),
    ],
)
def test_a_cell_that_contradicts_itself_counts_as_not_computed(change, tmp_path):
    """Also where its hash is right: nothing in a file is believed that can be checked."""
    store = Store(tmp_path)
    store.save(*outcome())
    path = tmp_path / "cells" / "m.art-fgsm.0123456789.json"
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content))
    assert Store(tmp_path).load("m.art-fgsm.0123456789") is not None
    change(content)
    content["sha256"] = _digest(content)
    path.write_text(json.dumps(content))
    assert Store(tmp_path).load("m.art-fgsm.0123456789") is None


@pytest.mark.parametrize("kind", ["json", "npz"])
def test_a_pipe_or_a_folder_in_the_place_of_a_cell_is_not_waited_for(kind, tmp_path):
    store = Store(tmp_path)
    store.save(*outcome())
    path = tmp_path / "cells" / f"m.art-fgsm.0123456789.{kind}"
    path.unlink()
    os.mkfifo(path)
    assert Store(tmp_path).load("m.art-fgsm.0123456789") is None
    path.unlink()
    path.mkdir()
    assert Store(tmp_path).load("m.art-fgsm.0123456789") is None


def test_a_cell_whose_images_are_gone_counts_as_not_computed(tmp_path):
    store = Store(tmp_path)
    store.save(*outcome())
    (tmp_path / "cells" / "m.art-fgsm.0123456789.npz").unlink()
    assert store.load("m.art-fgsm.0123456789") is None


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder with --out") as caught:
        Store(tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", [".", "cells", "checkpoints", "evidence"])
def test_what_a_killed_process_left_half_written_goes_before_the_next_run(where, tmp_path):
    store = Store(tmp_path)
    store.save(*outcome())
    store.write_evidence("m", x=np.zeros(3))
    folder = tmp_path / where
    (folder / ".net.json.abc123.part").write_text("half")
    (folder / "mine.part").write_text("no file of a run")
    before = everything(tmp_path)
    with store.alone("recipe"):
        pass
    gone = {name for name in before if name not in everything(tmp_path)}
    assert gone == {str((folder / ".net.json.abc123.part").relative_to(tmp_path))}


def test_files_have_the_modes_that_the_user_asked_for(tmp_path):
    mask = os.umask(0o022)
    try:
        files.write_atomically(tmp_path / "deep" / "a", b"x")
    finally:
        os.umask(mask)
    assert (tmp_path / "deep" / "a").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path / "deep") == ["a"]
