"""HumanEval+ and MBPP+: every canonical solution is correct, and none whose results are changed is."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import pytest

from latentmas import sandbox
from latentmas.samples import Answer, FinishReason, Sample, Verdict
from latentmas.scorers._hub_tests import parse_test
from latentmas.scorers.code import CodeScorer

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not all((DATA / name).is_dir() for name in ("humanevalplus", "mbppplus")), reason=f"no data sets in {DATA}"
)

SAMPLE = [
    *("HumanEval/0", "HumanEval/2", "HumanEval/14", "HumanEval/26", "HumanEval/32", "HumanEval/53", "HumanEval/115"),
    *("HumanEval/113", "HumanEval/160", "Mbpp/2", "Mbpp/82", "Mbpp/88", "Mbpp/97", "Mbpp/120", "Mbpp/137", "Mbpp/222"),
    *("Mbpp/252", "Mbpp/404", "Mbpp/428", "Mbpp/462", "Mbpp/11", "Mbpp/737", "Mbpp/787", "Mbpp/794", "Mbpp/806"),
]
"""Of each rule and each kind of value one, and nothing slow."""
PARTS = 24

CHANGED = """

import sys as _sys
_sys.setrecursionlimit(10_000)
_original, _calls, _inside = {entry_point}, 0, False

def _changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float, complex)):
        return value + 1 + abs(value) if abs(value) != float("inf") else 0
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, "x"]
    if isinstance(value, tuple):
        return (*value, "x")
    return 1 if value is None else None

def {entry_point}(*arguments):
    global _calls, _inside
    if _inside:
        return _original(*arguments)
    _calls, _inside = _calls + 1, True
    try:
        value = _original(*arguments)
    finally:
        _inside = False
    return _changed(value) if _calls == {call} else value
"""


@cache
def programs():
    """Return sample and canonical solution of each row, by its name."""
    found = {}
    for name in ("humanevalplus", "mbppplus"):
        for path in sorted((DATA / name).glob("*.jsonl.gz")):
            with gzip.open(path, "rt") as file:
                for row in map(json.loads, file):
                    row_id = str(row["task_id"]) if name == "humanevalplus" else f"Mbpp/{row['task_id']}"
                    code = row["prompt"] + row["canonical_solution"] if name == "humanevalplus" else row["code"]
                    sample = Sample(id=row_id, question="", target=row["test"], entry_point=row.get("entry_point"))
                    found[row_id] = sample, code
    return found


def surprises(row_id, cache_folder):
    """Yield what is graded as it should not be: the solution, and it with its first or its last result changed."""
    scorer = CodeScorer(level=sandbox.choose("auto", allow_unsafe=True), cache_folder=cache_folder)
    sample, code = programs()[row_id]
    test = parse_test(sample.target, sample.entry_point)
    last = len(test.inputs)
    changed = CHANGED.replace("{entry_point}", test.entry_point)
    variants = [("canonical", code, Verdict.CORRECT)]
    variants += [(f"call {call}", code + changed.replace("{call}", str(call)), Verdict.WRONG) for call in {1, last}]
    variants += [
        ("(value, 'x')", code + changed.replace("_changed(value) if", "(value, 'x') if True or"), Verdict.WRONG)
    ]
    for name, program, verdict in variants:
        if name == "(value, 'x')" and "is not None" in sample.target:
            continue  # where anything that is not None is right, a tuple is
        answer = Answer(text=f"```python\n{program}\n```", finish_reason=FinishReason.STOP)
        score = scorer(answer, sample)
        place = score.detail.partition(":")[0] if score.detail else ""
        if score.verdict is not verdict or (name.startswith("call") and not place.startswith(f"{name} of")):
            yield f"{row_id}, {name}: {score.verdict}, {score.detail}"


@pytest.mark.parametrize("row_id", SAMPLE)
def test_a_canonical_solution_is_correct_and_a_changed_one_is_wrong(row_id, tmp_path):
    assert not list(surprises(row_id, tmp_path))


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_all_canonical_solutions_are_correct_and_all_changed_ones_are_wrong(part, tmp_path):
    found = [surprise for row_id in list(programs())[part::PARTS] for surprise in surprises(row_id, tmp_path)]
    assert not found, "\n".join(found)


def test_the_rows_are_those_that_were_published():
    assert len(programs()) == 542
