"""Files of unknown origin: data sets, evidence, checkpoints. What cannot be used is one line, before memory is asked for."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from art_qplugins.checkpoint import load_checkpoint, save_checkpoint
from art_qplugins.data import load
from art_qplugins.evidence import read_evidence
from art_qplugins.models.convnet import ConvNet

#: How each kind of arrays is read.
READ = {
    "data": lambda path: (load(f"npz:{path}", "train"), load(f"npz:{path}", "test")),
    "evidence": lambda path: read_evidence(path),
}


def member(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(text, version=b"\x01\x00"):
    """The beginning of a .npy file with any words in its header."""
    words = text.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(words)) + words


def archive(path, **members):
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(f"{name}.npy", content)


def arrays(n=10, labels=2):
    x = np.zeros((n, 1, 8, 8), np.float32)
    return {"x": member(x), "x_adv": member(x), "y": member(np.arange(n) % labels)}


def patched(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def huge(path):
    archive(
        path,
        **arrays() | {"x": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1, 8, 8), }")},
    )


def long_text(path):
    archive(path, **arrays() | {"y": header("{'descr': '<U99999999', 'fortran_order': False, 'shape': (99999, ), }")})


def unclosed(path):
    archive(path, **arrays() | {"x": header("{'descr': '<f4', 'shape': (1, ")})


def deep(path):
    archive(path, **arrays() | {"x": header("(" * 9000)})


def no_header(path):
    archive(path, **arrays() | {"x": b"hello"})


def negative(path):
    archive(path, **arrays() | {"x": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 1, 8, 8), }")})


def objects(path):
    np.savez(path, x=np.array([{}, []], dtype=object), x_adv=np.array([5]), y=np.array([0]))


def single(path):
    with path.open("wb") as file:
        np.save(file, np.zeros((10, 1, 8, 8), np.float32))


def encrypted(path):
    archive(path, **arrays())
    content = bytearray(path.read_bytes())
    for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # bit 0 of the flags says that a member is encrypted
        start = -1
        while (start := content.find(sign, start + 1)) >= 0:
            content[start + at] |= 1
    path.write_bytes(bytes(content))


def method_99(path):
    archive(path, **arrays())
    content = bytearray(path.read_bytes())
    for sign, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = -1
        while (start := content.find(sign, start + 1)) >= 0:
            content[start + at] = 99
    path.write_bytes(bytes(content))


def bomb(path):
    """A gigabyte of zeros behind a small file."""
    packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with packed, packed.open("x.npy", "w", force_zip64=True) as file:
        file.write(header("{'descr': '|u1', 'fortran_order': False, 'shape': (16000000, 1, 64, 64), }"))
        for _ in range(1024):
            file.write(bytes(2**20))
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("y.npy", member(np.zeros(16_000_000, np.uint8)))
        packed.writestr("x_adv.npy", member(np.zeros((1, 1, 8, 8))))


def cut(path):
    archive(path, **arrays())
    path.write_bytes(path.read_bytes()[:-50])


def other_crc(path):
    archive(path, **arrays())
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(bytes(content))


ARCHIVES = [
    huge,
    long_text,
    unclosed,
    deep,
    no_header,
    negative,
    objects,
    single,
    encrypted,
    method_99,
    bomb,
    cut,
    other_crc,
]
ARCHIVES += [lambda path: os.mkfifo(path), lambda path: path.mkdir(), lambda path: path.symlink_to(path)]
ARCHIVES += [lambda path: path.symlink_to("gone"), lambda path: path.symlink_to("/dev/zero"), lambda path: path.touch()]
NAMES = [f.__name__ for f in ARCHIVES[:13]] + [
    "a-fifo",
    "a-folder",
    "a-link-to-itself",
    "a-broken-link",
    "a-device",
    "empty",
]


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("write", ARCHIVES, ids=NAMES)
def test_arrays_that_cannot_be_read(write, kind, here, python, refused):
    path = here / "d.npz"
    write(path)
    never = ["context manager", "unsafely", "allow_pickle", "AttributeError"]
    refused(python(lambda: READ[kind](path), seconds=5), "d.npz", never=never)


@pytest.mark.parametrize("label", [10**9, 10**7, 2**62, 2**63, -(2**62)])
def test_labels_that_are_too_many(label, here, python, refused):
    x = np.zeros((10, 1, 8, 8), np.float32)
    np.savez(here / "d.npz", x=x, y=np.array([label] + [0] * 9))
    refused(python(lambda: load("npz:d.npz", "train"), seconds=5), "d.npz", "y")


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_of_other_shapes(split, here, python, refused):
    x, y = np.zeros((10, 1, 8, 8), np.float32), np.arange(10) % 2
    np.savez(here / "d.npz", x_train=x, y_train=y, x_test=np.zeros((10, 3, 9, 9), np.float32), y_test=y)
    refused(python(lambda: load("npz:d.npz", split)), "d.npz", "9")


@pytest.mark.parametrize("split", ["train", "test"])
def test_folders_of_splits_of_other_shapes(split, here, artq, refused):
    for part, size in (("train", 8), ("test", 9)):
        for label in "ab":
            picture(here / "d" / part / label / "1.png", size)
            picture(here / "d" / part / label / "2.png", size)
    changes = ["--set", "data={name='folder:d'}", "--set", "models=[{name='a', train={epochs=0}}]"]
    refused(artq("run", "small.toml", "--dry-run", *changes), "folder:d")


# --- Folders of images


def picture(path, size=8, mode="L", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size)).save(path, **more)


def png_of_16_bits(path):
    """Width 8, height 8, depth 16, colors RGB. Pillow writes none."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\x00" + bytes(range(48)) for _ in range(8))
    begin = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", begin) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def animated(kind):
    def write(path):
        frames = [Image.new("L", (8, 8), shade) for shade in (0, 80, 160)]
        frames[0].save(path, format=kind, save_all=True, append_images=frames[1:])

    return write


