"""What tasks of code share: finding the function that a published test calls, and showing code."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

from latentmas.errors import DataError


def entry_point(test: str, where: str) -> str:
    """Return the name of the function whose result a test hands to its ``assertion(...)``.

    Args:
        where: Names the test in errors.

    Raises:
        DataError: There is no such call, or they call more than one function.
    """
    # The call is in the last loop. Before it stand inputs and results, a megabyte of them in some rows.
    loop = test.rfind("\nfor ") + 1
    for part in (test[loop:], test):
        names = sorted(set(_called(part)))
        if len(names) > 1:
            raise DataError(f"{where} calls more than one function: {', '.join(names)}")
        if names:
            return names[0]
    raise DataError(f"{where} has no assertion(function(...), ...), so the name of its function is not known")


def block(code: str) -> str:
    """Return code between fences."""
    return f"```python\n{code.strip(chr(10)).rstrip()}\n```"


def _called(code: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a "\\d" that is no escape: the test is not ours to mend
            tree = ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name("assertion"), args=[ast.Call(func=ast.Name(name)), *_]):
                yield name
