"""How a confined process is started: its command, its environment and the orders its prelude follows."""

from __future__ import annotations

import marshal
import math
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from types import CodeType
from typing import TYPE_CHECKING, Final

from latentmas.errors import CapabilityError
from latentmas.sandbox import _bubblewrap, _landlock, _seccomp
from latentmas.sandbox._scratch import Scratch
from latentmas.sandbox._view import View, interpreter
from latentmas.sandbox.levels import Level
from latentmas.sandbox.outcome import MEBIBYTE, Limits

if TYPE_CHECKING:
    from latentmas.sandbox._prelude import Orders

OPEN_FILES: Final = 64
STACK_BYTES: Final = 64 * MEBIBYTE

# marshal, because it reads compiled code, needs no import of its own and is only ever read from the parent.
BOOTSTRAP: Final = """\
import marshal, posix, sys
prelude, orders = marshal.loads(posix.read(0, int(sys.argv[1])))
namespace = {}
exec(prelude, namespace)
namespace["enter"](orders)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How one process is started.

    Attributes:
        command: With its arguments.
        environment: All of it.
        header: What its standard input begins with; the payload follows.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    header: bytes


def launch(driver: str, *, level: Level, limits: Limits, view: View, place: Scratch, output: int) -> Launch:
    """Return how to start a driver at a level.

    Args:
        output: Descriptor of the pipe it writes to.

    Raises:
        CapabilityError: The machine lacks what the level needs.
    """
    folder, packages = (
        (_bubblewrap.SCRATCH, _bubblewrap.PACKAGES) if level is Level.BWRAP else (place.folder, place.packages)
    )
    environment = {
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HOME": folder,
        "TMPDIR": folder,
    }
    orders: Orders = {
        "driver": _compiled(driver),
        "output": output,
        "parent": 0 if level is Level.BWRAP else os.getpid(),
        "packages": packages,
        "environment": tuple(environment),
        "rlimits": _rlimits(limits, level),
        "linux": sys.platform == "linux",
        "landlock": _landlock_orders(view, place) if level is Level.LANDLOCK else None,
        "seccomp": b"" if level is Level.RLIMIT else _filter(),
        "own_pid": _seccomp.OWN_PID,
    }
    header = marshal.dumps((_prelude(), dict(orders)))
    around = _bubblewrap.command(view, scratch_bytes=limits.scratch_bytes) if level is Level.BWRAP else []
    command = (*around, interpreter(), "-P", "-s", "-S", "-B", "-c", BOOTSTRAP, str(len(header)))
    return Launch(command=command, environment=environment, header=header)


def _landlock_orders(view: View, place: Scratch) -> tuple[bytes, int, tuple[tuple[str, int], ...]]:
    rules = _landlock.ruleset(view, scratch=place.folder, packages=place.packages, abi=_landlock.abi())
    return (rules.attributes, rules.flags, rules.rules)


def _filter() -> bytes:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _seccomp.MACHINES:
        raise CapabilityError(
            f"system calls can be filtered on Linux on {' and '.join(_seccomp.MACHINES)}, not on {sys.platform} on "
            f"{machine}; grade on such a machine"
        )
    return _seccomp.program(machine)


def _rlimits(limits: Limits, level: Level) -> tuple[tuple[int, int, int], ...]:
    """Return the limits the kernel keeps."""
    import resource  # does not exist on Windows

    # The parent watches processor time and is exact; the kernel's limit is for when the parent is held up.
    cpu = math.ceil(limits.cpu_seconds) + 1
    rlimits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_FSIZE: (limits.file_bytes, limits.file_bytes),
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
    }
    if sys.platform == "linux":  # macOS has these and does not keep them
        rlimits[resource.RLIMIT_AS] = (limits.memory_bytes, limits.memory_bytes)
        rlimits[resource.RLIMIT_DATA] = (limits.memory_bytes, limits.memory_bytes)
        rlimits[resource.RLIMIT_STACK] = (STACK_BYTES, STACK_BYTES)
        if level is Level.RLIMIT and os.getuid() != 0:
            # Counted for the whole user, and not for root. The other levels refuse to fork. It stops bombs of
            # processes; threads are watched by the parent, so there is room for more of them.
            tasks = _tasks_of_user(os.getuid()) + 4 * limits.threads
            rlimits[resource.RLIMIT_NPROC] = (tasks, tasks)
    return tuple((which, soft, hard) for which, (soft, hard) in rlimits.items())


def _tasks_of_user(user: int) -> int:
    """Return how many threads the user has in all processes."""
    tasks = 0
    with os.scandir("/proc") as entries:
        for entry in entries:
            try:
                if entry.name.isdigit() and entry.stat().st_uid == user:
                    tasks += os.stat(f"{entry.path}/task").st_nlink - 2
            except (FileNotFoundError, ProcessLookupError):
                continue
    return tasks


@lru_cache(maxsize=16)
def _compiled(driver: str) -> CodeType:
    return compile(driver, "<driver>", "exec", dont_inherit=True)


@cache
def _prelude() -> CodeType:
    text = resources.files("latentmas.sandbox").joinpath("_prelude.py").read_text(encoding="utf-8")
    return compile(text, "<prelude>", "exec", dont_inherit=True)
