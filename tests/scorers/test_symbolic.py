"""math-verify is asked about what is no plain number, cannot hang a run, and leaves no process behind."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from latentmas.errors import CapabilityError, ConfigError, DataError
from latentmas.samples import Answer, FinishReason, Sample, Verdict
from latentmas.scorers import number as number_scorer
from latentmas.scorers import symbolic
from latentmas.scorers.symbolic import SymbolicScorer

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="needs pip install 'latentmas[math]'"
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
CORRECT, WRONG = Verdict.CORRECT, Verdict.WRONG
ASKED = "by math-verify"
HANGS = "7^{9^{9^{9}}}"

# box, target, verdict, detail
BOXES = [
    (r"7\sqrt{100}", "70", CORRECT, ASKED),
    (r"\frac{\sqrt{200}}{\sqrt{2}}", "10", CORRECT, ASKED),
    (r"\sqrt[3]{343}\text{ cm}", "7", CORRECT, ASKED),
    (r"2^{10}-1000", "24", CORRECT, ASKED),
    (r"x = \frac{1}{3} + \frac16", "0.5", CORRECT, ASKED),
    (r"\binom{8}{4}", "70", CORRECT, ASKED),
    (r"5!", "120", CORRECT, ASKED),
    (r"\log_2 8", "3", CORRECT, ASKED),
    (r"\sum_{i=1}^{3} i", "6", CORRECT, ASKED),
    (r"\lfloor 7.5 \rfloor", "7", CORRECT, ASKED),
    (r"35 + 36", "70", WRONG, None),
    (r"\sqrt{50}", "7", WRONG, None),
    (r"7x", "7", WRONG, None),
    (r"7\pi", "7", WRONG, None),
    (r"((7+0", "7", WRONG, None),
    # plain numbers are not asked about
    (r"70", "70", CORRECT, None),
    (r"\sqrt{4900}", "70", CORRECT, None),
    (r"71", "70", WRONG, None),
    # nor is what math-verify would be lenient with: it takes 7:1 for 7, `7 8` for 15, 50 % for 0.5
    (r"50\%", "0.5", WRONG, None),
    (r"50\%\cdot 1", "0.5", WRONG, None),
    (r"7:1", "7", WRONG, None),
    (r"7 8", "15", WRONG, None),
    (r"7\text{ dogs }8", "15", WRONG, None),
    (r"7_{10}", "7", WRONG, None),
    (r"7+0\ldots", "7", WRONG, None),
    (r"[7, 7+0]", "7", WRONG, None),
    (r"7+0, 8", "7", WRONG, None),
    (r"x=12, y=60+10", "70", WRONG, None),
    (r"3+4 \text{ or } 8", "7", WRONG, None),
    (r"\{3+4\}", "7", WRONG, None),
    (r"\pm (3+4)", "7", WRONG, None),
    (r"x \neq 3+4", "7", WRONG, None),
    (r"\text{none}", "7", WRONG, None),
]


def grade(scorer, text, target="70"):
    sample = Sample(id="1", question="?", target=target)
    return scorer(Answer(text=text, finish_reason=FinishReason.STOP), sample)


def processes_of(parent):
    """Return the ids of the living children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, of = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(of) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return found


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends_within(seconds, process):
    deadline = time.monotonic() + seconds
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(process)


@pytest.fixture(scope="module")
def scorer():
    scorer = SymbolicScorer()
    yield scorer
    scorer.close()


@needs_math_verify
@pytest.mark.parametrize(("box", "target", "verdict", "detail"), BOXES)
def test_boxes_are_compared(scorer, box, target, verdict, detail):
    graded = grade(scorer, rf"so \boxed{{{box}}}", target)
    assert (graded.verdict, graded.detail, graded.found_by) == (verdict, detail, "box")


@needs_math_verify
def test_only_the_last_box_is_asked_about(scorer):
    assert grade(scorer, r"\boxed{60+10} but \boxed{60+11}").verdict is WRONG
    assert grade(scorer, r"\boxed{60+11}, \boxed{60+10}").verdict is CORRECT


