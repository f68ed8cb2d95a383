"""What goes into a confined run and what comes out of it: its limits, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from latentmas.errors import ConfigError, SampleError

MEBIBYTE: Final = 1024 * 1024


class SandboxError(SampleError):
    """The confined process could not be set up: no line of the driver ran, so nothing may be concluded from it."""


class Ending(StrEnum):
    """How a confined run ended."""

    DONE = "done"
    """Exit status 0."""
    FAILED = "failed"
    """Another exit status, a signal, or a limit other than those below."""
    TIMEOUT = "timeout"
    """More wall-clock or processor time than allowed."""
    FLOOD = "flood"
    """More output than allowed."""
    STOPPED = "stopped"
    """The caller wanted no more output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a confined run may use; every number is above 0 and finite, there is no "no limit".

    Attributes:
        cpu_seconds: Processor time of all threads together, the start of the interpreter included.
        wall_seconds: Wall-clock time, from the first line of the driver on.
        memory_bytes: Address space.
        file_bytes: Size of one file.
        scratch_bytes: Size of the scratch folder.
        scratch_files: Files and folders in the scratch folder.
        output_bytes: What may be written to the output, in all.
        threads: Threads at a time.
    """

    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int = 4096 * MEBIBYTE
    file_bytes: int = 16 * MEBIBYTE
    scratch_bytes: int = 64 * MEBIBYTE
    scratch_files: int = 1000
    output_bytes: int = 64 * MEBIBYTE
    threads: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < (value := getattr(self, field.name)) < math.inf:
                raise ConfigError(f"{field.name} is {value}; expected a finite number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a confined run ended.

    Attributes:
        detail: For people: "killed by SIGSEGV", "exit status 3", "more than 64 threads"; empty when it is done.
        wall_seconds: From the first line of the driver to the end.
        cpu_seconds: Processor time, the start of the interpreter included.
    """

    ending: Ending
    detail: str
    wall_seconds: float
    cpu_seconds: float
