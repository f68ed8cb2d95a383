"""Where the program stands in an answer: the last fenced block that defines the entry point. Linear; never raises.

Markdown alone does not say where a block ends: models write fences into docstrings, put blocks into longer blocks and
forget the last fence. So a fence inside a triple-quoted string ends nothing, and a block that does not parse is
searched for blocks of its own. Nothing is run here.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from latentmas.scorers._next_question import Strength, own_part
from latentmas.scorers._text import without_end_tokens
from latentmas.thinking import answer_part

LONGEST: Final = 100_000
"""Characters of one program; a longer one counts as one that does not parse."""
_MOST_PARSED: Final = 160_000
"""Characters parsed for one answer, the last blocks first."""
_MOST_LOOKED_AHEAD: Final = 400_000
"""Characters read to see whether a fence stands inside a string."""
_MOST_FENCES: Final = 5_000
"""Of a text with more, what follows the last ones is looked at."""
_DEEPEST: Final = 4

_FENCE: Final = re.compile(r"([ \t]*)(?:(?:[-*+]|[0-9]{1,3}[.)])[ \t]+)?(`{3,}|~{3,})[ \t]*(.*)")
_PYTHON: Final = re.compile(r"[{.\s]*(?:python|py)[0-9.]*(?![\w+#-])", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r"""\#[^\n]* | \"{3} | '{3} | "(?:[^"\\\n]|\\.)*+ "? | '(?:[^'\\\n]|\\.)*+ '? | \\.""", re.VERBOSE | re.DOTALL
)
_IN_STRING: Final = {quote: re.compile(rf"\\.|{quote}", re.DOTALL) for quote in ('"""', "'''")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """A program and how it was found.

    Attributes:
        found_by: ``block``, one that defines the entry point; ``text``, all of it; ``last_block``, one that does not.
    """

    code: str
    found_by: str


def extract(text: str, entry_point: str | None) -> Extracted | None:
    """Return the program in an answer; None where there is none, or a thinking block was never closed.

    Args:
        entry_point: The name a program must define; None is content with any program.
    """
    shown = answer_part(text)
    if shown is None:
        return None
    shown, _ = own_part(shown, lambda before: _strength(before, entry_point), headings=False)
    shown = without_end_tokens(shown).lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    lines = shown.split("\n")
    fences = [number for number, line in enumerate(lines) if _may_be_fence(line)]
    lines = lines[fences[-_MOST_FENCES] :] if len(fences) > _MOST_FENCES else lines
    search = _Search(entry_point)
    # A block that only imports the name is the solution if nothing else is: usually it uses one that stands before it.
    for looking in (search, _Search(entry_point, imports=True)):
        if (code := looking.last_definition(lines)) is not None:
            return Extracted(code=code, found_by="block")
    # The prompt may have opened the block, so that its end is the first fence.
    first = next((fence.line for fence in _fences(lines)), len(lines))
    whole = "\n".join(lines[:first])
    for part in dict.fromkeys((whole, own_part(whole, lambda before: _strength(before, entry_point))[0])):
        if search.defines(search.parse(code := _dedented(part))):
            return Extracted(code=code, found_by="text")
    last = search.last_python or search.last_untagged
    return None if last is None else Extracted(code=last, found_by="last_block")


def _strength(text: str, entry_point: str | None) -> Strength:
    """Return how surely a text holds a program already, at little cost."""
    name = r"\w+" if entry_point is None else re.escape(entry_point)
    defines = re.search(rf"^[ \t]*(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*=", text, re.MULTILINE)
    return Strength.NONE if defines is None else Strength.FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fence:
    line: int
    indent: str
    marks: str
    tag: str

    def closes(self, opener: _Fence) -> bool:
        return not self.tag and self.marks.startswith(opener.marks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """What stands between two fences.

    Attributes:
        lines: Without the indentation that the opening fence has.
        python: By its tag: True or False; an untagged block may be anything and is None.
    """

    lines: Sequence[str]
    python: bool | None


class _Search:
    """Looks through one answer, within a budget.

    Attributes:
        last_python: The last block tagged as Python, seen so far.
        last_untagged: The last block without a tag, seen so far.
    """

    def __init__(self, entry_point: str | None, *, imports: bool = False) -> None:
        self.entry_point = entry_point
        self._imports = imports
        self.last_python: str | None = None
        self.last_untagged: str | None = None
        self._may_parse = _MOST_PARSED
        self._may_look_ahead = _MOST_LOOKED_AHEAD

    def last_definition(self, lines: Sequence[str], depth: int = 0) -> str | None:
        """Return the last block that defines the entry point."""
        if depth == _DEEPEST:
            return None
        for block in reversed(list(self._blocks(lines))):
            code = _dedented("\n".join(block.lines)) + "\n"
            if not code.strip():
                continue
            tree = None if block.python is False else self.parse(code)
            if self.defines(tree):
                return code
            if tree is None and (inner := self.last_definition(block.lines, depth + 1)) is not None:
                return inner
            if block.python and self.last_python is None:
                self.last_python = code
            if block.python is None and self.last_untagged is None:
                self.last_untagged = code
        return None

    def parse(self, code: str) -> ast.Module | None:
        """Return the syntax tree; None where there is none or it would take too long."""
        if len(code) > min(LONGEST, self._may_parse):
            return None
        self._may_parse -= len(code)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return ast.parse(code)
            except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
                return None

    def defines(self, tree: ast.Module | None) -> bool:
        if tree is None:
            return False
        return (
            bool(tree.body)
            if self.entry_point is None
            else self.entry_point in _names(tree.body, imports=self._imports)
        )

    def _blocks(self, lines: Sequence[str]) -> Iterator[_Block]:
        fences = list(_fences(lines))
        at = 0
        while at < len(fences):
            opener = fences[at]
            python = None if not opener.tag else _PYTHON.match(opener.tag) is not None
            close = self._close(lines, fences, at, string_aware=python is not False)
            end = len(lines) if close is None else fences[close].line
            inside = lines[opener.line + 1 : end]
            yield _Block(lines=_outdented(inside, opener.indent), python=python)
            at = len(fences) if close is None else close + 1

    def _close(self, lines: Sequence[str], fences: Sequence[_Fence], at: int, *, string_aware: bool) -> int | None:
        """Return which fence closes another: the first that is in no string, else the first."""
        first, quote, read = None, None, fences[at].line + 1
        for number in range(at + 1, len(fences)):
            if not fences[number].closes(fences[at]):
                continue
            if not string_aware or self._may_look_ahead <= 0:
                return number if first is None else first
            part = "\n".join(lines[read : fences[number].line])
            read = fences[number].line
            self._may_look_ahead -= len(part) + 1
            quote = _quote_after(part, quote)
            if quote is None:
                return number
            first = number if first is None else first
        return first


def _fences(lines: Sequence[str]) -> Iterator[_Fence]:
    for number, line in enumerate(lines):
        if _may_be_fence(line) and (found := _FENCE.fullmatch(line)):
            indent, marks, tag = found.groups()
            if "`" in marks and "`" in tag:
                continue  # code within a line
            yield _Fence(line=number, indent=indent, marks=marks, tag=tag.strip())


def _may_be_fence(line: str) -> bool:
    return "```" in line or "~~~" in line


def _outdented(lines: Sequence[str], indent: str) -> Sequence[str]:
    """Take off the indentation of the fence, if the code has it; lines in a long string may have less."""
    first = next((line for line in lines if line.strip()), "")
    if not indent or not first.startswith(indent):
        return lines
    return [line.removeprefix(indent) for line in lines]


def _dedented(code: str) -> str:
    """Take off the indentation that all lines have; code that has none keeps every space, also those in strings."""
    first = next((line for line in code.split("\n") if line.strip()), "")
    return textwrap.dedent(code) if first[:1].isspace() else code


def _quote_after(code: str, quote: str | None) -> str | None:
    """Return the triple quote that is open after `code`; None is none.

    Args:
        quote: The one that is open before it.
    """
    at = 0
    while True:
        tokens = _TOKEN if quote is None else _IN_STRING[quote]
        found = next((found for found in tokens.finditer(code, at) if found[0] in _IN_STRING), None)
        if found is None:
            return quote
        quote, at = (found[0] if quote is None else None), found.end()


def _names(body: Sequence[ast.stmt], *, imports: bool) -> Iterator[str]:
    """Yield the names that statements of a module define, also inside ``if``, ``try``, ``with`` and loops.

    A name that is assigned from itself, as in ``f = f(3)``, has been defined elsewhere.
    """
    waiting: list[ast.AST] = list(body)
    while waiting:
        match statement := waiting.pop():
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name
            case ast.Assign():
                used = {node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)}
                for target in statement.targets:
                    yield from (name for name in _targets(target) if name not in used)
            case ast.AnnAssign(value=ast.expr()):
                yield from _targets(statement.target)
            case ast.Import() | ast.ImportFrom() if not imports:
                continue
            case ast.Import() | ast.ImportFrom():
                for alias in statement.names:
                    yield alias.asname or alias.name.partition(".")[0]
            case _:
                for name in ("body", "orelse", "handlers", "finalbody", "cases"):
                    waiting.extend(getattr(statement, name, ()))


def _targets(target: ast.expr) -> Iterator[str]:
    waiting = [target]
    while waiting:
        match waiting.pop():
            case ast.Name(id=name):
                yield name
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                waiting.extend(parts)
            case ast.Starred(value=part):
                waiting.append(part)
