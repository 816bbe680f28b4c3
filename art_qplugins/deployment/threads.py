"""Work that waits on somebody else, several pieces at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

__all__ = ["Stopped", "at_a_time"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """A piece of work ends early, because nobody waits for it any more."""


def at_a_time(
    concurrency: int,
    work: Callable[[Item, threading.Event], Result],
    items: Iterable[Item],
    *,
    left: Callable[[], float | None] = lambda: None,
) -> Iterator[tuple[Item, Result]]:
    """Each item with what ``work`` makes of it, as they are finished, ``concurrency`` at a time.

    Where one fails no other is begun, those that run are waited for, and the first failure is raised. One at a time runs in
    this thread. Others run in daemon threads, so that one which hangs keeps no process alive.

    :param work: takes an item, and an event that is set where nobody waits for it any more. It may raise :class:`Stopped` then.
    :param left: seconds to wait for the next one; ``None`` is for ever.
    :raises TimeoutError: where these are over.
    """
    waiting, over = deque(items), threading.Event()
    if concurrency == 1 or len(waiting) < 2:
        while waiting:
            item = waiting.popleft()
            yield item, work(item, over)
        return
    done = SimpleQueue[Any]()

    def run() -> None:
        try:
            while not over.is_set():
                item = waiting.popleft()
                done.put((item, work(item, over), None))
        except (IndexError, Stopped):  # none is left, or another one failed
            pass
        except BaseException as error:
            over.set()
            done.put((None, None, error))
        done.put(None)

    running, failure = min(concurrency, len(waiting)), None
    for _ in range(running):
        threading.Thread(target=run, daemon=True).start()
    try:
        while running:
            try:
                found = done.get(timeout=left())
            except Empty:
                raise TimeoutError from None
            if found is None:
                running -= 1
                continue
            item, result, error = found
            if error is None:
                yield item, result
            else:
                failure = failure or error
    finally:
        over.set()
    if failure is not None:
        raise failure
