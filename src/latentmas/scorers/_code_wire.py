"""Values as they come from a graded program: read with suspicion, and shown to people.

What writes them is in `_code_driver`, but the program beside it can write anything else. Reading takes linear time and
memory, whatever stands in a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from latentmas.scorers._code_driver import write

_MOST_SHOWN: Final = 100
_BRACKETS: Final = {list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}"), frozenset: ("frozenset({", "})")}


class UnreadableError(ValueError):
    """A line that `encode` never writes."""


@dataclass(frozen=True, slots=True)
class Unplain:
    """A result that is no plain value. Equal to nothing that is expected.

    Attributes:
        kind: The name of its type.
    """

    kind: str


def encode(value: object) -> bytes:
    """Return the text of a value, in one line without its end."""
    pieces: list[str] = []
    write(value, pieces.append)
    return "".join(pieces).encode()


def decode(line: bytes, *, most_members: int | None = None) -> object:
    """Return the value a line stands for, made of exact built-in types.

    Args:
        most_members: Sets and dictionaries with more members than that are refused: their members may have been made
            to collide, which takes quadratic time. None is no limit, for what has been expected.

    Raises:
        UnreadableError: The line stands for none, or for a set that is too large.
    """

    def untag(tagged: dict[str, object]) -> object:  # noqa: PLR0911
        if len(tagged) != 1:
            raise UnreadableError("an object of several tags")
        tag, content = tagged.popitem()
        match tag, content:
            case ("t", list(members)):
                return tuple(members)
            case ("s" | "f", list(members)) if most_members is None or len(members) <= most_members:
                return set(members) if tag == "s" else frozenset(members)
            case ("d", list(members)) if most_members is None or len(members) <= 2 * most_members:
                return dict(zip(members[::2], members[1::2], strict=True))
            case ("i", str(digits)):
                return int(digits, 16)
            case ("r", "inf" | "-inf" | "nan" as name):
                return float(name)
            case ("c", [float(real), float(imaginary)]):
                return complex(real, imaginary)
            case ("b", str(digits)):
                return bytes.fromhex(digits)
            case ("x", str(kind)):
                return Unplain(kind)
        raise UnreadableError(f"an object tagged {tag[:20]!r}")

    try:
        return json.loads(line, object_hook=untag, parse_constant=_refuse)
    except UnreadableError:
        raise
    except (ValueError, TypeError, RecursionError, MemoryError) as error:  # TypeError: a member that has no hash
        raise UnreadableError(str(error)[:100]) from error


def _refuse(name: str) -> object:
    raise UnreadableError(name)


def largest_collection(value: object) -> int:
    """Return the number of members of the largest set or dictionary in a value; 0 where there is none."""
    largest = 0
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, set | frozenset | dict):
            largest = max(largest, len(part))
        if isinstance(part, dict):
            waiting.extend(part.values())
        if isinstance(part, list | tuple | set | frozenset | dict):
            waiting.extend(part)
    return largest


def shown(value: object, most: int = _MOST_SHOWN) -> str:  # noqa: PLR0911
    """Return a value for people, at most about `most` characters; takes no longer for a larger one."""
    if most == 0:
        return "..."
    match value:
        case Unplain(kind=kind):
            return f"an object of type {kind[:most]}"
        case bool() | None | float() | complex():
            return repr(value)
        case int():
            return str(value) if abs(value) < 10**40 else f"an integer of {value.bit_length()} bits"
        case str() | bytes():
            return repr(value) if len(value) <= most else f"{value[:most]!r}..."
        case list() | tuple() | set() | frozenset():
            if not value:
                return repr(value)
            opens, closes = _BRACKETS[type(value)]
            comma = "," if type(value) is tuple and len(value) == 1 else ""
            return opens + _joined((shown(member, most // 2) for member in value), most) + comma + closes
        case dict():
            pairs = (f"{shown(key, most // 2)}: {shown(member, most // 2)}" for key, member in value.items())
            return "{" + _joined(pairs, most) + "}"
    return type(value).__name__


def _joined(parts: Iterable[str], most: int) -> str:
    taken: list[str] = []
    for part in parts:
        if sum(map(len, taken)) > most:
            return ", ".join([*taken, "..."])
        taken.append(part)
    return ", ".join(taken)
