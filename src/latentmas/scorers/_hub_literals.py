"""Values written in a test, read from its syntax tree without running anything."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class NoLiteralError(ValueError):
    """What stands there is no literal."""


def syntax_tree(text: str) -> ast.Module:
    """Parse a test, with integers of any length.

    Raises:
        SyntaxError: It is no Python.
    """
    with _integers_of_any_length(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(f"{type(error).__name__}: {error}") from error


def value(node: ast.expr) -> object:
    """Return the value of a literal; besides Python's own, ``inf``, ``nan``, ``float("inf")``, ``set()`` and the like.

    Raises:
        NoLiteralError: It is none.
    """
    try:
        return _value(node)
    except (TypeError, ValueError, RecursionError) as error:
        raise NoLiteralError(ast.unparse(node)[:80] if not isinstance(error, RecursionError) else "nested") from error


def _value(node: ast.expr) -> object:  # noqa: PLR0911
    match node:
        case ast.Constant(value=constant) if constant is not ...:
            return constant
        case ast.List(elts=members):
            return [_value(member) for member in members]
        case ast.Tuple(elts=members):
            return tuple([_value(member) for member in members])
        case ast.Set(elts=members):
            return {_value(member) for member in members}
        case ast.Dict(keys=keys, values=values):
            return {_value(_present(key)): _value(member) for key, member in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _number(operand)
            return -number if isinstance(sign, ast.USub) else number
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as sign, right=right):
            real, imaginary = _number(left), _number(right)
            if isinstance(real, int | float) and isinstance(imaginary, complex):
                return real + imaginary if isinstance(sign, ast.Add) else real - imaginary
        case (
            ast.Name(id="inf" | "nan" as name)
            | ast.Attribute(value=ast.Name(id="math" | "np" | "numpy"), attr="inf" | "nan" as name)
        ):
            return float(name)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _called(name, [_value(argument) for argument in arguments])
    raise NoLiteralError(ast.unparse(node)[:80])


def _called(name: str, arguments: list[object]) -> object:
    match name, arguments:
        case ("float", [str(text)]):
            return float(text)
        case ("float", [int() | float() as number]):
            return float(number)
        case ("set" | "frozenset", [] | [list() | tuple() | set() | str()]):
            members = arguments[0] if arguments else ()
            assert isinstance(members, list | tuple | set | str)
            return set(members) if name == "set" else frozenset(members)
        case ("complex", [int() | float() as real, int() | float() as imaginary]):
            return complex(real, imaginary)
        case ("list" | "tuple" | "dict", []):
            return {"list": list, "tuple": tuple, "dict": dict}[name]()
    raise NoLiteralError(f"{name}(...)")


def _number(node: ast.expr) -> int | float | complex:
    number = _value(node)
    if isinstance(number, int | float | complex) and not isinstance(number, bool):
        return number
    raise NoLiteralError(ast.unparse(node)[:80])


def _present(key: ast.expr | None) -> ast.expr:
    if key is None:
        raise NoLiteralError("**")
    return key


@contextmanager
def _integers_of_any_length() -> Iterator[None]:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)
