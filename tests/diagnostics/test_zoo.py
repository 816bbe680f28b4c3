"""A small part of ``benchmarks/masking``: rows whose verdict is not near to any threshold."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[2] / "benchmarks" / "masking"


def _module(name):
    spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks for its annotations, and measure.py for the zoo
    spec.loader.exec_module(module)
    return module


zoo, measure = _module("zoo"), _module("measure")
rows = {row.name: row for row in zoo.ROWS}


def test_the_table_is_sound():
    assert len(rows) == len(zoo.ROWS)
    known = {i.id for i in measure.INDICATORS}
    for row in zoo.ROWS:
        assert row.expected <= set(measure.VERDICTS) and row.expected and row.why
        assert row.must_fire <= known
        assert row.kind != "honest" or (row.expected == {"NOT_REFUTED"} and not row.must_fire)


@pytest.mark.parametrize("name", ["plain-4bit", "plain-x1e4", "rounded", "sign", "detached"])
def test_the_diagnosis_of_a_row_is_the_truth(name):
    row = rows[name]
    record = measure.measure(row, 0)
    assert record["verdict"] in row.expected, record["summary"]
    assert row.must_fire <= set(record["fired"])


def test_the_tables_are_made_from_records_and_name_a_wrong_verdict():
    right = {
        "row": "a", "seed": 0, "kind": "masked", "expected": ["MASKED"], "verdict": "MASKED", "claim": "OVERSTATED",
        "clean": 1.0, "claimed": 0.9, "corrected": 0.2, "reference": 0.1, "must_fire": ["GAP"], "fired": ["GAP"],
        "not_run": [], "forward": 1.0, "backward": 2.0, "seconds": 3.0,
    }  # fmt: skip
    wrong = {**right, "seed": 1, "verdict": "SUSPECT", "fired": []}
    text = measure.report([right, wrong])
    assert "1 of 2, 50.0 %" in text and "**SUSPECT**" in text and "mean 10.0" in text
    assert measure.took(right) and not measure.took({**right, "claimed": 0.14})
