"""``npz:`` of unknown origin: files, labels and splits that would cost hours, or fail in the middle of a run."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from art_qplugins.data import from_arrays, load, make_dataset
from art_qplugins.errors import InputError
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.runner.runner import Runner


def refused(*parts):
    """Raises InputError in one line of at most 300 characters that holds these parts."""
    pattern = "^(?s:" + "".join(f"(?=.*{part})" for part in parts) + r")[^\n]{1,300}$"
    return pytest.raises(InputError, match=pattern)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ARTQ_CACHE", str(tmp_path / "cache"))


def pixels(n=4, size=8):
    return np.zeros((n, 1, size, size), np.uint8)


Y = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"x": pixels(), "y": np.array([0, 1, 0, 10**9])}, ["y: 1 labels outside 0 to 65535", r"1000000000 at \[3\]"]),
        ({"x": pixels(), "y": np.array([0, 1, 0, 10**7])}, ["y: 1 labels outside 0 to 65535"]),
        ({"x": pixels(), "y": np.array([0, 1, 0, 2**63], np.uint64)}, ["y: 1 labels outside"]),
        ({"x": pixels(), "y": np.array([0, 1, 0, 255])}, ["labels go to 255", "no image has the label 2", "classes"]),
        ({"x": pixels(), "y": np.array([1, 2, 1, 2])}, ["no image has the label 0"]),
        ({"x": pixels(), "y": np.array([0.0, 1, np.nan, 1])}, ["labels are float64"]),
        ({"x": pixels(), "y": Y.astype(bool)}, ["labels are bool"]),
        ({"x": pixels(), "y": Y.astype(str)}, ["labels are <U"]),
        ({"x": pixels(), "y": Y, "classes": np.array(["a", "a"])}, ["classes: it is \\['a', 'a'\\]", "different"]),
        ({"x": pixels(), "y": Y, "classes": np.array(["a", ""])}, ["classes: it is"]),
        ({"x": pixels(), "y": Y, "classes": np.array([["a", "b"]])}, ["classes: ", r"\(1, 2\)", "one for each label"]),
        ({"x": pixels(), "y": Y, "classes": np.array([0.5, np.nan])}, ["classes: float64"]),
        ({"x": pixels(), "y": Y, "classes": np.arange(70_000)}, ["70000 classes, more than 65536"]),
        ({"x": pixels() + np.float32("nan"), "y": Y}, ["x: 256 pixels are NaN"]),
        ({"x": pixels() - np.float64("inf"), "y": Y}, ["x: 256 pixels are NaN or infinite"]),
        ({"x": pixels().astype(bool), "y": Y}, ["pixels are bool"]),
        ({"x": pixels().astype(complex), "y": Y}, ["'x' is of type complex128"]),
        ({"x_train": pixels(), "y_train": Y, "x_test": pixels(4, 9), "y_test": Y}, [r"\(1, 8, 8\).*\(1, 9, 9\)"]),
    ],
    ids=str,
)
def test_arrays_that_are_refused(tmp_path, arrays, parts):
    np.savez(tmp_path / "set.npz", **arrays)
    began = time.monotonic()
    for split in ("train", "test"):
        with refused(f"^npz:{tmp_path}/set.npz: ", *parts):
            load(f"npz:{tmp_path}/set.npz", split)
    assert time.monotonic() - began < 5


def test_labels_need_not_be_used_where_classes_are_named(tmp_path):
    np.savez(tmp_path / "set.npz", x=pixels(), y=np.array([1, 3, 1, 3]), classes=np.arange(5))
    assert load(f"npz:{tmp_path}/set.npz", "test").classes == ("0", "1", "2", "3", "4")


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "set.npz"
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with refused(f"^npz:{path}: cannot be read .it is a {kind}.; write it with np.savez$"):
        load(f"npz:{path}", "test")


def test_splits_of_different_images_end_a_run_before_it_begins(tmp_path, monkeypatch):
    """Also where nothing but the pixels says so: a source of another package gives what it likes."""
    train = make_dataset(pixels(), Y, name="made", split="train", ids=list("abcd"), classes=("a", "b"))
    recipe = {
        "name": "odd",
        "data": {"name": "digits"},
        "threat": {"eps": [0.1]},
        "models": [{"name": "net", "train": {"epochs": 0}}],
        "attacks": [{"id": "art:fgsm"}],
    }
    for test, what in ((pixels(4, 9), "images"), (pixels(), "classes")):
        data = from_arrays(test, Y, classes=("a", "b") if what == "images" else ("a", "b", "c"))
        monkeypatch.setattr("art_qplugins.runner.prepare.load", lambda *_, **__: train)
        runner = Runner(parse_recipe(recipe), out=tmp_path / "out", data=data)
        with refused(f"^data: {what} of the train split of made", "splits that agree$"):
            runner.run()
        assert not (tmp_path / "out").exists()


class Sparse:
    def __array__(self, *_, **__):
        raise RuntimeError("no\ndense form")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"x": Sparse()}, ["odd: x: it is a Sparse", "array"]),
        ({"x": None}, ["odd: x: 0 dimensions"]),
        ({"y": Sparse()}, ["odd: y: it is a Sparse"]),
        ({"y": np.array([0, 1, 2, 10**9])}, ["odd: y: 1 labels outside 0 to 65535"]),
        ({"classes": ("a", "a")}, ["odd: classes: it is"]),
        ({"classes": "ab"}, ["odd: classes: it is 'ab'"]),
        ({"classes": (1, 2)}, ["odd: classes: it is"]),
        ({"name": None}, ["name: it is None"]),
    ],
)
def test_arrays_from_python_that_are_refused(arguments, parts):
    with refused(*parts):
        from_arrays(**{"x": pixels(), "y": Y, "name": "odd"} | arguments)


def test_ids_belong_to_images():
    with refused("made: 3 ids for 4 images"):
        make_dataset(pixels(), Y, name="made", split="test", ids=list("abc"), classes=("a", "b"))


@pytest.mark.parametrize(
    ("n", "seed", "part"), [(True, 0, "limit"), (2.5, 0, "limit"), (2, -1, "seed"), (2, None, "seed")]
)
def test_subsets_that_are_refused(n, seed, part):
    with refused(f"arrays: {part}: it is"):
        from_arrays(pixels(), Y).take(n, seed=seed)


def _idx(*shape, kind=8):
    return bytes([0, 0, kind, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "it holds 2 GiB, more than 1 GiB"),
        (b"", "broken files in"),
        (b"hello", "broken files in"),
        (_idx(10, 28, 28), "broken files in"),
        (_idx(2**31, 2**31, 2**31), "broken files in"),
        (_idx(10, 28, 28, kind=77) + bytes(7840), "broken files in"),
        (_idx(7840) + bytes(7840), "mnist: "),
    ],
    ids=["large", "empty", "text", "cut", "huge", "unknown type", "no images"],
)
def test_idx_files_that_are_refused(tmp_path, content, why):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(_idx(10, 28, 28) + bytes(7840))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(_idx(10) + bytes(range(10)))
    assert len(load("mnist", "test", root=tmp_path)) == 10
    path = raw / "t10k-images-idx3-ubyte"
    if content is None:
        os.truncate(path, 2**31)
    else:
        path.write_bytes(content)
    with refused("^mnist: ", why):
        load("mnist", "test", root=tmp_path)
