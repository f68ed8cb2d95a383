"""Runs of small drivers at every level this machine has."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from latentmas.errors import CapabilityError
from latentmas.sandbox import Level, Limits, Outcome, SandboxError, _selftest, execute


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    outcome: Outcome
    output: bytes

    @property
    def said(self) -> str:
        return self.output.decode()


def run_driver(
    driver: str, payload: bytes = b"", *, level: Level, packages: tuple[str, ...] = (), **limits: Any
) -> Ran:
    """Run a driver to its end; it says things with ``say``."""
    output = bytearray()

    def keep(piece: bytes) -> bool:
        output.extend(piece)
        return True

    outcome = execute(
        "import os\ndef say(*words): os.write(OUTPUT_FD, ' '.join(map(str, words)).encode())\n" + driver,
        payload,
        level=level,
        limits=Limits(**{"cpu_seconds": 5, "wall_seconds": 5} | limits),
        packages=packages,
        on_output=keep,
    )
    return Ran(outcome=outcome, output=bytes(output))


@cache
def found(level: Level) -> Exception | None:
    try:
        _selftest.check(level)
    except (CapabilityError, SandboxError, _selftest.SelfTestError) as error:
        return error
    return None


def works(level: Level) -> Level:
    """Skip what the machine lacks; a level that is there and fails its self-test is an error."""
    error = found(level)
    if isinstance(error, CapabilityError) or (isinstance(error, SandboxError) and "bwrap: " in str(error)):
        pytest.skip(f"{level.value}: {error}")
    assert error is None
    return level


@pytest.fixture(params=[Level.BWRAP, Level.LANDLOCK, Level.RLIMIT], ids=lambda level: level.value)
def level(request: pytest.FixtureRequest) -> Level:
    """Every level that executes anything."""
    return works(request.param)


@pytest.fixture(params=[Level.BWRAP, Level.LANDLOCK], ids=lambda level: level.value)
def confining(request: pytest.FixtureRequest) -> Level:
    """Every level that stops reading files and reaching the network."""
    return works(request.param)


@pytest.fixture
def landlock() -> Level:
    return works(Level.LANDLOCK)


@pytest.fixture
def rlimit() -> Level:
    return works(Level.RLIMIT)


@pytest.fixture
def run() -> Callable[..., Ran]:
    return run_driver


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder where scratch folders are made, and nothing else is."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(folder))
    return folder
