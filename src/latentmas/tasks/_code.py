"""What tasks of code share: finding the function that a test calls, and showing code."""

from __future__ import annotations

import ast
import builtins
import warnings

from latentmas.errors import DataError


def entry_point(test: str, where: str) -> str:
    """Return the name of the function that a test calls in its ``assertion(...)``, or else in its assert statements.

    Args:
        where: Names the test in errors.

    Raises:
        DataError: It calls none there, or more than one.
    """
    # The call is in the last loop. Before it stand inputs and results, a megabyte of them in some rows.
    loop = test.rfind("\nfor ") + 1
    names = _called(test[loop:]) or _called(test)
    if len(names) > 1:
        raise DataError(f"{where} calls more than one function: {', '.join(sorted(names))}")
    if not names:
        raise DataError(f"{where} has no assertion(function(...), ...), so the name of its function is not known")
    return names.pop()


def block(code: str) -> str:
    """Return code between fences."""
    return f"```python\n{code.strip(chr(10)).rstrip()}\n```"


def _called(code: str) -> set[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a "\d" that is no escape: the test is not ours to mend
            tree = ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return set()
    handed: set[str] = set()
    asserted: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name("assertion"), args=[ast.Call(func=ast.Name(name)), *_]):
                handed.add(name)
            case ast.Assert(test=claim):
                asserted |= _functions(claim)
    return handed or asserted


def _functions(claim: ast.expr) -> set[str]:
    calls = (node for node in ast.walk(claim) if isinstance(node, ast.Call))
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    return {name for name in names if not hasattr(builtins, name) and name != "isclose"}
