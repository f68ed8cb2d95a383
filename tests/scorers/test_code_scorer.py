"""Programs are graded by what they return, whatever they try. Every program here runs in the best sandbox there is."""

import marshal
import pickle
import sys
import textwrap

import pytest

from latentmas import sandbox
from latentmas.errors import DataError
from latentmas.samples import Answer, FinishReason, Sample, Verdict
from latentmas.sandbox import Level, SandboxError
from latentmas.scorers.code import CodeScorer

CORRECT, WRONG, NO_ANSWER, CRASHED = Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER, Verdict.CRASHED

DOUBLED = "assert f(1) == 2\nassert f(2) == 4\nassert f('ab') == 'abab'\nassert f([1]) == [1, 1]\n"
RIGHT = "def f(x):\n    return x + x\n"


@pytest.fixture(scope="session")
def level():
    return sandbox.choose("auto", allow_unsafe=True)


@pytest.fixture
def grade(level):
    def graded(code, test=DOUBLED, entry_point="f", **options):
        return CodeScorer(level=level, **options)(
            Answer(text=f"```python\n{textwrap.dedent(code)}\n```", finish_reason=FinishReason.STOP),
            Sample(id="1", question="", target=test, entry_point=entry_point),
        )

    return graded


def hub_test(body, inputs, results, *, call="f(*inp)", atol=0, before=""):
    """Return a test as the hub has it, with the function `assertion` that is given."""
    return (
        "import numpy as np\nfrom math import inf\n\n"
        "def is_floats(x) -> bool:\n    return isinstance(x, float)\n\n"
        f"def assertion(out, exp, atol):\n{textwrap.indent(body, '    ')}\n"
        f"{before}inputs = {inputs}\nresults = {results}\n"
        f"for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion({call}, exp, {atol})\n"
    )


CLOSE = """\
if atol == 0 and is_floats(exp):
    atol = 1e-6
if out != exp and atol != 0:
    assert np.allclose(out, exp, rtol=1e-07, atol=atol)
else:
    assert out == exp, f"out: {out}, exp: {exp}"
"""
SETS = CLOSE.replace("if out != exp", "out = set(out)\nexp = set(exp)\nif out != exp")
FOUND = "if isinstance(out, bool):\n    exact_match = out == exp\nelse:\n    exact_match = exp == (out is not None)\n"


def test_what_is_right_is_correct_and_says_what_ran(grade):
    score = grade(RIGHT)
    assert (score.verdict, score.found_by, score.detail) == (CORRECT, "block", None)
    assert score.prediction.strip() == RIGHT.strip()


