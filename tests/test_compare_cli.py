"""``artq compare``: two runs on the same images, whose differences are known image by image."""

from __future__ import annotations

import json
import math
import re
from math import comb
from pathlib import Path

import pytest
from pydantic import ValidationError

from art_qplugins.errors import InputError
from art_qplugins.evaluation.records import Cell, Claim, Difference, Environment, ModelResult, Results, Sample
from art_qplugins.report.limits import parse_limit

N = 40


def write_run(folder: Path, models: dict[str, tuple[set[int], set[int]]], *, images: int = N) -> Path:
    """:param models: by name, the rows that are right when clean and those that are right under attack."""
    folder.mkdir()
    cells, lines, results = [], [], []
    for name, (clean, robust) in models.items():
        for role, eps, right in (("clean", 0.0, clean), ("attack", 0.1, robust)):
            cell = Cell(
                **{"id": f"{name}.{role}", "model": name, "source": name, "attack": "art:pgd", "role": role},
                **{"params": {}, "norm": "Linf", "eps": eps, "seed": 0, "n": images, "status": "success"},
                **{"accuracy": len(right) / images, "interval": (0.0, 1.0), "seconds": 0.1},
                **{"forward_samples": images, "backward_samples": images},
            )
            cells.append(cell)
            for row in range(images):
                correct = float(row in right)
                sample = Sample(
                    **{"cell": cell.id, "sample": f"s/{row:02d}", "label": 0, "prediction": int(row not in right)},
                    **{"correct": correct, "selection": correct, "distance": eps, "margin": None, "loss": None},
                )
                lines.append(sample.model_dump_json())
        results.append(
            ModelResult(
                **{"name": name, "description": "", "stochastic": False, "clean_accuracy": len(clean) / images},
                **{"clean_interval": (0.0, 1.0), "n": images, "robust": [], "verdict": "INCONCLUSIVE", "summary": ""},
                **{"claim": Claim(status="NONE"), "findings": []},
            )
        )
    environment = Environment(packages={}, python="", platform="", device="cpu", git=None)
    whole = Results(
        **{"status": "success", "created": "2026-01-01T00:00:00Z", "spec": {}, "models": results, "cells": cells},
        **{"data": {"name": "s", "sha256": "ab"}, "environment": environment},
    )
    (folder / "results.json").write_text(whole.model_dump_json(by_alias=True))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def runs(tmp_path):
    """B loses ten images of ``net`` under attack that A had and wins two; ``same`` is the same in both."""
    everything, some = set(range(N)), set(range(20))
    a = write_run(tmp_path / "a", {"net": (everything, some), "same [x]": (everything, some), "old": (some, some)})
    lost = (some - set(range(10))) | {30, 31}
    b = write_run(tmp_path / "b", {"net": (everything, lost), "same [x]": (everything, some)})
    return a, b


def test_the_table_is_what_the_images_say(artq, runs):
    status, out, err = artq("compare", *runs)
    assert (status, err) == (0, "") and all(len(line) <= 80 for line in out.splitlines())
    rows = [line.split() for line in out.splitlines()]
    row = next(row for row in rows if row[:2] == ["net", "Linf"])
    # Exact McNemar: twelve images differ and two of them go one way.
    p = 2 * sum(comb(12, k) for k in range(3)) / 2**12
    assert row[2:8] == ["0.1", "50", "%", "30", "%", "-20"] and row[-2:] == [f"{p:.2g}", f"{4 * p:.2g}"]
    low, high = (float(part.strip("[],")) for part in row[8:10])
    assert low < -20 < high < 0
    assert next(row for row in rows if row[:3] == ["same", "[x]", "clean"])[-3:] == ["0]", "1", "1"]
    assert "n = 40 images" in out and "only in A: old" in out


@pytest.mark.parametrize(
    ("limit", "status"),
    [
        ("robust_accuracy:-19.9%", 1),
        ("robust_accuracy:-20%", 1),  # not by the difference, but the second run lacks a model
        ("clean_accuracy:-1%", 1),
    ],
)
def test_a_model_that_is_gone_fails_every_limit(limit, status, artq, runs):
    got, out, err = artq("compare", *runs, "--fail-on", limit)
    assert (got, err) == (status, "") and "FAILED: old is only in A" in out
    assert ("FAILED: net: worst case at Linf" in out) == (limit == "robust_accuracy:-19.9%")


@pytest.mark.parametrize(
    ("limit", "status"),
    [
        ("robust_accuracy:-19.9%", 1),
        ("robust_accuracy:-20%", 0),
        ("robust_accuracy:0%", 1),
        ("robust_accuracy:+1%", 0),
        ("clean_accuracy:-0%", 0),
    ],
)
def test_limits_hold_to_the_point(limit, status, artq, runs, tmp_path):
    b = runs[1]
    everything, some = set(range(N)), set(range(20))
    a = write_run(tmp_path / "c", {"net": (everything, some), "same [x]": (everything, some)})
    assert artq("compare", a, b, "--fail-on", limit)[0] == status
    assert artq("compare", b, a, "--fail-on", "robust_accuracy:+1%")[0] == 1, "a rise that was forbidden"
    assert artq("compare", b, a, "--fail-on", "robust_accuracy:0%")[0] == 0, "a rise where a fall was"


