"""Output of a run, cut into lines as it comes; of a huge line only the digest is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from latentmas.scorers._code_wire import encode

LARGE: Final = 4 * 1024 * 1024
"""Bytes of a result above which it is known by its digest: references return up to a gigabyte."""
HELD: Final = 64 * 1024 * 1024
"""Bytes of a line that is kept while it comes."""
_NORMAL: Final = frozenset({int, str, bytes, type(None)})
"""Types of which equal values are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line without its end.

    Attributes:
        content: None where it has more than `HELD` bytes.
        digest: None where it has at most `LARGE` bytes.
    """

    size: int
    content: bytes | None
    digest: str | None


class Lines:
    """Cuts output into lines.

    Attributes:
        size: Bytes of output so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._start()

    def feed(self, output: bytes) -> Iterator[Line]:
        """Yield the lines that end in a piece of output."""
        self.size += len(output)
        *ended, rest = output.split(b"\n")
        for part in ended:
            self._add(part)
            yield Line(
                size=self._length,
                content=b"".join(self._parts) if self._length <= HELD else None,
                digest=self._hash.hexdigest() if self._length > LARGE else None,
            )
            self._start()
        self._add(rest)

    def unfinished(self) -> bool:
        """Return whether something stands behind the last end of a line."""
        return self._length > 0

    def _start(self) -> None:
        self._length = 0
        self._parts: list[bytes] = []
        self._hashed = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        self._parts.append(part)
        if self._length > LARGE:
            for waiting in self._parts[self._hashed :]:
                self._hash.update(waiting)
            self._hashed = len(self._parts)
        if self._length > HELD:
            self._parts.clear()
            self._hashed = 0


def value_digest(value: object) -> str | None:
    """Return what two values share exactly if they are equal; None for what is not equal to itself."""
    if _has_nan(value):
        return None
    text = encode(_normal(value))
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _has_nan(value: object) -> bool:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, float | complex) and part != part:  # noqa: PLR0124
            return True
        if isinstance(part, dict):
            waiting.extend(part.values())
        if isinstance(part, list | tuple | set | frozenset | dict):
            waiting.extend(part)
    return False


def _normal(value: object) -> object:  # noqa: PLR0911
    """Return a value in which equal parts are of one type, and members without an order have one."""
    match value:
        case complex() if value.imag == 0:
            return _normal(value.real)
        case float() if value.is_integer():
            return int(value)
        case bool():
            return int(value)
        case list() | tuple() if _NORMAL.issuperset(map(type, value)):
            return value
        case list():
            return [_normal(member) for member in value]
        case tuple():
            return tuple([_normal(member) for member in value])
        case set() | frozenset():
            return {"set": sorted(map(_member, value))}
        case dict():
            return {"dict": sorted((_member(key), _member(member)) for key, member in value.items())}
    return value


def _member(value: object) -> bytes:
    """Return what stands for a member: of one size, or what is nested would double at every level."""
    return hashlib.blake2b(encode(_normal(value)), digest_size=16).digest()
