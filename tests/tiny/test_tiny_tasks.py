"""The embedded tasks: right answers, no test problem in training, and facts that nobody holds alone."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from latentmas.errors import DataError
from latentmas.protocols import Row, Task
from latentmas.rows import data_digest, samples
from latentmas.samples import AnswerKind, FinishReason, Verdict
from latentmas.scorers.number import grade
from latentmas.tiny import generator
from latentmas.tiny.tasks import tiny, tiny_split

BUILDS = [pytest.param(tiny.build, id="tiny"), pytest.param(tiny_split.build, id="tiny_split")]
Build = Callable[[], Task]
LINE = re.compile(r"(\d\d)([-+*/])(\d)=(\d\d)")


def numbers_of(answer: str) -> str:
    """Return the signature, read from the worked lines."""
    lines = [LINE.fullmatch(line) for line in answer.split("\n")[:-1]]
    assert all(lines)
    return lines[0][1] + "".join(f"{line[2]}{line[3]}" for line in lines if line)  # type: ignore[index]


@pytest.mark.parametrize("build", BUILDS)
def test_both_splits_have_1000_rows_that_are_the_same_every_time(build: Build) -> None:
    task = build()
    digests = set()
    for split in ("test", "train"):
        first, second = samples(task, task.rows(split)), samples(build(), build().rows(split))
        assert len(first) == 1000
        assert data_digest(first) == data_digest(second)
        digests.add(data_digest(first))
    assert len(digests) == 2
    assert task.answer_kind is AnswerKind.NUMBER


@pytest.mark.parametrize("build", BUILDS)
def test_no_signature_of_the_test_split_occurs_in_training(build: Build) -> None:
    rng = random.Random(7)
    trained = {generator.signature(generator.draw(rng, "train", 1 + number % 2)) for number in range(20_000)}
    trained |= {numbers_of(str(row["answer"])) for row in build().rows("train")}
    tested = {numbers_of(str(row["answer"])) for row in build().rows("test")}
    assert len(tested) == 1000
    assert not tested & trained


@pytest.mark.parametrize("build", BUILDS)
def test_worked_lines_are_right_and_lead_to_the_answer(build: Build) -> None:
    task = build()
    for index, row in enumerate(task.rows("test")):
        answer = str(row["answer"])
        value = None
        for line in answer.split("\n")[:-1]:
            before, symbol, amount, after = LINE.fullmatch(line).groups()  # type: ignore[union-attr]
            assert value in (None, before)
            left, right = int(before), int(amount)
            made = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[symbol]
            assert made == int(after)
            assert symbol != "/" or left % right == 0
            value = after
        sample = task.sample(row, index)
        assert sample.target == value
        assert grade(f"so\n\\boxed{{{value}}}", sample.target, FinishReason.STOP).verdict is Verdict.CORRECT


def test_the_story_of_the_main_task_holds_the_numbers_of_its_worked_lines() -> None:
    for row in tiny.build().rows("test"):
        told = re.findall(r"\d+", str(row["question"]))
        for number in re.findall(r"^\d+|(?<=[-+*])\d", numbers_of(str(row["answer"]))):
            told.remove(number)
        assert len(told) <= 1  # a distractor has one number


def test_the_views_together_hold_every_fact_and_the_question_none() -> None:
    task = tiny_split.build()
    problems = generator.problems("test", 1000, tiny_split.SEED, fewest_operations=2)
    for index, (row, problem) in enumerate(zip(task.rows("test"), problems, strict=True)):
        sample = task.sample(row, index)
        assert set(sample.views) == {"planner", "critic", "refiner"}
        question = sample.question
        assert sample.question_for("judger") == question
        assert not re.search(r"\d|\bhalf\b", question)
        assert all(view.endswith(" " + question) for view in sample.views.values())
        told = " ".join(view.removesuffix(question).strip() for view in sample.views.values())
        assert f"{told} {question}" == generator.story(problem)


def test_every_agent_holds_a_fact_and_none_holds_all() -> None:
    for row in tiny_split.build().rows("test"):
        views = row["views"]
        assert isinstance(views, dict)
        facts = 1 + str(row["answer"]).count("=")  # the start, and one for each worked line
        told = {agent: len(re.findall(r"\d+|\bhalf\b", view)) for agent, view in views.items()}
        assert all(told.values())
        # A distractor may look like one fact more.
        assert facts <= sum(told.values()) <= facts + 1
        assert max(told.values()) < facts


@pytest.mark.parametrize("build", BUILDS)
def test_new_tokens_are_enough_for_the_longest_reply(build: Build) -> None:
    limit = build().defaults["max_new_tokens"]
    assert isinstance(limit, int)
    problems = generator.problems("test", 1000, 1) + generator.problems("test", 1000, 1, fewest_operations=2)
    # Two characters make at most two tokens.
    assert max(len(generator.reply(problem)) for problem in problems) < limit


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "answer": "#### 12"}, "tiny_split row 2 has no column 'views'; it has: answer, question"),
        ({"question": "q", "answer": "#### 12", "views": "x"}, "column 'views': expected dict, found str 'x'"),
        ({"question": "q", "answer": "#### 12", "views": {"planner": 3}}, "column 'views': expected a text for each"),
    ],
)
def test_a_row_without_views_is_refused(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny_split.build().sample(row, 2)


def test_a_list_of_problems_is_its_callers_own() -> None:
    one = generator.problems("test", 20, 1)
    kept = list(one)
    one.clear()
    assert generator.problems("test", 20, 1) == kept
    assert generator.problems("test", 20, 2) != kept
