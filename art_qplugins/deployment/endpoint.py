"""A model that is asked over a network: in batches, several at a time, again where it fails, within a budget.

It knows nothing of gradients. Answers are kept by :mod:`~art_qplugins.deployment.answers`, and judged by ``checked.py``.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from art_qplugins.deployment.answers import Answers, kept_as
from art_qplugins.deployment.arguments import ASK
from art_qplugins.deployment.checked import checked, same
from art_qplugins.deployment.predictors import as_predict
from art_qplugins.deployment.retrying import LONGEST, asked_to_wait, delay
from art_qplugins.deployment.threads import Stopped, at_a_time
from art_qplugins.domains import check_all
from art_qplugins.errors import InputError, shown
from art_qplugins.foreign import foreign

__all__ = ["TWICE", "Endpoint", "UsedUp", "endpoints_of"]

#: Images that are asked twice before any other.
TWICE = 5

logger = logging.getLogger(__name__)


class UsedUp(InputError):
    """A budget of queries or of seconds is used up."""


class Endpoint:
    """A function of images that is asked as a service wants to be asked. It is called as ``predict`` is.

    Before anything else five images are asked twice, in another order. Where the answers differ by more than rounding, the
    model is random, and no answer of it is kept.

    An attempt fails where ``predict`` raises, or gives something else than the answer to its images. It is made again after a
    wait that doubles. A wait that the exception asks for is kept to by all threads, see
    :func:`~art_qplugins.deployment.retrying.asked_to_wait`; one of more than an hour is an error. A second answer that is no
    answer is an error too. Give your request a timeout: nothing here can end it.

    An answer is taken to depend on its image alone, so images that were asked together may be answered from the cache apart.

    :param predict: takes images (N, C, H, W) float32 in [0, 1], gives scores (N, K) or labels (N,); or an ART
        ``BlackBoxClassifier``, or a torch module. With ``concurrency`` above 1 several threads call it at a time.
    :param name: of the endpoint, under which its answers are kept; by default ``module:function``.
    :param batch_size: images in one call of ``predict``, at most.
    :param queries: images that it may be asked, those asked again counted again. What the cache answers is free. With a
        cache, the questions of earlier runs and of other processes count.
    :param seconds: in which it may be asked, from the first question of this process on.
    :param retries: attempts after the first.
    :param backoff: seconds before the second attempt, half of them or more at random, doubled for each further one.
    :param concurrency: calls of ``predict`` at a time, of this process.
    :param cache: the folder of answers on disk; ``None`` keeps none.
    :param labels_only: it gives labels, or only the largest of its scores is to be looked at.
    :param nb_classes: K; by default that of its first answer.
    :ivar random: whether its answers to the same images differ; ``None`` until it was asked.
    :raises InputError: at a call, in one line that names the endpoint, where it has no answer. :class:`UsedUp` where a budget
        is used up. What it answered before is kept.
    """

    def __init__(
        self,
        predict: Any,
        *,
        name: str | None = None,
        batch_size: int = 64,
        queries: int | None = None,
        seconds: float | None = None,
        retries: int = 5,
        backoff: float = 0.5,
        concurrency: int = 1,
        cache: str | Path | None = None,
        labels_only: bool = False,
        nb_classes: int | None = None,
    ) -> None:
        check_all(locals(), ASK)
        cache = None if cache is None else Path(cache).absolute()  # another process may run elsewhere
        self._settings = {key: value for key, value in locals().items() if key in ASK}
        self._predict, self.name = as_predict(predict), name or _name_of(predict, kept=cache is not None)
        self.batch_size, self.queries, self.seconds = batch_size, queries, seconds
        self.retries, self.backoff, self.concurrency = retries, backoff, concurrency
        self.labels_only, self.nb_classes = labels_only, nb_classes
        self.random: bool | None = None
        self._answers = None if cache is None else Answers(cache, kept_as(self.name, labels_only=labels_only))
        self._asked, self._ends, self._resume = 0, math.inf, 0.0
        self._lock, self._first = threading.Lock(), threading.RLock()
        self._slots = threading.BoundedSemaphore(concurrency)

    @property
    def asked(self) -> int:
        """Images that it was asked so far, as ``queries`` counts them."""
        return self._asked if self._answers is None else self._answers.asked

    @property
    def identity(self) -> str:
        """What tells its answers from those of others."""
        return f"{self.name} labels_only={self.labels_only}"

    def __call__(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Scores (N, K) float32, or labels (N,) int64.

        :param x: (N, C, H, W) float32 in [0, 1].
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        self.check(x)
        if self._answers is None or self.random:
            return self._all(x)
        keys = self._answers.keys(x)
        known = self._answers.find(keys)
        new: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in known:
                new.setdefault(key, row)
        rows, names = list(new.values()), list(new)
        for begin, answers in self._in_batches(x, rows):
            fresh = {key: answer.tobytes() for key, answer in zip(names[begin:], answers, strict=False)}
            self._answers.keep(fresh)
            known |= fresh
        return self._read([known[key] for key in keys])

    def check(self, x: NDArray[np.float32]) -> None:
        """Ask the first five images twice, where this was not done before.

        :param x: as for a call.
        """
        with self._first:
            if self.random is not None or not len(x):
                return
            if self._answers is not None and self._answers.steady:
                self.random = False
                return
            few = np.ascontiguousarray(x[:TWICE], dtype=np.float32)
            answers, again = self._all(few), self._all(few[::-1])[::-1]
            self.random = not same(answers, again)
            if self.random:
                logger.warning("endpoint %s: %s", self.name, self.doubt)
            elif self._answers is not None:
                keys = self._answers.keys(few)
                self._answers.keep({key: answer.tobytes() for key, answer in zip(keys, answers, strict=True)})
                self._answers.is_steady()

    @property
    def doubt(self) -> str:
        """What a report should say of it; "" where there is nothing."""
        return "its answers to the same images differ, so it is random, and no answer is kept" if self.random else ""

    def __repr__(self) -> str:
        return f"Endpoint({self.identity})"

    def __reduce__(self) -> Any:
        """In another process it is made anew. The budget of seconds begins there, and that of queries without a cache."""
        return partial(Endpoint, self._predict, **self._settings), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Endpoint:
        """A copy of a network asks the same endpoint, within the same budget."""
        return self

    # -- Asking

    def _all(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """The answers to images, none of them from the cache."""
        found: list[NDArray[Any]] = [np.empty(0)] * math.ceil(len(x) / self.batch_size)
        for begin, answers in self._in_batches(x, range(len(x))):
            found[begin // self.batch_size] = answers
        return np.concatenate(found) if found else np.empty((0,) if self.labels_only else (0, self.nb_classes or 0))

    def _in_batches(self, x: NDArray[np.float32], rows: Sequence[int]) -> Iterator[tuple[int, NDArray[Any]]]:
        """The answers to those images in batches, as they come, each with its position in ``rows``."""
        each = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

        def answer(number: int, over: threading.Event) -> NDArray[Any]:
            return self._answer(x[list(each[number])], over)

        try:
            for number, answers in at_a_time(self.concurrency, answer, range(len(each)), left=self._seconds_left):
                yield number * self.batch_size, answers
        except TimeoutError:
            raise self._used_up("seconds") from None

    def _seconds_left(self) -> float | None:
        return None if self._ends == math.inf else max(0.0, self._ends - time.monotonic())

    def _answer(self, x: NDArray[np.float32], over: threading.Event) -> NDArray[Any]:
        """The checked answer to a batch.

        :param over: is set where nobody waits for the answer.
        """
        attempt, until, malformed = 0, 0.0, False
        while True:
            self._wait(until, over)
            self._take(len(x))
            try:
                with self._slots:
                    given = self._predict(x.copy())
            except (Exception, SystemExit) as error:  # others' code
                failure: BaseException = error
                wait = asked_to_wait(error)
            else:
                try:
                    return self._checked(given, len(x))
                except InputError as error:
                    if malformed or attempt == self.retries:
                        raise InputError(f"endpoint {self.name}: {error}") from None
                    failure, wait, malformed = error, 0.0, True
            if attempt == self.retries or wait > LONGEST:
                self._give_up(failure, attempt + 1, wait)
            logger.info("endpoint %s: attempt %d failed: %s", self.name, attempt + 1, failure)
            until = time.monotonic() + max(wait, delay(attempt, self.backoff))
            if wait:
                self._resume = max(self._resume, time.monotonic() + wait)
            attempt += 1

    def _checked(self, given: Any, n: int) -> NDArray[Any]:
        answers = checked(given, n, nb_classes=self.nb_classes, labels_only=self.labels_only)
        if self.nb_classes is None and not self.labels_only:
            self.nb_classes = answers.shape[1]
        return answers

    def _give_up(self, failure: BaseException, attempts: int, wait: float) -> None:
        where = (
            f"endpoint {self.name}: it failed {attempts} times" if attempts > 1 else f"endpoint {self.name}: it failed"
        )
        if wait > LONGEST:
            where = f"endpoint {self.name}: it asks to wait for {wait:,.0f} s"
        hint = "" if self._answers is None else "every answer is kept, so try the same again later"
        with foreign(where, package=self.name.split(":")[0].split(".")[0], hint=hint):
            raise failure

    # -- Budgets

    def _take(self, images: int) -> None:
        """Count a question before it is asked. A retry is one more.

        :raises UsedUp: where it is one too many.
        """
        if self._answers is not None:
            taken = self._answers.take(images, self.queries)
        else:
            with self._lock:
                taken = self.queries is None or self._asked + images <= self.queries
                self._asked += images if taken else 0
        if not taken:
            raise self._used_up("queries")

    def _wait(self, until: float, over: threading.Event) -> None:
        """Wait until a time, and for as long as the endpoint asked for.

        :raises UsedUp: where that is beyond the budget of seconds.
        """
        if self.seconds is not None and self._ends == math.inf:
            self._ends = time.monotonic() + self.seconds
        while (left := max(until, self._resume) - (now := time.monotonic())) > 0 and now + left < self._ends:
            if over.wait(left):
                break
        if over.is_set():
            raise Stopped
        if now + max(left, 0) >= self._ends:
            raise self._used_up("seconds")

    def _used_up(self, budget: str) -> UsedUp:
        spent = f"{self.asked:,} of {self.queries:,} queries" if budget == "queries" else f"{self.seconds:g} seconds"
        kept = "" if self._answers is None or self.random else "; every answer is kept"
        return UsedUp(f"endpoint {self.name}: {spent} are used up{kept}; the same again with more {budget} goes on")

    def _read(self, rows: Sequence[bytes]) -> NDArray[Any]:
        """Kept answers as an array."""
        whole, kind = b"".join(rows), np.int64 if self.labels_only else np.float32
        found = np.frombuffer(whole, kind).reshape(len(rows), -1).copy() if rows else np.empty((0, 1), kind)
        if self.nb_classes is None and not self.labels_only:
            self.nb_classes = found.shape[1]
        if len(set(map(len, rows))) > 1 or found.shape[1] != (1 if self.labels_only else self.nb_classes):
            assert self._answers is not None
            raise InputError(
                f"endpoint {self.name}: its kept answers are not of {self.nb_classes} classes; remove {self._answers.path}"
            )
        return found[:, 0] if self.labels_only else found


def endpoints_of(module: nn.Module) -> list[Endpoint]:
    """The endpoints that a module or one inside it asks."""
    return [value for part in module.modules() for value in vars(part).values() if isinstance(value, Endpoint)]


def _name_of(predict: Any, *, kept: bool) -> str:
    """``"module:function"``; of anything else, its class.

    :raises InputError: where that does not tell one from another, and answers are kept under it.
    """
    plain = "<" not in getattr(predict, "__qualname__", "<")
    if kept and not plain:
        raise InputError(
            f"name: {shown(predict)} has none, and its answers are kept under it; give the endpoint a name"
        )
    named = predict if plain else type(predict)
    return f"{named.__module__}:{named.__qualname__}"
