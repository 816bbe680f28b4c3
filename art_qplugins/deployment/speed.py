"""How long files take to answer, and how much energy where the machine tells it: side by side, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BATCHES", "Speed", "joules", "speeds", "vnni"]

#: Images that are answered at once.
BATCHES = (1, 32)
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")

Answer = Callable[[NDArray[np.float32]], Any]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One file at one size of the batch.

    :ivar seconds: median of a call.
    :ivar ratio: of the first file's time to its own within rounds: its quartiles and, in the middle, the median. Above 1 it is faster.
    :ivar energy: of the first file's energy to its own, medians; ``None`` where the machine does not tell.
    """

    batch: int
    seconds: float
    ratio: tuple[float, float, float]
    energy: float | None


def speeds(
    answers: Mapping[str, Answer], shape: tuple[int, ...], *, batches: Sequence[int] = BATCHES, rounds: int = 20
) -> dict[str, list[Speed]]:
    """Each file beside the first, by size of the batch. In a round each answers once, in turn, after a round to warm up.

    :param shape: (C, H, W).
    """
    found: dict[str, list[Speed]] = {name: [] for name in answers}
    for batch in batches:
        x = np.random.default_rng(0).random((batch, *shape), dtype=np.float32)
        times = {name: np.zeros(rounds) for name in answers}
        energy = {name: np.zeros(rounds) for name in answers}
        for turn in range(-1, rounds):
            for name in np.roll(list(answers), turn):  # no file is always behind the same one
                before, start = joules(), time.perf_counter()
                answers[name](x)
                if turn >= 0:
                    times[name][turn] = time.perf_counter() - start
                    energy[name][turn] = joules() - before
        first = next(iter(answers))
        for name in answers:
            low, middle, high = np.percentile(times[first] / times[name], [25, 50, 75])
            spent = float(np.median(energy[first]) / np.median(energy[name])) if np.median(energy[name]) > 0 else None
            seconds = float(np.median(times[name]))
            ratio = (float(low), float(middle), float(high))
            found[name].append(Speed(batch=batch, seconds=seconds, ratio=ratio, energy=spent))
    return found


def joules() -> float:
    """The energy counter of the processor; NaN where it cannot be read."""
    try:
        return int(_RAPL.read_text()) / 1e6
    except (OSError, ValueError):
        return float("nan")


def vnni() -> bool | None:
    """Whether the processor multiplies bytes without saturating, by /proc/cpuinfo; ``None`` where there is none."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
