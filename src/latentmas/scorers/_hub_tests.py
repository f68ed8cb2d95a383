"""Published tests of code, read as calls and what is expected of them. Nothing of a test is run in this process.

The tests of HumanEval+ and MBPP+ on the hub are programs that were generated from data; here they become data again, so
that an answer need not run beside what it is expected to return. Read as well are lines such as ``assert f(1) == 2``,
for tests that people write themselves. What has another shape is refused, never guessed.
"""

from __future__ import annotations

import ast
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

from latentmas.errors import DataError
from latentmas.scorers._code_compare import Arguments, Close, Equal, Found, Oracle, Root, SameSet
from latentmas.scorers._hub_asserts import Call, asserted, asserted_calls, unknown
from latentmas.scorers._hub_literals import NoLiteralError, syntax_tree, value

_LOOPS: Final = {
    "for i, (inp, exp) in enumerate(zip(inputs, results)):": True,
    "for inp, exp in zip(inputs, results):": True,
    "for i, inp in enumerate(inputs):": False,
}
"""Heads of the loops that make the calls, and whether what is expected is listed."""

_TOLERANT: Final = "if atol == 0 and is_floats(exp):\n    atol = 1e-6\n"
_SETS: Final = "out = set(out)\nexp = set(exp)\n"
_DIRECT: Final = """\
if out != exp and atol != 0:
    assert np.allclose(out, exp, rtol=1e-07, atol=atol)
else:
    assert out == exp
"""
_MATCHED: Final = """\
if not exact_match and atol != 0:
    assert np.allclose(out, exp, rtol=1e-07, atol=atol)
else:
    assert exact_match
"""
_WITHOUT_ASSERT: Final = """\
if isinstance(out, bool):
    exact_match = out == exp
else:
    exact_match = exp == (out is not None)
"""
_ASSERTIONS: Final = {
    _TOLERANT + _DIRECT: "close",
    "exact_match = out == exp\n" + _TOLERANT + _MATCHED: "close",
    _TOLERANT + _SETS + _DIRECT: "set",
    _WITHOUT_ASSERT: "found",
    "assert out == exp\n": "equal",
}
"""Bodies of the function `assertion`, without messages, and what they mean."""

