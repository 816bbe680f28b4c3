"""Checkpoints with edits of weights, bytes and description, as ``artq train`` and ``artq diagnose`` load them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors import SafetensorError

from fuzzing.apart import command
from fuzzing.files import byte_edits, can_edit, edit_bytes, edit_json, json_edits, position
from fuzzing.judge import Found, judged, timed
from fuzzing.strategies import Case

__all__ = ["checkpoints", "run_checkpoint"]

_WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "nan": lambda v: v * float("nan"),
    "inf": lambda v: v / 0,
    "int8": lambda v: v.char(),
    "bool": lambda v: v > 0,
    "complex": lambda v: v.to(torch.complex64),
    "half": lambda v: v.half(),
    "double": lambda v: v.double(),
    "transposed": lambda v: v.transpose(0, -1).contiguous() if v.ndim > 1 else v,
    "more": lambda v: torch.cat([v, v]) if v.ndim else v,
}
_FILES = ("net.safetensors", "net.json")


@st.composite
def checkpoints(draw: st.DrawFn) -> Case:
    edit = st.one_of(
        byte_edits(_FILES),
        json_edits("net.json"),
        st.tuples(st.just("weights"), st.sampled_from([*_WEIGHTS]), st.integers(0, 999).map(lambda n: n / 1000)).map(
            list
        ),
        st.just(["drop-json"]),
        st.just(["hash"]),
        st.just(["other"]),
    )
    how = draw(st.sampled_from(["train", "train", "train", "train", "train", "train", "diagnose"]))
    return {
        "how": how,
        "hash": draw(st.booleans()),
        "edits": draw(st.lists(edit, min_size=1, max_size=2, unique_by=repr)),
    }


def run_checkpoint(case: Case, stage: Path) -> Found:
    """``train`` loads a model's checkpoint, ``diagnose`` the weights of a module. The hash may be made right again."""
    kinds = [edit[0] for edit in case["edits"]]
    for suffix in (".safetensors", ".json"):
        shutil.copy(stage / f"{'mapped' if 'other' in kinds else 'fp32'}{suffix}", f"net{suffix}")
    for edit in case["edits"]:
        try:
            _checkpoint_edit(edit)
        except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError, MemoryError, SafetensorError):
            continue
    if case["hash"] and not any(edit[0] == "bytes" and edit[2] in ("sparse", "zero", "fifo") for edit in case["edits"]):
        _right_hash()
    if case["how"] == "train":
        model = '{name="fp32", architecture={name="convnet", options={width=4}}, checkpoint="net.safetensors"}'
        text = (
            f'name="c"\ndata={{name="digits"}}\nthreat={{eps=[0.1]}}\nmodels=[{model}]\nattacks=[{{id="art:fgsm"}}]\n'
        )
        Path("recipe.toml").write_text(text)
        result = timed(5, lambda: command("train", "recipe.toml"))
    else:
        sys.path.append(str(stage))
        more = ["--data", "digits", "--limit", "4", "--level", "0", "--out", "out", "--eps", "0.1"]
        result = timed(
            20, lambda: command("diagnose", "--model", "bright:net", "--checkpoint", "net.safetensors", *more)
        )
        sys.path.remove(str(stage))
    return judged(result, lambda _: _loaded(kinds, case), ends=(0, 3))


def _loaded(kinds: list[str], case: Case) -> str:
    weights = [edit[1] for edit in case["edits"] if edit[0] == "weights"]
    if any(kind not in ("half", "double") for kind in weights) and can_edit(Path("net.safetensors")):
        changed = hashlib.sha256(Path("net.safetensors").read_bytes()).hexdigest()
        return f"weights {weights[0]}" if weights[0] != "transposed" and changed else ""
    if "other" in kinds and case["how"] == "train" and "drop-json" not in kinds and Path("net.json").is_file():
        return "the weights of another model"
    return ""


def _checkpoint_edit(edit: list[Any]) -> None:
    from safetensors.torch import load_file, save_file

    kind, *rest = edit
    if kind == "weights" and not can_edit(Path("net.safetensors")):
        return
    if kind == "bytes":
        edit_bytes(Path(rest[0]), *rest[1:])
    elif kind == "json":
        edit_json(Path(rest[0]), *rest[1:])
    elif kind == "drop-json":
        Path("net.json").unlink()
    elif kind == "weights":
        state = load_file("net.safetensors")
        floats = [name for name, value in state.items() if value.is_floating_point()]
        name = floats[position(len(floats), rest[1])]
        state[name] = _WEIGHTS[rest[0]](state[name])
        save_file(state, "net.safetensors")


def _right_hash() -> None:
    try:
        tables = json.loads(Path("net.json").read_text())
        tables["sha256"] = hashlib.sha256(Path("net.safetensors").read_bytes()).hexdigest()
        Path("net.json").write_text(json.dumps(tables))
    except (OSError, ValueError, TypeError, RecursionError):
        pass
