"""Which level is taken, and what is said where none can be."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from latentmas.errors import CapabilityError, UnknownNameError
from latentmas.sandbox import Level, LevelReport, choose, probe, reports


def machine(*working: Level):
    """Return what a machine says of which only these levels work."""

    def probe(level: Level) -> LevelReport:
        return LevelReport(level=level, works=level in working, reason=f"no {level.value} here")

    return probe


@pytest.mark.parametrize(
    ("working", "taken"),
    [
        ((Level.BWRAP, Level.LANDLOCK, Level.RLIMIT), Level.BWRAP),
        ((Level.BWRAP, Level.RLIMIT), Level.BWRAP),
        ((Level.LANDLOCK, Level.RLIMIT), Level.LANDLOCK),
    ],
)
@pytest.mark.parametrize("allow_unsafe", [False, True])
def test_auto_takes_the_strongest_that_works(working, taken, allow_unsafe):
    assert choose("auto", allow_unsafe=allow_unsafe, probe=machine(*working)) is taken


def test_auto_does_not_fall_back_to_limits_only():
    with pytest.raises(CapabilityError) as refusal:
        choose("auto", allow_unsafe=False, probe=machine(Level.RLIMIT))
    said = str(refusal.value)
    for part in (
        "bwrap: no bwrap here",
        "landlock: no landlock here",
        "install bubblewrap",
        "--code_exec off",
        "--allow_unsafe_code_exec",
    ):
        assert part in said
    assert "\n" not in said


def test_auto_takes_limits_only_if_that_is_allowed():
    assert choose("auto", allow_unsafe=True, probe=machine(Level.RLIMIT)) is Level.RLIMIT


def test_auto_refuses_where_nothing_works():
    with pytest.raises(CapabilityError, match="no rlimit here") as refusal:
        choose("auto", allow_unsafe=True, probe=machine())
    assert "--allow_unsafe_code_exec" not in str(refusal.value)


@pytest.mark.parametrize("level", [Level.BWRAP, Level.LANDLOCK])
def test_a_named_level_is_taken_if_it_works(level):
    assert choose(level.value, allow_unsafe=False, probe=machine(level)) is level


@pytest.mark.parametrize("level", [Level.BWRAP, Level.LANDLOCK, Level.RLIMIT])
def test_a_named_level_that_does_not_work_is_refused_with_the_reason(level):
    with pytest.raises(CapabilityError, match=f"{level.value} does not work here: no {level.value} here"):
        choose(level.value, allow_unsafe=True, probe=machine())


def test_limits_only_must_be_allowed():
    with pytest.raises(CapabilityError, match="--allow_unsafe_code_exec"):
        choose("rlimit", allow_unsafe=False, probe=machine(Level.RLIMIT))
    assert choose("rlimit", allow_unsafe=True, probe=machine(Level.RLIMIT)) is Level.RLIMIT


def test_off_can_always_be_had():
    assert choose("off", allow_unsafe=False, probe=machine(Level.OFF)) is Level.OFF


def test_another_name_is_refused_with_a_near_one():
    with pytest.raises(UnknownNameError, match="did you mean 'landlock'"):
        choose("landlok", allow_unsafe=False, probe=machine())


def test_reports_are_of_every_level_that_executes_strongest_first():
    assert [report.level for report in reports()] == [Level.BWRAP, Level.LANDLOCK, Level.RLIMIT]


def test_a_probe_takes_well_under_a_second(level):
    begun = time.monotonic()
    report = probe.__wrapped__(level)
    assert report.works
    assert report.reason == "it passed its self-test"
    assert time.monotonic() - begun < 5  # a busy machine; alone it takes 0.4


def test_the_self_test_notices_what_gets_through(level, monkeypatch):
    from latentmas.sandbox import _selftest

    monkeypatch.setattr(_selftest, "MEMORY_BYTES", 8 * 2**30)  # the limit; the attack stays below it
    report = probe.__wrapped__(level)
    assert not report.works
    assert report.reason == "a program in it took more memory than allowed; take another level, or report this"


def test_a_bubblewrap_that_may_not_make_namespaces_is_said_to_need_them(tmp_path, monkeypatch):
    from latentmas.sandbox import _bubblewrap

    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    _bubblewrap.executable.cache_clear()
    try:
        report = probe.__wrapped__(Level.BWRAP)
    finally:
        _bubblewrap.executable.cache_clear()
    assert not report.works
    assert report.reason.startswith("the sandbox did not start: bwrap: Creating new namespace failed")
    assert "user namespaces are needed" in report.reason


def test_a_missing_bubblewrap_is_said_to_be_missing(tmp_path, monkeypatch):
    from latentmas.sandbox import _bubblewrap

    monkeypatch.setenv("PATH", str(tmp_path))
    _bubblewrap.executable.cache_clear()
    try:
        assert "apt install bubblewrap" in probe.__wrapped__(Level.BWRAP).reason
    finally:
        _bubblewrap.executable.cache_clear()


def test_importing_the_package_imports_little():
    program = (
        "import sys; import latentmas.sandbox; "
        "print([n for n in ('torch', 'pydantic', 'numpy', 'subprocess', 'ctypes', 'resource') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
