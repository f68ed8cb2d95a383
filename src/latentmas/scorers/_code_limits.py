"""How long a program may take: several times what the canonical solution takes, on this machine."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

LEAST_SECONDS: Final = 10.0
MOST_SECONDS: Final = 600.0
_TIMES_CANONICAL: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What ``benchmarks/canonical_seconds.py`` has measured.

    Attributes:
        calibration_seconds: What `calibration_seconds` returned on the machine where it was measured.
        seconds: Processor time of slow canonical solutions, by the digest of their test.
    """

    calibration_seconds: float
    seconds: dict[str, float]


def cpu_seconds(digest: str) -> float:
    """Return the processor time an answer may take in a test, in [10, 600]."""
    canonical = _table().seconds.get(digest, 0.0)
    return min(MOST_SECONDS, max(LEAST_SECONDS, _TIMES_CANONICAL * canonical * _machine_factor()))


def wall_seconds(cpu: float) -> float:
    """Return the wall-clock time that goes with a processor time; other processes need some of it."""
    return 2 * cpu + 2


def calibration_seconds() -> float:
    """Return the processor time of a fixed piece of work; about 30 ms pass."""
    return min(_work() for _ in range(3))


def _work() -> float:
    start = time.thread_time()
    total, squares = 0, {}
    for number in range(50_000):
        total += number * number % 7
        squares[number & 1023] = total
    return time.thread_time() - start


@cache
def _machine_factor() -> float:
    """Return how many times slower this machine is than the one of the table; at least 1."""
    return max(1.0, calibration_seconds() / _table().calibration_seconds)


@cache
def _table() -> Table:
    text = resources.files("latentmas.scorers").joinpath("_code_seconds.json").read_text(encoding="utf-8")
    return Table(**json.loads(text))
