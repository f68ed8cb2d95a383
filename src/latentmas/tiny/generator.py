"""Word problems for the embedded model: chains of one to three operations on numbers from 10 to 99.

Everything here is a pure function of its arguments; randomness comes from a seed or a given `random.Random`.
Train and test are told apart by a hash of the numbers alone, so no wording of a test problem was trained on.

Two tasks are told from the same `Problem`: the main one, where everybody reads the whole story, and the
split-information one, where planner, critic and refiner each read only the facts dealt to them.
"""

import hashlib
import math
import random
from collections import Counter
from functools import lru_cache
from typing import Literal, TypedDict

from latentmas.errors import DataError
from latentmas.tiny.problem import HIGHEST, LOWEST, Distractor, Operation, Problem, Symbol, signature
from latentmas.tiny.wording import NAMES, THINGS, final_question, sentences

__all__ = [
    "Operation",
    "Problem",
    "Row",
    "Split",
    "SplitRow",
    "Views",
    "draw",
    "final_question",
    "plan",
    "problems",
    "reply",
    "row",
    "signature",
    "split_of",
    "split_row",
    "story",
    "views",
    "worked_lines",
]

Split = Literal["train", "test"]

DISTRACTOR_SHARE = 0.15
TEST_SHARE = 0.2
COMMONEST_ANSWER_SHARE = 0.02

_DEALS = {2: ((1, 1, 1),), 3: ((2, 1, 1), (1, 2, 1), (1, 1, 2))}
_PLAN_WORDS: dict[str, str] = {"+": "add {amount}", "-": "take {amount}", "*": "times {amount}", "/": "half"}


class Row(TypedDict):
    """A row of the main task, in GSM8K's columns."""

    id: str
    question: str
    answer: str


class Views(TypedDict):
    """What each agent but the judger reads in the split task: its facts, then the final question."""

    planner: str
    critic: str
    refiner: str


class SplitRow(Row):
    """A row of the split task. `question` is the final question alone."""

    views: Views


def split_of(numbers: str) -> Split:
    """Return the split a signature belongs to."""
    digest = hashlib.sha256(numbers.encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32 else "train"


def draw(rng: random.Random, split: Split, fewest_operations: int = 1) -> Problem:
    """Return a random problem of a split, with at least `fewest_operations` (1 or 2) operations."""
    while True:
        start, operations = _draw_numbers(rng, fewest_operations)
        problem = _tell(rng, start, operations)
        if split_of(signature(problem)) == split:
            return problem


def problems(split: Split, count: int, seed: int, fewest_operations: int = 1) -> list[Problem]:
    """Return `count` problems of a split with distinct signatures, the same ones for the same seed.

    No number answers more than 2 % of them (rounded up), so that guessing the likeliest one is worth little.
    """
    return list(_problems(split, count, seed, fewest_operations))


@lru_cache(maxsize=8)  # a process that checks hundreds of runs asks for the same rows each time
def _problems(split: Split, count: int, seed: int, fewest_operations: int) -> tuple[Problem, ...]:
    rng = random.Random(f"{split}:{seed}:{fewest_operations}")
    found: dict[str, Problem] = {}
    results: Counter[int] = Counter()
    most = math.ceil(count * COMMONEST_ANSWER_SHARE)
    for _ in range(100 * count + 1000):
        if len(found) == count:
            break
        problem = draw(rng, split, fewest_operations)
        if signature(problem) not in found and results[problem.result] < most:
            found[signature(problem)] = problem
            results[problem.result] += 1
    else:
        raise DataError(f"the {split} split has too few signatures for {count} distinct problems")
    return tuple(found.values())


def story(problem: Problem) -> str:
    """Return the whole word problem."""
    return " ".join((*sentences(problem), final_question(problem)))


def views(problem: Problem) -> Views:
    """Return what planner, critic and refiner read in the split task."""
    if problem.deal is None:
        raise DataError(f"{signature(problem)} has too few facts for three agents")
    texts, question = sentences(problem), final_question(problem)
    first, second = problem.deal[0], problem.deal[0] + problem.deal[1]
    return Views(
        planner=" ".join((*texts[:first], question)),
        critic=" ".join((*texts[first:second], question)),
        refiner=" ".join((*texts[second:], question)),
    )


def worked_lines(problem: Problem) -> str:
    """Return one line ``dd?d=dd`` per operation."""
    values = problem.values
    return "\n".join(
        f"{before}{step.symbol}{step.amount}={after}"
        for before, step, after in zip(values, problem.operations, values[1:], strict=False)
    )


def reply(problem: Problem) -> str:
    """Return what the model should write: the worked lines and the boxed answer."""
    return f"{worked_lines(problem)}\n\\boxed{{{problem.result}}}"


def plan(problem: Problem, facts: int) -> str:
    """Return the first `facts` facts in words, such as ``start 12, add 5``."""
    steps = [_PLAN_WORDS[step.symbol].format(amount=step.amount) for step in problem.operations]
    return ", ".join((f"start {problem.start}", *steps)[:facts])


def row(problem: Problem, identifier: str) -> Row:
    """Return the main task's row."""
    return Row(id=identifier, question=story(problem), answer=_answer(problem))


def split_row(problem: Problem, identifier: str) -> SplitRow:
    """Return the split task's row."""
    return SplitRow(id=identifier, question=final_question(problem), answer=_answer(problem), views=views(problem))


def _answer(problem: Problem) -> str:
    return f"{worked_lines(problem)}\n#### {problem.result}"


def _draw_numbers(rng: random.Random, fewest: int) -> tuple[int, tuple[Operation, ...]]:
    """Return a start and operations, the symbols equally likely as far as the range allows."""
    count = rng.choice((2, 3)) if fewest > 1 else rng.choices((1, 2, 3), (2, 5, 5))[0]
    while True:
        start = rng.randint(LOWEST, 60)
        value: int | None = start
        operations: list[Operation] = []
        for _ in range(count):
            symbol: Symbol = rng.choice(("+", "-", "*", "/"))
            amount = {"*": rng.randint(2, 3), "/": 2}.get(symbol, rng.randint(2, 9))
            operation = Operation(symbol=symbol, amount=amount)
            operations.append(operation)
            value = None if value is None else operation.apply(value)
        if value is not None:
            return start, tuple(operations)


def _tell(rng: random.Random, start: int, operations: tuple[Operation, ...]) -> Problem:
    names = rng.sample(NAMES, len(operations) + 1)
    thing, other_thing = rng.sample(THINGS, 2)
    owners = [names[0]]
    for name in names[1:]:
        owners.append(name if rng.random() < 0.4 else owners[-1])
    distractor = None
    if rng.random() < DISTRACTOR_SHARE:
        after = rng.randrange(len(owners))
        distractor = Distractor(
            after=after,
            owner=owners[after],
            thing=other_thing,
            amount=rng.randint(2, HIGHEST),
            wording=rng.randrange(6),
        )
    deals = _DEALS.get(len(operations))
    return Problem(
        start=start,
        operations=operations,
        owners=tuple(owners),
        thing=thing,
        wordings=tuple(rng.randrange(6) for _ in range(len(operations) + 2)),
        distractor=distractor,
        deal=rng.choice(deals) if deals else None,
    )