def huge_picture(path):
    begin = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + begin + struct.pack(">I", zlib.crc32(b"IHDR" + begin))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)


IMAGES = {
    "16-bits-rgb": ("odd.png", png_of_16_bits),
    "16-bits-gray": ("odd.png", lambda path: Image.new("I;16", (8, 8)).save(path)),
    "floats": ("odd.tiff", lambda path: Image.new("F", (8, 8)).save(path)),
    "animated-png": ("odd.png", animated("PNG")),
    "animated-gif": ("odd.gif", animated("GIF")),
    "animated-webp": ("odd.webp", animated("WEBP")),
    "pages": ("odd.tiff", animated("TIFF")),
    "huge": ("odd.png", huge_picture),
    "no-image": ("odd.png", lambda path: path.write_bytes(b"hello")),
    "empty": ("odd.png", lambda path: path.touch()),
    "a-fifo": ("odd.png", lambda path: os.mkfifo(path)),
    "a-broken-link": ("odd.png", lambda path: path.symlink_to("gone.png")),
    "a-link-to-itself": ("odd.png", lambda path: path.symlink_to("odd.png")),
    "a-device": ("odd.png", lambda path: path.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("row", IMAGES)
def test_images_that_are_not_what_they_look_like(row, here, python, refused):
    """A file that is left out, because its name says that it is no image, is all right too."""
    for label in "ab":
        for i in range(5):
            picture(here / "d" / label / f"{i}.png")
    name, write = IMAGES[row]
    write(here / "d" / "a" / name)

    def both():
        parts = [load("folder:d", split) for split in ("train", "test")]
        assert not any(name in image for part in parts for image in part.ids)
        print(sum(map(len, parts)))

    result = python(both, seconds=5)
    if result.status != 0:
        return refused(result, "odd.")
    assert name.endswith((".gif", ".tiff", ".webp")) and result.out == "10\n"


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"a\nb", b"[x]", b"x" * 200, "\u202egnp".encode()], ids=repr)
@pytest.mark.parametrize("level", ["class", "file"])
def test_names_of_any_bytes(name, level, here, python):
    """They are read, or refused in a line; the ids go into records, which are UTF-8."""
    for label in "ab":
        for i in range(5):
            picture(here / "d" / label / f"{i}.png")
    odd = (
        os.path.join(os.fsencode(here / "d"), name) if level == "class" else os.fsencode(here / "d/a/") + name + b".png"
    )
    os.rename(here / "d" / "a" if level == "class" else here / "d" / "a" / "0.png", odd)

    def both():
        for split in ("train", "test"):
            part = load("folder:d", split)
            json.dumps([part.ids, part.classes], ensure_ascii=False).encode()

    result = python(both)
    assert result.status in (0, 2) and not result.kind, result.trace
    assert (len(result.err) <= 301 and result.err.rstrip("\n").isprintable()) or not result.err


