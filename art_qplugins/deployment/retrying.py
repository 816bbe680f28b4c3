"""How long to wait before an endpoint that failed is asked again."""

from __future__ import annotations

import contextlib
import random
import time
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["LONGEST", "asked_to_wait", "delay"]

#: Seconds. A wait of our own is at most a minute. One that the endpoint asks for is kept to up to an hour.
_LONGEST_DELAY, LONGEST = 60.0, 3600.0
#: Not the global generator, which attacks seed: clients that failed together would ask again together.
_random = random.SystemRandom()


def delay(attempt: int, backoff: float) -> float:
    """Seconds before the next attempt: twice as long each time, at most a minute, and of that a random share from a half.

    :param attempt: the number of the one that failed, from 0.
    :param backoff: seconds, after the first.
    """
    return min(_LONGEST_DELAY, backoff * 2.0**attempt) * _random.uniform(0.5, 1.0)


def asked_to_wait(error: BaseException) -> float:
    """Seconds that an exception says to wait; 0 where it says nothing.

    It is looked for in ``error.retry_after``, in seconds, and in the header ``Retry-After`` of ``error.headers``, as urllib's
    ``HTTPError`` has it, or of ``error.response.headers``, as exceptions of requests and httpx do. A header has seconds or a
    date (RFC 9110, section 10.2.3).
    """
    asked: Any = getattr(error, "retry_after", None)
    for owner in (error, getattr(error, "response", None)):
        headers: Any = getattr(owner, "headers", None)
        if asked is None and hasattr(headers, "get"):
            asked = headers.get("Retry-After")
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(asked))
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    return 0.0
