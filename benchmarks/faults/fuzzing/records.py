"""Records of a run and its evidence with edits, as ``report``, ``compare`` and ``replay`` read them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzzing.apart import Result, command
from fuzzing.files import byte_edits, can_edit, edit_bytes, edit_json, json_edits, position
from fuzzing.judge import Found, judged, timed, wrong_numbers
from fuzzing.strategies import Case
from fuzzing.values import NUMBERS, odd, value_of

__all__ = ["records", "run_records"]

#: What makes evidence illegal, whatever else is changed in it.
_FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "x-nan": lambda a: a["x"].__setitem__(0, np.nan),
    "x_adv-nan": lambda a: a["x_adv"].__setitem__((0, 0, 0), np.nan),
    "all-nan": lambda a: [a[k].fill(np.nan) for k in ("x", "x_adv")],
    "x_adv-2": lambda a: a["x_adv"].__setitem__(0, 2.0),
    "x-far": lambda a: a.update(x=1.0 - a["x_adv"].round()),
    "x-outside": lambda a: a.update(x=a["x_adv"] + 3.0),
    "eps-nan": lambda a: a.update(eps=np.array(np.nan)),
    "eps-inf": lambda a: a.update(eps=np.array(np.inf)),
    "eps-tiny": lambda a: a.update(eps=np.array(1e-6)),
    "eps-below-0": lambda a: a.update(eps=np.array(-0.1)),
    "y-99": lambda a: a.update(y=a["y"] + 90),
    "y-below-0": lambda a: a.update(y=a["y"] - 50),
    "norm": lambda a: a.update(norm=np.array("L7")),
    "clean": lambda a: a.update(x_adv=a["x"].copy(), y=a["y"]),
}
_OTHER: dict[str, Callable[[dict[str, Any]], None]] = {
    "x-int": lambda a: a.update(x=a["x"].astype(int)),
    "x-double": lambda a: a.update(x=a["x"].astype(np.float64)),
    "x_adv-half": lambda a: a.update(x_adv=a["x_adv"].astype(np.float16)),
    "y-float": lambda a: a.update(y=a["y"].astype(float)),
    "y-two": lambda a: a.update(y=np.stack([a["y"]] * 2)),
    "cut-x": lambda a: a.update(x=a["x"][:-1]),
    "flat": lambda a: a.update(x=a["x"].reshape(len(a["x"]), -1)),
    "none": lambda a: a.update(x=a["x"][:0], x_adv=a["x_adv"][:0], y=a["y"][:0], ids=a["ids"][:0]),
    "ids": lambda a: a.update(ids=a["ids"][:-1]),
    "no-y": lambda a: a.pop("y"),
    "no-norm": lambda a: a.pop("norm"),
    "eps-two": lambda a: a.update(eps=np.array([0.1, 0.2])),
    "eps-text": lambda a: a.update(eps=np.array("0.1")),
    "objects": lambda a: a.update(ids=np.array([{}], dtype=object)),
}
_ROWS = ("correct", "selection", "distance", "label", "prediction", "cell", "sample", "margin", "loss", "measures")


@st.composite
def records(draw: st.DrawFn) -> Case:
    how = draw(st.sampled_from(["report", "compare", "compare", "replay"]))
    if how == "replay":
        one = st.sampled_from([*_FORGED, *_OTHER]).map(lambda kind: ["arrays", kind])
        edit = st.one_of(one, one, byte_edits(("e.npz",)))
    else:
        row = st.tuples(
            st.just("row"),
            st.integers(0, 999).map(lambda n: n / 1000),
            st.sampled_from(_ROWS),
            st.one_of(st.sampled_from(NUMBERS), odd()),
        )
        line = st.tuples(
            st.just("line"),
            st.integers(0, 999).map(lambda n: n / 1000),
            st.sampled_from(("drop", "twice", "half", "move")),
        )
        whole = st.tuples(st.just("all"), st.sampled_from(("correct", "selection")), st.sampled_from(NUMBERS))
        files = byte_edits(("b/results.json", "b/samples.jsonl"))
        edit = st.one_of(
            json_edits("b/results.json"), row.map(list), line.map(list), whole.map(list), files, st.just(["worse"])
        )
    return {"how": how, "edits": draw(st.lists(edit, min_size=1, max_size=2, unique_by=repr))}


def run_records(case: Case, stage: Path) -> Found:
    if case["how"] == "replay":
        return _replayed(case, stage)
    shutil.copytree(stage / "real", "b", ignore=shutil.ignore_patterns("checkpoints", "cells", "evidence", "*.html"))
    for edit in case["edits"]:
        try:
            _record_edit(edit)
        except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
            continue
    if case["how"] == "report":
        return judged(timed(5, lambda: command("report", "b")), _reported)
    limits = ["--fail-on", "robust_accuracy:-1%", "--fail-on", "clean_accuracy:-1%"]
    worse = _is_worse(case["edits"])
    result = timed(5, lambda: command("compare", stage / "real", "b", *limits))
    return judged(result, lambda r: _compared(r, worse), ends=(0, 1))


def _is_worse(edits: list[Any]) -> bool:
    """Whether B has fewer right answers than A, or none that are numbers in [0, 1], by the last edit of all samples."""
    last = next((edit for edit in reversed(edits) if edit[0] in ("worse", "all")), None)
    if last is None or last == ["worse"]:
        return last is not None
    value = value_of(last[2])
    return value != 1 if last[1] == "correct" else not 0 <= value <= 1


def _compared(result: Result, worse: bool) -> str:
    if result.status == 1:
        return "" if "FAILED" in result.out else "status 1 without FAILED"
    return "a run that is worse passes --fail-on" if worse else wrong_numbers(result)


def _reported(result: Result) -> str:
    page = Path("b/results.md").read_text()
    return wrong_numbers(Result(0, out=page))


def _record_edit(edit: list[Any]) -> None:
    kind, *rest = edit
    samples = Path("b/samples.jsonl")
    if kind == "bytes":
        return edit_bytes(Path(rest[0]), *rest[1:])
    if kind == "json":
        return edit_json(Path(rest[0]), *rest[1:])
    if not can_edit(samples) or (kind == "worse" and not can_edit(Path("b/results.json"))):
        return None
    lines = samples.read_text().splitlines()
    if kind == "worse":
        return _worse(lines)
    if kind == "all":
        rows = [
            json.dumps({**json.loads(line), rest[0]: value_of(rest[1]), "selection": value_of(rest[1])})
            for line in lines
        ]
        samples.write_text("\n".join(rows) + "\n")
        return None
    at = position(len(lines), rest[0])
    if kind == "row":
        lines[at] = json.dumps({**json.loads(lines[at]), rest[1]: value_of(rest[2])})
    else:
        changed = {"drop": [], "twice": [lines[at]] * 2, "half": [lines[at][: len(lines[at]) // 2]], "move": []}[
            rest[1]
        ]
        moved = [lines[at]] if rest[1] == "move" else []
        lines = [*lines[:at], *changed, *lines[at + 1 :], *moved]
    samples.write_text("\n".join(lines) + "\n")
    return None


def _worse(lines: list[str]) -> None:
    """Every image is wrong in every attack, in the samples and in the results."""
    tables = json.loads(Path("b/results.json").read_text())
    hit = {cell["id"] for cell in tables["cells"] if cell["role"] != "clean"}
    for cell in tables["cells"]:
        if cell["id"] in hit and cell["accuracy"] is not None:
            cell["accuracy"] = 0.0
    for model in tables["models"]:
        for robust in model["robust"]:
            robust["accuracy"] = 0.0
    Path("b/results.json").write_text(json.dumps(tables))
    rows = [json.loads(line) for line in lines]
    rows = [{**row, "correct": 0.0, "selection": 0.0} if row["cell"] in hit else row for row in rows]
    Path("b/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _replayed(case: Case, stage: Path) -> Found:
    source = next((stage / "real" / "evidence").glob("fp32*.npz"))
    with np.load(source) as stored:
        arrays = {key: stored[key] for key in stored.files}
    kinds = [edit[1] for edit in case["edits"] if edit[0] == "arrays"]
    for kind in kinds:
        try:
            (_FORGED | _OTHER)[kind](arrays)
        except (KeyError, ValueError, IndexError, TypeError):
            continue
    np.savez(Path("e.npz"), **arrays)
    for edit in case["edits"]:
        if edit[0] == "bytes":
            edit_bytes(Path("e.npz"), *edit[2:])
    sys.path.append(str(stage))
    asked = ["replay", "e.npz", "--model", "bright:net", "--checkpoint", stage / "fp32.safetensors"]
    result = timed(5, lambda: command(*asked))
    sys.path.remove(str(stage))
    forged = next((kind for kind in kinds if kind in _FORGED), "")
    if "clean" in kinds and len(kinds) > 1:  # another edit may have made the clean images ones that break the network
        forged = ""
    return judged(result, lambda r: f"forged evidence: {forged}" if forged and r.status == 0 else "", ends=(0, 1))
