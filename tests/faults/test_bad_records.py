"""Evidence and the records of runs: what was forged, cut or doubled is refused in one line, or fails the check."""

from __future__ import annotations

import json

import numpy as np
import pytest

from art_qplugins.evaluation.records import Cell, Claim, Environment, ModelResult, Results, Robust, Sample

NETWORK = """
import torch

class Net(torch.nn.Module):
    '''Says 1 for bright images, else 0.'''

    def forward(self, x):
        bright = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([0.5 - bright, bright - 0.5], 1)
"""
N = 20
INF, NAN = float("inf"), float("nan")


# --- replay


@pytest.fixture
def replay(here, artq):
    (here / "bright.py").write_text(NETWORK)

    def ask(**changes):
        """Three dark images within eps of bright ones; all of it may be changed, or left out with ``None``."""
        x = np.full((3, 1, 4, 4), 0.45, np.float32)
        arrays = {"x": x, "x_adv": x + np.float32(0.1), "y": np.zeros(3, np.int64), "norm": "Linf", "eps": 0.11}
        arrays = {k: v for k, v in (arrays | changes).items() if v is not None}
        np.savez(here / "e.npz", **arrays)
        return artq("replay", "e.npz", "--model", "bright:Net")

    return ask


def filled(value, at=None):
    x = np.full((3, 1, 4, 4), value if at is None else 0.45, np.float32)
    if at is not None:
        x[at] = value
    return x


def test_evidence_holds_where_it_is_right(replay):
    result = replay()
    assert (result.status, result.err) == (0, "") and "legal: at most 0.1 away" in result.out


FORGED = {
    "clean-images-nan": {"x": filled(NAN)},
    "one-clean-pixel-nan": {"x": filled(NAN, (0, 0, 0, 0))},
    "clean-images-inf": {"x": filled(INF)},
    "clean-images-above-1": {"x": filled(1.05), "x_adv": filled(1.0)},
    "clean-images-below-0": {"x": filled(-0.05), "x_adv": filled(0.0), "y": np.ones(3, np.int64)},
    "images-nan": {"x_adv": filled(NAN)},
    "images-inf": {"x_adv": filled(INF)},
    "one-pixel-nan": {"x_adv": filled(NAN, (2, 0, 3, 3))},
    "images-above-1": {"x_adv": filled(1.5), "eps": 2.0},
    "too-far": {"x_adv": filled(0.7)},
    "one-too-far": {"x_adv": np.concatenate([filled(0.55)[:2], filled(0.7)[:1]])},
    "eps-nan": {"eps": NAN},
    "eps-inf": {"eps": INF},
    "eps-below-0": {"eps": -1.0},
    "eps-of-two": {"eps": np.array([0.1, 9.0])},
    "norm-unknown": {"norm": "Linfinity"},
    "norm-a-number": {"norm": 5},
    "labels-that-it-has-not": {"y": np.full(3, 99)},
    "labels-below-0": {"y": np.full(3, -1)},
    "labels-of-floats": {"y": np.zeros(3)},
    "labels-of-64-bits": {"y": np.full(3, 2**63, np.uint64)},
    "fewer-labels": {"y": np.zeros(2, np.int64)},
    "fewer-images": {"x_adv": filled(0.55)[:2]},
    "no-images": {"x": filled(0)[:0], "x_adv": filled(0)[:0], "y": np.zeros(0, int)},
    "whole-numbers": {"x": np.zeros((3, 1, 4, 4), int), "x_adv": np.ones((3, 1, 4, 4), int)},
    "complex": {"x_adv": filled(0.55).astype(complex)},
    "flat": {"x": filled(0.45)[:, 0], "x_adv": filled(0.55)[:, 0]},
    "eps-without-norm": {"norm": None},
}


@pytest.mark.parametrize("row", FORGED)
def test_forged_evidence_proves_nothing(row, replay):
    result = replay(**FORGED[row])
    assert result.status in (1, 2) and not result.kind, result.trace or result.out
    if result.status == 2:
        assert len(result.err.rstrip("\n")) <= 300 and result.err.count("\n") == 1
    else:
        assert "NOT LEGAL" in result.out or "0 of 3" in result.out


# --- Runs


def sample(cell, row, correct, eps):
    return Sample(
        **{"cell": cell, "sample": f"s/{row:02d}", "label": 0, "prediction": int(not correct), "correct": correct},
        **{"selection": correct, "distance": eps, "margin": None, "loss": None},
    ).model_dump(mode="json")


