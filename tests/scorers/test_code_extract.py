import textwrap
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.scorers._code_extract import LONGEST, extract

F = "def f(x):\n    return x\n"
G = "def g(x):\n    return x\n"
METHOD = "class A:\n    def f(self): ...\n"
OPEN = 'def g():\n    """Oh\n'
STRING = '   ```python\n   def f(x):\n       """Oh\nno"""\n       return x\n   ```\n'
STRING_CODE = 'def f(x):\n    """Oh\nno"""\n    return x\n'
FENCE = "```"


def block(code, tag="python", fence=FENCE):
    return f"{fence}{tag}\n{code}{fence}\n"


DOCSTRING = textwrap.dedent('''
    def f(x):
        """Return it.

        Example:
        ```
        f(1)
        ```

        ```python
        def f(x):
            raise ValueError
        ```
        """
        return x
''').lstrip()

FOUND = [
    ("a block", block(F), F, "block"),
    ("a block without a tag", block(F, tag=""), F, "block"),
    ("a tag in capitals", block(F, tag="PYTHON"), F, "block"),
    ("py", block(F, tag="py"), F, "block"),
    ("python3", block(F, tag="python3"), F, "block"),
    ("Python 3", block(F, tag="Python 3"), F, "block"),
    ("a version", block(F, tag="python3.11"), F, "block"),
    ("attributes", block(F, tag='python title="solution.py"'), F, "block"),
    ("a tag in braces", block(F, tag="{.python}"), F, "block"),
    ("a space before the tag", block(F, tag=" python "), F, "block"),
    ("tildes", block(F, fence="~~~"), F, "block"),
    ("a longer fence", block(F, fence="`````"), F, "block"),
    ("a longer fence that closes", f"```python\n{F}`````\n", F, "block"),
    ("spaces behind the fence that closes", f"```python\n{F}```   \n", F, "block"),
    ("a fence that is never closed", f"Here:\n```python\n{F}", F, "block"),
    ("carriage returns", block(F).replace("\n", "\r\n"), F, "block"),
    ("an indented block", textwrap.indent(block(F), "    "), F, "block"),
    ("a block in a list", "1. Code:\n\n" + textwrap.indent(block(F), "   "), F, "block"),
    ("a block that begins a list item", "- " + textwrap.indent(block(F), "  ").lstrip(), F, "block"),
    ("an indented fence around code that is not", f"   ```python\n{F}   ```\n", F, "block"),
    ("code that is indented in its block", block(textwrap.indent(F, "    ")), F, "block"),
    ("the last of two", block(F) + block(F + "# better\n"), F + "# better\n", "block"),
    ("the one that defines it, not the last", block(F) + "Usage:\n" + block("print(f(1))\n"), F, "block"),
    ("the one that parses", block(F) + block("def f(x:\n"), F, "block"),
    ("a block of another language behind it", block(F) + block("{}\n", tag="json"), F, "block"),
    ("output behind it", block(F) + "It prints:\n" + block("1 2\n", tag=""), F, "block"),
    ("a shell block before it", block("pip install x\n", tag="bash") + block(F), F, "block"),
    ("fences in a docstring", block(DOCSTRING), DOCSTRING, "block"),
    ("fences in a docstring, and code behind it", block(DOCSTRING) + block("f(1)\n"), DOCSTRING, "block"),
    ("a block in a longer block", "````markdown\n" + block(F) + "````\n", F, "block"),
    ("a block in a block of the same length", "```markdown\n" + block(F) + "```\n", F, "block"),
    ("backticks in tildes", "~~~\n" + block(F) + "~~~\n", F, "block"),
    ("a block that was not closed before another", "```python\nbroken(\n\nBetter:\n" + block(F), F, "block"),
    ("an open docstring before another block", block('def f(x):\n    """Oh\n') + block(F), F, "block"),
    ("a stray fence", "```\nSo:\n" + block(F), F, "block"),
    ("a quote in prose before it", 'Don\'t say """.\n' + block(F), F, "block"),
    ("code within a line", "Use ```f(1)``` here.\n" + block(F), F, "block"),
    ("after thinking", "<think>" + block(F + "# draft\n") + "</think>" + block(F), F, "block"),
    ("a byte order mark", "\ufeff" + F, F, "text"),
    ("nothing but code", F, F, "text"),
    ("nothing but code, indented", textwrap.indent(F, "  "), F, "text"),
    ("code whose fence was opened by the prompt", F + "```\nThat is it.", F, "text"),
    ("another function", block(G), G, "last_block"),
    ("code that does not parse", block("def f(x:\n"), "def f(x:\n", "last_block"),
    ("Python rather than what has no tag", block(G) + block("1 2\n", tag=""), G, "last_block"),
    (
        "a method of that name",
        block("class A:\n    def f(self): ...\n"),
        "class A:\n    def f(self): ...\n",
        "last_block",
    ),
    ("the name in a function", block("def g():\n    f = 1\n"), "def g():\n    f = 1\n", "last_block"),
    ("a string that goes further out than its code", STRING, STRING_CODE, "block"),
    (
        "a string that is never closed",
        '```python\ndef g():\n    """Oh\n```\nDone.\n',
        'def g():\n    """Oh\n',
        "last_block",
    ),
    ("spaces in a string", block('f = """\n    \n"""\n'), 'f = """\n    \n"""\n', "block"),
    ("null bytes", block("def f(x): return '\0'\n"), "def f(x): return '\0'\n", "last_block"),
]


