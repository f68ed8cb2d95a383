"""Running a driver in confinement: the one verb of this package."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from latentmas.errors import CapabilityError
from latentmas.sandbox.levels import Level
from latentmas.sandbox.outcome import Limits, Outcome


def execute(
    driver: str,
    payload: bytes,
    *,
    level: Level,
    limits: Limits,
    packages: Sequence[str] = ("numpy",),
    on_output: Callable[[bytes], bool],
) -> Outcome:
    """Run a driver in a confined process of its own, to its end or to the end of its limits.

    Safe to call from several threads and processes at once.

    Args:
        driver: Program text. It reads the payload from ``sys.stdin.buffer`` and writes to the descriptor that its
            global ``OUTPUT_FD`` names; what it prints is lost. It runs without `site`, so there is neither `exit` nor
            `quit`. To end in spite of threads that were started in it, it calls ``os._exit``.
        payload: The driver can read it, and so can all it runs: no place for what these must not know.
        packages: Installed packages that can be imported besides the standard library; others are left out.
        on_output: Gets each piece of output as it comes, and returns whether more is wanted.

    Raises:
        CapabilityError: The level executes nothing, or the machine lacks what it needs.
        SandboxError: The process could not be set up; no line of the driver ran.
    """
    if level is Level.OFF:
        raise CapabilityError("--code_exec off executes nothing; choose another level to run code")
    if os.name != "posix":
        raise CapabilityError("code can be run on Linux and macOS only; on Windows use WSL, or grade elsewhere")
    from latentmas.sandbox._process import confined
    from latentmas.sandbox._watch import watch

    with confined(driver, payload, level=level, limits=limits, packages=packages) as process:
        return watch(process, limits, on_output)
