"""What of a program its entry point depends on: the rest may fail without deciding anything.

Models write a check of their own below the function, with a wrong expectation, or ask for input there. Other graders
drop such statements before they run a program. Here a program runs as it is; only one that fails by an exception
before its first call has returned runs once more without them. Nothing is run here, and no text makes it raise.
"""

from __future__ import annotations

import ast
import symtable
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from latentmas.scorers._code_extract import LONGEST

_MOST_ROUNDS: Final = 20
_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_ANYTHING: Final = frozenset({"globals", "locals", "vars", "exec", "eval", "setattr", "delattr", "__builtins__"})
"""Names by which a statement may change what it does not name."""


def needed_part(code: str, entry_point: str) -> str | None:
    """Return a program without the statements its entry point does not depend on; None where there are none.

    Imports and definitions stay, and so does every statement that sets or changes a name which the entry point uses,
    itself or by way of another: constants, tables and the calls that fill them.
    """
    if len(code) > LONGEST:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parts = _parts(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return None
    kept = _kept(parts, entry_point)
    dropped = [part.statement for part in parts if part.may_go and part not in kept]
    return _without(code, dropped) if dropped and kept else None


class _Part:
    """One statement of a module, in module scope.

    Attributes:
        defines: The name of the function or class that it is; None for other statements.
        uses: Names of the module that it may read; of a function, those it reads when it is called.
        sets: Names of the module that it sets, or whose values it may change when it runs.
        effects: Names of the module whose values a call of the function may change.
        may_go: It is no import and no definition.
    """

    def __init__(self, statement: ast.stmt, scopes: Sequence[symtable.SymbolTable], imported: set[str]) -> None:
        self.statement = statement
        self.defines = statement.name if isinstance(statement, _FUNCTIONS) else None
        self.uses = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        self.sets = set(_set_by(statement)) | (set(_changed_by(statement)) - imported)
        self.effects: set[str] = set()
        if self.defines is not None:
            symbols = [symbol for scope in scopes for symbol in scope.get_symbols() if symbol.is_global()]
            outside = {symbol.get_name() for symbol in symbols}
            # What is not inside of the function is a decorator, a default or a base class.
            outside |= {node.id for part in _around(statement) for node in ast.walk(part) if isinstance(node, ast.Name)}
            self.uses &= outside
            self.effects = {symbol.get_name() for symbol in symbols if symbol.is_assigned()} | (self.sets & outside)
            self.sets = {self.defines}
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        is_import = any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(statement))
        # A program that means to end does so, and one with a return outside of a function is none.
        is_kept = is_text or is_import or isinstance(statement, ast.Raise | ast.Return)
        self.may_go = self.defines is None and not is_kept
        self.checks = _only_checks(statement)
        if self.uses & _ANYTHING and not self.checks:
            self.may_go = False


def _parts(code: str) -> list[_Part]:
    body = ast.parse(code).body
    scopes: dict[int, list[symtable.SymbolTable]] = defaultdict(list)
    lines: dict[int, int] = {}
    for index, statement in enumerate(body):
        first = min([statement.lineno, *(one.lineno for one in getattr(statement, "decorator_list", ()))])
        lines |= dict.fromkeys(range(first, (statement.end_lineno or first) + 1), index)
    waiting = [(child, child.get_lineno()) for child in symtable.symtable(code, "answer.py", "exec").get_children()]
    while waiting:
        scope, line = waiting.pop()
        scopes[lines.get(line, -1)].append(scope)
        waiting.extend((child, line) for child in scope.get_children())
    imported = {
        alias.asname or alias.name.partition(".")[0]
        for statement in body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for alias in statement.names
    }
    return [_Part(statement, scopes[index], imported) for index, statement in enumerate(body)]


def _around(statement: ast.stmt) -> Iterator[ast.AST]:
    for name in ("decorator_list", "bases", "keywords"):
        yield from getattr(statement, name, ())
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        yield statement.args


def _set_by(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds or deletes, at any depth."""
    for node in ast.walk(statement):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.alias(name=name, asname=asname):
                yield asname or name.partition(".")[0]
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name


def _changed_by(statement: ast.stmt) -> Iterator[str]:
    """Yield the names whose values a statement may change: ``a`` of ``a[0] = 1``, ``a.b += 1`` and ``a.append(1)``."""
    for node in ast.walk(statement):
        match node:
            case ast.Subscript(ctx=ast.Store() | ast.Del()) | ast.Attribute(ctx=ast.Store() | ast.Del()):
                changed: ast.expr = node
            case ast.Call(func=ast.Attribute() as changed):
                pass
            case _:
                continue
        while isinstance(changed, ast.Attribute | ast.Subscript):
            changed = changed.value
        if isinstance(changed, ast.Name):
            yield changed.id


def _only_checks(statement: ast.stmt) -> bool:
    """Tell whether a statement only looks at values: an assertion, or something that is printed."""
    match statement:
        case ast.Assert():
            return True
        case ast.Expr(value=ast.Call(func=ast.Name(id="print"))):
            return True
    return False


def _kept(parts: Sequence[_Part], entry_point: str) -> set[_Part]:
    """Return the statements the entry point depends on; none where it cannot be told."""
    setting: dict[str, list[_Part]] = defaultdict(list)
    callers: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        for name in part.sets if not part.checks else ():
            setting[name].append(part)
        for name in part.uses if not part.checks else ():
            callers[name].append(part)
    functions = [part for part in parts if part.defines is not None]
    kept: set[_Part] = set()
    needed: set[str] = set()
    waiting = [entry_point]
    for _ in range(_MOST_ROUNDS):
        while waiting:
            name = waiting.pop()
            if name in needed:
                continue
            needed.add(name)
            for part in setting[name]:
                kept.add(part)
                waiting.extend(part.uses)
        # A call of a function that changes what is needed is needed itself; that of the entry point comes anyway.
        changing = [part.defines for part in functions if part.defines != entry_point and part.effects & needed]
        for part in _calling(changing, callers, entry_point):
            if part not in kept:
                kept.add(part)
                waiting.extend(part.uses)
        if not waiting:
            return kept
    return set()


def _calling(functions: list[str | None], callers: dict[str, list[_Part]], entry_point: str) -> Iterator[_Part]:
    """Yield the statements that call one of these functions, themselves or by way of others but the entry point."""
    reached: set[str] = set()
    while functions:
        function = functions.pop()
        if function is None or function in reached or function == entry_point:
            continue
        reached.add(function)
        for part in callers[function]:
            if part.defines is None:
                yield part
            else:
                functions.append(part.defines)


def _without(code: str, dropped: Sequence[ast.stmt]) -> str:
    """Return a program in which statements of its module do nothing."""
    # Columns count bytes, and form feeds end no line for the parser.
    lines = [line + b"\n" for line in code.encode().split(b"\n")]
    for statement in reversed(dropped):
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        begin, end = lines[first][: statement.col_offset], lines[last][statement.end_col_offset :]
        lines[first : last + 1] = [begin + b"pass" + end]
    return b"".join(lines).decode()
