"""The embedded model's split-information task: planner, critic and refiner each read their own facts only.

The question itself holds no fact, so whoever answers right without being handed the others' memory or text
has guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row, Task, TaskCard
from latentmas.rows import TableTask, marked_answer, require, row_id
from latentmas.samples import AnswerKind, Sample
from latentmas.scorers.number import parse_target
from latentmas.tiny import generator

NAME: Final = "tiny_split"
ROWS: Final = 1000
SEED: Final = 1
"""With the split it fixes the rows, on every machine."""
CARD: Final = TaskCard(
    source="made by latentmas.tiny.generator",
    rows=MappingProxyType({"test": ROWS, "train": ROWS}),
    columns=("question", "views", "answer"),
    licence="Apache-2.0",
)


def build() -> Task:
    """Return the task; its rows are made when they are asked for."""
    return TableTask(
        name=NAME,
        card=CARD,
        answer_kind=AnswerKind.NUMBER,
        defaults=MappingProxyType({"max_new_tokens": 96}),
        read=_read,
        convert=_convert,
    )


def _read(split: str) -> Iterable[Row]:
    # With a single operation there are fewer facts than agents to hold them.
    problems = generator.problems("test" if split == "test" else "train", ROWS, SEED, fewest_operations=2)
    return [{**generator.split_row(problem, f"{split}-{index:04}")} for index, problem in enumerate(problems)]


def _convert(row: Row, index: int) -> Sample:
    views = require(row, "views", dict, index, NAME)
    for agent, view in views.items():
        if not isinstance(view, str):
            raise DataError(f"{NAME} row {index}, column 'views': expected a text for each agent, {agent!r} has none")
    return Sample(
        id=row_id(row, index, NAME),
        question=require(row, "question", str, index, NAME),
        target=marked_answer(row, "answer", index, NAME, check=parse_target),
        views=MappingProxyType(views),
    )
