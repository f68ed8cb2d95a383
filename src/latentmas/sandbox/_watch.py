"""The parent's side of a run: takes in the output, keeps the limits, and says how the run ended."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, final

from latentmas.sandbox._meter import Meter
from latentmas.sandbox._prelude import READY
from latentmas.sandbox._process import ConfinedProcess, Exit
from latentmas.sandbox.levels import Level
from latentmas.sandbox.outcome import Ending, Limits, Outcome, SandboxError

START_SECONDS: Final = 30.0
"""Until the driver begins; the machine may be busy. This time is not the driver's."""
TICK_SECONDS: Final = 0.05
BLIND_TICK_SECONDS: Final = 0.005
"""Where the system does not say when a process ends."""
CHUNK: Final = 65536
CHUNKS_AT_A_TIME: Final = 16


def watch(process: ConfinedProcess, limits: Limits, on_output: Callable[[bytes], bool]) -> Outcome:
    """Follow a process to its end, which is brought about if need be.

    Raises:
        SandboxError: The driver was not reached.
    """
    output = _Output(process.output, limit=limits.output_bytes, on_output=on_output)
    meter = Meter(process, limits)
    begun, deadline, verdict = None, time.monotonic() + START_SECONDS, None
    look_at = 0.0
    with selectors.DefaultSelector() as selector, _end_descriptor(process.pid) as end_descriptor:
        selector.register(process.output, selectors.EVENT_READ)
        if end_descriptor is not None:
            selector.register(end_descriptor, selectors.EVENT_READ)
        tick = TICK_SECONDS if end_descriptor is not None else BLIND_TICK_SECONDS
        while True:
            selector.select(max(0.0, min(tick, deadline - time.monotonic())))
            ended = process.ended()  # asked before reading: then all it wrote is there to be read
            verdict = output.take(all_of_it=ended)
            now = time.monotonic()
            if output.begun and begun is None:
                begun, deadline, look_at = now, now + limits.wall_seconds, now + TICK_SECONDS
            if verdict or ended:
                break
            if output.closed and process.output in selector.get_map():
                selector.unregister(process.output)
            if now >= deadline:
                verdict = (Ending.TIMEOUT, f"more than {limits.wall_seconds:g} s")
                break
            if begun is not None and now >= look_at:
                if verdict := meter.breach():
                    break
                look_at = time.monotonic() + TICK_SECONDS
    finished = process.end()
    if begun is None:
        raise SandboxError(f"the sandbox did not start: {process.complaint() or _words(finished.code)}")
    cpu_seconds = max(finished.cpu_seconds, meter.cpu_seconds)
    ending, detail = verdict or _own_ending(finished, cpu_seconds, limits, process.level)
    return Outcome(ending=ending, detail=detail, wall_seconds=now - begun, cpu_seconds=cpu_seconds)


@final
class _Output:
    """What the driver writes, handed on piece by piece.

    Attributes:
        begun: Whether the driver has been reached.
        closed: Whether nothing more can come.
    """

    def __init__(self, descriptor: int, *, limit: int, on_output: Callable[[bytes], bool]) -> None:
        self._descriptor = descriptor
        self._room = limit
        self._on_output = on_output
        self.begun = False
        self.closed = False

    def take(self, *, all_of_it: bool) -> tuple[Ending, str] | None:
        """Hand on what is there; return why no more is wanted, or None.

        Args:
            all_of_it: Or only so much that deadlines are kept meanwhile. At the weakest level something may still
                write, so even this has an end: when it is too much.
        """
        taken = 0
        while not self.closed and (all_of_it or taken < CHUNKS_AT_A_TIME):
            try:
                chunk = os.read(self._descriptor, CHUNK)
            except BlockingIOError:
                return None
            taken += 1
            self.closed = not chunk
            if not self.begun:
                self.begun = chunk.startswith(READY)
                chunk = chunk[len(READY) :]
            if (wanted := chunk[: self._room]) and not self._on_output(wanted):
                return Ending.STOPPED, "no more output was wanted"
            if len(chunk) > self._room:
                return Ending.FLOOD, "more output than allowed"
            self._room -= len(chunk)
        return None


def _own_ending(finished: Exit, cpu_seconds: float, limits: Limits, level: Level) -> tuple[Ending, str]:
    """Return how a process ended that was not ended by the parent."""
    code = finished.code
    if code == 0:
        return Ending.DONE, ""
    if level is Level.BWRAP and code > 128:
        code = 128 - code
    out_of_time = code == -signal.SIGXCPU or (code == -signal.SIGKILL and cpu_seconds >= limits.cpu_seconds)
    if out_of_time:
        return Ending.TIMEOUT, f"more than {limits.cpu_seconds:g} s of processor time"
    return Ending.FAILED, _words(code)


def _words(code: int) -> str:
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"exit status {128 - code}"
    return f"exit status {code}"


@contextmanager
def _end_descriptor(pid: int) -> Iterator[int | None]:
    """Give a descriptor that becomes readable when the process ends; None where there is no such thing."""
    if sys.platform != "linux":
        yield None
        return
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # Linux before 5.3, or a container that forbids it
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
