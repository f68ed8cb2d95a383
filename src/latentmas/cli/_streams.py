"""stdout that says when it fails, and the one line on stderr with which a command line ends badly.

Loads next to nothing: an error may come from a process that could not import much.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # the real one would load the module typing
if TYPE_CHECKING:
    from typing import Any, TextIO


class StdoutFailed(Exception):  # noqa: N818 - no error of the package, and nobody outside of this one catches it
    """stdout takes no more. No `OSError`, so that nothing between here and `main` takes it for one of a file."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.reason = error.strerror or str(error)
        self.reader_is_gone = isinstance(error, BrokenPipeError)


class GuardedStdout:
    """stdout, whose failures are `StdoutFailed`. Everything else is that of the stream itself."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream  # None where the process was started with stdout closed

    def write(self, text: str) -> int:
        try:
            return len(text) if self.stream is None else self.stream.write(text)
        except OSError as error:
            raise StdoutFailed(error) from error

    def flush(self) -> None:
        try:
            if self.stream is not None:
                self.stream.flush()
        except OSError as error:
            raise StdoutFailed(error) from error

    def let_go(self) -> None:
        """Send what the stream still holds to nowhere; it would fail once more when the process ends."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self.fileno())
            finally:
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def guarded_stdout() -> Iterator[GuardedStdout]:
    """Guard stdout inside the block."""
    before = sys.stdout
    guarded: Any = GuardedStdout(before)
    if before is not None:  # print and rich know what to do without one
        sys.stdout = guarded
    try:
        yield guarded
    finally:
        sys.stdout = before


def say_failed(failed: StdoutFailed) -> int:
    """Say that stdout failed, and return the exit code.

    A reader that is gone, as behind ``| head -1``, has what it wanted, so nothing is said.
    """
    if failed.reader_is_gone:
        return 1
    return say_error(
        f"stdout takes no more ({failed.reason}); make room or send it elsewhere: what a run answered is in its "
        "folder, and the same command prints it again",
        1,
    )


def say_error(message: str, exit_code: int) -> int:
    """Print one line on stderr and return the exit code. Does nothing where stderr takes nothing."""
    line = f"error: {' '.join(message.split())}"
    with suppress(OSError, AttributeError):  # full, closed, or never there
        coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        print(f"\x1b[31m{line}\x1b[0m" if coloured else line, file=sys.stderr, flush=True)
    return exit_code
