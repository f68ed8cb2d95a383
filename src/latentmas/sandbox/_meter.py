"""What a running confined process uses, seen from outside, where it cannot lie about it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final, final

from latentmas.sandbox import _bubblewrap
from latentmas.sandbox._process import ConfinedProcess
from latentmas.sandbox._scratch import excess, too_many_files
from latentmas.sandbox.levels import Level
from latentmas.sandbox.outcome import Ending, Limits, SandboxError

MOST_MISSED: Final = 20
"""Looks in a row at a process that is not there, and has not ended: about a second."""


@final
class Meter:
    """Looks at one process, when asked.

    Attributes:
        cpu_seconds: Processor time when it was last looked at.
    """

    def __init__(self, process: ConfinedProcess, limits: Limits) -> None:
        self._process = process
        self._limits = limits
        self._pid: int | None = None
        self.cpu_seconds = 0.0
        self._missed = 0

    def breach(self) -> tuple[Ending, str] | None:
        """Return which limit is exceeded, with words for people; None if none is.

        Raises:
            SandboxError: The system does not let this process look.
        """
        try:
            found = self._breach()
            self._missed = 0
            return found
        except (FileNotFoundError, ProcessLookupError):
            # It has just ended, or only its main thread has, and what the others write can no longer be counted.
            self._missed += 1
            return (Ending.FAILED, "its main thread ended") if self._missed > MOST_MISSED else None
        except PermissionError as error:
            if self._pid is not None and _is_ending(self._pid):
                return None
            raise SandboxError(f"the confined process cannot be watched: {error}") from error

    def _breach(self) -> tuple[Ending, str] | None:
        limits = self._limits
        if sys.platform == "linux":
            pid = self._pid = self._pid or self._driver()
            self.cpu_seconds = _cpu_seconds(pid)
            if self.cpu_seconds > limits.cpu_seconds:
                return Ending.TIMEOUT, f"more than {limits.cpu_seconds:g} s of processor time"
            # A folder has one link for each folder in it, and two more: here, one for each thread.
            if os.stat(f"/proc/{pid}/task").st_nlink - 2 > limits.threads:
                return Ending.FAILED, f"more than {limits.threads} threads"
            if self._process.level is Level.BWRAP:
                # The scratch folder is a file system of its own, whose size the kernel keeps within the limit.
                volume = os.statvfs(f"/proc/{pid}/root{_bubblewrap.SCRATCH}")
                if volume.f_files - volume.f_ffree - 1 > limits.scratch_files:
                    return Ending.FAILED, too_many_files(limits.scratch_files)
                return None
        words = excess(self._process.place.folder, max_bytes=limits.scratch_bytes, max_files=limits.scratch_files)
        return (Ending.FAILED, words) if words else None

    def _driver(self) -> int:
        """Return the number of the process that runs the driver."""
        pid = self._process.pid
        if self._process.level is Level.BWRAP:
            # The one child of bubblewrap, which waits for it outside.
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if not children:
                raise ProcessLookupError
            pid = int(children[0])
        return pid


def _is_ending(pid: int) -> bool:
    """Return whether a process has given back its memory, the first step to its end; then it cannot be looked into."""
    try:
        return Path(f"/proc/{pid}/statm").read_text().startswith("0 ")
    except (FileNotFoundError, ProcessLookupError):
        return True


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) returns
    except OSError as error:
        raise ProcessLookupError from error
