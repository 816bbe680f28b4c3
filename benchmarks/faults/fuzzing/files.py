"""Edits of files: of their bytes, of their JSON, and other things in their place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzing.strategies import paths
from fuzzing.values import odd, value_of

__all__ = ["byte_edits", "can_edit", "edit_bytes", "edit_json", "json_edits", "position"]


def position(size: int, share: float) -> int:
    return min(int(share * size), max(size - 1, 0))


def can_edit(path: Path) -> bool:
    """Whether a file holds what an edit can change. An edit before may have made it a pipe, or a file of 4 TiB."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 2**26


def edit_bytes(path: Path, kind: str, share: float) -> None:
    if not can_edit(path):
        return
    content = bytearray(path.read_bytes())
    at = position(len(content), share)
    if kind == "flip" and content:
        content[at] ^= 0x55
    elif kind == "cut":
        content = content[:at]
    elif kind == "insert":
        content[at:at] = b"\xff\x00[" * 5
    elif kind == "zeros":
        content[at : at + 16] = bytes(len(content[at : at + 16]))
    elif kind == "deep":
        content = bytearray(b"[" * 100_000)
    elif kind == "digits":
        content = bytearray(b"9" * 5000)
    elif kind == "bom":
        content = bytearray(b"\xff\xfe") + content
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**42)
    elif kind != "gone":
        path.write_bytes(bytes(content))


_BYTES = (
    "flip",
    "flip",
    "cut",
    "insert",
    "zeros",
    "deep",
    "digits",
    "bom",
    "fifo",
    "folder",
    "loop",
    "zero",
    "sparse",
    "gone",
    "empty",
)


@st.composite
def byte_edits(draw: st.DrawFn, files: tuple[str, ...]) -> list[Any]:
    return ["bytes", draw(st.sampled_from(files)), draw(st.sampled_from(_BYTES)), draw(st.integers(0, 999)) / 1000]


def edit_json(path: Path, share: float, kind: str, expression: str) -> None:
    if not can_edit(path):
        return
    tables = json.loads(path.read_text())
    every = [*paths(tables)]
    if not every:
        return
    *above, last = every[position(len(every), share)]
    holder = tables
    for part in above:
        holder = holder[part]
    if kind == "drop":
        del holder[last]
    elif kind == "rename" and isinstance(holder, dict):
        holder["another"] = holder.pop(last)
    else:
        holder[last] = value_of(expression)
    path.write_text(json.dumps(tables))


@st.composite
def json_edits(draw: st.DrawFn, file: str) -> list[Any]:
    kind = draw(st.sampled_from(("set", "set", "set", "drop", "rename")))
    return ["json", file, draw(st.integers(0, 9999)) / 10000, kind, draw(odd())]
