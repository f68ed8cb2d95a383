"""What the processes of an engine say on stderr while it starts.

vLLM tells its caller only that an engine did not start; why, its processes write to stderr. They inherit that file
from this process, so for the time of a start it is a pipe. Knows nothing of vLLM.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

STDERR: Final = 2
MOST_BYTES: Final = 1 << 20
"""Of what is said, this much is kept: the beginning, where the cause is."""
QUIET_SECONDS: Final = 0.3
MOST_QUIET_SECONDS: Final = 3.0


class Overheard:
    """Text from stderr, kept and passed on.

    Args:
        target: File descriptor to pass it on to; closed when everybody who writes is gone.
        held: Pass nothing on before `release` is called.
    """

    def __init__(self, source: int, target: int, *, held: bool) -> None:
        self._source = source
        self._target = target
        self._kept = bytearray()
        self._is_held = held
        self._heard = time.monotonic()
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="latentmas-engine-stderr", daemon=True).start()

    def text(self) -> str:
        """Return what was said, once nobody has said anything for a moment."""
        began = time.monotonic()
        while (now := time.monotonic()) - self._heard < QUIET_SECONDS and now - began < MOST_QUIET_SECONDS:
            time.sleep(QUIET_SECONDS / 3)
        with self._lock:
            return self._kept.decode(errors="replace")

    def release(self) -> None:
        """Pass on what was held back, and from now on everything."""
        with self._lock:
            if self._is_held:
                self._write(bytes(self._kept))
                self._is_held = False

    def drop(self) -> None:
        """Forget what was held back; pass on what comes."""
        with self._lock:
            self._is_held = False

    def _listen(self) -> None:
        while True:
            try:
                said = os.read(self._source, 1 << 16)
            except OSError:
                said = b""
            if not said:
                break
            self._heard = time.monotonic()
            with self._lock:
                room = MOST_BYTES - len(self._kept)
                self._kept += said[: max(room, 0)]
                if not self._is_held:
                    self._write(said)
        os.close(self._source)
        os.close(self._target)

    def _write(self, said: bytes) -> None:
        try:
            while said:
                said = said[os.write(self._target, said) :]
        except OSError:
            return  # nobody reads stderr any more; the engine shall not feel it


@contextmanager
def overheard(*, held: bool) -> Iterator[Overheard | None]:
    """Listen to processes that are started in the block; they are heard as long as they live.

    What this process writes through `sys.stderr` meanwhile goes where it always went.

    Args:
        held: Pass nothing on before the block ends or `Overheard.release` is called.

    Yields None where this process has no stderr.
    """
    try:
        target = os.dup(STDERR)
    except OSError:
        yield None
        return
    source, pipe = os.pipe()
    # Processes that are started get none of these but their own stderr: all are closed on exec.
    os.dup2(pipe, STDERR)
    os.close(pipe)
    before = sys.stderr
    own = _opened(os.dup(target)) if _is_stderr(before) else None
    if own is not None:
        sys.stderr = own
    heard = Overheard(source, os.dup(target), held=held)
    try:
        yield heard
    finally:
        heard.release()  # first: once nobody holds the pipe, it is no longer listened to
        os.dup2(target, STDERR)
        os.close(target)
        if own is not None:
            sys.stderr = before
            own.close()


def _is_stderr(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.fileno() == STDERR
    except (OSError, ValueError):
        return False  # a buffer, as in a notebook or a test


def _opened(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