@pytest.mark.parametrize(
    ("code", "verdict", "detail"),
    [
        ("def f(x): return x", WRONG, "call 1 of 4: expected 2, got 1"),
        ("def f(x): return x + x if x != 2 else 5", WRONG, "call 2 of 4: expected 4, got 5"),
        ("def f(x): return x * 2.0 if x == 1 else 0", WRONG, "call 2 of 4: expected 4, got 0"),
        ("def f(x): return None", WRONG, "call 1 of 4: expected 2, got None"),
        ("def f(x): return object()", WRONG, "call 1 of 4: expected 2, got an object of type object"),
        ("def f(x): yield x + x", WRONG, "call 1 of 4: expected 2, got an object of type generator"),
        ("async def f(x): return x + x", WRONG, "call 1 of 4: expected 2, got an object of type coroutine"),
        ("def f(x): raise ValueError('no')", CRASHED, "call 1 of 4: ValueError: no"),
        ("def f(x): return x + x if x != 2 else 1 / 0", CRASHED, "call 2 of 4: ZeroDivisionError: division by zero"),
        ("def f(x): raise SystemExit(0)", CRASHED, "call 1 of 4: SystemExit: 0"),
        ("def f(x): raise KeyboardInterrupt", CRASHED, "call 1 of 4: KeyboardInterrupt"),
        ("def f(x): return f(x)", CRASHED, "call 1 of 4: RecursionError: maximum recursion depth exceeded"),
        ("def f(x): return input()", CRASHED, "call 1 of 4: EOFError: EOF when reading a line"),
        ("def f(x): return [0] * 10**12", CRASHED, "call 1 of 4: MemoryError"),
        ("def f(): return 2", CRASHED, "call 1 of 4: TypeError: f() takes 0 positional arguments but 1 was given"),
        ("def g(x): return x", CRASHED, "call 1 of 4: NameError: the code does not define f"),
        ("f = 3", CRASHED, "call 1 of 4: TypeError: 'int' object is not callable"),
        ("def f(x: return x", CRASHED, None),
        ("def f(x): return x + x\nraise RuntimeError('late')", CRASHED, "call 1 of 4: RuntimeError: late"),
        ("import sys\ndef f(x): return x + x\nsys.exit(0)", CRASHED, "call 1 of 4: SystemExit: 0"),
        ("import nothing_of_this_name\ndef f(x): return x + x", CRASHED, None),
        ("import ctypes\ndef f(x): ctypes.string_at(0)", CRASHED, "call 1 of 4: the program ended: killed by SIGSEGV"),
        ("def f(x): raise ValueError('x' * 999)", CRASHED, None),
        (
            "class M(type):\n    def __hash__(self): raise ValueError('no')\n"
            "class A(metaclass=M): ...\ndef f(x): return [1, A()]",
            CRASHED,
            "call 1 of 4: ValueError: no",
        ),
        ("class E(Exception):\n    def __str__(self): raise E\ndef f(x): raise E", CRASHED, "call 1 of 4: exception"),
    ],
)
def test_what_is_not_right_says_in_which_call_and_why(grade, code, verdict, detail):
    score = grade(code)
    assert score.verdict is verdict
    assert len(score.detail) <= 300
    if detail is not None:
        assert score.detail == detail


def test_a_text_without_code_is_no_answer(level):
    answer = Answer(text="I do not know.", finish_reason=FinishReason.STOP)
    score = CodeScorer(level=level)(answer, Sample(id="1", question="", target=DOUBLED, entry_point="f"))
    assert (score.verdict, score.prediction, score.found_by) == (NO_ANSWER, None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", ["while True: pass", "import time\ntime.sleep(1000)", "f = lambda x: [0 for _ in iter(int, 1)]"]
)
def test_what_does_not_end_is_a_timeout(grade, code):
    assert grade(RIGHT + code).verdict is Verdict.TIMEOUT


@pytest.mark.parametrize(
    "code",
    [
        "from __future__ import annotations\ndef f(x): return x + x",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int | str'\ndef f(x): return A(x).x + A(x).x",
        "from typing import NamedTuple, get_type_hints\nclass A(NamedTuple):\n    x: 'int'\n"
        "get_type_hints(A)\ndef f(x): return x + x",
        "def f(x):\n    print('wrong'); return x + x\nprint(f(3))",
        "if __name__ == '__main__':\n    raise ValueError\ndef f(x): return x + x",
        "import sys\nif sys.stdin.read():\n    raise ValueError\ndef f(x): return x + x",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\ndef f(x): return x + x",
        "f = lambda x: x + x",
        "class f:\n    def __new__(cls, x): return x + x",
        "import sys\nsys.stdout = sys.stderr = None\ndef f(x): return x + x",
        "import builtins\nbuiltins.print = builtins.open = None\ndef f(x): return x + x",
        "def f(x):\n    r = x + x\n    if isinstance(x, list): x.clear()\n    return r",
        "def f(x):\n    global f\n    def f(x): return x + x\n    return x + x",
    ],
)
def test_honest_programs_of_all_kinds_are_correct(grade, code):
    assert grade(code).detail is None


@pytest.mark.parametrize(
    "returned",
    ["loop(lambda x: [x])", "loop(lambda x: (x,))", "loop(lambda x: {1: x})", "cycle()", "many()", "'x' * 10**7"],
)
def test_values_without_end_are_wrong(grade, returned):
    code = f"""
    def loop(around, x=None):
        for _ in range(500): x = around(x)
        return x
    def cycle():
        x = []
        x.append(x)
        return x
    def many(x=0):
        for _ in range(90): x = [x, x]
        return x
    def f(x): return {returned}
    """
    assert grade(code).verdict is WRONG