@pytest.fixture
def write(here):
    """A folder of a run of one model, whose records may be changed by functions first."""

    def to(name, *, model="net", results=lambda tables: None, samples=lambda rows: None):
        cells, rows = [], []
        for role, eps, right in (("clean", 0.0, N), ("attack", 0.1, N // 2)):
            cells.append(
                Cell(
                    **{"id": f"{role}-0", "model": model, "source": model, "attack": "art:pgd", "role": role},
                    **{"params": {}, "norm": "Linf", "eps": eps, "seed": 0, "n": N, "status": "success"},
                    **{"accuracy": right / N, "interval": (0.0, 1.0), "seconds": 0.1},
                    **{"forward_samples": N, "backward_samples": N},
                )
            )
            rows += [sample(f"{role}-0", row, float(row < right), eps) for row in range(N)]
        robust = Robust(norm="Linf", eps=0.1, accuracy=0.5, interval=(0.0, 1.0), attacks=["attack-0"])
        whole = Results(
            **{
                "status": "success",
                "created": "2026-01-01T00:00:00Z",
                "cells": cells,
                "data": {"name": "s", "sha256": "a"},
            },
            environment=Environment(packages={}, python="", platform="", device="cpu", git=None),
            spec={"resolved": {"name": "r", "models": [{"name": model}]}},
            models=[
                ModelResult(
                    **{"name": model, "description": "", "stochastic": False, "clean_accuracy": 1.0, "n": N},
                    **{"clean_interval": (0.0, 1.0), "robust": [robust], "verdict": "INCONCLUSIVE", "summary": ""},
                    **{"claim": Claim(status="NONE"), "findings": []},
                )
            ],
        )
        tables = json.loads(whole.model_dump_json(by_alias=True))
        results(tables)
        samples(rows)
        folder = here / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(tables))
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return to


def test_the_same_run_twice_is_no_difference(write, artq):
    result = artq("compare", write("a"), write("b"), "--fail-on", "robust_accuracy:-1%")
    assert (result.status, result.err, result.kind) == (0, "", ""), result.trace


def set_all(key, value):
    def change(rows):
        for row in rows:
            row[key] = value

    return change


SAMPLES = {
    "correct-nan": (set_all("correct", NAN), "correct"),
    "correct-inf": (set_all("correct", INF), "correct"),
    "correct-5.5": (set_all("correct", 5.5), "correct"),
    "correct-below-0": (set_all("correct", -1.0), "correct"),
    "correct-none": (set_all("correct", None), "correct"),
    "correct-a-text": (set_all("correct", "1"), "correct"),
    "correct-true": (set_all("correct", True), "correct"),
    "selection-nan": (set_all("selection", NAN), "selection"),
    "selection-5.5": (set_all("selection", 5.5), "selection"),
    "distance-nan": (set_all("distance", NAN), "distance"),
    "distance-below-0": (set_all("distance", -1), "distance"),
    "not-those-of-the-accuracy": (lambda rows: [r.update(correct=1.0, selection=1.0) for r in rows], "attack-0"),
    "one-is-missing": (lambda rows: rows.pop(), "attack-0"),
    "one-is-doubled": (lambda rows: rows.append(rows[-1]), "attack-0"),
    "one-in-place-of-another": (lambda rows: rows.__setitem__(-1, rows[-2]), "attack-0"),
    "of-an-unknown-cell": (lambda rows: rows.append({**rows[-1], "cell": "nowhere"}), "nowhere"),
    "of-an-unknown-key": (lambda rows: rows[-1].update(more=1), "more"),
    "no-objects": (lambda rows: rows.append(5), "samples.jsonl"),
}


@pytest.mark.parametrize("command", ["compare", "report"])
@pytest.mark.parametrize("row", SAMPLES)
def test_samples_that_cannot_be(row, command, write, artq, refused):
    change, place = SAMPLES[row]
    b = write("b", samples=change)
    if command == "report":
        return refused(artq("report", b), place)
    refused(artq("compare", write("a"), b, "--fail-on", "robust_accuracy:-1%"), place)


def in_model(**values):
    return lambda tables: tables["models"][0].update(values)


def in_cell(**values):
    return lambda tables: tables["cells"][1].update(values)


RESULTS = {
    "clean-accuracy-17": (in_model(clean_accuracy=17), "clean_accuracy"),
    "clean-accuracy-nan": (in_model(clean_accuracy=NAN), "results.json"),
    "clean-accuracy-below-0": (in_model(clean_accuracy=-0.1), "clean_accuracy"),
    "interval-nan": (in_model(clean_interval=[NAN, 1]), "results.json"),
    "n-below-0": (in_model(n=-1), "n"),
    "claim-17": (in_model(claim={"status": "HOLDS", "attack": "art:pgd", "accuracy": 17}), "accuracy"),
    "cell-accuracy-nan": (in_cell(accuracy=NAN), "results.json"),
    "cell-accuracy-5": (in_cell(accuracy=5), "accuracy"),
    "cell-eps-nan": (in_cell(eps=NAN), "results.json"),
    "cell-n-0": (in_cell(n=0), "n"),
    "cell-seconds-nan": (in_cell(seconds=NAN), "results.json"),
    "cell-of-no-model": (in_cell(model="nobody"), "attack-0"),
    "cells-of-one-id": (in_cell(id="clean-0"), "clean-0"),
    "robust-17": (lambda t: t["models"][0]["robust"][0].update(accuracy=17), "accuracy"),
    "robust-by-no-cell": (lambda t: t["models"][0]["robust"][0].update(attacks=["nowhere"]), "nowhere"),
}


@pytest.mark.parametrize("command", ["compare", "report"])
@pytest.mark.parametrize("row", RESULTS)
def test_results_that_cannot_be(row, command, write, artq, refused):
    change, place = RESULTS[row]
    b = write("b", results=change)
    refused(artq("report", b) if command == "report" else artq("compare", b, write("a")), place)


@pytest.mark.parametrize(
    "spec", [{}, {"resolved": 5}, {"resolved": []}, {"resolved": {"models": 5}}, {"resolved": {"models": [5]}}]
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_an_odd_spec_is_one_line_or_of_no_matter(spec, command, write, artq):
    b = write("b", results=lambda tables: tables.update(spec=spec))
    result = artq("report", b) if command == "report" else artq("compare", write("a"), b)
    assert result.status in (0, 2) and not result.kind, result.trace
    assert len(result.err.rstrip("\n")) <= 300 and result.err.count("\n") == (result.status == 2)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"9" * 5000, b"\xff\xfe", b"", b'{"schema_version": 1' + b"0" * 5000]
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_results_that_are_no_json(content, command, write, artq, refused):
    b = write("b")
    (b / "results.json").write_bytes(content)
    refused(artq("report", b) if command == "report" else artq("compare", write("a"), b), "results.json")


def test_samples_cut_in_a_line(write, artq, refused):
    """The run that wrote them was stopped; its comparison is of other images."""
    b = write("b")
    content = (b / "samples.jsonl").read_bytes()
    (b / "samples.jsonl").write_bytes(content[:-30])
    refused(artq("compare", write("a"), b), "b")


def test_a_report_in_the_way(write, artq, refused):
    folder = write("b")
    (folder / "report.html").mkdir()
    refused(artq("report", folder), "report.html", never=["the same command again"])


@pytest.mark.parametrize("path", ["", "nowhere", "small.toml", "a\x00b", "~nouser"])
@pytest.mark.parametrize("command", ["compare", "report", "replay"])
def test_folders_that_are_none(path, command, write, artq, refused):
    more = {"compare": ["compare", write("a"), path], "report": ["report", path]}
    refused(artq(*more.get(command, ["replay", path, "--model", "torch.nn:Flatten"])))


@pytest.mark.parametrize("name", ["[/x]", "[bold]"])
def test_names_of_models_are_no_markup(name, write, artq):
    a, b = write("a", model=name), write("b[/y]", model=name, samples=lambda rows: None)
    result = artq("compare", a, b)
    assert (result.status, result.kind) == (0, "") and name in result.out, result.trace
    result = artq("report", b)
    assert (result.status, result.kind) == (0, ""), result.trace


@pytest.mark.parametrize("limit", ["robust_accuracy:nan%", "robust_accuracy:-" + "9" * 400 + "%", "x" * 5000, ""])
def test_limits_that_are_none(limit, write, artq, refused):
    refused(artq("compare", write("a"), write("b"), "--fail-on", limit), "--fail-on")
