"""Files of unknown origin: what is no plain, readable file of a known size is refused in one line, at once."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from art_qplugins.errors import InputError
from art_qplugins.files import as_path, in_words, open_file, read_bytes, read_json, read_text

posix = pytest.mark.skipif(os.name != "posix", reason="pipes, modes and odd names are POSIX's")


@pytest.fixture(autouse=True)
def _no_waiting():
    """What waits is stopped: a pipe without a writer would wait for ever."""
    if os.name != "posix":
        yield
        return

    def stop(*_):
        raise TimeoutError("it waited for 10 seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(*parts):
    """Raises InputError in one line of at most 300 characters that ends in the hint and holds these parts."""
    pattern = "^(?s:" + "".join(f"(?=.*{part})" for part in parts) + r")[^\n]{1,300}$"
    return pytest.raises(InputError, match=pattern)


def _folder(path):
    path.mkdir()


def _to_itself(path):
    path.symlink_to(path)


def _round(path):
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)  # the whole path may be too long for a socket
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


ODD = {
    "missing": (lambda path: None, "no such file"),
    "folder": (_folder, "it is a folder"),
    "pipe": (os.mkfifo, "it is a pipe"),
    "socket": (_socket, "it is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "a symbolic link to nothing"),
    "link to itself": (_to_itself, "lead back to themselves"),
    "links in a circle": (_round, "lead back to themselves"),
    "link to a pipe": (lambda p: (os.mkfifo(p.with_name("pipe")), p.symlink_to("pipe")), "it is a pipe"),
    "below a file": (lambda path: path.parent.joinpath("file").touch(), "no such file"),
    "too large": (lambda path: path.write_bytes(bytes(2049)), "it holds 2 KiB, more than 2 KiB"),
    "huge and empty": (lambda path: (path.touch(), os.truncate(path, 2**40)), "it holds 1 TiB, more than 2 KiB"),
}


@posix
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("read", [open_file, read_bytes, read_text, read_json])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind, read):
    make, why = ODD[kind]
    make(tmp_path / "it")
    with refused(f"^model {tmp_path}/it: cannot be read", why, "; give a model$"):
        read(tmp_path / "it", most=2048, hint="give a model", where="model ")


@posix
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "it"
    path.touch()
    really = open

    def swapped(*args, **options):
        path.unlink()
        os.mkfifo(path)
        return really(*args, **options)

    monkeypatch.setattr("builtins.open", swapped)
    with refused("it is a pipe"):
        open_file(path, most=2048, hint="give a file")


@posix
@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    (tmp_path / "it").touch(mode=0)
    with refused("no permission"):
        open_file(tmp_path / "it", most=2048, hint="give a file")


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("", ["the path is empty"]),
        ("a\0b", ["NUL"]),
        ("~nobody-has-this-name/x", ["~nobody-has-this-name/x: ", "no such user"]),
        ("caf\udce9", ["not UTF-8", "rename"]),
        ("half \ud800", ["not UTF-8", "rename"]),
        ("x" * 300, ["name is too long"]),
        ("x/" * 5000, ["name is too long"]),
        (b"bytes", ["b'bytes' is no path"]),
        (None, ["None is no path"]),
        (5, ["5 is no path"]),
    ],
)
def test_names_that_no_file_has(path, parts):
    with refused("^weights ", *parts, "; give a file$") as caught:
        open_file(path, most=2048, hint="give a file", where="weights ")
    assert str(caught.value).isprintable()


def test_the_home_folder_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "it").write_bytes(b"here")
    assert as_path("~/it", hint="") == tmp_path / "it"
    assert read_bytes("~/it", most=4, hint="") == b"here"


def test_what_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "it").write_bytes(b"12345")
    monkeypatch.setattr("art_qplugins.files._unfit", lambda found, most: None)
    with refused("larger than 4 bytes"):
        read_bytes(tmp_path / "it", most=4, hint="give a file")


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 bytes"), (1023, "1.02e+03 bytes"), (1536, "1.5 KiB"), (2**31, "2 GiB")]
)
def test_sizes_in_words(size, words):
    assert in_words(size) == words


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b'{"a": 1} x', "Extra data"),
        (b"[" * 100_000, "nested more than 50 deep"),
        (b'{"a":' * 100_000, "nested more than 50 deep"),
        (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "nested more than 50 deep"),
        (b'{"a": NaN}', "the number NaN"),
        (b'{"a": -Infinity}', "the number -Infinity"),
        (b'{"a": 1e999}', "an infinite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a whole number of 5000 digits"),
        (b'{"a": ' + b"9" * 30 + b"}", "a whole number of 30 digits"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\xff"}', "no UTF-8 text"),
        (b"\xff\xfe{\0}\0", "no UTF-8 text"),
        (b"[]", "a list in place of an object"),
        (b"null", "a NoneType in place of an object"),
        (b"1", "a int in place of an object"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_json_that_is_refused(tmp_path, content, why):
    (tmp_path / "it.json").write_bytes(content)
    with refused(r"it\.json: ", why, "; run it again$"):
        read_json(tmp_path / "it.json", most=2**20, hint="run it again")


def test_json_that_is_read(tmp_path):
    text = '{"a": [1, -2.5, "\\u00e9", null, true], "b": {"c": 12345678901234567890}, "d": ' + "[" * 49 + "]" * 49 + "}"
    (tmp_path / "it.json").write_text(text)
    found = read_json(tmp_path / "it.json", most=2**20, hint="")
    assert (found["a"], found["b"]) == ([1, -2.5, "\u00e9", None, True], {"c": 12345678901234567890})
