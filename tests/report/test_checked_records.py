"""Records that contradict themselves are refused in one line, and none is believed."""

from __future__ import annotations

import functools
import json
import marshal
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import build_run

from art_qplugins.errors import InputError
from art_qplugins.report import read_run, write_report

Change = Callable[[dict[str, Any], list[dict[str, Any]]], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    build_run(folder)
    return folder


@functools.cache
def _content(folder: Path) -> bytes:
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return marshal.dumps((json.loads((folder / "results.json").read_text()), [json.loads(line) for line in lines]))


def content(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The records of a folder, to be changed. They are parsed once, and marshal copies them fast."""
    results, samples = marshal.loads(_content(folder))
    return results, samples


def write(folder: Path, results: Any, samples: list[Any]) -> None:
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in samples))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300
    return str(caught.value)


def partial(results: dict[str, Any]) -> dict[str, Any]:
    """The cell on 190 of 200 images."""
    return next(cell for cell in results["cells"] if cell["n"] == 190)


EPOCHS = [{"epoch": epoch, "loss": 1.0, "learning_rate": 0.1, "images_per_second": 9.0} for epoch in (1, 2, 3)]


def trained(results: dict[str, Any], place: int = 1, **changes: object) -> None:
    """A model with a curve of three epochs, one of which is changed."""
    results["training"] = {"net": [told | (changes if row == place else {}) for row, told in enumerate(EPOCHS)]}


CHANGES: list[tuple[str, Change]] = [
    ("correct of image 'digits-0000' is 5.5", lambda r, s: s[0].update(correct=5.5)),
    ("correct of image 'digits-0003' is -0.1", lambda r, s: s[3].update(correct=-0.1)),
    ("selection of image", lambda r, s: s[0].update(selection=1.01)),
    ("distance of image", lambda r, s: s[0].update(distance=-1e-9)),
    ("label: Input should be greater", lambda r, s: s[0].update(label=-1)),
    ("line 1: correct: Input should be a valid number", lambda r, s: s[0].update(correct=None)),
    ("line 1: correct: Input should be a valid number", lambda r, s: s[0].update(correct="1")),
    ("line 1: correct: Input should be a valid number", lambda r, s: s[0].update(correct=True)),
    ("line 1: label: Input should be a valid integer", lambda r, s: s[0].update(label=0.5)),
    ("line 1: sample: Input should be a valid string", lambda r, s: s[0].update(sample=7)),
    ("line 1: corect: Extra inputs", lambda r, s: s[0].update(corect=1.0)),
    ("line 2: correct: Field required", lambda r, s: s[1].pop("correct")),
    ("its accuracy is 0.965, and the mean of its images is 0.96;", lambda r, s: s[199].update(correct=0.0)),
    ("its accuracy is 0.9, and", lambda r, s: r["cells"][0].update(accuracy=0.9)),
    (
        "cells.0.accuracy: Input should be less than or equal to 1 (it is 17",
        lambda r, s: r["cells"][0].update(accuracy=17),
    ),
    ("less than or equal to 1", lambda r, s: r["models"][0].update(clean_accuracy=17)),
    ("clean_accuracy is 0.5, and by its cells 0.965", lambda r, s: r["models"][0].update(clean_accuracy=0.5)),
    ("corrected accuracy is 0.9", lambda r, s: r["models"][0]["claim"].update(corrected=0.9)),
    ("models: 'fp32': n is 100, and by its cells 200", lambda r, s: r["models"][0].update(n=100)),
    ("lower end 0.9 is above its upper end 0.1", lambda r, s: r["cells"][0].update(interval=[0.9, 0.1])),
    ("it is on 200 images, and 199 are there", lambda r, s: s.pop()),
    ("an image is there twice", lambda r, s: s[1].update(sample=s[0]["sample"])),
    ("it is on 200 images, and 201 are there", lambda r, s: s.append(s[-1])),
    ("there is no such cell", lambda r, s: s[-1].update(cell="no-such-cell")),
    ("image 0 is 'digits-0001' of class 1", lambda r, s: s.insert(200, s.pop(201))),
    ("image 0 is 'digits-0000' of class 3", lambda r, s: s[200].update(label=3)),
    ("it is on 200 images, and the run on 100", lambda r, s: r["data"].update(n=100)),
    ("is there twice", lambda r, s: r["cells"].append(r["cells"][0])),
    ("is there twice", lambda r, s: r["models"].append(r["models"][0])),
    ("its rows are not 190 of 200 images", lambda r, s: partial(r)["rows"].append(3)),
    ("its rows are not 190 of 200 images", lambda r, s: partial(r)["rows"].__setitem__(0, 11)),
    ("its rows are not 190 of 100 images", lambda r, s: partial(r).update(of=100)),
    ("rows and of belong together", lambda r, s: partial(r).update(of=None)),
    ("image 5 is 'digits-0010'", lambda r, s: partial(r)["rows"].__setitem__(0, 5)),
    ("its status is error, and it has results", lambda r, s: r["cells"][0].update(status="error")),
    ("cells.0.eps: Input should be greater than or equal to 0", lambda r, s: r["cells"][0].update(eps=-1)),
    ("cells.0.norm: Input should be 'Linf', 'L2', 'L1' or 'L0'", lambda r, s: r["cells"][0].update(norm="Linff")),
    ("cells.0.forward_samples", lambda r, s: r["cells"][0].update(forward_samples=2**63)),
    ("cells.0.undefined", lambda r, s: r["cells"][0].update(undefined=2**63)),
    ("whole number of 31 digits", lambda r, s: r["cells"][0].update(n=10**30)),
    ("cells: Input should be a valid array", lambda r, s: r.update(cells={})),
    ("models.0: Input should be an object", lambda r, s: r.update(models=["fp32"])),
    ("models.0.claim: Input should be an object", lambda r, s: r["models"][0].update(claim=[])),
    ("spec.resolved: Input should be an object", lambda r, s: r["spec"].update(resolved=[1])),
    ("spec.resolved.models", lambda r, s: r["spec"]["resolved"].update(models=5)),
    ("spec.resolved.models.0", lambda r, s: r["spec"]["resolved"].update(models=[{"replicate_of": "a"}])),
    ("spec.resolved.suite_notes", lambda r, s: r["spec"]["resolved"].update(suite_notes=[1])),
    ("data.sha256: Input should be a valid string", lambda r, s: r["data"].update(sha256=[1])),
    ("environment.git.commit", lambda r, s: r["environment"].update(git={"dirty": True})),
    ("training.net: Value error, epoch 3 is in the place of epoch 2", lambda r, s: trained(r, epoch=3)),
    ("epoch 2 is in the place of epoch 1", lambda r, s: trained(r, 0, epoch=2)),
    ("training.net.1.epoch: Input should be greater", lambda r, s: trained(r, epoch=-2)),
    ("training.net.1.epoch: Input should be a valid integer", lambda r, s: trained(r, epoch=2.5)),
    ("training.net.1.loss: Input should be a valid number", lambda r, s: trained(r, loss=None)),
    ("the number NaN", lambda r, s: trained(r, loss=float("nan"))),
    ("training.net.1.loss: Input should be less", lambda r, s: trained(r, loss=1e31)),
    ("training.net.1.learning_rate: Input should be greater", lambda r, s: trained(r, learning_rate=-0.1)),
    ("training.net.1.images_per_second: Input should be greater", lambda r, s: trained(r, images_per_second=-1)),
    ("training.net.1.validation_accuracy: Input should be less", lambda r, s: trained(r, validation_accuracy=97.5)),
    ("training.net.1.robust_validation_accuracy", lambda r, s: trained(r, robust_validation_accuracy=-0.1)),
    ("training.net.1.accuracy: Extra inputs", lambda r, s: trained(r, accuracy=0.5)),
    ("training.net: Input should be a valid array", lambda r, s: r.update(training={"net": {}})),
    (
        "spec.resolved.models.0.GivenModel.train",
        lambda r, s: r["spec"]["resolved"].update(models=[{"name": "a", "train": 5}]),
    ),
    ("'a'", lambda r, s: r["models"][0]["robust"][0].update(attacks=["a"])),
    ("robust accuracy at Linf 0.05", lambda r, s: r["models"][0]["robust"][0].update(attacks=[r["cells"][0]["id"]])),
]


@pytest.mark.parametrize(("message", "change"), CHANGES, ids=[f"{i}-{m[:40]}" for i, (m, _) in enumerate(CHANGES)])
def test_what_contradicts_itself_is_refused(message: str, change: Change, made: Path, tmp_path: Path) -> None:
    results, samples = content(made)
    change(results, samples)
    write(tmp_path, results, samples)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", "1e400", "[" * 100_000, '{"a":' * 100_000, "1" * 5000]
)
@pytest.mark.parametrize("file", ["results.json", "samples.jsonl"])
def test_numbers_and_depths_that_json_does_not_have(file: str, text: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    old = (tmp_path / file).read_text()
    place = '"margin":' if file == "samples.jsonl" else '"seconds":'
    at = old.index(place) + len(place)
    (tmp_path / file).write_text(old[:at] + text + old[old.index(",", at) :])
    assert file in refusal(tmp_path)


@pytest.mark.parametrize("column", ["label", "prediction"])
@pytest.mark.parametrize("value", ["-1", "-" + "9" * 400, "9" * 400, "0.5", '"3"', "null", "true"])
def test_classes_that_are_none(column: str, value: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "samples.jsonl"
    path.write_text(re.sub(rf'"{column}": ?\d+', f'"{column}":{value}', path.read_text(), count=1))
    assert "samples.jsonl" in refusal(tmp_path)


@pytest.mark.parametrize("cut", [1, 20, 100_000])
def test_a_file_that_was_cut_says_so(cut: int, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert "it is cut short" in refusal(tmp_path)


@pytest.mark.parametrize("file", ["results.json", "samples.jsonl"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to itself", "device", "not UTF-8", "empty"])
def test_what_is_no_file_is_one_line(kind: str, file: str, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    path = tmp_path / file
    path.unlink()
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to itself": lambda: path.symlink_to(path.name),
        "device": lambda: path.symlink_to("/dev/zero"),
        "not UTF-8": lambda: path.write_bytes(b"\xff\xfe\n"),
        "empty": lambda: path.write_bytes(b""),
    }[kind]()
    assert str(tmp_path) in refusal(tmp_path)


def test_samples_of_an_earlier_run_are_not_those_of_one_that_began(made: Path, tmp_path: Path) -> None:
    results, samples = content(made)
    write(tmp_path, {**results, "status": "started", "cells": [], "models": []}, samples)
    assert read_run(tmp_path).samples == {}


def test_settings_of_an_attack_may_be_of_any_type(made: Path, tmp_path: Path) -> None:
    """They are those of a library, or of another package."""
    results, samples = content(made)
    for cell, value in zip(results["cells"], ["x", None, [], {}, True, 1e30], strict=False):
        cell["params"] = {"temperature": value, "max_iter": value}
    write(tmp_path, results, samples)
    write_report(tmp_path)


# --- Any change

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)


def _places(part: Any) -> list[tuple[Any, Any]]:
    """Each place in nested lists and dicts: what holds it, and its key there."""
    keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
    return [place for key in keys for place in [(part, key), *_places(part[key])]]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_is_read_as_it_is_or_refused(data: st.DataObject, made: Path, tmp_path: Path) -> None:
    """No exception but InputError; and what is read is what was written."""
    results, samples = content(made)
    files: list[Any] = [results] * 2 + [samples]
    whole = data.draw(st.sampled_from(files))
    places = _places(whole if whole is results else samples[:: len(samples) // 7])
    holder, key = places[data.draw(st.integers(0, len(places) - 1))]
    if data.draw(st.booleans()):
        holder[key] = data.draw(_SCALARS)
    else:
        del holder[key]
    write(tmp_path, results, samples)
    try:
        found = read_run(tmp_path)
    except InputError:
        return
    for cell in found.results.cells:
        assert cell.accuracy is None or 0 <= cell.accuracy <= 1
        right = [sample.correct for sample in found.samples.get(cell.id, [])]
        assert not right or abs(sum(right) / len(right) - (cell.accuracy or 0)) < 1e-9
