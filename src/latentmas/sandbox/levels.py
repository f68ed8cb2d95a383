"""Levels of confinement, which of them work on this machine, and which to take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Final

from latentmas.errors import CapabilityError, UnknownNameError
from latentmas.sandbox.outcome import SandboxError


class Level(StrEnum):
    """How model-written code is confined, strongest first."""

    BWRAP = "bwrap"
    """Namespaces of its own, by bubblewrap, and a filter of system calls."""
    LANDLOCK = "landlock"
    """Landlock, and the same filter."""
    RLIMIT = "rlimit"
    """Limits on resources only: files can be read and the network reached."""
    OFF = "off"
    """Nothing is executed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelReport:
    """Whether a level works on this machine.

    Attributes:
        reason: One sentence: what was tried, or why it does not work and what to do.
    """

    level: Level
    works: bool
    reason: str


CONFINING: Final = (Level.BWRAP, Level.LANDLOCK)
"""Levels that stop reading files and reaching the network."""


@cache
def probe(level: Level) -> LevelReport:
    """Try a level on this machine: a program that attacks its confinement runs in it. Tried once per process."""
    from latentmas.sandbox import _selftest

    if level is Level.OFF:
        return LevelReport(level=level, works=True, reason="nothing is executed")
    try:
        _selftest.check(level)
    except SandboxError as error:
        hint = "; user namespaces are needed, which containers often forbid" if level is Level.BWRAP else ""
        return LevelReport(level=level, works=False, reason=f"{error}{hint}")
    except (CapabilityError, _selftest.SelfTestError, OSError) as error:
        return LevelReport(level=level, works=False, reason=str(error))
    return LevelReport(level=level, works=True, reason="it passed its self-test")


def reports() -> tuple[LevelReport, ...]:
    """Return what `probe` says of each level that executes anything, strongest first."""
    return tuple(probe(level) for level in Level if level is not Level.OFF)


def choose(wanted: str, *, allow_unsafe: bool, probe: Callable[[Level], LevelReport] = probe) -> Level:
    """Return the level to execute model-written code at.

    Args:
        wanted: A level, or "auto" for the strongest that works.
        allow_unsafe: Whether `Level.RLIMIT` may be taken; it is never taken without.
        probe: What says whether a level works.

    Raises:
        UnknownNameError: There is no such level.
        CapabilityError: The level does not work here, or is not safe and that was not accepted.
    """
    if wanted != "auto":
        if wanted not in list(Level):
            raise UnknownNameError("way to confine code", wanted, ["auto", *(level.value for level in Level)])
        return _named(Level(wanted), allow_unsafe=allow_unsafe, probe=probe)
    refused = []
    for level in (*CONFINING, Level.RLIMIT) if allow_unsafe else CONFINING:
        report = probe(level)
        if report.works:
            return level
        refused.append(f"{level.value}: {report.reason}")
    unsafe = "" if allow_unsafe else ", or accept the risk with --allow_unsafe_code_exec"
    raise CapabilityError(
        f"model-written code cannot be confined here ({' | '.join(refused)}); install bubblewrap, or store answers "
        f"with --code_exec off and grade them on another machine{unsafe}"
    )


def _named(level: Level, *, allow_unsafe: bool, probe: Callable[[Level], LevelReport]) -> Level:
    if level is Level.RLIMIT and not allow_unsafe:
        raise CapabilityError(
            "--code_exec rlimit stops neither reading files nor reaching the network; take auto, or accept the risk "
            "with --allow_unsafe_code_exec"
        )
    report = probe(level)
    if not report.works:
        raise CapabilityError(f"--code_exec {level.value} does not work here: {report.reason}")
    return level