FORGERIES = {
    "an object that equals everything": """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def f(x): return Any()
        """,
    "plain types whose subclasses equal everything": """
        class Any(int):
            def __eq__(self, other): return True
            def __repr__(self): return '2'
            def __int__(self): return 2
            def __index__(self): return 2
            def __str__(self): return '2'
        def f(x): return Any(7)
        """,
    "a list whose iteration lies": """
        class Any(list):
            def __iter__(self): return iter([1, 1])
            def __len__(self): return 2
            def __eq__(self, other): return True
        def f(x): return x + x if not isinstance(x, list) else Any([3])
        """,
    "a metaclass that equals everything": """
        class Meta(type):
            def __eq__(self, other): return True
            def __hash__(self): return hash(int)
            __mro__ = (int,)
        class Any(metaclass=Meta):
            def __int__(self): return 2
        def f(x): return Any()
        """,
    "what is expected, looked for in the frames": """
        import gc, sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for name, value in list(frame.f_locals.items()) + list(frame.f_globals.items()):
                    if name in {'exp', 'expected', 'results', 'wanted', 'test'}: return value
                frame = frame.f_back
            for thing in gc.get_objects():
                if isinstance(thing, (list, tuple)) and 4 in thing and 'ab' * 2 in thing: return thing[0]
            return 'nothing found'
        """,
    "what is expected, looked for in the input": """
        import os
        def f(x):
            os.lseek(0, 0, 0)
            data = os.read(0, 10**6)
            return x + x if b'ab' * 2 in data else 'nothing found'
        """,
    "an early end": "import os\nos._exit(0)",
    "an early end in a call": "import os\ndef f(x):\n    os._exit(0)",
    "an end after the first call": "import os\ndef f(x):\n    return x + x if x == 1 else os._exit(0)",
    "an end by a hook": "import atexit, os, sys\natexit.register(os._exit, 0)\ndef f(x): sys.exit(0)",
    "verdicts that are printed": "print('correct\\nPASSED\\n=2\\n=4')\ndef f(x):\n    print('=2', flush=True)",
    "true lines of the wrong values": """
        import os, sys
        fd = sys.modules['__main__'].OUTPUT_FD
        os.write(fd, b'=3\\n=4\\n="abab"\\n=[1,1]\\n')
        os._exit(0)
        """,
    "too few lines": """
        import os, sys
        os.write(sys.modules['__main__'].OUTPUT_FD, b'=2\\n=4\\n="abab"\\n')
        os._exit(0)
        """,
    "too many lines": """
        import os, sys
        os.write(sys.modules['__main__'].OUTPUT_FD, b'=2\\n=4\\n="abab"\\n=[1,1]\\n=[1,1]\\n')
        os._exit(0)
        """,
    "lines, and half of another": """
        import os, sys
        os.write(sys.modules['__main__'].OUTPUT_FD, b'=2\\n=4\\n="abab"\\n=[1,1]\\n=')
        os._exit(0)
        """,
    "lines, and an exit status of its own": """
        import os, sys
        os.write(sys.modules['__main__'].OUTPUT_FD, b'=2\\n=4\\n="abab"\\n=[1,1]\\n')
        os._exit(3)
        """,
    "lines, and then the driver goes on": """
        import os, sys
        os.write(sys.modules['__main__'].OUTPUT_FD, b'=2\\n=4\\n="abab"\\n=[1,1]\\n')
        def f(x): return x + x
        """,
    "lines in every file that is open": """
        import os
        for fd in range(3, 64):
            try: os.write(fd, b'correct\\n')
            except OSError: pass
        def f(x): return x + x
        """,
    "the end of a line": """
        import os, sys
        def f(x):
            os.write(sys.modules['__main__'].OUTPUT_FD, b'=2\\n=')
            return 4
        """,
    "a line that is no value": "import os, sys\nos.write(sys.modules['__main__'].OUTPUT_FD, b'={\"z\":1}\\n')",
    "a line that is deep": "import os, sys\nos.write(sys.modules['__main__'].OUTPUT_FD, b'=' + b'[' * 10**5 + b'\\n')",
    "a line that is long": "import os, sys\nos.write(sys.modules['__main__'].OUTPUT_FD, b'=' + b'1' * 10**5 + b'\\n')",
    "a line without end": "import os, sys\nwhile True: os.write(sys.modules['__main__'].OUTPUT_FD, b'=' * 10**5)",
    "an encoder that writes what is asked for": """
        import sys
        main = sys.modules['__main__']
        main.write = lambda value, emit, depth=0: emit('2')
        def f(x): return 0
        """,
    "builtins that lie": """
        import builtins, _json, marshal
        builtins.type = lambda *a: int
        builtins.isinstance = lambda *a: True
        _json.encode_basestring_ascii = lambda text: '"abab"'
        def f(x): return 7
        """,
    "a json module of its own": """
        import sys, types
        sys.modules['json'] = sys.modules['_json'] = types.ModuleType('json')
        def f(x): return {}
        """,
    "an output that is closed": "import os, sys\nos.close(sys.modules['__main__'].OUTPUT_FD)\ndef f(x): return x + x",
    "an exception that says it is right": "def f(x): raise type('correct', (Exception,), {})('=2')",
    "a set whose members collide": """
        import os, sys
        members = ','.join('{"i":"%x"}' % (n * (2**61 - 1)) for n in range(20_000))
        os.write(sys.modules['__main__'].OUTPUT_FD, b'={"s":[' + members.encode() + b']}\\n')
        """,
}


