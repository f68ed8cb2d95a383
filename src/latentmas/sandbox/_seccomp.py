"""The seccomp filter: a classic BPF program that refuses system calls by number and argument.

It is built here, by the parent, and installed by the confined process. A refused call returns an error, so programs see
`PermissionError` rather than death; only a call of another architecture kills.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from functools import cache
from typing import Final

from latentmas.sandbox._syscalls import ABSENT, NEWEST, REFUSED, WEIGHED, Numbers

OWN_PID: Final = 0x7FFF5AFE
"""Stands in the program for the number of the confined process, which only that process knows. No pid is so large."""

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
IF_ABOVE: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
IF_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K
ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
ERROR: Final = 0x00050000

NUMBER_OFFSET: Final = 0
ARCHITECTURE_OFFSET: Final = 4
FIRST_ARGUMENT_OFFSET: Final = 16

CLONE_THREAD: Final = 0x10000
ACCESS_MODE: Final = 0o3
TRUNCATE: Final = 0o1000
ASYNCHRONOUS_COMMANDS: Final = (8, 10, 15, 1024, 1026)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX send signals to any process; F_SETLEASE and F_NOTIFY reach other users of a file."""
HARMLESS_REQUESTS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TCGETS2. Others change files that are open for reading."""
UNDOING_OPTIONS: Final = (1, 4, 35, 0x59616D61)
"""PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_MM, PR_SET_PTRACER."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A kind of machine the filter can be built for.

    Attributes:
        audit: The kernel's name for the architecture.
        column: Its column in the tables of numbers.
    """

    audit: int
    column: int


MACHINES: Final = {"x86_64": Machine(audit=0xC000003E, column=0), "aarch64": Machine(audit=0xC00000B7, column=1)}

Instruction = tuple[int, int, int, int]
"""Operation, instructions skipped if true, instructions skipped if false, operand."""


@cache
def program(machine: str) -> bytes:
    """Return the filter for a machine, as the kernel reads it; `OWN_PID` is to be replaced.

    Raises:
        KeyError: There is no table for the machine.
    """
    target = MACHINES[machine]
    instructions: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE_OFFSET),
        (IF_EQUAL, 1, 0, target.audit),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_OFFSET),
        # This includes the calls of x32, whose numbers start at 2**30.
        (IF_ABOVE, 0, 1, NEWEST),
        (RETURN, 0, 0, ERROR | errno.ENOSYS),
    ]

    def add(numbers: Numbers, rule: list[Instruction]) -> None:
        """Append the rule of one call. It always returns, so what it loads is in nobody's way."""
        number = numbers[target.column]
        if number is not None:
            instructions.extend([(IF_EQUAL, 0, len(rule), number), *rule])

    for name, rule in _weighing().items():
        add(WEIGHED[name], rule)
    for numbers in ABSENT.values():
        add(numbers, [(RETURN, 0, 0, ERROR | errno.ENOSYS)])
    for numbers in REFUSED.values():
        add(numbers, [(RETURN, 0, 0, ERROR | errno.EPERM)])
    instructions.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)


def _weighing() -> dict[str, list[Instruction]]:
    to_itself = [_argument(0), *_only(OWN_PID)]
    return {
        "clone": [_argument(0), (IF_ANY_BIT, 1, 0, CLONE_THREAD), _refuse(), _allow()],
        "kill": to_itself,
        "tgkill": to_itself,
        "rt_sigqueueinfo": to_itself,
        "rt_tgsigqueueinfo": to_itself,
        "sched_setaffinity": [_argument(0), *_only(0, OWN_PID)],  # 0 is the calling thread
        "prctl": [_argument(0), *_all_but(UNDOING_OPTIONS)],
        # Reading limits is allowed: the third argument, a pointer to the new one, is null in both halves.
        "prlimit64": [
            _argument(2),
            (IF_EQUAL, 1, 0, 0),
            _refuse(),
            (LOAD, 0, 0, FIRST_ARGUMENT_OFFSET + 2 * 8 + 4),
            *_only(0),
        ],
        "open": _opening(_argument(1)),
        "openat": _opening(_argument(2)),
        "fcntl": [_argument(1), *_all_but(ASYNCHRONOUS_COMMANDS)],
        "ioctl": [_argument(1), *_only(*HARMLESS_REQUESTS, error=errno.ENOTTY)],
    }


def _opening(flags: Instruction) -> list[Instruction]:
    """Refuse to empty a file without opening it for writing, which Landlock lets pass on kernels before 6.2."""
    return [
        flags,
        (AND, 0, 0, ACCESS_MODE | TRUNCATE),
        *_all_but((TRUNCATE, ACCESS_MODE, ACCESS_MODE | TRUNCATE)),
    ]


def _argument(index: int) -> Instruction:
    """Load the lower half of an argument; both machines are little-endian."""
    return (LOAD, 0, 0, FIRST_ARGUMENT_OFFSET + 8 * index)


def _only(*values: int, error: int = errno.EPERM) -> list[Instruction]:
    return [*_jumps(values), (RETURN, 0, 0, ERROR | error), _allow()]


def _all_but(values: tuple[int, ...]) -> list[Instruction]:
    return [*_jumps(values), _allow(), _refuse()]


def _jumps(values: tuple[int, ...]) -> list[Instruction]:
    """Skip the instruction after these if one of the values is loaded."""
    return [(IF_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]


def _allow() -> Instruction:
    return (RETURN, 0, 0, ALLOW)


def _refuse() -> Instruction:
    return (RETURN, 0, 0, ERROR | errno.EPERM)
