"""When a result is right: the rules that tests of code compare by, on plain values.

The rules are those of evalplus, which has repaired what the tests published on the hub still do: there nothing is
checked where `assertion` has no assert, and `allclose` broadcasts, so that ``[5]`` passes for ``[]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

from latentmas.scorers._code_wire import Unplain, shown

_RELATIVE: Final = 1e-7
_LEAST_FOR_FLOATS: Final = 1e-6

Arguments = tuple[object, ...]
Number = int | float | complex


class Oracle(Protocol):
    """Decides whether a result is right. Never raises; no result that is not plain is right unless it says so."""

    @property
    def same_is_right(self) -> bool:
        """Whether what equals the expected value in type and content is right without a second look."""
        ...

    def holds(self, result: object, expected: object, arguments: Arguments) -> bool:
        """Return whether the result of a call with these arguments is right."""
        ...

    def wanted(self, expected: object) -> str:
        """Return what would have been right, for people."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """``==``, or of the same type and length and within a tolerance.

    Attributes:
        atol: Absolute tolerance, 0 or more; floats have at least 1e-6. The relative one is 1e-7 wherever there is one.
    """

    atol: float = 0.0
    same_is_right: bool = True

    def holds(self, result: object, expected: object, arguments: Arguments) -> bool:
        if _equal(result, expected):
            return True
        atol = max(self.atol, _LEAST_FOR_FLOATS) if _floats(expected) else self.atol
        return atol > 0 and type(result) is type(expected) and _near(result, expected, atol)

    def wanted(self, expected: object) -> str:
        return shown(expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Equal:
    """``==`` and nothing else.

    Attributes:
        identical: As ``is`` with True, False or None: of the same type as well.
    """

    identical: bool = False
    same_is_right: bool = True

    def holds(self, result: object, expected: object, arguments: Arguments) -> bool:
        return _equal(result, expected) and (not self.identical or type(result) is type(expected))

    def wanted(self, expected: object) -> str:
        return shown(expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """``math.isclose(result, expected, rel_tol=..., abs_tol=...)``."""

    rel_tol: float = 1e-9
    abs_tol: float = 0.0
    same_is_right: bool = False

    def holds(self, result: object, expected: object, arguments: Arguments) -> bool:
        if not isinstance(result, int | float) or not isinstance(expected, int | float):
            return False
        try:
            return math.isclose(result, expected, rel_tol=self.rel_tol, abs_tol=self.abs_tol)
        except (OverflowError, ValueError):
            return False

    def wanted(self, expected: object) -> str:
        return f"about {shown(expected)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """``assert f()`` where True is expected, ``assert not f()`` where False is."""

    same_is_right: bool = True

    def holds(self, result: object, expected: object, arguments: Arguments) -> bool:
        return not isinstance(result, Unplain) and bool(result) is expected

    def wanted(self, expected: object) -> str:
        return "a true value" if expected else "a false value"


@dataclass(frozen=True, slots=True, kw_only=True)
class SameSet:
    """``set(result) == set(expected)``. What is expected is a set already, which bounds how many members are kept."""

    same_is_right: bool = True

    def holds(self, result: object, expected: object, arguments: Arguments) -> bool:
        if not isinstance(result, str | bytes | list | tuple | set | frozenset | dict):
            return False
        assert isinstance(expected, frozenset)
        found: set[object] = set()
        for member in result:
            try:
                if member not in expected:
                    return False
            except TypeError:  # a list as a member: no set has one
                return False
            found.add(member)
        return found == expected

    def wanted(self, expected: object) -> str:
        assert isinstance(expected, frozenset)
        return f"the members of {shown(set(expected))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A bool is compared; any other result stands for True unless it is None. For functions that return a match."""

    same_is_right: bool = True

    def holds(self, result: object, expected: object, arguments: Arguments) -> bool:
        return (result if isinstance(result, bool) else result is not None) == expected

    def wanted(self, expected: object) -> str:
        return "True or something that is not None" if expected else "False or None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """The result is a zero of the polynomial whose coefficients are the argument, lowest power first."""

    tolerance: float
    same_is_right: bool = False

    def holds(self, result: object, expected: object, arguments: Arguments) -> bool:
        (coefficients,) = arguments
        if not isinstance(coefficients, list | tuple) or not isinstance(result, int | float):
            return False
        try:
            value = sum(coefficient * math.pow(result, power) for power, coefficient in enumerate(coefficients))
        except (OverflowError, ValueError):
            return False
        return bool(abs(value) <= self.tolerance)

    def wanted(self, expected: object) -> str:
        return f"a zero of the polynomial, within {self.tolerance}"


def _equal(result: object, expected: object) -> bool:
    try:
        return bool(result == expected)
    except RecursionError:
        return False


def _floats(expected: object) -> bool:
    if isinstance(expected, list | tuple):
        return len(expected) > 0 and all(isinstance(member, float) for member in expected)
    return isinstance(expected, float)


def _near(result: object, expected: object, atol: float) -> bool:
    """Compare number by number; in nested lists and tuples the lengths must agree, nothing is ever repeated."""
    waiting = [(result, expected)]
    while waiting:
        one, other = waiting.pop()
        if isinstance(one, list | tuple) and isinstance(other, list | tuple):
            if len(one) != len(other):
                return False
            waiting.extend(zip(one, other, strict=True))
        elif not (isinstance(one, Number) and isinstance(other, Number) and _near_number(one, other, atol)):
            return False
    return True


def _near_number(one: Number, other: Number, atol: float) -> bool:
    if one == other:
        return True
    try:
        apart, allowed = abs(one - other), atol + _RELATIVE * abs(other)
    except OverflowError:
        return False
    return math.isfinite(allowed) and apart <= allowed
