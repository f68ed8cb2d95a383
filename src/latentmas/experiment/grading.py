"""Grading: where scorers run, and how stored answers are graded again.

Text scorers take microseconds and run in place. Code scorers wait for programs, so they run in processes of their own
and never hold up the model.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, MappingProxyType
from typing import Any, ParamSpec, TypeVar, final

from latentmas.errors import SampleError, StoreError
from latentmas.protocols import Scorer
from latentmas.samples import Answer, Sample, Score

logger = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grading:
    """How the answers of a task are graded, decided before anything runs.

    Attributes:
        scorer: None leaves answers without a verdict.
        check: Raises `DataError` for a sample whose target cannot be graded against.
        workers: Processes it runs in; 0 runs it in place.
        notes: What a manifest must know of it, such as the confinement of code.
    """

    scorer: Scorer | None
    check: Callable[[Sample], object] = lambda sample: None
    workers: int = 0
    notes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@contextmanager
def executor(workers: int) -> Iterator[Executor]:
    """Give a place where scorers run: that many processes, or 0 for this thread. An error or interrupt ends them."""
    if workers == 0:
        yield InPlace()
        return
    # Not forked: a process that holds a model and its threads cannot be copied safely.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        children = multiprocessing.active_children()
        for child in children:
            child.terminate()  # what it waits for may take minutes; it clears up
        for child in children:
            child.join(CLEARING_SECONDS)
            child.kill()
        raise
    pool.shutdown()


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """One stored answer, graded again.

    Attributes:
        score: None where this machine could not grade it.
    """

    sample: Sample
    score: Score | None


@final
class InPlace(Executor):
    """Runs what is submitted at once, in the thread that submits it, and raises there what it raises."""

    def submit(
        self, function: Callable[Parameters, Value], /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Future[Value]:
        done: Future[Value] = Future()
        done.set_result(function(*args, **kwargs))
        return done


def result_of(score: Future[Score]) -> Score | None:
    """Wait for a score; None where this machine could not grade the answer, which is logged.

    Raises:
        DataError: The target of its sample cannot be read.
        StoreError: The process that graded is gone.
    """
    try:
        return score.result()
    except SampleError as error:
        logger.warning("an answer could not be graded: %s", error)
        return None
    except BrokenExecutor as error:
        raise StoreError(
            "a process that checks code was killed, perhaps for want of memory; what is stored is kept: repeat the "
            "same command, with fewer workers if it happens again"
        ) from error


def grade_all(answered: Iterable[tuple[Answer, Sample, Grading]], *, executor: Executor) -> Iterator[Graded]:
    """Yield the graded answers in the order of `answered`, reading it only a little ahead of the workers."""
    ahead: deque[tuple[Sample, Future[Score]]] = deque()
    for answer, sample, grading in answered:
        assert grading.scorer is not None
        ahead.append((sample, executor.submit(grading.scorer, answer, sample)))
        while ahead and (ahead[0][1].done() or len(ahead) > AHEAD):
            first, score = ahead.popleft()
            yield Graded(sample=first, score=result_of(score))
    for sample, score in ahead:
        yield Graded(sample=sample, score=result_of(score))


CLEARING_SECONDS = 2.0
"""How long an interrupted process has to clear up."""
AHEAD = 64
"""Answers that may wait for a worker; their tests can be large."""


def default_workers() -> int:
    """Return half of the cores: wall-clock limits under full load cost verdicts."""
    return max(1, (os.cpu_count() or 1) // 2)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends; what is being graded is cleared away first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(1)

    signal.signal(signal.SIGTERM, end)
    parent: Any = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