def change(run, model, *, drop=False, **fields):
    """Change the attack on a model, or leave it out, and drop its samples."""
    path = run / "results.json"
    results = json.loads(path.read_text())
    attack = next(cell for cell in results["cells"] if (cell["model"], cell["role"]) == (model, "attack"))
    attack.update(fields)
    if drop:
        results["cells"].remove(attack)
    path.write_text(json.dumps(results))
    lines = (run / "samples.jsonl").read_text().splitlines(keepends=True)
    (run / "samples.jsonl").write_text("".join(line for line in lines if json.loads(line)["cell"] != attack["id"]))


def test_a_model_without_the_number_fails_its_limit(artq, tmp_path):
    everything = set(range(N))
    a, b = (
        write_run(tmp_path / name, {"net": (everything, everything), "x": (everything, everything)}) for name in "ab"
    )
    assert artq("compare", a, b, "--fail-on", "robust_accuracy:-1%")[0] == 0
    change(b, "net", drop=True)
    status, out, _ = artq("compare", a, b, "--fail-on", "robust_accuracy:-1%")
    assert status == 1 and "FAILED: net: worst case at Linf, eps 0.1: is only in A" in out.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert artq("compare", a, b, "--fail-on", "clean_accuracy:-1%")[0] == 0


def test_an_attack_that_failed_in_b_fails_the_limit(artq, tmp_path):
    everything = set(range(N))
    a, b = (
        write_run(tmp_path / name, {"net": (everything, everything), "x": (everything, everything)}) for name in "ab"
    )
    change(b, "net", status="error", accuracy=None, interval=None, error="RuntimeError: out of memory")
    status, out, _ = artq("compare", a, b, "--fail-on", "robust_accuracy:-1%")
    assert status == 1 and "FAILED: net: worst case at Linf" in out
    assert artq("compare", b, a, "--fail-on", "robust_accuracy:-1%")[0] == 0, "what failed in A is no loss"


@pytest.mark.parametrize("correct", ["NaN", "null", "5.5", "-1"])
def test_correctness_that_is_no_share_passes_no_limit(correct, artq, runs):
    path = runs[1] / "samples.jsonl"
    path.write_text(re.sub(r'"correct":[0-9.]+', f'"correct":{correct}', path.read_text()))
    status, out, err = artq("compare", *runs, "--fail-on", "robust_accuracy:-99%")
    assert (status, out) == (2, "") and "correct" in err and err.count("\n") == 1


def test_a_difference_of_nan_is_refused():
    """No limit would be beyond it."""
    given = {"first": "net", "second": "net", "metric": "robust_accuracy", "norm": "Linf", "eps": 0.1, "n": 1}
    given |= {
        "replicates": (1, 1),
        "first_accuracy": 1.0,
        "second_accuracy": 0.5,
        "interval": (-0.5, -0.5),
        "p_value": 1.0,
    }
    assert Difference(**given, difference=-0.5).n == 1
    with pytest.raises(ValidationError, match="difference"):
        Difference(**given, difference=math.nan)


def test_a_limit_that_could_not_fail_is_refused(artq, runs, tmp_path):
    for run in runs:
        path = run / "results.json"
        results = json.loads(path.read_text())
        results["cells"] = [cell for cell in results["cells"] if cell["role"] == "clean"]
        path.write_text(json.dumps(results))
        samples = (run / "samples.jsonl").read_text().splitlines(keepends=True)
        (run / "samples.jsonl").write_text("".join(line for line in samples if ".clean" in line))
    status, _, err = artq("compare", *runs, "--fail-on", "robust_accuracy:-1%")
    assert status == 2 and "no model has this in both runs" in err and err.count("\n") == 1


@pytest.mark.parametrize("limit", ["robust:-1%", "robust_accuracy", "robust_accuracy:-1", "robust_accuracy:1%", ":-1%"])
def test_limits_that_cannot_be_read(limit):
    with pytest.raises(InputError) as error:
        parse_limit(limit)
    assert limit in str(error.value) and "\n" not in str(error.value)


def test_other_images_are_refused_in_one_line(artq, runs, tmp_path):
    everything = set(range(N // 2))
    other = write_run(tmp_path / "other", {"net": (everything, everything)}, images=N // 2)
    status, out, err = artq("compare", runs[0], other)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert "not on the same images: 40 and 20, 20 of them in both" in err
    status, out, err = artq("compare", runs[0], tmp_path / "nowhere")
    assert (status, out) == (2, "") and err.count("\n") == 1 and "nowhere" in err
