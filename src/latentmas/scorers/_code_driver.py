"""What runs beside a graded program: it calls the entry point and writes down what comes back, as plain values.

Its text is handed to the sandbox, so it knows nothing of the package, and imports next to nothing because every import
is paid for every answer. It is given inputs and never what is expected. The program beside it can write whatever it
likes; so the parent believes nothing but values, and compares them itself.

A line per call: ``=`` and a value, or ``!`` and an exception, which also ends the run. Values are JSON. What JSON does
not have is an object of one key, its tag: ``{"t": [1, 2]}`` is a tuple; `_code_wire` reads them all.
"""

import sys
from itertools import chain, islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

    Emit = Callable[[str], object]

try:
    from _json import encode_basestring_ascii as quoted
except ImportError:  # another implementation of Python
    from json.encoder import py_encode_basestring_ascii as quoted

DEEPEST = 100
"""Lists in lists; also what ends a list that contains itself."""
LARGEST = 10**15
"""Larger integers travel as hexadecimal digits, which are written and read in linear time."""
SLICE = 4096
FLUSH = 65_536
NUMBERS = {int, float}
MRO = type.__dict__["__mro__"].__get__


class Foreign:
    """Stands for all types that are not plain; what is written is the name of the type."""


def write(value: "Any", emit: "Emit", depth: int = 0) -> None:
    """Emit the text of a value in pieces. Subclasses are read by the methods of their plain base, never by their own.

    Args:
        depth: How many values this one is in.
    """
    kind = type(value)
    if kind not in SCALARS and kind not in NESTED:
        value, kind = plain(value, kind)
    if kind in SCALARS:
        emit(SCALARS[kind](value))
    elif depth == DEEPEST:
        emit(unplain(f"nested more than {DEEPEST} deep"))
    else:
        tag, members = NESTED[kind]
        emit(f'{{"{tag}":[' if tag else "[")
        write_members(members(value), emit, depth + 1)
        emit("]}" if tag else "]")


def write_members(members: "Iterable[Any]", emit: "Emit", depth: int) -> None:
    members = iter(members)
    comma = ""
    while part := list(islice(members, SLICE)):
        kinds = set(map(type, part))
        if kinds == {str}:
            emit(comma + ",".join(map(quoted, part)))
        elif kinds <= NUMBERS and min(part) > -LARGEST and max(part) < LARGEST and finite(text := numbers(part)):
            emit(comma + text)
        else:
            for member in part:
                if comma:
                    emit(comma)
                write(member, emit, depth)
                comma = ","
        comma = ","


def plain(value: "Any", kind: type) -> "tuple[Any, type]":
    """Return what is written for a value that is of no plain type itself, and the type it is written as."""
    for base in MRO(kind):
        if base in SCALARS or base in NESTED:
            return value, base
    numpy, decimal, fractions = (sys.modules.get(name) for name in ("numpy", "decimal", "fractions"))
    if numpy and isinstance(value, numpy.generic | numpy.ndarray) and numpy.ndim(value) == 0:
        value = value.item()
        if isinstance(value, numpy.generic) and float(value) == value:  # more digits than a float has
            value = float(value)
    elif (fractions and isinstance(value, fractions.Fraction)) or (decimal and isinstance(value, decimal.Decimal)):
        value = as_number(value)
    return (value, type(value)) if type(value) in SCALARS else (kind.__name__, Foreign)


def is_plain(kind: type) -> bool:
    return any(base in SCALARS or base in NESTED for base in MRO(kind))


def members_of(value: "Any") -> "Any":
    """Return the members of what can be iterated over, such as a generator or an array; else the value itself."""
    try:
        return list(value)
    except TypeError:
        return value


def as_number(value: "Any") -> "Any":
    """Return the int or float that equals a decimal number or fraction; itself where there is none."""
    try:
        near = float(value)
    except (OverflowError, ValueError):
        return value
    if near == value:
        return int(near) if near.is_integer() else near
    if abs(near) < 1e300 and (whole := int(value)) == value:
        return whole
    return value


