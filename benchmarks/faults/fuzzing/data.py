"""Data sets of files with edits: ``npz:`` archives and folders of images, both splits."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzzing.apart import call
from fuzzing.files import byte_edits, can_edit, edit_bytes
from fuzzing.judge import Found, judged, timed
from fuzzing.strategies import Case
from fuzzing.values import value_of

__all__ = ["data", "run_data"]

_DTYPES = ("float32", "float64", "float16", "uint8", "int64", "int8", "bool", "complex64", "U5", "uint64")
_SHAPES = (
    (10, 1, 8, 8),
    (10, 3, 9, 9),
    (0, 1, 8, 8),
    (10, 8, 8),
    (10,),
    (),
    (10, 8, 8, 3),
    (1, 1, 1, 1),
    (10, 1, 8, 0),
)
_HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1, 8, 8), }",
    "{'descr': '<U99999999', 'fortran_order': False, 'shape': (9999,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (10,), }",
    "{'descr': '<f4', 'shape': (1, ",
    "{'descr': [('a', '<f4'), ('b', '<U3')], 'fortran_order': False, 'shape': (10,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 1, 8, 8), }",
    "(" * 3000,
    "",
)
_VALUES = ("0", "0.5", "1", "nan", "inf", "-1", "2", "255", "300", "1e308", "10**7", "10**9", "2**62", "-5", "1000")


@st.composite
def data(draw: st.DrawFn) -> Case:
    members = st.sampled_from(["x_train", "y_train", "x_test", "y_test", "classes", "x", "y"])
    array = st.tuples(
        st.just("array"),
        members,
        st.sampled_from(_DTYPES),
        st.sampled_from(_SHAPES).map(list),
        st.sampled_from(_VALUES),
    )
    value = st.tuples(st.just("value"), members, st.sampled_from(_VALUES))
    head = st.tuples(st.just("header"), members, st.sampled_from(range(len(_HEADERS))))
    flag = st.sampled_from(
        [["flags", 6, 8, 1], ["flags", 8, 10, 99], ["drop", "y_test"], ["drop", "x_train"], ["drop", "y_train"]]
    )
    npz = st.one_of(array.map(list), value.map(list), value.map(list), head.map(list), flag, byte_edits(("d.npz",)))
    file = st.sampled_from(["d/train/a/1.png", "d/test/b/0.png", "d/train/b/2.png"])
    modes = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16", "HSV", "LAB"])
    image = st.tuples(
        st.just("image"), file, modes, st.integers(1, 9), st.sampled_from(["png", "tiff", "gif", "webp", "bmp", "ppm"])
    )
    link = st.tuples(
        st.just("link"),
        st.sampled_from(["d/train/loop", "d/train/a/x.png", "d/test", "d/loop"]),
        st.sampled_from(["..", ".", "gone", "/dev", "/dev/zero"]),
    )
    name = st.tuples(
        st.just("name"),
        file,
        st.sampled_from(["caf\udce9.png", "\udcff\udcfe.png", "a\nb.png", "[x].png", ".png", "\u202e.png"]),
    )
    folder = st.one_of(
        image.map(list), link.map(list), name.map(list), file.flatmap(lambda f: byte_edits((f,))), st.just(["frames"])
    )
    kind = draw(st.sampled_from(["npz", "npz", "folder"]))
    return {
        "how": kind,
        "edits": draw(st.lists(npz if kind == "npz" else folder, min_size=1, max_size=2, unique_by=repr)),
    }


def run_data(case: Case, stage: Path) -> Found:
    (_make_npz if case["how"] == "npz" else _make_folder)(case["edits"])
    name = "npz:d.npz" if case["how"] == "npz" else "folder:d"
    return judged(timed(5, lambda: call(lambda: print(_both(name)))), lambda r: r.out.strip())


def _both(name: str) -> str:
    """What is wrong with the splits, where both can be loaded."""
    from art_qplugins.data import check_splits, load

    train, test = load(name, "train"), load(name, "test")
    check_splits(train, test)  # as a run does
    json.dumps([train.ids, test.ids, train.classes], ensure_ascii=False).encode()
    for part in (train, test):
        x, y = part.x(), part.y()
        if not bool(((x >= 0) & (x <= 1)).all()):
            return "pixels outside of [0, 1]"
        if len(x) != len(y) or not bool(((y >= 0) & (y < part.nb_classes)).all()):
            return "labels that are no classes"
    if any("loop" in image for part in (train, test) for image in (*part.ids, *part.classes)):
        return "a link to a folder above as a class"
    return "more than 1,000 classes" if train.nb_classes > 1000 else ""


def _make_npz(several: list[Any]) -> None:
    images, labels = np.linspace(0, 1, 640, dtype=np.float32).reshape(10, 1, 8, 8), np.arange(10) % 3
    members = {key: _packed(images if key[0] == "x" else labels) for key in ("x_train", "y_train", "x_test", "y_test")}
    for kind, name, *rest in several:
        usual = images if str(name)[0] == "x" else labels
        if kind == "value":
            members[name] = _packed(_with_first(usual.copy(), rest[0]))
        elif kind == "array":
            dtype, shape, value = rest
            array = np.resize(usual, shape).astype(dtype)
            members[name] = _packed(_with_first(array, value))
        elif kind == "header":
            words = _HEADERS[rest[0]].encode() + b"\n"
            members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words
        elif kind == "drop":
            members.pop(name, None)
    with zipfile.ZipFile("d.npz", "w") as zipped:
        for name, content in members.items():
            zipped.writestr(f"{name}.npy", content)
    for kind, *rest in several:
        if kind == "flags" and Path("d.npz").is_file():
            _set_flags(Path("d.npz"), *rest)
        elif kind == "bytes":
            edit_bytes(Path("d.npz"), *rest[1:])


def _with_first(array: Any, expression: str) -> Any:
    """The array with another first value, where its type can hold it."""
    with contextlib.suppress(ValueError, OverflowError, TypeError):
        array.reshape(-1)[:1] = value_of(expression)
    return array


def _set_flags(path: Path, local: int, central: int, value: int) -> None:
    """Set a byte in the headers of every member, which say how it is packed."""
    if not can_edit(path):
        return
    content = bytearray(path.read_bytes())
    for sign, at in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        start = -1
        while (start := content.find(sign, start + 1)) >= 0:
            content[start + at] = value
    path.write_bytes(bytes(content))


def _packed(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _make_folder(several: list[Any]) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for label in "ab":
            Path("d", split, label).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8), 40 * i).save(f"d/{split}/{label}/{i}.png")
    for kind, *rest in several:
        try:
            if kind == "image":
                Image.new(rest[1], (8, rest[2])).save(rest[0], format=rest[3])
            elif kind == "link":
                if Path(rest[0]).is_dir():
                    shutil.rmtree(rest[0])
                Path(rest[0]).symlink_to(rest[1])
            elif kind == "name":
                os.rename(rest[0], Path(rest[0]).parent / rest[1])
            elif kind == "frames":
                frames = [Image.new("L", (8, 8), shade) for shade in (0, 90)]
                frames[0].save("d/train/a/1.png", save_all=True, append_images=frames[1:])
            else:
                edit_bytes(Path(rest[0]), *rest[1:])
        except (OSError, ValueError, KeyError):
            continue
