"""A small part of ``benchmarks/faults/fuzz.py``: always the same odd recipes and odd ``--set``, by dry run."""

from __future__ import annotations

import os
import signal
import time

import pytest
from fuzzing import recipes, strategies, values
from fuzzing.apart import Result, apart, call
from fuzzing.judge import judged, wrong_numbers
from fuzzing.strategies import BASES, edited
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from art_qplugins import Threat
from art_qplugins.recipes.load import parse_recipe

once = settings(
    max_examples=100, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def empty(here, monkeypatch):
    """An empty folder, in which a dry run leaves nothing."""
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    return here


@pytest.mark.parametrize("base", BASES)
def test_what_is_edited_is_valid_before(base):
    parse_recipe(edited(BASES[base], []))


@once
@given(case=strategies.recipes())
def test_an_odd_recipe_is_planned_or_refused_in_one_line(case, empty):
    found = recipes.run_recipe(case, empty, seconds=60)  # a shared machine keeps no deadlines
    assert not found.problem, (found.problem, found.detail)


@once
@given(case=strategies.changes())
def test_an_odd_change_is_planned_or_refused_in_one_line(case, empty):
    found = recipes.run_set(case, empty, seconds=60)
    assert not found.problem, (found.problem, found.detail)


@once
@given(value=st.one_of(st.sampled_from(values.TEXTS + values.NESTED), values.odd()))
def test_a_recipe_is_written_as_it_is(value):
    """What the fuzz says it asked is what it asked."""
    asked = values.value_of(value)
    try:
        text = values.toml(asked)
    except TypeError:
        return
    read = strategies.tomllib.loads(f"a = {text}")["a"]
    assert repr(read) == repr(asked)


def test_edits_that_fit_nothing_change_nothing():
    for edit in (["drop", ["models", 9]], ["swap", ["no", "one"], ["name"]], ["rename", ["nope"], "'x'"]):
        assert edited(BASES["small"], [edit]) == BASES["small"]
    assert edited(BASES["small"], [["set", ["data", "limit"], "10**3"]])["data"]["limit"] == 1000


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (Result(0), ""),
        (Result(2, err="artq: a line\n"), ""),
        (Result(2, err=""), "no line"),
        (Result(2, err="artq: one\nartq: two\n"), "several lines"),
        (Result(2, err="a warning\nartq: one\n"), "several lines"),
        (Result(2, err="x" * 301 + "\n"), "a line of more than 300 characters"),
        (Result(2, err="a\x1b[31mb\n"), "control characters in a line"),
        (Result(1, err="artq: one\n"), "status 1"),
        (Result(None, kind="TypeError in art_qplugins/api.py, run"), "TypeError in art_qplugins/api.py, run"),
        (Result(0, out="robust nan %"), "accepted: NaN or infinity is shown"),
        (Result(0, out="robust 550 %"), "accepted: more than 100 % is shown"),
        (Result(0, out="robust 55.0 %, nano"), ""),
    ],
)
def test_what_is_wrong_with_a_result(result, problem):
    assert judged(result, wrong_numbers).problem == problem


def test_a_child_that_hangs_or_dies_is_told_apart():
    assert apart(lambda: time.sleep(60), 0.2).kind == "hung"
    assert apart(lambda: os.kill(os.getpid(), signal.SIGKILL), 10).kind == "killed by SIGKILL"
    assert call(lambda: 1 / 0).kind == "ZeroDivisionError in no frame of the package"
    assert call(lambda: Threat("L7", 0.1)).status == 2
    inside = compile("def slip():\n    1 / 0\nslip()", "/site-packages/art_qplugins/room.py", "exec")
    assert call(lambda: exec(inside)).kind == "ZeroDivisionError in art_qplugins/room.py, slip"
