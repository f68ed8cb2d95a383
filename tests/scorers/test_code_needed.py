"""Statements that the graded function does not need decide nothing when they fail; those it needs do."""

from __future__ import annotations

import time

import pytest

from latentmas.samples import Answer, FinishReason, Sample, Verdict
from latentmas.sandbox import Level, probe
from latentmas.scorers._code_needed import needed_part
from latentmas.scorers.code import CodeScorer

F = "def f(n):\n    return n + 1\n"

FAILS_ALONE = [
    F + "assert f(2) == 4\n",
    F + "n = int(input('n? '))\nprint(f(n))\n",
    F + "print(f(int(input())))\n",
    F + "while True:\n    line = input()\n    print(f(int(line)))\n",
    F + "run_tests(f)\n",
    F + "x = 1; assert f(x) == 3; y = 2\n",
    "limit = 1\n" + F.replace("1", "limit") + "assert f(1) == 7, '''\nno\n'''\nprint('done')\n",
    "'''é'''\nmemo = {}\ndef f(n):\n    memo[n] = n + 1\n    return memo[n]\nassert f(1) == 3\nr = f(2)\nassert r\n",
    "def g(n):\n    return n + 1\nf = g\nassert f(1) == 3\n",
    "table = {}\ndef fill():\n    table[0] = 1\nfill()\ndef f(n):\n    return n + table[0]\nassert f(1) == 3\n",
    "one = []\nfor i in range(1):\n    one.append(1)\ndef f(n):\n    return n + one[0]\nassert f(1) == 3\n",
    "class S:\n    def f(self, n):\n        return n + 1\nf = S().f\nopen('none.txt')\n",
]
DECIDES = [
    "k = int(input())\ndef f(n):\n    return n + 1 + k * 0\n",
    "one = [1]\none.sort(key=input)\ndef f(n):\n    return n + one[0]\n",
    "def fill():\n    global one\n    one = int(input())\nfill()\ndef f(n):\n    return n + one\n",
    "import a_module_that_is_not_there\n" + F,
    F + "import sys\nsys.exit(0)\n",
    F + "raise SystemExit\n",
    F + "raise RuntimeError\n",
    F + "return 1\n",
    F + "exec('assert 0')\n",
    F + "f = None\n",
    "def f(n):\n    return n + 2\nassert f(1) == 2\n",
]
TEST = "assert f(1) == 2\nassert f(5) == 6"


@pytest.fixture(scope="module")
def verdict_of():
    level = next((level for level in (Level.LANDLOCK, Level.BWRAP, Level.RLIMIT) if probe(level).works), None)
    if level is None:
        pytest.skip("no way to confine a program works here")
    scorer = CodeScorer(level=level)
    sample = Sample(id="a", question="?", target=TEST, entry_point="f")

    def verdict(code: str) -> Verdict:
        text = f"```python\n{code}```"
        return scorer(Answer(text=text, finish_reason=FinishReason.STOP), sample).verdict

    return verdict


@pytest.mark.parametrize("code", FAILS_ALONE)
def test_what_fails_below_the_function_does_not_decide(code, verdict_of) -> None:
    assert verdict_of(code) is Verdict.CORRECT


@pytest.mark.parametrize("code", DECIDES)
def test_what_the_function_needs_and_what_ends_the_program_decide(code, verdict_of) -> None:
    assert verdict_of(code) in (Verdict.CRASHED, Verdict.WRONG)


def test_only_what_is_not_needed_is_left_out() -> None:
    code = (
        "import os\nü = 'é'; assert 1 == 2; y = 3\ndef f(n):\n    return ü * y\nassert f(1) == '''\na\n'''; print(1)\n"
    )
    kept = "import os\nü = 'é'; pass; y = 3\ndef f(n):\n    return ü * y\npass; pass\n"
    assert needed_part(code, "f").strip() == kept.strip()


@pytest.mark.parametrize(
    "code", [F, "import f\n", "assert 1", "from m import *\nassert 1\n", "def f(:\n", "f = (" * 300]
)
def test_a_program_of_which_nothing_can_go_is_left_alone(code: str) -> None:
    assert needed_part(code, "f") is None


@pytest.mark.parametrize(
    "code",
    [
        "a0 = 1\n" + "".join(f"a{i} = a{i - 1}\n" for i in range(1, 5000)) + "def f(): return a4999\nassert 0\n",
        "".join(f"def g{i}(): g{i + 1}()\n" for i in range(3000)) + "def f(): return 1\nassert 0\n",
        "def f(): return T\n" + "def h():\n global T\n T = 1\nh()\n" * 3000,
    ],
)
def test_no_chain_of_names_takes_long(code: str) -> None:
    seconds = []
    while len(seconds) < 3 and min(seconds, default=9) > 2:  # a busy machine only adds
        begin = time.perf_counter()
        needed_part(code, "f")
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 2