_ROOT: Final = "assert _poly(*candidate(*inp), inp) <= 0.0001"
"""The published test fails for every answer: it hands the result to `_poly` as the coefficients."""
_NO_CODE_OF_A_REFERENCE: Final = frozenset({"is_floats", "assertion", "check"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HubTest:
    """A test as data. Each is equal to itself only, so that what is prepared for it can be found again.

    Attributes:
        digest: Of its text, in hexadecimal; 16 digits.
        inputs: The arguments of each call.
        expected: What each call is compared with; None where a reference says it.
        reference: Program that defines `REFERENCE`, which returns what is expected; None where that is listed.
        oracles: By which rule each call is right.
    """

    digest: str
    entry_point: str
    inputs: tuple[Arguments, ...]
    expected: tuple[object, ...] | None
    reference: str | None
    oracles: tuple[Oracle, ...]


REFERENCE: Final = "ref_func"


@lru_cache(maxsize=4)
def parse_test(text: str, entry_point: str | None) -> HubTest:
    """Read a test.

    Args:
        entry_point: Name of the function it calls; None where the test itself names it.

    Raises:
        DataError: It has no shape that is known.
    """
    tree = _tree(text)
    if entry_point is not None:
        entry_point = unicodedata.normalize("NFKC", entry_point)  # as the compiler does with every name
    try:
        layout = _layout(tree, entry_point)
        loop = next((statement for statement in layout.statements if isinstance(statement, ast.For)), None)
        calls = list(
            asserted_calls(layout.statements, layout.called) if loop is None else _looped_calls(tree, layout, loop)
        )
    except NoLiteralError as error:
        raise unknown(f"{error} is no literal") from error
    if not calls:
        raise unknown("it makes no call")
    return HubTest(
        digest=digest(text),
        entry_point=layout.entry_point,
        inputs=tuple(call.arguments for call in calls),
        expected=None if calls[0].by_reference else tuple(call.expected for call in calls),
        reference=_reference(tree) if calls[0].by_reference else None,
        oracles=tuple(call.oracle for call in calls),
    )


def digest(text: str) -> str:
    """Return what a test is known by; white space around it does not matter."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()[:16]


def entry_point_of(text: str, entry_point: str | None) -> str | None:
    """Return the function that a test calls, also where the test has no known shape; None where it is not to be seen.

    Raises:
        DataError: It is no Python.
    """
    if entry_point is not None:
        return entry_point
    for node in ast.walk(_tree(text)):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[ast.Starred(value=ast.Name(id="inp"))]) if name != REFERENCE:
                return name
            case ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name(id=name)))):
                return name
    return None


def program(code: str, text: str, entry_point: str | None) -> str:
    """Return an answer and its test as one program, as they are published: whatever fails raises."""
    has_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in _tree(text).body)
    return f"{code}\n\n{text}\n" + (f"\ncheck({entry_point})\n" if has_check and entry_point else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where the calls stand.

    Attributes:
        statements: Those of the function `check`, or of the module where there is none.
        called: The name by which the entry point is called there.
    """

    entry_point: str
    statements: Sequence[ast.stmt]
    called: str


def _tree(text: str) -> ast.Module:
    try:
        return syntax_tree(text)
    except SyntaxError as error:
        raise DataError(f"the test is no Python: line {error.lineno}: {error.msg}; mend the test") from error


def _layout(tree: ast.Module, entry_point: str | None) -> _Layout:
    statements: Sequence[ast.stmt] = tree.body
    called = None
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(name="check", args=ast.arguments(args=[ast.arg(arg=parameter)]), body=body):
                statements, called = body, parameter
            case ast.Expr(value=ast.Call(func=ast.Name(id="check"), args=[ast.Name(id=name)])):
                entry_point = _agreed(name, entry_point)
    if called is None:
        called = entry_point = _agreed(_called(statements), entry_point)
    if entry_point is None:
        raise unknown("`check` takes the function as an argument, and the sample has no entry point")
    return _Layout(entry_point=entry_point, statements=statements, called=called)


def _agreed(found: str, entry_point: str | None) -> str:
    if entry_point not in {found, None}:
        raise DataError(f"the test calls {found!r}, but the sample's entry point is {entry_point!r}")
    return found


def _called(statements: Sequence[ast.stmt]) -> str:
    """Return the name of the function that statements of a module test."""
    for statement in statements:
        match statement:
            case ast.For(body=[ast.Expr(value=ast.Call(args=[ast.Call(func=ast.Name(id=name)), *_]))]):
                return name
            case ast.For(body=[ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name(id=name))))]):
                return name
            case ast.Assert(test=test):
                return asserted(test)[0]
    raise unknown("it makes no call")


def _looped_calls(tree: ast.Module, layout: _Layout, loop: ast.For) -> Iterator[Call]:
    """Yield the calls of a test as it stands on the hub."""
    head = ast.unparse(loop).partition("\n")[0]
    for statement in layout.statements:
        if not _belongs(statement, loop):
            raise unknown(f"line {statement.lineno} is neither inputs nor results nor the loop")
    if head not in _LOOPS or len(loop.body) != 1 or loop.orelse:
        raise unknown(f"line {loop.lineno} is `{head[:80]}`")
    inputs = [_arguments(given) for given in _listed(layout.statements, "inputs")]
    oracle = _oracle(tree, layout, loop.body[0])
    if not _LOOPS[head]:
        for arguments in inputs:
            yield Call(arguments=arguments, by_reference=True, oracle=oracle)
        return
    results = _listed(layout.statements, "results")
    if len(inputs) != len(results):
        raise DataError(f"the test has {len(inputs)} inputs but {len(results)} results")
    for arguments, expected in zip(inputs, results, strict=True):
        if isinstance(oracle, Root) and not _has_coefficients(arguments):
            raise DataError("the test looks for a zero of a polynomial, and an input is no list of coefficients")
        wanted = _members(expected) if isinstance(oracle, SameSet) else expected
        yield Call(arguments=arguments, expected=wanted, oracle=oracle)