@pytest.mark.parametrize("link", ["loop", "up"])
def test_a_link_to_the_folder_above_is_no_class(link, here, python, refused):
    for label in "ab":
        for i in range(5):
            picture(here / "d" / label / f"{i}.png")
    (here / "d" / "loop").symlink_to(here / "d" if link == "loop" else here, target_is_directory=True)
    result = python(lambda: print(load("folder:d", "train").classes), seconds=5)
    if result.status == 0:
        assert result.out == "('a', 'b')\n"
    else:
        refused(result, "loop")


def test_a_folder_in_a_circle(here, python, refused):
    (here / "d").symlink_to("d")
    refused(python(lambda: load("folder:d", "train"), seconds=5), "folder:")


# --- Checkpoints

MODEL = "{name='fp32', architecture={name='convnet', options={width=2}}, train={epochs=0}"


def network():
    return ConvNet((1, 8, 8), 10, width=2)


@pytest.fixture
def trained(here, artq):
    """The checkpoint of a network whose weights are mapped, written by ``artq train``."""
    mapped = MODEL + ", quantize={weight_bits=3, mu=255.0, mu_layers=2}}"
    result = artq("train", "small.toml", "--set", f"models=[{mapped}]", "--out", "r", seconds=60)
    assert result.status == 0, result.err or result.trace
    return next((here / "r" / "checkpoints").glob("*.safetensors"))


@pytest.mark.parametrize("command", [["run", "--dry-run"], ["train"]])
def test_a_checkpoint_of_another_model(command, trained, artq, refused):
    changed = f"models=[{MODEL.replace(', train={epochs=0}', '')}, checkpoint='{trained}'}}]"
    result = artq(command[0], "small.toml", *command[1:], "--set", changed, seconds=60)
    refused(result, "checkpoint", trained.name[:5])


WEIGHTS = {
    "nan": lambda v: v * float("nan"),
    "inf": lambda v: v / 0,
    "int8": lambda v: v.to(torch.int8),
    "bool": lambda v: v > 0,
    "complex64": lambda v: v.to(torch.complex64),
    "int64": lambda v: v.to(torch.int64),
}


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_no_finite_floats(kind, described, here, python, refused):
    from safetensors.torch import save_file

    path = here / "net.safetensors"
    state = {
        k: WEIGHTS[kind](v).contiguous() if v.is_floating_point() else v for k, v in network().state_dict().items()
    }
    save_file(state, path)
    if described:
        import hashlib

        path.with_suffix(".json").write_text(json.dumps({"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    refused(python(lambda: load_checkpoint(path, network())), "checkpoint", "net.safetensors")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b'{"sha256": ' + b"[" * 100_000])
def test_a_description_that_is_deep(content, here, python, refused):
    path = here / "net.safetensors"
    save_checkpoint(path, network(), {})
    path.with_suffix(".json").write_bytes(content)
    refused(python(lambda: load_checkpoint(path, network())), "checkpoint", "net.")


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


CHECKPOINTS = {
    "a-fifo": lambda path: os.mkfifo(path),
    "a-folder": lambda path: path.mkdir(),
    "a-link-to-itself": lambda path: path.symlink_to(path),
    "a-device": lambda path: path.symlink_to("/dev/zero"),
    "a-header-of-2**60-bytes": lambda path: path.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    "deep-header": lambda path: path.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000),
    "huge-shape": lambda path: path.write_bytes(
        struct.pack("<Q", 70)
        + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'.ljust(70)
        + bytes(4)
    ),
    "a-sparse-file-of-a-terabyte": sparse,
}


@pytest.mark.parametrize("row", CHECKPOINTS)
def test_checkpoints_that_are_none(row, here, python, refused):
    path = here / "net.safetensors"
    CHECKPOINTS[row](path)
    refused(python(lambda: load_checkpoint(path, network()), seconds=5), "checkpoint", "net.safetensors")


@pytest.mark.parametrize("what", ["recipe", "results", "samples"])
def test_fifos_are_no_records(what, here, artq, refused):
    if what == "recipe":
        os.mkfifo(here / "r.toml")
        return refused(artq("run", "r.toml", "--dry-run", seconds=5), "r.toml")
    (here / "b").mkdir()
    os.mkfifo(here / "b" / ("results.json" if what == "results" else "samples.jsonl"))
    refused(artq("report", "b", seconds=5), "b")
