"""Landlock: the kernel lets a process give up the right to reach files, TCP ports and processes outside.

The parent works out the rules here; the confined process applies them to itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from latentmas.errors import CapabilityError
from latentmas.sandbox._view import View

CREATE_RULESET: Final = 444
NEWEST_KNOWN: Final = 7

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_FOLDER: Final = 1 << 3
MAKE_DEVICES_AND_PIPES: Final = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11
TRUNCATE: Final = 1 << 14
IOCTL_DEVICE: Final = 1 << 15
TCP: Final = 0b11  # bind and connect
SCOPES: Final = 0b11  # abstract sockets and signals
QUIET: Final = 1  # the kernel's log is not filled with what is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """The rules for one process.

    Attributes:
        attributes: What the rules are about, as the kernel reads it.
        flags: For the call that applies them.
        rules: Paths, each with the rights that remain on it and below it. Everything else is lost.
    """

    attributes: bytes
    flags: int
    rules: tuple[tuple[str, int], ...]


@cache
def abi() -> int:
    """Return the version of Landlock the kernel offers, from 1 on.

    Raises:
        CapabilityError: It offers none.
    """
    if sys.platform != "linux":
        raise CapabilityError("Landlock is part of Linux; use a Linux machine or container")
    libc = ctypes.CDLL(None, use_errno=True)
    version: int = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version > 0:
        return version
    match ctypes.get_errno():
        case errno.EOPNOTSUPP:
            raise CapabilityError("Landlock is switched off; add landlock to the kernel's lsm= list")
        case errno.ENOSYS:
            raise CapabilityError("the kernel has no Landlock; use Linux 5.13 or newer, built with it")
        case code:
            raise CapabilityError(f"Landlock cannot be asked for ({os.strerror(code)}); a container may forbid it")


def ruleset(view: View, *, scratch: str, packages: str, abi: int) -> Ruleset:
    """Return the rules that leave a program what it may see, and its scratch folder.

    Args:
        packages: Folder of links to the packages.
        abi: What the kernel offers; rights it does not know are left out.
    """
    handled = _handled(min(abi, NEWEST_KNOWN))
    own = handled & ~(EXECUTE | MAKE_DEVICES_AND_PIPES | IOCTL_DEVICE)
    rules = [(path, READ_FILE if os.path.isfile(path) else READ_FILE | READ_FOLDER) for path in _readable(view)]
    # Listing a folder is a right on all below it; reading the files there is not given with it.
    rules += [(path, READ_FOLDER) for path in (*view.standard_library, packages)]
    rules += [
        ("/dev/null", (READ_FILE | WRITE_FILE | TRUNCATE) & handled),
        ("/dev/urandom", READ_FILE),
        (scratch, own),
    ]
    attributes = struct.pack("<QQQ", handled, TCP, SCOPES if abi >= 6 else 0)
    return Ruleset(
        # Kernels refuse attributes they do not know, unless these are left out.
        attributes=attributes[: 8 if abi < 4 else 16 if abi < 6 else 24],
        flags=QUIET if abi >= 7 else 0,
        rules=tuple(rules),
    )


def _handled(abi: int) -> int:
    """Return all rights on files of a version."""
    count = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    return (1 << count) - 1


def _readable(view: View) -> Iterator[str]:
    yield from view.folders
    yield from view.files
    yield from view.packages
    for folder in view.standard_library:
        # Rights cannot be taken back further down, so the folder is given entry by entry.
        yield from (entry.path for entry in os.scandir(folder) if entry.path not in view.hidden)