def _belongs(statement: ast.stmt, loop: ast.For) -> bool:
    match statement:
        case ast.Assign(targets=[ast.Name(id="inputs" | "results")]) | ast.Import() | ast.ImportFrom():
            return True
        case ast.FunctionDef() | ast.Expr(value=ast.Constant()):
            return True
    return statement is loop


def _listed(statements: Sequence[ast.stmt], name: str) -> list[object]:
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.List() as listed) if target == name:
                members = value(listed)
                assert isinstance(members, list)
                return members
    raise unknown(f"there is no list called {name}")


def _arguments(given: object) -> Arguments:
    if not isinstance(given, list | tuple):
        raise unknown("an input is no list of arguments")
    return tuple(given)


def _members(expected: object) -> frozenset[object]:
    try:
        return frozenset(expected)  # type: ignore[call-overload, no-any-return]
    except TypeError as error:
        raise DataError(f"the test compares sets, and what it expects cannot be one: {error}") from error


def _has_coefficients(arguments: Arguments) -> bool:
    match arguments:
        case ([*coefficients],):
            return all(isinstance(coefficient, int | float) for coefficient in coefficients)
    return False


def _oracle(tree: ast.Module, layout: _Layout, statement: ast.stmt) -> Oracle:
    """Return the rule that the statement in the loop compares by."""
    match statement:
        case ast.Expr(
            value=ast.Call(
                func=ast.Name(id="assertion"),
                args=[
                    ast.Call(func=ast.Name(id=called), args=[ast.Starred(value=ast.Name(id="inp"))]),
                    ast.Name(id="exp") | ast.Call(func=ast.Name(id="ref_func"), args=[ast.Starred()]),
                    ast.Constant(value=int() | float() as atol),
                ],
            )
        ) if called == layout.called:
            return _meaning(tree, float(atol))
        case ast.Assert() if _same(statement, ast.parse(f"assert {layout.called}(*inp) == exp").body[0]):
            return Equal()
        case ast.Assert() if layout.called == "candidate" and _same(statement, ast.parse(_ROOT).body[0]):
            return Root(tolerance=1e-4)
    raise unknown(f"line {statement.lineno} is `{ast.unparse(statement)[:80]}`")


def _meaning(tree: ast.Module, atol: float) -> Oracle:
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "assertion":
            match _known_assertions().get(_dump(statement.body)):
                case "close":
                    return Close(atol=atol)
                case "set":
                    return SameSet()
                case "found":
                    return Found()
                case "equal":
                    return Equal()
            raise unknown("its function `assertion` is another one")
    raise unknown("it has no function `assertion`")


@cache
def _known_assertions() -> dict[str, str]:
    return {_dump(ast.parse(body).body): meaning for body, meaning in _ASSERTIONS.items()}


def _dump(body: Sequence[ast.stmt]) -> str:
    """Return the structure of statements, without what an assertion says when it fails."""
    module = ast.parse(ast.unparse(ast.Module(body=list(body), type_ignores=[])))
    for node in ast.walk(module):
        if isinstance(node, ast.Assert):
            node.msg = None
    return ast.dump(module)


def _same(one: ast.stmt, other: ast.stmt) -> bool:
    return _dump([one]) == _dump([other])


def _reference(tree: ast.Module) -> str:
    """Return the reference and what it needs: its helpers, and the imports that they name."""
    kept = [
        statement
        for statement in tree.body
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name not in _NO_CODE_OF_A_REFERENCE
    ]
    if REFERENCE not in {statement.name for statement in kept}:
        raise unknown(f"it has no function `{REFERENCE}`")
    named = {node.id for statement in kept for node in ast.walk(statement) if isinstance(node, ast.Name)}
    imports: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            bound = {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
            if bound & (named | {"*"}):
                imports.append(statement)
    return ast.unparse(ast.Module(body=[*imports, *kept], type_ignores=[]))
