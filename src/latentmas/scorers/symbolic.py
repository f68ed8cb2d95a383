"""Grades numbers as `number` does, and asks math-verify about boxes that are no plain number, such as ``\\sqrt{4900}``.

math-verify is an optional package and can hang on short texts, so it runs in a process of its own that is killed at a
deadline. It is asked only about one expression for one value; what a plain number, a percentage, a list or a set is
worth stays as `number` says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Final

from latentmas.errors import CapabilityError, ConfigError
from latentmas.samples import Answer, Sample, Score, Verdict
from latentmas.scorers import number

_WORKER: Final = Path(__file__).with_name("_symbolic_worker.py")
_START_SECONDS: Final = 60.0
"""For the import of math-verify, which takes a second or two where nothing else runs."""

_UNIT: Final = re.compile(r"\\?[,; ~]?\s*\\(?:text|mathrm|mbox)\s*\{\s*[A-Za-z]+\s*\}\s*$")
_SPACES: Final = re.compile(r"\\[,;:!> ]|~")
# A whitelist, because math-verify reads 7:1 as 7, `7 8` as 15 and drops \ldots.
_EXPRESSION: Final = re.compile(
    r"(?:[0-9]+(?:\.[0-9]+)?(?!\s+[0-9.])|[-+*/^(){}|!\s]|\\[{]?(?:[dtc]?frac|cdot|times|div|left|right|[dt]?binom|choose"
    r"|over|pi|log|ln|lg|exp|a?(?:sin|cos|tan)|arc(?:sin|cos|tan)|cot|sec|csc|[lr](?:floor|ceil|vert)|sqrt(?:\[[0-9]\])?"
    r"|(?:sum|prod)_\{[a-z]=[0-9]+\})(?![a-zA-Z])|(?<=\\log)_(?:[0-9]|\{[0-9]+\})|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))+"
)


def check_available() -> None:
    """Check that math-verify is installed.

    Raises:
        CapabilityError: It is not.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise CapabilityError("symbolic grading needs math-verify: pip install 'latentmas[math]'")


class _Reply(Enum):
    EQUAL = "by math-verify"
    UNEQUAL = None
    TOO_LATE = "math-verify gave up after {:g} s"
    DIED = "math-verify ended without an answer"


class _Worker:
    """A process that compares; started by the first question and again after one that was too hard."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., _Worker] | None = None

    def __reduce__(self) -> tuple[type[_Worker], tuple[()]]:
        return _Worker, ()

    def ask(self, box: str, target: str, seconds: float) -> _Reply:
        """Compare within `seconds`, the start of the process not counted."""
        with self._lock:
            process = self._started(seconds)
            question = json.dumps({"box": box, "target": target}).encode() + b"\n"
            try:
                assert process.stdin is not None
                process.stdin.write(question)
                process.stdin.flush()
                reply = _line(process, seconds)
            except TimeoutError:
                self._close()
                return _Reply.TOO_LATE
            except OSError:
                self._close()
                return _Reply.DIED
            return _Reply.EQUAL if reply["equal"] else _Reply.UNEQUAL

    def close(self) -> None:
        with self._lock:
            self._close()

    def _started(self, seconds: float) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # a forked copy must not talk to the process of its parent
            self._owner, self._process, self._end = os.getpid(), None, None
        if self._process is not None and self._process.poll() is not None:
            self._close()
        if self._process is None:
            check_available()
            # -P: the folder of the script is no place to import from.
            command = [sys.executable, "-P", str(_WORKER), str(math.ceil(seconds) + 2)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process
            )
            self._end = weakref.finalize(self, _end, self._process, os.getpid())
            _line(self._process, _START_SECONDS)
        return self._process

    def _close(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None


@dataclass(frozen=True, slots=True)
class SymbolicScorer:
    """Grades numbers; a box that cannot be read as one is compared by math-verify.

    A copy, pickled or not, starts a process of its own when it needs one.

    Attributes:
        timeout_seconds: Wall-clock limit of one comparison, above 0; a box that takes longer is wrong.
    """

    timeout_seconds: float = 5.0
    _worker: _Worker = field(default_factory=_Worker, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.timeout_seconds < math.inf:
            raise ConfigError(f"timeout_seconds is {self.timeout_seconds}; expected a number above 0")

    def __call__(self, answer: Answer, sample: Sample) -> Score:
        """Grade an answer.

        Raises:
            DataError: The target is no number.
            CapabilityError: math-verify is not installed, and this answer needs it.
        """
        score = number.score(answer, sample)
        if score.verdict is not Verdict.WRONG or score.found_by != "box" or score.prediction is None:
            return score
        if (expression := _expression(score.prediction)) is None:
            return score
        reply = self._worker.ask(expression, str(number.parse_target(sample.target)), self.timeout_seconds)
        verdict = Verdict.CORRECT if reply is _Reply.EQUAL else Verdict.WRONG
        detail = None if reply.value is None else reply.value.format(self.timeout_seconds)
        return replace(score, verdict=verdict, detail=detail)

    def close(self) -> None:
        """End the process. The next answer that needs one starts it anew."""
        self._worker.close()


def _expression(box: str) -> str | None:
    """Return what of a box math-verify is asked about; None where it holds a plain number or no single expression."""
    if number.read_box(box) is not None:
        return None
    sides = _sides(_UNIT.sub("", _SPACES.sub(" ", box)).strip().strip("$"))
    if not all(_EXPRESSION.fullmatch(side) for side in sides):
        return None
    # An equation ends in its value, as for `number`.
    return next((side for side in reversed(sides) if re.search("[0-9]", side)), None)


def _sides(text: str) -> list[str]:
    """Return the sides of an equation; signs in braces, as in a sum, do not divide it."""
    sides, depth = [""], 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "=" and depth == 0:
            sides.append("")
        else:
            sides[-1] += character
    return sides


def _line(process: subprocess.Popen[bytes], seconds: float) -> dict[str, bool]:
    """Return the next line the process writes.

    Raises:
        TimeoutError: None came in time.
        BrokenPipeError: The process has ended.
    """
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError
        piece = os.read(process.stdout.fileno(), 4096)
        if not piece:
            raise BrokenPipeError
        line += piece
    reply: dict[str, bool] = json.loads(line)
    return reply


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent is of no use any more
                pipe.close()