@pytest.mark.parametrize(("text", "code", "found_by"), [pytest.param(*case[1:], id=case[0]) for case in FOUND])
def test_the_program_is_found(text, code, found_by):
    found = extract(text, "f")
    assert found is not None
    assert (found.code.rstrip("\n"), found.found_by) == (code.rstrip("\n"), found_by)


@pytest.mark.parametrize(
    "code",
    [
        "async def f(x): ...",
        "class f: ...",
        "f = lambda x: x",
        "g = f = len",
        "f: object = len",
        "(f, g) = len, len",
        "[*f] = 1,",
        "from math import sqrt as f",
        "import math as f",
        "if True:\n    def f(x): ...",
        "if False:\n    pass\nelse:\n    f = len",
        "try:\n    from math import cbrt as f\nexcept ImportError:\n    f = None",
        "try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    def f(x): ...",
        "try:\n    pass\nfinally:\n    def f(x): ...",
        "with open('x'):\n    def f(x): ...",
        "match 1:\n    case _:\n        f = len",
    ],
)
def test_a_definition_at_the_top_level_counts_however_it_is_made(code):
    found = extract(block(code + "\n") + block("print(1)\n"), "f")
    assert found is not None
    assert found.found_by == "block"
    assert found.code.strip() == code


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do this.",
        "<think>" + block(F),
        "</think><think>" + block(F),
        G,
        "print(f(1))",
        "f: int",
        "``` ```",
        "```python\n```",
        block("{}\n", tag="json"),
        block("fn f() {}\n", tag="rust"),
        block(F, tag="pycon"),
        block(F, tag="python-repl"),
    ],
)
def test_no_program_is_made_up(text):
    assert extract(text, "f") is None


def test_any_program_will_do_where_no_name_is_asked_for():
    assert extract(block(F) + block(G), None).code == G
    assert extract(F, None).code == F
    assert extract("", None) is None


def test_warnings_of_the_code_stay_with_the_code():
    assert extract(block("def f(x):\n    return '\\d' is 5\n"), "f").found_by == "block"


def test_of_what_is_far_too_long_the_end_is_looked_at():
    assert extract(F + "#" * LONGEST, "f") is None
    others = block("{}\n", tag="json") * 3000
    assert extract(block(F) + others, "f") is None
    assert extract(others + block(F), "f").code == F


SIZE = 1_000_000
LONG = {
    "fences": "```\n",
    "tagged fences": "```python\n",
    "blocks": block(F),
    "broken blocks": block("def f(\n"),
    "open docstrings": '```python\n"""\n```\n',
    "escaped docstrings": '```python\n\\"""\n```\n',
    # hidden in a line of code, what opens a string closes it inside of one, so it stays open all the way
    "strings that never close": "```python\n\"''' \n'''' " + "x" * 380 + "\n```\n",
    "indented fences": " ```python\n  ```\n",
    "backticks": "`",
    "backticks and spaces": "``` ",
    "tildes": "~~~~\n~~~\n",
    "quotes": "\"'",
    "spaces": " ",
    "tabs": "\t\n",
    "brackets": "(",
    "minus signs": "-",
    "sums": "1+",
    "calls": "f(",
    "attributes": "a.",
    "lambdas": "lambda:",
    "f-strings": "f'{",
    "backslashes": "\\\n",
    "if": "if f:\n ",
    "carriage returns": "\r",
    "null bytes": "\0",
    "surrogates": "\ud800",
    "thinking": "<think></think>",
}


@pytest.mark.parametrize("piece", LONG.values(), ids=LONG.keys())
@pytest.mark.parametrize(("around", "size"), [("{}", SIZE), ("```python\n{}\n```", SIZE), ("{}", LONGEST - 100)])
def test_a_text_of_a_megabyte_takes_no_time(piece, around, size):
    text = around.replace("{}", piece * (size // len(piece)))
    start = time.thread_time()
    extract(text, "f")
    assert time.thread_time() - start < 1.5  # 0.3 on a machine that is not busy


MARKS = ["```", "~~~", "````", "python", "py", " ", "    ", "\n", "\n", "\r\n", "- ", "1. ", "<think>", "</think>"]
CODE = ['"""', "'''", "'", '"', "\\", "#", "def f(x): ", "return x", "f = 1", "class f:", "(", ")", "\0", "\ud800", "é"]
WORDS = st.sampled_from(MARKS + CODE)


@given(st.one_of(st.text(max_size=300), st.lists(WORDS, max_size=60).map("".join)), st.sampled_from(["f", None]))
def test_no_text_makes_extraction_raise_and_code_is_always_taken_from_it(text, entry_point):
    found = extract(text, entry_point)
    if found is not None:
        assert all(line.strip() in text for line in found.code.split("\n"))


@given(st.text(max_size=80).filter(lambda prose: "`" not in prose and "~" not in prose and "<" not in prose))
def test_prose_around_a_block_does_not_change_what_is_found(prose):
    assert extract(f"{prose}\n{block(F)}{prose}", "f").code == F
