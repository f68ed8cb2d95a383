"""Calls in a test, and how they are asserted in lines such as ``assert f(1, [2]) == 3``."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from latentmas.errors import DataError
from latentmas.scorers._code_compare import Arguments, Equal, Oracle, Truth, Within
from latentmas.scorers._hub_literals import value


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the entry point, and what is expected of it: a value, or what a reference returns."""

    arguments: Arguments
    expected: object = None
    by_reference: bool = False
    oracle: Oracle


def unknown(what: str) -> DataError:
    """Return the error that a test cannot be read."""
    return DataError(
        f"the test has no shape that strict grading knows: {what}; expected the loop over inputs and results of "
        "HumanEval+ or MBPP+, or lines such as `assert f(1, [2]) == 3`; --grading hub runs any test as it is"
    )


def asserted_calls(statements: Sequence[ast.stmt], entry: str) -> Iterator[Call]:
    """Yield the calls of a test that consists of assertions.

    Args:
        entry: The name by which the function is called in them.

    Raises:
        DataError: They call something else, or do something else.
    """
    for statement in statements:
        match statement:
            case ast.Assert(test=test):
                called, call = asserted(test)
                if called != entry:
                    raise unknown(f"line {statement.lineno} calls `{called}` and not `{entry}`")
                yield call
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()) | ast.Pass():
                continue
            case ast.Assign(targets=[ast.Name(id="METADATA")]):
                continue  # as HumanEval has it
            case _:
                raise unknown(f"line {statement.lineno} is `{ast.unparse(statement)[:80]}`")


def asserted(test: ast.expr) -> tuple[str, Call]:  # noqa: PLR0911
    """Return the name of the function that an assertion calls, and the call."""
    match test:
        case ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[expected]) if _name(call) != "abs":
            return _made(call, value(expected), Equal())
        case ast.Compare(left=expected, ops=[ast.Eq()], comparators=[ast.Call() as call]):
            return _made(call, value(expected), Equal())
        case ast.Compare(
            left=ast.Call() as call, ops=[ast.Is()], comparators=[ast.Constant(value=True | False | None as constant)]
        ):
            return _made(call, constant, Equal(identical=True))
        case ast.Compare(
            left=ast.Call(
                func=ast.Name(id="abs"), args=[ast.BinOp(left=ast.Call() as call, op=ast.Sub(), right=expected)]
            ),
            ops=[ast.Lt() | ast.LtE()],
            comparators=[tolerance],
        ):
            return _made(call, value(expected), Within(rel_tol=0.0, abs_tol=_tolerance(tolerance)))
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call):
            return _made(call, False, Truth())
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="math"), attr="isclose") | ast.Name(id="isclose"),
            args=[ast.Call() as call, expected],
            keywords=options,
        ) if {option.arg for option in options} <= {"rel_tol", "abs_tol"}:
            given = {option.arg: _tolerance(option.value) for option in options}
            within = Within(rel_tol=given.get("rel_tol", 1e-9), abs_tol=given.get("abs_tol", 0.0))
            return _made(call, value(expected), within)
        case ast.Call() as call:
            return _made(call, True, Truth())
    raise unknown(f"line {test.lineno} asserts `{ast.unparse(test)[:80]}`")


def _made(call: ast.Call, expected: object, oracle: Oracle) -> tuple[str, Call]:
    name = _name(call)
    if name is None or call.keywords:
        raise unknown(f"line {call.lineno} calls `{ast.unparse(call)[:80]}`; arguments go by position")
    arguments = tuple(value(argument) for argument in call.args)
    return name, Call(arguments=arguments, expected=expected, oracle=oracle)


def _name(call: ast.Call) -> str | None:
    return call.func.id if isinstance(call.func, ast.Name) else None


def _tolerance(node: ast.expr) -> float:
    found = value(node)
    if not isinstance(found, int | float) or not found >= 0:
        raise unknown(f"{ast.unparse(node)[:80]} is no tolerance")
    return float(found)
