"""The filter of system calls, run here by a small interpreter of its own, for both machines."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.sandbox import _seccomp
from latentmas.sandbox._syscalls import ABSENT, NEWEST, REFUSED, WEIGHED

ALLOWED, KILLED = "allowed", "killed"
PID = _seccomp.OWN_PID
MACHINES = list(_seccomp.MACHINES)
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def decide(machine: str, number: int, *arguments: int, audit: int | None = None) -> str:
    """Return what the filter does with a call: allow it, kill, or the name of the error."""
    program = _seccomp.program(machine)
    instructions = [struct.unpack_from("<HBBI", program, start) for start in range(0, len(program), 8)]
    words = [word % 2**64 for word in (*arguments, *[0] * (6 - len(arguments)))]
    call = struct.pack("<iIQ6Q", number, audit or _seccomp.MACHINES[machine].audit, 0, *words)
    position = loaded = 0
    while True:
        operation, if_true, if_false, operand = instructions[position]
        position += 1
        match operation:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", call, operand)
            case 0x54:
                loaded &= operand
            case 0x15:
                position += if_true if loaded == operand else if_false
            case 0x25:
                position += if_true if loaded > operand else if_false
            case 0x45:
                position += if_true if loaded & operand else if_false
            case 0x06:
                if operand == 0x7FFF0000:
                    return ALLOWED
                return KILLED if operand == 0x80000000 else errno.errorcode[operand & 0xFFFF]


def number_of(machine: str, name: str) -> int | None:
    return (WEIGHED | ABSENT | REFUSED)[name][MACHINES.index(machine)]


@pytest.fixture(params=MACHINES)
def machine(request):
    return request.param


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_call_is_refused_with_any_arguments(machine, name):
    number = number_of(machine, name)
    if number is not None:
        assert decide(machine, number) == decide(machine, number, *[2**64 - 1] * 6) == "EPERM"


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_calls_with_hidden_arguments_do_not_exist(machine, name):
    assert decide(machine, number_of(machine, name)) == "ENOSYS"


@given(number=st.integers(NEWEST + 1, 2**31 - 1) | st.integers(-(2**31), -1))
@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_nobody_looked_at_do_not_exist(machine, number):
    assert decide(machine, number) == "ENOSYS"


@given(audit=st.integers(0, 2**32 - 1), number=st.integers(0, 500))
@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_architecture_kill(machine, audit, number):
    if audit != _seccomp.MACHINES[machine].audit:
        assert decide(machine, number, audit=audit or 1) == KILLED


@pytest.mark.parametrize("machine", MACHINES)
def test_a_call_that_is_not_named_is_allowed(machine):
    named = {number_of(machine, name) for name in WEIGHED | ABSENT | REFUSED}
    for number in range(NEWEST + 1):
        assert number in named or decide(machine, number) == ALLOWED


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (0x3D0F00,), ALLOWED),  # as pthread_create calls it
        ("clone", (17,), "EPERM"),  # as fork does
        ("clone", (0x4111,), "EPERM"),  # as vfork does
        ("clone", (17 | 1 << 32,), "EPERM"),
        ("kill", (PID, 9), ALLOWED),
        ("kill", (PID - 1, 9), "EPERM"),
        ("kill", (0, 9), "EPERM"),
        ("kill", (-1, 9), "EPERM"),
        ("tgkill", (PID, 77, 6), ALLOWED),
        ("tgkill", (1, 1, 6), "EPERM"),
        ("rt_sigqueueinfo", (1, 9), "EPERM"),
        ("rt_tgsigqueueinfo", (1, 1, 9), "EPERM"),
        ("sched_setaffinity", (0,), ALLOWED),
        ("sched_setaffinity", (1,), "EPERM"),
        ("prlimit64", (0, 7, 0, 0x7000_0000_0000), ALLOWED),
        ("prlimit64", (0, 7, 0x7000_0000_0000, 0), "EPERM"),
        ("prlimit64", (0, 7, 1 << 32, 0), "EPERM"),
        ("prlimit64", (0, 7, 16, 0), "EPERM"),
        ("prctl", (15,), ALLOWED),
        ("prctl", (1, 0), "EPERM"),
        ("prctl", (4, 1), "EPERM"),
        ("fcntl", (3, 3), ALLOWED),
        ("fcntl", (3, 8, 1), "EPERM"),
        ("fcntl", (3, 15), "EPERM"),
        ("ioctl", (0, 0x5401), ALLOWED),
        ("ioctl", (0, 0x5451), ALLOWED),
        ("ioctl", (0, 0x5412), "ENOTTY"),
        ("ioctl", (0, 0x40086602), "ENOTTY"),
        ("openat", (0, 0, os.O_RDONLY), ALLOWED),
        ("openat", (0, 0, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), ALLOWED),
        ("openat", (0, 0, os.O_RDWR | os.O_TRUNC), ALLOWED),
        ("openat", (0, 0, os.O_RDONLY | os.O_TRUNC), "EPERM"),
        ("openat", (0, 0, 3), "EPERM"),
        ("openat", (0, 0, 3 | os.O_TRUNC), "EPERM"),
    ],
)
def test_a_weighed_call_depends_on_its_arguments(machine, name, arguments, expected):
    assert decide(machine, number_of(machine, name), *arguments) == expected


@pytest.mark.parametrize(("flags", "expected"), [(os.O_RDONLY, ALLOWED), (os.O_RDONLY | os.O_TRUNC, "EPERM")])
def test_the_old_way_to_open_is_weighed_like_the_new_one(flags, expected):
    assert decide("x86_64", number_of("x86_64", "open"), 0, flags) == expected


def test_numbers_are_those_of_the_kernel(machine):
    if not HEADERS[machine].exists():
        pytest.skip(f"no {HEADERS[machine]} to compare with")
    # Some are defined by a second name for 32-bit machines.
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    kernel = {name: int(number) for name, number in found}
    ours = {name: number_of(machine, name) for name in WEIGHED | ABSENT | REFUSED}
    assert {name: number for name, number in ours.items() if name in kernel and kernel[name] != number} == {}
    assert {name for name, number in ours.items() if number is not None and name not in kernel} <= {
        "name_to_handle_at",
        "open_by_handle_at",
        "clock_adjtime",
        "setns",
        "syncfs",
        "sendmmsg",
    }


def test_no_number_stands_twice(machine):
    numbers = [number for name in WEIGHED | ABSENT | REFUSED if (number := number_of(machine, name)) is not None]
    assert len(numbers) == len(set(numbers))
