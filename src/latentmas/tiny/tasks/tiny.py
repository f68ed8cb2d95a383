"""The embedded model's main task: short word problems, which every agent reads in full."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from latentmas.protocols import Row, Task, TaskCard
from latentmas.rows import TableTask, marked_answer, require, row_id
from latentmas.samples import AnswerKind, Sample
from latentmas.scorers.number import parse_target
from latentmas.tiny import generator

NAME: Final = "tiny"
ROWS: Final = 1000
SEED: Final = 1
"""With the split it fixes the rows, on every machine."""
CARD: Final = TaskCard(
    source="made by latentmas.tiny.generator",
    rows=MappingProxyType({"test": ROWS, "train": ROWS}),
    columns=("question", "answer"),
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
    problems = generator.problems("test" if split == "test" else "train", ROWS, SEED)
    return [{**generator.row(problem, f"{split}-{index:04}")} for index, problem in enumerate(problems)]


def _convert(row: Row, index: int) -> Sample:
    return Sample(
        id=row_id(row, index, NAME),
        question=require(row, "question", str, index, NAME),
        target=marked_answer(row, "answer", index, NAME, check=parse_target),
    )
