"""The start-up self-test of a level: a program attacks its confinement, and others exceed their limits.

A kernel or a container can offer a level in name only, so its promises are tried and not inferred.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final

from latentmas.sandbox.execute import execute
from latentmas.sandbox.levels import CONFINING, Level
from latentmas.sandbox.outcome import MEBIBYTE, Ending, Limits


class SelfTestError(RuntimeError):
    """A level does not keep a promise here."""


MEMORY_BYTES: Final = 1024 * MEBIBYTE

ATTACKS: Final = f"""
import os, sys

secret, outside, port, parent = sys.stdin.read().splitlines()
succeeded = []

def attack(name):
    def run(action):
        try:
            action()
        except (OSError, MemoryError, ValueError):
            return
        succeeded.append(name)
    return run

@attack("saw variables of the environment")
def _():
    if not set(os.environ) - {{"PYTHONHASHSEED", "PYTHONUTF8", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                               "MKL_NUM_THREADS", "HOME", "TMPDIR"}}:
        raise OSError

@attack("took more memory than allowed")
def _():
    import mmap
    mmap.mmap(-1, {2 * MEMORY_BYTES})

@attack("raised its own limits")
def _():
    import resource
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard + 1))

@attack("read a file outside")
def _():
    open(secret).read()

@attack("listed a folder outside")
def _():
    os.listdir(outside)

@attack("wrote a file outside")
def _():
    open(outside + "/written", "w")

@attack("changed the permissions of a file outside")
def _():
    os.chmod(secret, 0o600)

@attack("reached the network")
def _():
    import socket
    socket.create_connection(("127.0.0.1", int(port)), timeout=1)

@attack("forked")
def _():
    if os.fork() == 0:
        os._exit(0)

@attack("started a program")
def _():
    os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", "pass"], {{}})

@attack("could send a signal to its parent")
def _():
    if int(parent) == os.getpid():  # in another numbering
        raise OSError
    os.kill(int(parent), 0)

os.write(OUTPUT_FD, ", ".join(succeeded).encode() or b"nothing")
"""
THREADS: Final = """
import threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
time.sleep(9)
"""
FILES: Final = """
import time
for number in range(40):
    open(str(number), "w").close()
time.sleep(9)
"""
CONFINEMENT: Final = (
    "read a file outside",
    "listed a folder outside",
    "wrote a file outside",
    "changed the permissions of a file outside",
    "reached the network",
    "forked",
    "started a program",
    "could send a signal to its parent",
    "raised its own limits",
)
"""What only `CONFINING` levels promise to stop. To root, limits are nothing without them."""


def check(level: Level) -> None:
    """Try what a level promises, in well under a second.

    Raises:
        CapabilityError: The machine lacks what the level needs.
        SandboxError: The confined process could not be set up.
        SelfTestError: A promise is not kept.
    """
    tolerated = () if level in CONFINING else CONFINEMENT
    if sys.platform != "linux":
        tolerated = (*tolerated, "took more memory than allowed")
    if succeeded := [name for name in _attack(level) if name not in tolerated]:
        raise SelfTestError(f"a program in it {' and '.join(succeeded)}; take another level, or report this")
    _expect(Ending.TIMEOUT, "more than 0.1 s", "while True: pass", level, Limits(cpu_seconds=9, wall_seconds=0.1))
    _expect(
        Ending.FAILED,
        "more than 10 files in the scratch folder",
        FILES,
        level,
        Limits(cpu_seconds=9, wall_seconds=2, scratch_files=10),
    )
    if sys.platform == "linux":
        limits = Limits(cpu_seconds=9, wall_seconds=2, threads=4)
        _expect(Ending.FAILED, "more than 4 threads", THREADS, level, limits)


def _attack(level: Level) -> list[str]:
    """Return the attacks that succeeded."""
    output = bytearray()

    def keep(piece: bytes) -> bool:
        output.extend(piece)
        return True

    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        outside = Path(folder)
        outside.chmod(0o755)  # what is refused is then refused by the level, not by permissions
        secret = outside / "secret"
        secret.write_text("secret")
        secret.chmod(0o644)
        outcome = execute(
            ATTACKS,
            f"{secret}\n{outside}\n{server.getsockname()[1]}\n{os.getpid()}".encode(),
            level=level,
            limits=Limits(cpu_seconds=5, wall_seconds=5, memory_bytes=MEMORY_BYTES),
            packages=(),
            on_output=keep,
        )
    if outcome.ending is not Ending.DONE or not output:
        raise SelfTestError(f"a program in it could not go on ({outcome.detail}); take another level, or report this")
    return [] if output == b"nothing" else output.decode().split(", ")


def _expect(ending: Ending, detail: str, driver: str, level: Level, limits: Limits) -> None:
    outcome = execute(driver, b"", level=level, limits=limits, packages=(), on_output=lambda piece: True)
    if (outcome.ending, outcome.detail) != (ending, detail):
        found = outcome.detail or outcome.ending.value
        raise SelfTestError(
            f"a limit was not kept: expected {detail!r}, found {found!r}; take another level, or report this"
        )
