"""An endpoint is asked in batches, several at a time, again where it fails, within its budget, and nothing twice."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifier
from server import CLASSES, SHAPE, client, scores_of, serving

from art_qplugins import InputError
from art_qplugins.deployment import retrying
from art_qplugins.deployment.answers import FILE, Answers
from art_qplugins.deployment.checked import checked
from art_qplugins.deployment.endpoint import Endpoint, UsedUp
from art_qplugins.deployment.retrying import asked_to_wait, delay
from art_qplugins.deployment.threads import at_a_time


@pytest.fixture
def server():
    with serving() as one:
        yield one


def images(n, seed=0):
    return np.random.default_rng(seed).random((n, *SHAPE)).astype(np.float32)


def endpoint(server, **how):
    return Endpoint(client(server.url), **{"name": "test", "backoff": 0.001, **how})


# --- Answers belong to their images


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("kept", [False, True])
def test_answers_are_those_of_the_model(server, tmp_path, concurrency, kept):
    x = images(50)
    ask = endpoint(server, batch_size=8, concurrency=concurrency, cache=tmp_path if kept else None)
    assert np.array_equal(ask(x), scores_of(x))
    assert ask(x).dtype == np.float32 and ask.random is False and ask.nb_classes == CLASSES
    assert max(server.batches) == 8
    once = 50 + 5 if kept else 100 + 10  # five are asked twice first, and their answers are kept
    assert sum(server.batches) == ask.asked == once


def test_they_go_back_whatever_order_they_come_in(server):
    x = images(60)
    ask = endpoint(server, batch_size=10, concurrency=6)
    ask.check(x)
    server.delays = [0.3, 0.2, 0.1, 0.05, 0.02, 0]
    assert np.array_equal(ask(x), scores_of(x)) and server.most > 1


def test_never_more_at_a_time_than_the_bound_also_from_several_threads(server):
    ask = endpoint(server, batch_size=2, concurrency=3)
    ask.check(images(5))
    server.delays = [0.02] * 100
    threads = [threading.Thread(target=ask, args=(images(20, seed),)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 < server.most <= 3


def test_an_image_that_is_there_twice_is_asked_once(server, tmp_path):
    x = images(8)
    ask = endpoint(server, cache=tmp_path)
    assert np.array_equal(ask(np.concatenate([x, x[::-1]])), scores_of(np.concatenate([x, x[::-1]])))
    assert sum(server.batches) == 8 + 5


def test_predict_may_write_into_its_images_and_no_image_is_no_question():
    def careless(x):
        answers = scores_of(x)
        x[:] = 0
        return answers

    x = images(7)
    ask = Endpoint(careless)
    assert np.array_equal(ask(x), scores_of(x)) and x.any()
    assert ask(x[:0]).shape == (0, CLASSES)


# --- Failures


def test_it_is_asked_again_where_it_fails(server, tmp_path):
    x = images(12)
    server.script = [500, 503, lambda answer: "<html>bad gateway</html>", 200, 502]
    assert np.array_equal(endpoint(server, cache=tmp_path)(x), scores_of(x))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_after_the_last_retry_one_line_says_what_failed(server, concurrency):
    ask = endpoint(server, retries=2, batch_size=5, concurrency=concurrency)
    ask.check(images(5))
    server.script = [500] * 50
    with pytest.raises(InputError, match=r"^endpoint test: it failed 3 times: HTTPError: HTTP Error 500") as told:
        ask(images(20))
    assert "\n" not in str(told.value) and not isinstance(told.value, UsedUp)


def test_what_was_asked_beside_a_failure_is_kept(server, tmp_path):
    x = images(20)
    ask = endpoint(server, retries=0, batch_size=5, concurrency=4, cache=tmp_path)
    ask.check(x)
    server.script, server.delays = [500, 200, 200], [0, 0.1, 0.1]
    with pytest.raises(InputError, match="every answer is kept, so try the same again later"):
        ask(x)
    answered = sum(server.batches) - 5  # all but the batch that failed
    assert len(ask._answers.find(ask._answers.keys(x))) + 5 == answered


def test_a_rate_limit_is_kept_to_by_all(server):
    ask = endpoint(server, batch_size=5, concurrency=2)
    ask.check(images(5))
    before = len(server.times)
    server.script = [(429, {"Retry-After": "1"}), (429, {"Retry-After": "1"})]
    assert np.array_equal(ask(images(20)), scores_of(images(20)))
    first, *later = server.times[before:]
    assert all(moment - first < 0.5 or moment - first >= 0.95 for moment in later), "none within the second"
    assert sum(moment - first < 0.5 for moment in later) <= 1


class Wait(Exception):
    def __init__(self, retry_after=None, headers=None, response=None):
        self.retry_after, self.headers, self.response = retry_after, headers, response


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Wait(2), 2),
        (Wait("3"), 3),
        (Wait(headers={"Retry-After": "4"}), 4),
        (Wait(response=Wait(headers={"Retry-After": "5"})), 5),
        (Wait(retry_after=1, headers={"Retry-After": "9"}), 1),
        (Wait(-1), 0),
        (Wait(math.nan), 0),
        (Wait("soon"), 0),
        (Wait(headers={"Retry-After": formatdate(0)}), 0),
        (ValueError(), 0),
    ],
)
def test_what_an_exception_says_to_wait(error, seconds):
    assert asked_to_wait(error) == seconds


def test_a_date_to_wait_for():
    assert 50 < asked_to_wait(Wait(headers={"Retry-After": formatdate(time.time() + 60, usegmt=True)})) <= 60


def test_a_wait_of_hours_is_an_error_at_once():
    def quota(x):
        raise Wait(86400)

    with pytest.raises(InputError, match="it asks to wait for 86,400 s"):
        Endpoint(quota)(images(1))


def test_waits_double_up_to_a_minute():
    for attempt in range(12):
        whole = min(60, 0.5 * 2**attempt)
        assert all(whole / 2 <= delay(attempt, 0.5) <= whole for _ in range(20))
    assert retrying.LONGEST == 3600


def test_an_exit_of_their_code_is_a_failure():
    def leaves(x):
        sys.exit(3)

    with pytest.raises(InputError, match="SystemExit: 3"):
        Endpoint(leaves, retries=0)(images(1))


def test_an_interrupt_stays_one():
    def interrupted(x):
        raise KeyboardInterrupt

    for concurrency in (1, 2):
        ask = Endpoint(interrupted, concurrency=concurrency, batch_size=1)
        with pytest.raises(KeyboardInterrupt):
            ask(images(4))


# --- Answers that are none


MALFORMED = [
    (None, "nothing"),
    ("", "nothing"),
    ("<!DOCTYPE html>\n<html><body>" + "x" * 500, "'<!DOCTYPE html> <html><body>xxx"),
    (b"<html>", "'<html>'"),
    ({"scores": [1]}, "{'scores': [1]}"),
    ([[0.1, 0.2, 0.7]], "an array (1, 3)"),
    (np.zeros((4, 4)), "an array (4, 4)"),
    (np.zeros((4, 1)), "an array (4, 1)"),
    (np.zeros((4, 3, 1)), "an array (4, 3, 1)"),
    (np.zeros(4, int), "an array (4,)"),
    ([[1, 2, 3], [1, 2], [1, 2, 3], [1, 2, 3]], "[[1, 2, 3], [1, 2], [1, 2, 3], [1, 2, 3]]"),
    (np.full((4, 3), np.nan), "nan for 4 of 4 images"),
    (np.array([[0, 0, np.inf]] + [[0, 0, 0]] * 3), "inf for 1 of 4 images"),
    (np.full((4, 3), 1e300), "1e+300 for 4 of 4 images"),
    (np.zeros((4, 3), bool), "bool (4, 3)"),
    (np.zeros((4, 3), complex), "complex128 (4, 3)"),
    ([["0.1", "0.2", "0.7"]] * 4, "[['0.1', "),
]


@pytest.mark.parametrize(("given", "came"), MALFORMED, ids=[came for _, came in MALFORMED])
def test_what_came_is_said_in_one_line_that_names_the_endpoint(given, came):
    calls = []
    ask = Endpoint(lambda x: calls.append(1) or given, name="mine", nb_classes=3, backoff=0, batch_size=4)
    with pytest.raises(InputError) as told:
        ask(images(4))
    line = str(told.value)
    assert line.startswith(f"endpoint mine: it answered {came}") and "it must answer (4, 3) finite numbers" in line
    assert "\n" not in line and len(line) < 200
    assert len(calls) == 2, "an answer that is none and comes again is not asked for a third time"


@pytest.mark.parametrize(
    ("given", "came"),
    [([0, 1, 3], "3"), ([0, -1, 2], "-1"), ([0.5, 1, 2], "0.5"), (["a", "b", "c"], "['a'"), ([0, 1], "an array (2,)")],
)
def test_labels_that_are_none(given, came):
    with pytest.raises(InputError) as told:
        checked(given, 3, nb_classes=3, labels_only=True)
    assert f"it answered {came}" in str(told.value)


@pytest.mark.parametrize(
    "given", [[2, 0], np.array([2, 0], np.uint8), [2.0, 0.0], torch.tensor([2, 0]), [[0, 0, 1], [1, 0, 0]]]
)
def test_labels(given):
    found = checked(given, 2, nb_classes=3, labels_only=True)
    assert found.tolist() == [2, 0] and found.dtype == np.int64


@pytest.mark.parametrize(
    "given", [[[1, 2]], np.ones((1, 2), np.float16), torch.ones(1, 2, requires_grad=True), np.ones((1, 2), np.int8)]
)
def test_scores_may_come_as_many_things(given):
    found = checked(given, 1, nb_classes=None, labels_only=False)
    assert found.shape == (1, 2) and found.dtype == np.float32


def test_labels_only(server, tmp_path):
    x = images(20)
    for _ in range(2):
        found = endpoint(server, labels_only=True, cache=tmp_path)(x)
        assert found.tolist() == scores_of(x).argmax(1).tolist() and found.dtype == np.int64
    assert sum(server.batches) == 25


# --- Random models


def test_a_random_model_is_found_and_not_kept(tmp_path, caplog):
    generator = np.random.default_rng(0)
    ask = Endpoint(lambda x: scores_of(x) + generator.normal(size=(len(x), CLASSES)), name="noisy", cache=tmp_path)
    x = images(6)
    first, second = ask(x), ask(x)
    assert ask.random and "random" in ask.doubt and "noisy" in caplog.text
    assert not np.allclose(first, second) and ask.asked == 10 + 12
    assert not ask._answers.find(ask._answers.keys(x))


def test_rounding_is_no_randomness_and_a_mixed_up_batch_is():
    generator = np.random.default_rng(0)
    rounded = Endpoint(lambda x: scores_of(x) * (1 + 1e-6 * generator.normal(size=(len(x), 1))))
    rounded(images(5))
    assert rounded.random is False and rounded.doubt == ""
    mixed = Endpoint(lambda x: scores_of(x[np.argsort(x.sum((1, 2, 3)))]))
    mixed(images(5))
    assert mixed.random is True


# --- Budgets


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_server_never_sees_more_images_than_queries(server, tmp_path, kept, concurrency):
    cache = tmp_path if kept else None
    ask = endpoint(server, queries=47, batch_size=8, concurrency=concurrency, cache=cache)
    server.script = [200] * 3 + [500] * 2
    with pytest.raises(UsedUp, match=r"^endpoint test: \d+ of 47 queries are used up") as told:
        ask(images(200))
    assert sum(server.batches) == ask.asked <= 47 and 47 - ask.asked < 8
    assert ("every answer is kept" in str(told.value)) is kept


def test_more_queries_go_on_where_fewer_ended(server, tmp_path):
    x = images(100)
    with pytest.raises(UsedUp):
        endpoint(server, queries=60, batch_size=10, cache=tmp_path)(x)
    with pytest.raises(UsedUp):
        endpoint(server, queries=60, batch_size=10, cache=tmp_path)(x)
    assert sum(server.batches) == 60
    assert np.array_equal(endpoint(server, queries=105, batch_size=10, cache=tmp_path)(x), scores_of(x))
    assert sum(server.batches) == 105 and sorted(server.asked.values())[-6:] == [1, 2, 2, 2, 2, 2]


def test_seconds(server, tmp_path):
    x = images(40)
    ask = endpoint(server, seconds=0.5, batch_size=5, cache=tmp_path)
    ask.check(x)
    server.delays = [0, 0, 0.6]
    with pytest.raises(UsedUp, match=r"0.5 seconds are used up; every answer is kept"):
        ask(x)
    assert len(ask._answers.find(ask._answers.keys(x))) == sum(server.batches) - 5


def test_seconds_end_a_wait_before_it_begins():
    def limited(x):
        raise Wait(60)

    started = time.monotonic()
    with pytest.raises(UsedUp, match="10 seconds are used up"):
        Endpoint(limited, seconds=10)(images(1))
    assert time.monotonic() - started < 5


def test_seconds_end_requests_that_hang(server):
    ask = endpoint(server, seconds=0.5, batch_size=1, concurrency=2)
    ask.check(images(1))
    server.delays = [30] * 10
    started = time.monotonic()
    with pytest.raises(UsedUp):
        ask(images(4))
    assert time.monotonic() - started < 10


# --- The cache survives


CHILD = """
import sys
sys.path.insert(0, {here!r})
from server import client
from test_endpoint import images
from art_qplugins.deployment.endpoint import Endpoint
Endpoint(client({url!r}), name="test", batch_size=4, cache={cache!r})(images(40))
"""


def test_nothing_that_was_answered_is_asked_again_after_a_kill(server, tmp_path):
    server.hold_after = 6  # five images twice in four batches, and two of four new images
    code = CHILD.format(here=str(Path(__file__).parent), url=server.url, cache=str(tmp_path))
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert server.held.wait(120)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    server.hold_after = None
    waiting = {image.tobytes() for image in images(40)[13:17]}  # the request that was killed was never answered
    x = images(40)
    assert np.array_equal(endpoint(server, batch_size=4, cache=tmp_path)(x), scores_of(x))
    first = {image.tobytes() for image in x[:5]}
    asked = {image: count for image, count in server.asked.items() if image not in first}
    assert len(asked) == 35 and {image for image, count in asked.items() if count > 1} == waiting
    assert all(server.asked[image] == 2 for image in first)


def test_a_write_that_was_cut_off_is_lost_alone(tmp_path):
    answers = Answers(tmp_path, "a")
    answers.keep({b"1" * 16: b"x"})
    with pytest.raises(ZeroDivisionError), answers._transaction() as db:
        db.execute("INSERT INTO answer VALUES (?, ?)", (b"2" * 16, 1 / 0 if db.in_transaction else b"y"))
    assert answers.find([b"1" * 16, b"2" * 16]) == {b"1" * 16: b"x"}
    wal = tmp_path / f"{FILE}-wal"
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / FILE).write_bytes((tmp_path / FILE).read_bytes())
    answers.keep({b"3" * 16: b"z"})
    (copy / wal.name).write_bytes(wal.read_bytes()[:-100])  # the last write is incomplete
    assert Answers(copy, "a").find([b"1" * 16, b"3" * 16]) == {b"1" * 16: b"x"}


def test_several_processes_and_threads_share_one_budget_and_one_file(tmp_path):
    first, second = Answers(tmp_path, "a"), Answers(tmp_path, "a")
    threads = [threading.Thread(target=lambda a=a: [a.take(1, 300) for _ in range(100)]) for a in (first, second) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first.asked == second.asked == 300 and not first.take(1, 300) and first.take(1, None)
    second.keep({b"k" * 16: b"v"})
    assert first.find([b"k" * 16]) == {b"k" * 16: b"v"}


def test_endpoints_in_one_folder_are_kept_apart(tmp_path):
    x = images(6)
    one = Endpoint(scores_of, name="one", cache=tmp_path)(x)
    other = Endpoint(lambda z: -scores_of(z), name="other", cache=tmp_path)(x)
    assert np.array_equal(one, -other)
    wide = images(2).reshape(2, 1, 2, 8)
    assert Endpoint(scores_of, name="one", cache=tmp_path)(wide).shape == (2, CLASSES)
    keys = Answers(tmp_path, "one scores")
    assert not set(keys.keys(wide)) & set(keys.keys(images(2)))


def test_a_file_that_is_no_cache_is_one_line(tmp_path):
    (tmp_path / FILE).write_text("hello " * 1000)
    with pytest.raises(InputError, match=r"cache .*answers.sqlite: file is not a database"):
        Endpoint(scores_of, name="a", cache=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache"):
        Endpoint(scores_of, name="a", cache=tmp_path / "file")


def test_kept_answers_of_other_classes_are_refused(tmp_path):
    x = images(6)
    Endpoint(scores_of, name="a", cache=tmp_path)(x)
    with pytest.raises(InputError, match="kept answers are not of 4 classes; remove"):
        Endpoint(scores_of, name="a", nb_classes=4, cache=tmp_path)(x)


def test_memory_of_many_answers_stays_bounded(tmp_path):
    answers = Answers(tmp_path, "a")
    keys = [i.to_bytes(16, "big") for i in range(3000)]
    answers.keep({key: key for key in keys})
    assert answers.find(keys) == {key: key for key in keys}
    with sqlite3.connect(tmp_path / FILE) as db:
        assert abs(db.execute("PRAGMA cache_size").fetchone()[0]) <= 2000
    db.close()


# --- As an object


def predict(x):
    return scores_of(x)


def test_it_goes_to_another_process(tmp_path):
    ask = pickle.loads(pickle.dumps(Endpoint(predict, cache=tmp_path, queries=100, labels_only=True)))
    assert ask.queries == 100 and ask.labels_only and ask(images(3)).shape == (3,)
    assert ask.name == "test_endpoint:predict" and "labels_only=True" in repr(ask)


def test_a_function_without_a_name_needs_one_for_its_answers(tmp_path):
    with pytest.raises(InputError, match=r"^name: .* give the endpoint a name"):
        Endpoint(lambda x: x, cache=tmp_path)
    assert Endpoint(lambda x: x).name


def test_arts_black_box_classifier(tmp_path):
    box = BlackBoxClassifier(lambda x: scores_of(x / 255), SHAPE, CLASSES, clip_values=(0, 255))
    x = images(9)
    assert np.allclose(Endpoint(box, name="box", cache=tmp_path)(x), scores_of(x), atol=1e-4)


@pytest.mark.parametrize(
    "odd",
    [
        {"batch_size": 0},
        {"queries": 0},
        {"seconds": 0},
        {"retries": -1},
        {"backoff": math.nan},
        {"concurrency": 0},
        {"nb_classes": 1},
    ],
)
def test_odd_arguments(odd):
    (name,) = odd
    with pytest.raises(InputError, match=f"^{name}: it is"):
        Endpoint(scores_of, **odd)


def test_work_one_at_a_time_is_in_this_thread_and_in_order():
    here = threading.get_ident()
    found = list(at_a_time(1, lambda item, over: (item, threading.get_ident()), range(3)))
    assert found == [(i, (i, here)) for i in range(3)]


def test_json_of_the_server_is_exact():
    assert np.array_equal(
        np.array(json.loads(json.dumps(scores_of(images(3)).tolist())), np.float32), scores_of(images(3))
    )