def integer(value: int) -> str:
    number = int.__int__(value)
    return str(number) if -LARGEST < number < LARGEST else f'{{"i":"{number:x}"}}'


def real(value: float) -> str:
    text = float.__repr__(value)
    return text if finite(text) else f'{{"r":"{text}"}}'


def finite(text: str) -> bool:
    return "n" not in text  # inf and nan are no JSON


def numbers(part: "list[Any]") -> str:
    return ",".join(map(repr, part))


def unplain(name: str) -> str:
    return f'{{"x":{quoted(name[:100])}}}'


SCALARS: "dict[type, Callable[[Any], str]]" = {
    type(None): lambda value: "null",
    bool: lambda value: "true" if value else "false",
    int: integer,
    float: real,
    complex: lambda value: f'{{"c":[{real(complex.real.__get__(value))},{real(complex.imag.__get__(value))}]}}',
    str: lambda value: quoted(str.__str__(value)),
    bytes: lambda value: f'{{"b":"{bytes.hex(value)}"}}',
    bytearray: lambda value: f'{{"b":"{bytearray.hex(value)}"}}',
    Foreign: unplain,
}
"""Of each plain type the function that writes it."""

NESTED: "dict[type, tuple[str, Callable[[Any], Iterable[Any]]]]" = {
    list: ("", list.__iter__),
    tuple: ("t", tuple.__iter__),
    set: ("s", set.__iter__),
    type({}.keys()): ("s", iter),
    type({}.items()): ("s", iter),
    frozenset: ("f", frozenset.__iter__),
    dict: ("d", lambda value: chain.from_iterable(dict.items(value))),
}
"""Of each plain type its tag and what stands in the list behind it."""


def answer_module() -> "Any":
    """Return the module that the program becomes: a module like any other, in a Python as people know it."""
    import builtins

    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # `site` would have made these
    builtins.help = lambda *subjects: None  # type: ignore[assignment]
    answer = type(sys)("answer")
    answer.__file__ = "answer.py"
    answer.__dict__["__builtins__"] = builtins
    sys.modules["answer"] = answer
    return answer


def main(descriptor: int) -> "NoReturn":
    """Run the program and answer every call, then end whatever threads it may have started."""
    import marshal
    import os

    # Kept here, out of sight of a program that replaces them for its own good reasons.
    end, write_bytes, load = os._exit, os.write, marshal.loads
    pieces: list[str] = []
    size = 0

    def emit(text: str) -> None:
        nonlocal size
        pieces.append(text)
        size += len(text)
        if size >= FLUSH:
            flush()

    def flush() -> None:
        nonlocal size
        left = memoryview("".join(pieces).encode())
        pieces.clear()
        size = 0
        while left:
            left = left[write_bytes(descriptor, left) :]

    def report(error: BaseException) -> None:
        try:
            name, message = type(error).__name__, str(error)
        except BaseException:  # noqa: BLE001
            name, message = "exception", ""
        pieces.clear()
        emit(f"![{quoted(str(name)[:100])},{quoted(str(message)[:300])}]\n")
        flush()

    source, entry_point, calls, iterators = load(sys.stdin.buffer.read())
    sys.set_int_max_str_digits(0)  # the tests are older than the limit
    answer = answer_module()
    try:
        exec(compile(source, "answer.py", "exec", dont_inherit=True), answer.__dict__)
        if calls and entry_point not in answer.__dict__:
            raise NameError(f"the code does not define {entry_point}")
        for arguments in calls:
            result = answer.__dict__[entry_point](*load(arguments))
            if iterators and not is_plain(type(result)):
                result = members_of(result)
            emit("=")
            write(result, emit)
            emit("\n")
            flush()
    except BaseException as error:  # noqa: BLE001
        try:
            report(error)
        finally:
            end(1)  # whatever the program has broken
    end(0)


if __name__ == "__main__":
    main(OUTPUT_FD)  # type: ignore[name-defined]  # noqa: F821
