"""Archives of arrays of unknown origin: a header promises nothing that the file does not hold."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from art_qplugins.arrays import read_arrays, read_headers
from art_qplugins.errors import InputError


def refused(*parts):
    """Raises InputError in one line of at most 300 characters that holds these parts."""
    pattern = "^(?s:" + "".join(f"(?=.*{part})" for part in parts) + r")[^\n]{1,300}$"
    return pytest.raises(InputError, match=pattern)


def npy(array, **header):
    """The bytes of a .npy file, with a header that may lie."""
    said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
    text = repr(said) if "text" not in said else said["text"]
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + array.tobytes()


def archive(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in members:
            file.writestr(name, content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_back(tmp_path, save):
    arrays = {
        "float": np.array([[0.5, np.nan], [-np.inf, 1e-300]]),
        "half": np.ones((2, 0, 3), np.float16),
        "byte": np.arange(200_000, dtype=np.uint8).reshape(20, 1, 100, 100),
        "big": np.arange(6, dtype=">i4").reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "flag": np.array([True, False]),
        "text": np.array(["", "\u00e9\U0001f600", "cat"]),
        "scalar": np.array(5),
        "none": np.array([]),
        "Linf": np.array("Linf"),
    }
    save(tmp_path / "it.npz", **arrays)
    found = read_arrays(tmp_path / "it.npz", hint="")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        assert found[name].dtype == array.dtype
    headers = read_headers(tmp_path / "it.npz", hint="")
    assert {name: (h.shape, h.dtype) for name, h in headers.items()} == {
        n: (a.shape, a.dtype) for n, a in arrays.items()
    }
    assert list(read_arrays(tmp_path / "it.npz", hint="", names=("flag", "absent"))) == ["flag"]


@given(array=hnp.arrays(hnp.floating_dtypes() | hnp.integer_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)))
@settings(deadline=None, max_examples=30)
def test_any_array_is_read_back(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("arrays") / "it.npz"
    np.savez(path, it=array)
    found = read_arrays(path, hint="")["it"]
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)


X = np.arange(4.0)
#: What an array says of itself, and why it is refused.
LIES = {
    "terabytes": (npy(X, shape=(10**12,)), "promises 7.28 TiB, and it holds"),
    "more": (npy(X, shape=(5,)), "promises 40 bytes"),
    "fewer": (npy(X, shape=(3,)), "promises 24 bytes"),
    "negative": (npy(X, shape=(-2, -2)), "impossible shape"),
    "nothing of everything": (npy(X[:0], shape=(0, 10**30)), "impossible shape"),
    "nothing of much": (npy(X[:0], shape=(0, 2**31, 2**31, 2**31)), "impossible shape"),
    "many dimensions": (npy(X[:1], shape=(1,) * 40), "impossible shape"),
    "true": (npy(X[:1], shape=(True,)), "impossible shape"),
    "wide text": (npy(X, descr="<U99999999", shape=(1,)), "texts of 99999999 characters"),
    "narrow text": (npy(X[:0], descr="<U0", shape=(10**12,)), "texts of 0 characters"),
    "bytes": (npy(np.array([b"cat"])), "of type .S3"),
    "objects": (npy(X, descr="|O"), "is Python objects"),
    "records": (npy(X, descr=[("a", "<f4"), ("b", "<f4")]), "of type"),
    "arrays in an array": (npy(X, descr=("<f4", (2,))), "of type"),
    "complex": (npy(X, descr="<c16", shape=(2,)), "of type complex128"),
    "dates": (npy(X, descr="<M8[s]"), "of type"),
    "unknown type": (npy(X, descr="<q9"), "no header"),
    "unclosed": (npy(X, text="{'descr': '<f8', 'shape': (4,)"), "no header"),
    "brackets": (npy(X, text="(" * 9000), "no header"),
    "long": (npy(X, text="{" + " " * 30_000 + "}"), "no header"),
    "call": (npy(X, text="__import__('os').system('true')"), "no header"),
    "cut": (npy(X)[:20], "no header"),
    "empty": (b"", "no header"),
    "words": (b"hello", "no header"),
    "version": (b"\x93NUMPY\x09\x00" + npy(X)[8:], "version"),
    "gigabytes of header": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 50, "no header"),
    "no characters": (npy(np.array([0x110000], "<u4"), descr="<U1"), "characters that do not exist"),
    "half a character": (npy(np.array([0xD800], "<u4"), descr="<U1"), "characters that do not exist"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_that_are_refused(tmp_path, lie, method):
    content, why = LIES[lie]
    archive(tmp_path / "it.npz", [("good.npy", npy(X)), ("bad.npy", content)], compression=method)
    with refused(r"^npz:it: .*it\.npz: cannot be read", why, "'bad'", "; use savez$"):
        read_arrays(tmp_path / "it.npz", hint="use savez", where="npz:it: ")


def _flagged(path):
    """Marked as encrypted, in the directory and beside the data."""
    archive(path, [("x.npy", npy(X))])
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def _method_99(path):
    archive(path, [("x.npy", npy(X))])
    content = bytearray(path.read_bytes())
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 99
    path.write_bytes(content)


def _twice(path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(path, [("x.npy", npy(X)), ("x.npy", npy(X + 1))])


def _says_less(path):
    """A directory that gives another size than the stream has."""
    archive(path, [("x.npy", npy(X, shape=(3,)))])
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    for place in (22, at):
        size = struct.unpack("<L", content[place : place + 4])[0]
        content[place : place + 4] = struct.pack("<L", size - 8)
    path.write_bytes(content)


def _says_more(path):
    archive(path, [("x.npy", npy(X, shape=(5,)))], compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    size = struct.unpack("<L", content[at : at + 4])[0]
    content[at : at + 4] = struct.pack("<L", size + 8)
    path.write_bytes(content)


def _flipped(path):
    archive(path, [("x.npy", npy(X))])
    content = bytearray(path.read_bytes())
    content[content.index(X.tobytes()) + 9] ^= 1
    path.write_bytes(content)


def _halved(path):
    archive(path, [("x.npy", npy(np.arange(1000.0)))])
    path.write_bytes(path.read_bytes()[:-40])


def _bomb(path):
    np.savez_compressed(path, x=np.zeros(2 * 2**20))


def _large_directory(path):
    archive(path, [(f"{i:04d}{'x' * 2000}.npy", b"") for i in range(600)])


ARCHIVES = {
    "encrypted": (_flagged, "'x' is encrypted"),
    "odd method": (_method_99, "compressed by method 99"),
    "lzma": (lambda p: archive(p, [("x.npy", npy(X))], compression=zipfile.ZIP_LZMA), "compressed by method 14"),
    "doubled": (_twice, "two arrays have the name 'x'"),
    "no array": (lambda p: archive(p, [("x.txt", b"hello")]), "'x.txt' in it is no .npy"),
    "a folder": (lambda p: archive(p, [("x/", b"")]), "'x/' in it is no .npy"),
    "no name": (lambda p: archive(p, [(".npy", npy(X))]), "in it is no .npy"),
    "says less": (_says_less, "'x' is damaged"),
    "says more": (_says_more, "'x' ends after 32 bytes"),
    "flipped": (_flipped, "'x' is damaged"),
    "halved": (_halved, "a damaged archive"),
    "bomb": (_bomb, "hold 16 MiB, more than 8 MiB"),
    "large directory": (_large_directory, "its directory takes .* MiB"),
    "many": (lambda p: archive(p, [(f"{i}.npy", npy(X)) for i in range(1001)]), "1001 arrays, more than 1000"),
    "comment": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(200) + b"PK\x05\x06"), "a damaged archive"),
    "nothing": (lambda p: p.touch(), "it is empty"),
    "text": (lambda p: p.write_text("hello"), "no .npz file"),
    "start of a zip": (lambda p: p.write_bytes(b"PK\x03\x04 not a zip"), "a damaged archive"),
    "one array": (lambda p: p.write_bytes(npy(X)), "a single array"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_are_refused(tmp_path, kind):
    make, why = ARCHIVES[kind]
    make(tmp_path / "it.npz")
    with refused(r"it\.npz: cannot be read", why, "; use savez$"):
        read_arrays(tmp_path / "it.npz", hint="use savez", most=8 * 2**20)


def test_a_lie_is_found_before_anything_is_allocated(tmp_path, monkeypatch):
    archive(tmp_path / "it.npz", [("good.npy", npy(X)), ("bad.npy", LIES["terabytes"][0])])
    monkeypatch.setattr(np, "empty", lambda *a, **k: pytest.fail("allocated"))
    for read in (read_headers, read_arrays):
        with refused("7.28 TiB"):
            read(tmp_path / "it.npz", hint="")


def test_a_directory_larger_than_4_gib_of_archive_is_found(tmp_path, monkeypatch):
    """The other form of the last record, that archives above 4 GiB have."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    np.savez(tmp_path / "it.npz", x=X)
    assert b"PK\x06\x06" in (tmp_path / "it.npz").read_bytes()
    np.testing.assert_array_equal(read_arrays(tmp_path / "it.npz", hint="")["x"], X)
    content = bytearray((tmp_path / "it.npz").read_bytes())
    at = content.index(b"PK\x06\x06") + 40
    content[at : at + 8] = struct.pack("<Q", 2**40)
    (tmp_path / "it.npz").write_bytes(content)
    with refused("its directory takes 1 TiB"):
        read_arrays(tmp_path / "it.npz", hint="")


@given(at=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 60))
@settings(deadline=None, max_examples=150)
def test_any_damaged_archive_is_read_right_or_refused(tmp_path_factory, at, value, cut):
    whole = io.BytesIO()
    np.savez_compressed(whole, x=np.arange(50.0).reshape(5, 10), y=np.array(["cat", "dog"]))
    content = bytearray(whole.getvalue())
    content[at % len(content)] = value
    path = tmp_path_factory.mktemp("arrays") / "it.npz"
    path.write_bytes(content[: len(content) - cut] if cut > 30 else content)
    try:
        found = read_arrays(path, hint="use savez")
    except InputError:
        return
    assert all(array.size <= 50 for array in found.values())
