"""What a reviewer found: results that cost the grader more than themselves, and answers that were read wrongly."""

import time

import pytest

from latentmas import sandbox
from latentmas.samples import Answer, FinishReason, Sample, Verdict
from latentmas.scorers._code_lines import value_digest
from latentmas.scorers.code import CodeScorer

LARGE = """
def ref_func(n):
    return list(range(n))

def is_floats(x):
    return isinstance(x, float)

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp

inputs = [[3], [1000000]]
for i, inp in enumerate(inputs):
    assertion(f(*inp), ref_func(*inp), 0)
"""
"""What is expected of the second call is known by its digest only."""
SETS = """
def is_floats(x):
    return isinstance(x, float)

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    out = set(out)
    exp = set(exp)
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp

inputs = [[3]]
results = [(0, 1, 2)]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(f(*inp), exp, 0)
"""
PLAIN = "assert f(1) == 2\n"
FENCE = "```"


def grade(test, reply):
    scorer = CodeScorer(level=sandbox.choose("auto", allow_unsafe=True))
    if FENCE not in reply:
        reply = f"{FENCE}python\n{reply}\n{FENCE}"
    sample = Sample(id="x", question="", target=test, entry_point="f")
    return scorer(Answer(text=reply, finish_reason=FinishReason.STOP), sample)


@pytest.mark.parametrize(
    "second",
    [
        "r = {}\n    for _ in range(60): r = {1: r}\n    return r",
        "r = frozenset()\n    for _ in range(60): r = frozenset([r])\n    return r",
        "os.write(FD, b'=' + b'[' * 800 + b']' * 800 + b'\\n'); os._exit(0)",
        "os.write(FD, b'=' + b'[' * 99999 + b'\\n'); os._exit(0)",
        "tuples = (\"{'t':[\" + '-6,' * 22 + str(i * (2**61 - 1)) + ']}' for i in range(9900))\n"
        "    line = '={\"s\":[' + ','.join(tuples).replace(\"'\", '\"') + ']}\\n'\n"
        "    os.write(FD, line.encode()[:60000]); os.write(FD, b'\\n'); os._exit(0)",
    ],
    ids=["nested dicts", "nested sets", "deep list", "deeper list", "colliding tuples"],
)
def test_no_result_costs_the_grader_more_than_a_moment(second):
    grade(LARGE, "def f(n): return list(range(n))")  # the reference has run
    began = time.monotonic()
    program = "import os, sys\nFD = sys.modules['__main__'].OUTPUT_FD\ndef f(n):\n    if n == 3: return [0, 1, 2]\n"
    assert grade(LARGE, f"{program}    {second}").verdict is Verdict.WRONG
    assert time.monotonic() - began < 10


def test_digests_of_nested_members_are_the_same_for_equal_values_and_small():
    nested = {1: {True: frozenset({2.0})}}
    assert value_digest(nested) == value_digest({1.0: {1: {2}}})
    assert value_digest(nested) != value_digest({1: {True: frozenset({3})}})
    assert value_digest([float("nan")]) is None
    assert value_digest({"a": (1, {float("nan")})}) is None


@pytest.mark.parametrize(
    "usage",
    ["from solution import f\nprint(f(1))", "import unittest\nfrom f import f\nunittest.main()", "f = f(3)"],
)
def test_a_block_that_only_uses_the_function_is_not_the_solution(usage):
    reply = f"{FENCE}python\ndef f(x):\n    return x + 1\n{FENCE}\nTests:\n{FENCE}python\n{usage}\n{FENCE}"
    assert grade(PLAIN, reply).verdict is Verdict.CORRECT


def test_an_import_is_the_solution_where_nothing_else_is():
    assert grade("assert f(4) == 2\n", "from math import isqrt as f").verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    "program",
    [
        "import numpy as np\ndef f(n): return np.arange(n)",
        "from collections import deque\ndef f(n): return deque(range(n))",
        "def f(n): return {str(i): i for i in range(n)}.values()",
        "def f(n): return range(n)",
    ],
)
def test_where_sets_are_compared_anything_with_members_is_read(program):
    if "numpy" in program:
        pytest.importorskip("numpy")
    assert grade(SETS, program).verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    "program",
    [
        "import numpy as np\ndef f(x): return np.where(x > 0, x + 1, 0)",
        "import numpy as np\ndef f(x): return np.longdouble(x + 1)",
        "def f(x): return x + 1\nhelp(f)",
        "def f(x): return x + len(__file__) // len(__file__)",
        "def f(x): return __builtins__.sum([x, 1])",
    ],
)
def test_a_program_finds_python_as_it_knows_it(program):
    if "numpy" in program:
        pytest.importorskip("numpy")
    assert grade(PLAIN, program).verdict is Verdict.CORRECT


def test_a_name_is_read_as_the_compiler_reads_it():
    sample = Sample(
        id="x", question="", target="def check(candidate):\n    assert candidate(1) == 2\n", entry_point="ﬁ"
    )
    scorer = CodeScorer(level=sandbox.choose("auto", allow_unsafe=True))
    answer = Answer(text=f"{FENCE}python\ndef ﬁ(x): return x + 1\n{FENCE}", finish_reason=FinishReason.STOP)
    assert scorer(answer, sample).verdict is Verdict.CORRECT