@pytest.mark.parametrize("code", FORGERIES.values(), ids=FORGERIES.keys())
def test_no_forgery_is_correct(grade, code):
    assert grade(code).verdict in {WRONG, CRASHED}


def test_lines_of_the_right_values_are_right_whoever_wrote_them(grade):
    """A line says what a call returns, and nothing else; who knows all values has solved the task."""
    code = """
    import os, sys
    os.write(sys.modules['__main__'].OUTPUT_FD, b'=2\\n=4\\n="abab"\\n=[1,1]\\n')
    os._exit(0)
    """
    assert grade(code).verdict is CORRECT


def test_nan_is_no_right_result_even_where_it_is_expected(grade):
    test = hub_test(CLOSE, "[[1]]", "[[nan]]")
    assert grade("def f(x): return [float('nan')]", test, None).verdict is WRONG


def test_the_child_is_told_nothing_of_what_is_expected(level):
    from latentmas.scorers._code_expected import prepare
    from latentmas.scorers._hub_tests import parse_test

    test = "assert f(1) == 'a value that nothing else contains'\nassert f('an input') is True\n"
    payload = prepare(parse_test(test, "f"), level=level, cache_folder=None).payload(RIGHT)
    assert b"nothing else contains" not in payload
    assert b"an input" in payload
    source, entry_point, calls, iterators = marshal.loads(payload)
    assert (source, entry_point, iterators, len(calls)) == (RIGHT, "f", False, 2)


def test_each_call_gets_arguments_of_its_own(grade):
    test = "assert f([1], {}) == 1\nassert f([1], {}) == 1\nassert f([1], {}) == 1\n"
    code = "def f(x, seen):\n    seen[len(seen)] = x.pop()\n    return len(seen) + len(x)"
    assert grade(code, test).detail is None


# What is defective in the tests of the hub, as they are published.


REFERENCE_TEST = hub_test(CLOSE, "[[3], [0]]", "[]", before="from itertools import repeat\n").replace(
    "results = []\nfor i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(f(*inp), exp, 0)",
    "for i, inp in enumerate(inputs):\n    assertion(f(*inp), ref_func(*inp), 0)",
)


def reference_test(body):
    return REFERENCE_TEST.replace(
        "inputs = ", f"def helper(n):\n    return n\n\ndef ref_func(n):\n    {body}\n\ninputs = "
    )


def test_a_reference_runs_where_no_answer_can_reach_it(grade):
    test = reference_test("return list(repeat(helper(n), n))")
    assert grade("def f(n): return [n] * n", test, None).verdict is CORRECT
    assert grade("def f(n): return [n] * n + [0]", test, None).verdict is WRONG
    assert grade("def f(n): return ref_func(n)", test, None).verdict is CRASHED


