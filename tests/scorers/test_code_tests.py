"""Tests of the hub, and those that people write, are read as calls and what is expected of them."""

from __future__ import annotations

import gzip
import json
import math
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.errors import DataError
from latentmas.samples import Sample
from latentmas.scorers._code_compare import Close, Equal, Found, Root, SameSet, Truth, Within
from latentmas.scorers._hub_tests import digest, entry_point_of, parse_test, program
from latentmas.scorers.code import check_target

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "humanevalplus").is_dir(), reason=f"no data sets in {DATA}")

HEAD = """\
import numpy as np
from math import inf

def is_floats(x) -> bool:
    return isinstance(x, float)

"""
CLOSE = """\
def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"

"""
MATCHED = """\
def assertion(out, exp, atol):
    exact_match = out == exp

    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match

"""
SETS = CLOSE.replace("    if out != exp", "    out = set(out)\n    exp = set(exp)\n    if out != exp")
FOUND = """\
def assertion(out, exp, atol):
    if isinstance(out, bool):
        exact_match = out == exp
    else:
        exact_match = exp == (out is not None)

"""
LOOP = "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(f(*inp), exp, 0)\n"
CHECK = """\
def check(candidate):
    inputs = [[1]]
    results = [2]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""
POLY = """\
import math

def _poly(xs: list, x: float):
    return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])

def check(candidate):
    inputs = [[[1, 2]], [[-6, 11.5, -6, 1]]]
    results = [-0.5, 1]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assert _poly(*candidate(*inp), inp) <= 0.0001
"""
BY_REFERENCE = """\
import itertools
import os.path
from functools import reduce as fold

def helper(n):
    return itertools.count(n)

def ref_func(n):
    return fold(lambda a, b: a + b, [next(helper(n))])

inputs = [[1], [2]]
for i, inp in enumerate(inputs):
    assertion(f(*inp), ref_func(*inp), 0)
