"""A confined process from its start to its certain end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, final

from latentmas.sandbox._launch import Launch, launch
from latentmas.sandbox._scratch import Scratch, scratch
from latentmas.sandbox._view import view
from latentmas.sandbox.levels import Level
from latentmas.sandbox.outcome import Limits, SandboxError

SWEEP_SECONDS: Final = 1.0
COMPLAINT: Final = "complaint"
"""File for what is said before the driver begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended.

    Attributes:
        code: Exit status, or minus the number of the signal. Under bubblewrap the latter is 128 plus it.
        cpu_seconds: Processor time of the process and of those it waited for.
    """

    code: int
    cpu_seconds: float


@final
class ConfinedProcess:
    """A process that runs a driver.

    Attributes:
        pid: The process that was started: bubblewrap, or the interpreter itself.
        output: Descriptor to read what it writes; reading does not block.
        level: How it is confined.
        place: Its scratch folder.
    """

    def __init__(self, process: subprocess.Popen[bytes], *, output: int, level: Level, place: Scratch) -> None:
        self._process = process
        self._exit: Exit | None = None
        self._over = False
        self.pid = process.pid
        self.output = output
        self.level = level
        self.place = place

    def ended(self) -> bool:
        """Return whether it has ended, without waiting."""
        if sys.platform != "linux":
            return self._reap(os.WNOHANG)
        # Not reaped yet, so its number still means its process group and nothing else.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> Exit:
        """Kill what is left of it and return how it ended."""
        if not self._over:
            with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that has ended
                os.killpg(self.pid, signal.SIGKILL)
            self._reap(0)
            if self.level is Level.RLIMIT and sys.platform == "linux":
                _sweep(self.place.root)
            self._over = True
        assert self._exit is not None
        return self._exit

    def complaint(self) -> str:
        """Return what it said before the driver began, which is why it did not begin."""
        lines = Path(self.place.root, COMPLAINT).read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else ""  # the last line of a traceback is the error

    def _reap(self, options: int) -> bool:
        if self._exit is None:
            pid, status, usage = os.wait4(self.pid, options)
            if pid == 0:
                return False
            code = os.waitstatus_to_exitcode(status)
            self._exit = Exit(code=code, cpu_seconds=usage.ru_utime + usage.ru_stime)
            self._process.returncode = code  # or it would wait for the process itself, and warn
        return True


@contextmanager
def confined(
    driver: str, payload: bytes, *, level: Level, limits: Limits, packages: Sequence[str]
) -> Iterator[ConfinedProcess]:
    """Start a driver; nothing of it is left afterwards, neither processes nor files.

    Raises:
        CapabilityError: The machine lacks what the level needs.
        SandboxError: The process cannot be started.
    """
    seen = view(tuple(packages))
    with ExitStack() as stack:
        try:
            place = stack.enter_context(scratch(seen.packages))
            reading, writing = stack.enter_context(_pipe())
            what = launch(driver, level=level, limits=limits, view=seen, place=place, output=writing.fileno())
            process = _start(what, payload, place=place, output=writing.fileno())
        except OSError as error:
            raise SandboxError(f"the confined process cannot be started: {error}") from error
        running = ConfinedProcess(process, output=reading.fileno(), level=level, place=place)
        stack.callback(running.end)
        writing.close()  # or its end would never be seen
        yield running


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    reading, writing = os.pipe()
    with FileIO(reading, "rb") as source, FileIO(writing, "wb") as sink:
        os.set_blocking(reading, False)
        yield source, sink


def _start(what: Launch, payload: bytes, *, place: Scratch, output: int) -> subprocess.Popen[bytes]:
    payload_path, complaint_path = Path(place.root, "payload"), Path(place.root, COMPLAINT)
    with payload_path.open("wb") as file:
        file.write(what.header)
        file.write(payload)
    with payload_path.open("rb") as standard_input, complaint_path.open("wb") as complaint:
        # No preexec_fn: it is not safe where the parent has threads.
        return subprocess.Popen(
            what.command,
            env=what.environment,
            cwd=place.folder,
            stdin=standard_input,
            stdout=subprocess.DEVNULL,
            stderr=complaint,
            pass_fds=(output,),
            start_new_session=True,
        )


def _sweep(root: str) -> None:
    """Kill what left the process group. It is known by the scratch folder in its environment, unless it hid that."""
    until = time.monotonic() + SWEEP_SECONDS
    while (survivors := _survivors(os.fsencode(root))) and time.monotonic() < until:
        for pid in survivors:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _survivors(token: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended, or is another user's
                if token in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found