def test_results_of_a_reference_are_kept_and_made_again_where_they_are_damaged(grade, tmp_path):
    from latentmas.scorers import _code_expected

    def graded():
        _code_expected.prepare.cache_clear()
        return grade("def f(n): return str(n)", reference_test("return str(n)"), None, cache_folder=tmp_path).verdict

    assert graded() is CORRECT
    (path,) = tmp_path.iterdir()
    stored, made = path.read_bytes(), path.stat().st_mtime_ns
    assert graded() is CORRECT
    assert path.stat().st_mtime_ns == made
    for damaged in (b"", b"\n", stored[:-3], stored.replace(b"3", b"4"), stored + b"=1\n"):
        path.write_bytes(damaged)
        assert graded() is CORRECT
        assert path.read_bytes() == stored


@pytest.mark.parametrize("body", ["return object()", "raise ValueError('oh')", "import os; os._exit(0)"])
def test_a_reference_that_fails_is_no_verdict_on_the_answer(grade, body):
    with pytest.raises(DataError, match="reference"):
        grade("def f(n): return n", reference_test(body), None)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("list(large)", CORRECT),
        ("[float(i) for i in large]", CORRECT),
        ("[*large[:-1], 0]", WRONG),
        ("tuple(large)", WRONG),
        ("[]", WRONG),
    ],
)
def test_results_of_many_megabytes_are_compared_by_value(grade, answer, verdict):
    test = reference_test("return list(range(n, n + 300_000)) if n else []").replace("[[3], [0]]", "[[0], [10**14]]")
    code = f"def f(n):\n    large = range(n, n + 300_000)\n    return {answer} if n else []"
    assert grade(code, test.replace("10**14", "1" + "0" * 14), None).verdict is verdict


def test_hub_grading_runs_the_published_test_and_says_that_it_can_be_forged(grade):
    test = hub_test(CLOSE, "[[2]]", "[4]").replace("import numpy as np\n", "")
    hub = {"test": test, "entry_point": None, "grading": "hub"}
    score = grade("def f(x): return 2 * x", **hub)
    assert (score.verdict, score.detail) == (CORRECT, "hub test, forgeable")
    assert grade("def f(x): return x", **hub).verdict is WRONG
    assert grade("def f(x): return 1 / 0", **hub).verdict is CRASHED
    assert grade("def f(x): raise SystemExit", **hub).verdict is CRASHED
    assert "forgeable" in grade("def f(x): return x", **hub).detail
    check = "def check(candidate):\n    inputs = [[2]]\n    assert [candidate(*inp) for inp in inputs] == [4], inputs\n"
    assert grade("def f(x): return 2 * x", check, grading="hub").verdict is CORRECT
    assert grade("def f(x): return x", check, grading="hub").verdict is WRONG


@pytest.mark.parametrize(
    "code", [FORGERIES["an early end"] + "\ndef f(x): pass", FORGERIES["an object that equals everything"]]
)
def test_hub_grading_is_forgeable_as_it_says(grade, code):
    test = hub_test("assert out == exp", "[[2]]", "[4]").replace("import numpy as np\n", "")
    assert grade(code, test, None, grading="hub").verdict is CORRECT


def test_a_sandbox_that_does_not_start_is_no_verdict(grade, monkeypatch):
    from latentmas.sandbox import _launch

    monkeypatch.setattr(_launch, "BOOTSTRAP", "raise SystemExit(1)")
    with pytest.raises(SandboxError):
        grade(RIGHT)


def test_a_scorer_can_be_sent_to_another_process(tmp_path):
    scorer = CodeScorer(level=Level.LANDLOCK, grading="hub", cache_folder=tmp_path)
    assert pickle.loads(pickle.dumps(scorer)) == scorer


def test_grading_leaves_the_interpreter_as_it_was(grade):
    before = (sys.get_int_max_str_digits(), sys.getrecursionlimit(), set(sys.modules) & {"answer", "numpy"})
    grade(RIGHT, hub_test(CLOSE, "[[1" + "0" * 5000 + "]]", "[2]"), None)
    assert (sys.get_int_max_str_digits(), sys.getrecursionlimit(), set(sys.modules) & {"answer", "numpy"}) == before
