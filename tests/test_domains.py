"""Domains of settings, and the words of errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_qplugins.domains import (
    BITS,
    COUNT,
    FINITE,
    FLAG,
    FRACTION,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SEED,
    TABLE,
    TEXT,
    Is,
    ListOf,
    Maybe,
    Number,
    OneOf,
    Rule,
    check,
    domain_of,
)
from art_qplugins.errors import InputError, did_you_mean, one_line, shown

NUMBERS = [FINITE, POSITIVE, NOT_NEGATIVE, FRACTION, COUNT, SEED, Number(0, 1, above=True, below=True)]
ODD = [
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    -1e308,
    10**400,
    -(10**400),
    True,
    False,
    "1",
    b"1",
    None,
    [],
    {},
    object(),
]
ODD += [np.float32("nan"), np.float64("inf"), np.array([1, 2]), np.array(1.0), 1j, Decimal("NaN"), type, 10**5000]


@pytest.mark.parametrize("domain", NUMBERS, ids=str)
@pytest.mark.parametrize("value", ODD, ids=shown)
def test_what_is_no_finite_number_is_in_no_domain_of_numbers(domain, value):
    assert not domain.accepts(value)
    with pytest.raises(InputError) as error:
        check("seed", value, domain)
    assert str(error.value).startswith("seed: it is ")
    assert str(error.value).endswith(f"; give {domain}")
    assert len(str(error.value)) <= 300


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (POSITIVE, [1e-30, 1, np.float32(0.5), Fraction(1, 2)], [0, -1e-30, 1e-320]),
        (NOT_NEGATIVE, [0, 0.0, -0.0, 1e-109, np.int64(3)], [-1e-30, -1]),
        (FRACTION, [0, 1, 0.5], [-1e-9, 1 + 1e-9, 2]),
        (COUNT, [1, np.int32(7), 2**31 - 1], [0, -1, 1.0, 2**31, 2**64]),
        (SEED, [0, 2**63 - 1], [-1, 2**63, 10**30]),
        (Number(0, 1, above=True, below=True), [0.5], [0, 1, 0.0, 1.0]),
        (Number(1, 16, whole=True), [1, 16], [0, 17, 2.5]),
        (OneOf(("a", "b", 3)), ["a", 3], ["c", 3.0, None, math.nan, True]),
        (OneOf((1, 0)), [1, 0], [True, False]),
        (FLAG, [True, False], [0, 1, "true", None]),
        (TEXT, ["x"], ["", "x" * 1001, 5, None]),
        (ListOf(COUNT, least=1), [[1], (2, 3)], [[], [0], [1, 1], 1, "1", [math.nan], [[1]], None]),
        (Maybe(POSITIVE), [None, 1], [0, math.nan]),
        (domain_of(1), [-5, 0], [1.5, True, math.nan]),
        (domain_of(1.0), [-5, 0.5], [True, math.nan, "1"]),
        (domain_of(True), [False], [1]),
        (domain_of("x"), ["y"], [""]),
        (domain_of([0.5]), [[0.1, 0.2], []], [[math.nan], 0.5]),
        (domain_of([]), [[], ["a"]], [[math.nan], 5]),
        (domain_of(None), [None, 2], [math.nan, "x"]),
    ],
    ids=str,
)
def test_a_domain_holds_what_its_words_say(domain, inside, outside):
    assert all(domain.accepts(value) for value in inside)
    assert not any(domain.accepts(value) for value in outside)


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (FINITE, "a finite number"),
        (POSITIVE, "a number above 0"),
        (NOT_NEGATIVE, "a number of at least 0"),
        (FRACTION, "a number in [0, 1]"),
        (Number(0, 1, above=True, below=True), "a number in (0, 1)"),
        (Number(high=2), "a number of at most 2"),
        (Number(high=2, below=True), "a number below 2"),
        (COUNT, "a whole number of at least 1"),
        (SEED, "a whole number of at least 0"),
        (Number(1, 16, whole=True), "a whole number from 1 to 16"),
        (OneOf(("a", "b")), "'a' or 'b'"),
        (ListOf(COUNT, least=1), "a list of different values, at least 1, each a whole number of at least 1"),
        (Maybe(COUNT), "a whole number of at least 1, or leave it out"),
    ],
    ids=str,
)
def test_the_words_of_a_domain(domain, words):
    assert str(domain) == words


def test_a_rule_is_checked_where_its_settings_are_known():
    rule = Rule(("low", "high"), lambda low, high: low < high, "a low below high")
    for values in ({"low": 1, "high": 2}, {"low": 1}, {"low": 1, "high": None}, {}):
        rule.check("where", values)
    for high in (1, math.nan):
        with pytest.raises(InputError, match=f"^where: low is 1 and high is {high}; give a low below high$"):
            rule.check("where", {"low": 1, "high": high})


def test_numbers_of_numpy_become_numbers_of_python():
    assert type(check("n", np.int64(3), COUNT)) is int
    assert type(check("p", np.float32(0.5), FRACTION)) is float
    assert [type(v) for v in check("bits", (np.int64(3), 4), ListOf(COUNT))] == [int, int]


def test_a_wrong_choice_among_many_names_the_nearest():
    with pytest.raises(InputError, match=r"kind: it is 'spheer'; did you mean 'sphere'\?"):
        check("kind", "spheer", OneOf(("sphere", "cube", "cone", "torus")))


def test_names_that_are_far_away_are_three():
    known = [f"attack-{i}" for i in range(500)]
    assert did_you_mean("qqq", ["a", "b"]) == "; there is: a, b"
    assert did_you_mean("qqq", known).count(",") == 2
    assert did_you_mean(["x"], known).startswith("; ")
    assert len(did_you_mean("q" * 10_000, known)) < 200


@given(st.text(max_size=2000))
def test_an_error_is_one_printable_line_of_at_most_300_characters(text):
    line = str(InputError(text))
    assert len(line) <= 300
    assert line.isprintable()


@given(st.recursive(st.none() | st.text() | st.floats() | st.integers(), st.lists, max_leaves=30))
def test_a_value_is_shown_in_80_characters(value):
    assert len(shown(value)) <= 80
    assert len(shown([value] * 1000)) <= 80


def test_the_end_of_a_long_line_survives():
    assert one_line("a" * 500 + " type this", 100).endswith("type this")


def test_a_value_that_cannot_be_shown_is_named_by_its_type():
    class Odd:
        def __repr__(self):
            raise RuntimeError

    assert "Odd" in shown(Odd())
    assert shown(10**5000)


# --- Objects and paths


@pytest.mark.parametrize("value", ["a/b", Path("a"), Path()], ids=str)
def test_paths(value):
    assert check("out", value, PATH) == value


@pytest.mark.parametrize("value", ["", "a\0b", b"a", 3, None, Path("a\0b")], ids=repr)
def test_what_is_no_path(value):
    with pytest.raises(InputError, match=r"^out: it is .*; give a path$"):
        check("out", value, PATH)


def test_objects_of_a_class():
    callback = Is(Callable, "a function")
    assert check("progress", print, callback) is print
    with pytest.raises(InputError, match=r"^progress: it is 5; give a function$"):
        check("progress", 5, callback)
    with pytest.raises(InputError, match=r"^options: it is \[\]; give a dict$"):
        check("options", [], TABLE)
    nested = {"a": 1}
    assert check("options", nested, TABLE) is nested


def test_a_list_may_hold_a_value_twice_where_it_says_so():
    assert check("input_shape", (1, 8, 8), ListOf(COUNT, least=3, most=3, different=False)) == [1, 8, 8]
    with pytest.raises(InputError, match="different values"):
        check("eps", (1, 8, 8), ListOf(COUNT))


def test_bits():
    assert check("num_bits", np.int64(4), BITS) == 4
    for value in (0, 17, 2.0, True):
        with pytest.raises(InputError, match=r"; give a whole number from 1 to 16$"):
            check("num_bits", value, BITS)
