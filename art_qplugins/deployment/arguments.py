"""What the arguments of an endpoint may be. Those of a recipe's table ``ask`` are the same, and nothing heavy is imported."""

from __future__ import annotations

from art_qplugins.domains import COUNT, FLAG, NOT_NEGATIVE, PATH, POSITIVE, TEXT, Domain, Maybe, Number

__all__ = ["ASK", "TWIN_QUERIES"]

ASK: dict[str, Domain] = {
    "name": Maybe(TEXT),
    "batch_size": COUNT,
    "queries": Maybe(COUNT),
    "seconds": Maybe(POSITIVE),
    "retries": Number(0, 100, whole=True),
    "backoff": NOT_NEGATIVE,
    "concurrency": Number(1, 1000, whole=True),
    "cache": Maybe(PATH),
    "labels_only": FLAG,
    "nb_classes": Maybe(Number(2, COUNT.high, whole=True)),
}

#: Answers for each image that a twin of an endpoint is distilled from. The budget does not change the twin, so that with a larger
#: one finished cells stay finished.
TWIN_QUERIES = 50