@pytest.mark.parametrize(
    "text", ["", "#### 70", "the answer is 60+10", "70", "60+10", r"\boxed{60+10", r"<think>\boxed{60+10}"]
)
def test_what_is_no_box_is_graded_as_a_number(text):
    """Without a process: a scorer that would need one fails here where math-verify is not installed."""
    scorer = SymbolicScorer()
    sample = Sample(id="1", question="?", target="70")
    answer = Answer(text=text, finish_reason=FinishReason.STOP)
    assert scorer(answer, sample) == number_scorer.score(answer, sample)


def test_a_target_that_is_no_number_is_a_data_error():
    with pytest.raises(DataError, match="is no number"):
        grade(SymbolicScorer(), r"\boxed{\sqrt{2}}", r"\sqrt{2}")


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_there_is_no_comparison_without_a_limit(seconds):
    with pytest.raises(ConfigError, match="timeout_seconds"):
        SymbolicScorer(timeout_seconds=seconds)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match=r"math-verify: pip install 'latentmas\[math\]'"):
        symbolic.check_available()
    with pytest.raises(CapabilityError, match="math-verify"):
        grade(SymbolicScorer(), r"\boxed{60+10}")


@needs_math_verify
@needs_proc
@pytest.mark.parametrize(
    "box", [HANGS, *(pytest.param(box, marks=pytest.mark.slow) for box in ("10000000!!!!", "9^{9^{9}} - 1"))]
)
def test_a_box_that_hangs_is_wrong_and_the_next_one_is_graded(box):
    scorer = SymbolicScorer(timeout_seconds=1.5)
    before = set(processes_of(os.getpid()))
    graded = grade(scorer, rf"\boxed{{{box}}}")
    assert (graded.verdict, graded.detail) == (WRONG, "math-verify gave up after 1.5 s")
    assert set(processes_of(os.getpid())) == before
    assert grade(scorer, r"\boxed{60+10}").verdict is CORRECT
    scorer.close()
    assert set(processes_of(os.getpid())) == before


@needs_math_verify
@needs_proc
def test_a_process_that_was_killed_is_started_anew():
    scorer = SymbolicScorer()
    before = set(processes_of(os.getpid()))
    assert grade(scorer, r"\boxed{60+10}").verdict is CORRECT
    (worker,) = set(processes_of(os.getpid())) - before
    os.kill(worker, signal.SIGKILL)
    assert ends_within(10, worker)
    assert grade(scorer, r"\boxed{60+10}").verdict is CORRECT
    scorer.close()


@needs_math_verify
def test_a_copy_has_a_process_of_its_own(scorer):
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy == scorer
    assert grade(copy, r"\boxed{60+10}").verdict is CORRECT
    copy.close()
    assert grade(scorer, r"\boxed{60+10}").verdict is CORRECT


@needs_math_verify
def test_threads_share_a_process(scorer):
    verdicts = {}

    def compare(number):
        verdicts[number] = grade(scorer, rf"\boxed{{60+{number}}}").verdict

    threads = [threading.Thread(target=compare, args=(number,)) for number in range(8, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {number: CORRECT if number == 10 else WRONG for number in range(8, 13)}


PARENT = """
import os, sys, threading
from latentmas.samples import Answer, FinishReason, Sample
from latentmas.scorers.symbolic import SymbolicScorer

scorer = SymbolicScorer(timeout_seconds=2.5)
def grade(box):
    answer = Answer(text="\\\\boxed{" + box + "}", finish_reason=FinishReason.STOP)
    return scorer(answer, Sample(id="1", question="?", target="70"))
print(grade("60+10").verdict.value, scorer._worker._process.pid, "torch" in sys.modules, flush=True)
if sys.argv[1] == "busy":
    threading.Thread(target=grade, args=("7^{9^{9^{9}}}",), daemon=True).start()
if sys.argv[1] != "ends":
    sys.stdin.read()
"""


@needs_math_verify
@needs_proc
@pytest.mark.parametrize("state", ["ends", "idle", pytest.param("busy", marks=pytest.mark.slow)])
def test_no_process_outlives_its_parent(state):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        verdict, worker, has_torch = parent.stdout.readline().split()
        assert (verdict, has_torch) == ("correct", "False")
        if state != "ends":
            time.sleep(0.5)
            assert is_alive(int(worker))
            parent.kill()
        parent.wait(20)
    assert ends_within(10, int(worker))
