"""What an endpoint adds to a call of ``predict`` with 64 images of CIFAR-10's size.

    python benchmarks/speed/endpoint.py [--rounds 200]

A round calls all sides one after the other, each with images of its own. Milliseconds are those that the call takes beyond
``predict`` itself in the same round, on a clock on the wall; a ratio is that of a call whose ``predict`` waits for 20 ms, as for a
network. ``endpoint.md`` is the table.
"""

from __future__ import annotations

import argparse
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import art_qplugins
from art_qplugins import Endpoint

HERE = Path(__file__).parent
BATCH, SHAPE, WAIT = 64, (3, 32, 32), 0.02
WEIGHTS = np.random.default_rng(0).random((3072, 10), dtype=np.float32)

Call = Callable[[NDArray[np.float32]], object]


def predict(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x.reshape(len(x), -1) @ WEIGHTS


def waits(x: NDArray[np.float32]) -> NDArray[np.float32]:
    time.sleep(WAIT)
    return predict(x)


def seconds(call: Call, x: NDArray[np.float32]) -> float:
    began = time.perf_counter()
    call(x)
    return time.perf_counter() - began


def sides(function: Call, folder: str) -> dict[str, Endpoint]:
    """Each asks the same function; the names keep their answers apart."""

    def endpoint(name: str, **how: object) -> Endpoint:
        return Endpoint(function, name=f"{function.__name__} {name}", **how)  # type: ignore[arg-type]

    return {
        "without a cache": endpoint("bare"),
        "with a cache, new images": endpoint("kept", cache=folder),
        "with a cache and a budget, new images": endpoint("budget", cache=folder, queries=10**9),
    }


def measured(function: Call, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """By side, the seconds of ``function`` alone and of the endpoint in each round; and those of images that are known."""
    random = np.random.default_rng(1)
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        asked = sides(function, folder)
        for number in range(rounds + 1):
            bare = seconds(function, random.random((BATCH, *SHAPE), dtype=np.float32))
            for name, endpoint in asked.items():
                x = random.random((BATCH, *SHAPE), dtype=np.float32)
                took = {name: (bare, seconds(endpoint, x))}
                if name == "with a cache, new images":
                    took["with a cache, known images"] = (0.0, seconds(endpoint, x))  # predict is not called
                for side, pair in took.items() if number else ():  # the first asks five images twice
                    found.setdefault(side, []).append(pair)
    return found


def table(rounds: int) -> list[str]:
    alone, network = measured(predict, rounds), measured(waits, max(rounds // 4, 1))
    rows = []
    for name, pairs in alone.items():
        fastest = 1000 * (min(it for _, it in pairs) - min(bare for bare, _ in pairs))
        median = 1000 * statistics.median(it - bare for bare, it in pairs)
        ratio = statistics.median(it / (bare or WAIT) for bare, it in network[name])
        rows.append(f"| {name} | {fastest:.2f} | {median:.2f} | {ratio:.3f} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Asking an endpoint",
        "",
        f"`python benchmarks/speed/endpoint.py`, {datetime.now(UTC):%Y-%m-%d}, art_qplugins {art_qplugins.__version__}, Python "
        f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}, {arguments.rounds} rounds on a shared "
        "machine.",
        "",
        f"Milliseconds that a call with {BATCH} images {SHAPE} takes beyond `predict` itself: the least and the median. Target: 2. "
        f"Behind them is the median ratio of the same call to its `predict` where that waits for {1000 * WAIT:.0f} ms.",
        "",
        "| endpoint | fastest, ms | median, ms | beside a request of 20 ms |",
        "|---|---|---|---|",
        *table(arguments.rounds),
        "",
        "Most of it is the hash of each image and the write of its answer. Known images are not asked at all, so their last column "
        "is what is left of the request.",
    ]
    (HERE / "endpoint.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