"""


def listed(inputs="[[1]]", results="[2]", *, assertion=CLOSE, loop=LOOP):
    return f"{HEAD}{assertion}inputs = {inputs}\nresults = {results}\n{loop}"


def rows():
    for name in ("humanevalplus", "mbppplus"):
        for path in sorted((DATA / name).glob("*.jsonl.gz")):
            with gzip.open(path, "rt") as file:
                yield from map(json.loads, file)


@needs_data
@pytest.mark.slow
def test_every_published_test_can_be_read():
    oracles, references, entry_points, calls = Counter(), 0, 0, 0
    for row in rows():
        test = parse_test(row["test"], row.get("entry_point"))
        (oracle,) = set(test.oracles)
        oracles[type(oracle), getattr(oracle, "atol", None)] += 1
        references += test.reference is not None
        code = row["code"] if "code" in row else row["prompt"] + row["canonical_solution"]
        entry_points += (
            any(f"{word} {test.entry_point}" in code for word in ("def", "class")) or test.entry_point in code
        )
        calls += len(test.inputs)
        assert len(test.inputs) == len(test.oracles) == len(test.expected or test.inputs)
        assert len(test.digest) == 16
    assert oracles == {
        (Close, 0.0): 516,
        (Close, 1e-4): 13,
        (Close, 1e-6): 2,
        (SameSet, None): 7,
        (Found, None): 3,
        (Root, None): 1,
    }
    assert (references, entry_points) == (9, 542)
    assert calls > 100_000


@pytest.mark.parametrize(
    ("test", "oracle"),
    [
        (listed(), Close()),
        (listed(assertion=MATCHED), Close()),
        (listed(assertion=SETS), SameSet()),
        (listed(results="[True]", assertion=FOUND), Found()),
        (listed(loop=LOOP.replace(", 0)", ", 0.0001)")), Close(atol=1e-4)),
        (listed(loop=LOOP.replace(", 0)", ", 1e-06)")), Close(atol=1e-6)),
    ],
)
def test_the_rule_is_seen_from_the_shape_of_the_test(test, oracle):
    results = test.partition("results = ")[2]
    test = test.replace("results = [2]", "results = [[2, 2]]") if isinstance(oracle, SameSet) else test
    parsed = parse_test(test, None)
    assert parsed.oracles == (oracle,)
    assert (parsed.entry_point, parsed.inputs, parsed.reference) == ("f", ((1,),), None)
    assert parsed.expected == (
        (frozenset({2}),) if isinstance(oracle, SameSet) else (True if "True" in results else 2,)
    )


def test_a_test_of_humaneval_is_told_whom_to_call():
    test = parse_test(HEAD + MATCHED + CHECK, "g")
    assert (test.entry_point, test.inputs, test.expected) == ("g", ((1,),), (2,))
    with pytest.raises(DataError, match="no entry point"):
        parse_test(HEAD + MATCHED + CHECK, None)
    assert parse_test(HEAD + MATCHED + CHECK + "\ncheck(g)\n", None).entry_point == "g"


def test_the_polynomial_is_evaluated_by_the_parent():
    test = parse_test(POLY, "f")
    assert test.oracles == (Root(tolerance=1e-4),) * 2
    with pytest.raises(DataError, match="coefficients"):
        parse_test(POLY.replace("[[1, 2]]", "[['a']]"), "f")


def test_of_a_reference_all_is_kept_that_it_needs_and_nothing_else():
    test = parse_test(HEAD + CLOSE + BY_REFERENCE, None)
    assert (test.entry_point, test.inputs, test.expected) == ("f", ((1,), (2,)), None)
    assert "numpy" not in test.reference
    assert "os.path" not in test.reference
    namespace = {}
    exec(test.reference, namespace)
    assert namespace["ref_func"](5) == 5


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("-1", -1),
        ("+1.5", 1.5),
        ("1e400", math.inf),
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("math.inf", math.inf),
        ("np.inf", math.inf),
        ("float('-inf')", -math.inf),
        ("float(3)", 3.0),
        ("2j", 2j),
        ("1+2j", 1 + 2j),
        ("-1-2j", -1 - 2j),
        ("(-0-2j)", complex(0, -2)),
        ("complex(1, 2)", 1 + 2j),
        ("set()", set()),
        ("{1, (2,)}", {1, (2,)}),
        ("set([1])", {1}),
        ("frozenset({1})", frozenset({1})),
        ("{'a': [None, True, b'x', ()]}", {"a": [None, True, b"x", ()]}),
        ("'a' 'b'", "ab"),
        ("dict()", {}),
        ("list()", []),
    ],
)
def test_literals_of_all_kinds_are_read(literal, value):
    (found,) = parse_test(listed(results=f"[{literal}]"), None).expected
    assert found == value
    assert type(found) is type(value)


def test_nan_and_long_integers_are_read_and_no_limit_is_left_behind():
    limit = sys.int_info.default_max_str_digits
    (nan, long), _ = parse_test(listed(inputs="[[nan, 1" + "0" * 5000 + "]]"), None).inputs[0], 0
    assert math.isnan(nan)
    assert long == 10**5000
    assert sys.get_int_max_str_digits() == limit
    with pytest.raises(DataError):
        parse_test("assert f(1) ==", None)
    assert sys.get_int_max_str_digits() == limit


@pytest.mark.parametrize(
    "test",
    [
        "",
        "assert",
        "x = 1",
        "import os",
        "assert f(g()) == 1",
        "assert f(x) == 1",
        "assert f(1) == x",
        "assert f(1) > 1",
        "assert f(1) != 1",
        "assert f(1) == 1 == 1",
        "assert f(1) == 1\nassert g(1) == 1",
        "assert f(1) == 1\nprint(1)",
        "assert f(a=1) == 1",
        "assert f(*[1]) == 1",
        "assert a.f(1) == 1",
        "assert f(1) is 1",
        "assert sorted(f(1)) == [1]",
        "assert math.isclose(f(1), 1, rel=2)",
        "assert math.isclose(f(1), 1, abs_tol=-1)",
        "assert f(1)(2) == 1",
        "assert (lambda: 1)() == 1",
        "assert f(eval('1')) == 1",
        "assert f({**{}}) == 1",
        "assert f({[]}) == 1",
        "assert f(1 + 1) == 1",
        "assert f(...) == 1",
        "assert f(f'{1}') == 1",
        "for x in (1, 2):\n    assert f(x) == x",
        "while True: pass",
        "def check(a, b):\n    assert a(1) == 1",
        "assert f('\ud800') == 1",
        "assert f('\0') == 1",
        "assert f(" + "(" * 300 + ")" * 300 + ") == 1",
        "assert f(" + "-" * 5000 + "1) == 1",
        "assert f(" + "[" * 150 + "]" * 150 + ") == 1\n" * 2 + "assert 1",
        listed(loop=LOOP.replace(", 0)", ", x)")),
        listed(loop=LOOP.replace("inputs, results", "results, inputs")),
        listed(loop=LOOP.replace("f(*inp)", "f(inp)")),
        listed(loop=LOOP.replace("f(*inp)", "f(*inp, 1)")),
        listed(loop=LOOP + "    break\n"),
        listed(loop=LOOP + "else:\n    pass\n"),
        listed(loop=LOOP + "print(1)\n"),
        listed(inputs="[[1], [2]]"),
        listed(inputs="[1]"),
        listed(inputs="[[f]]"),
        listed(inputs="make()"),
        listed(inputs="[]", results="[]"),
        listed(assertion=""),
        listed(assertion=CLOSE.replace("out == exp", "out >= exp")),
        listed(assertion=CLOSE.replace("1e-07", "1e-01")),
        listed(assertion=CLOSE.replace("1e-6", "1e6")),
        listed(assertion=CLOSE + "    return\n"),
        listed(assertion=SETS, results="[2]"),
        listed(assertion=SETS, results="[[[]]]"),
        HEAD + CLOSE + BY_REFERENCE.replace("def ref_func", "def other"),
        HEAD + MATCHED + CHECK.replace("candidate(*inp)", "other(*inp)"),
        POLY.replace("0.0001", "1"),
        POLY.replace("(*candidate(*inp), inp)", "(inp, *candidate(*inp))"),
    ],
    ids=lambda test: test[-40:].encode("ascii", "replace"),
)
def test_what_has_no_known_shape_is_refused_and_not_guessed(test):
    with pytest.raises(DataError, match=r"test"):
        parse_test(test, "f")
    with pytest.raises(DataError):
        check_target(Sample(id="1", question="", target=test, entry_point="f"))


def test_the_refusal_says_what_to_do():
    with pytest.raises(DataError, match=r"line 2 .*expected.*--grading hub"):
        parse_test("assert f(1) == 1\nprint(f(2))\n", "f")
    with pytest.raises(DataError, match=r"calls 'f'.*entry point is 'g'"):
        parse_test("assert f(1) == 1", "g")
    with pytest.raises(DataError, match=r"2 inputs but 1 results"):
        parse_test(listed(inputs="[[1], [2]]"), "f")


@given(st.text(max_size=80))
def test_no_text_does_anything_but_be_read_or_refused(text):
    try:
        parse_test(text, "f")
    except DataError:
        return
    assert "assert" in text


@pytest.mark.parametrize(
    ("line", "arguments", "expected", "oracle"),
    [
        ("assert f(1, [2]) == 3", (1, [2]), 3, Equal()),
        ("assert f() == 3, 'message'", (), 3, Equal()),
        ("assert 3 == f(1)", (1,), 3, Equal()),
        ("assert f(1) is True", (1,), True, Equal(identical=True)),
        ("assert f(1) is None", (1,), None, Equal(identical=True)),
        ("assert f(1)", (1,), True, Truth()),
        ("assert not f(1)", (1,), False, Truth()),
        ("assert math.isclose(f(1), 0.5)", (1,), 0.5, Within()),
        ("assert isclose(f(1), 2, rel_tol=1, abs_tol=2)", (1,), 2, Within(rel_tol=1.0, abs_tol=2.0)),
        ("assert abs(f(1) - 0.5) < 1e-6", (1,), 0.5, Within(rel_tol=0.0, abs_tol=1e-6)),
        ("assert abs(f(1) - -0.5) <= 1", (1,), -0.5, Within(rel_tol=0.0, abs_tol=1.0)),
    ],
)
def test_lines_of_ones_own_are_read(line, arguments, expected, oracle):
    for test in (
        line,
        f"'''Doc.'''\nimport math\n{line}\n",
        f"def check(c):\n{textwrap.indent(line, '    ')}".replace("f(", "c("),
    ):
        parsed = parse_test(test, "f")
        assert (parsed.inputs, parsed.expected, parsed.oracles) == ((arguments,), (expected,), (oracle,))
    assert parse_test(line, None).entry_point == "f"


def test_white_space_around_a_test_does_not_make_it_another():
    assert digest("\n\nassert f(1) == 1\n") == digest("assert f(1) == 1")
    assert digest("assert f(1) == 1") != digest("assert f(1) == 2")


def test_a_published_test_is_put_behind_the_answer():
    assert program("X", "assert f(1)", "f") == "X\n\nassert f(1)\n"
    assert program("X", CHECK, "f").endswith("\ncheck(f)\n")
    assert entry_point_of("assert f(1) > 1", None) == "f"
    assert entry_point_of(LOOP, None) == "f"
    assert entry_point_of("x = 1", None) is None
    assert entry_point_of("x = 1", "g") == "g"


@pytest.mark.parametrize(
    "loop",
    [
        "    for inp, exp in zip(inputs, results):\n        assert candidate(*inp) == exp, 'no'\n",
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assert candidate(*inp) == exp\n",
    ],
)
def test_a_plain_loop_of_assertions_compares_by_equality(loop):
    text = "def check(candidate):\n    inputs = [[1], [2]]\n    results = [2, 3]\n" + loop
    test = parse_test(text, "f")
    assert test.expected == (2, 3)
    assert all(type(oracle).__name__ == "Equal" for oracle in test.oracles)
