"""GSM8K: grade-school word problems whose answer is a number (Cobbe et al. 2021, MIT licence).

A row has `question` and `answer`; the gold is what follows the last ``####``, commas and all: 14 golds of the
test split are written like ``1,450,000``.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Final

from latentmas.protocols import Row, Task, TaskCard
from latentmas.rows import TableTask, marked_answer, require, row_id
from latentmas.samples import AnswerKind, Sample
from latentmas.scorers.number import parse_target
from latentmas.tasks._hub import hub_rows

NAME: Final = "gsm8k"
CARD: Final = TaskCard(
    source="openai/gsm8k",
    config="main",
    revision="e53f048856ff4f594e959d75785d2c2d37b678ee",
    rows=MappingProxyType({"test": 1319, "train": 7473}),
    columns=("question", "answer"),
    licence="MIT",
)


def build() -> Task:
    """Return the task; its data is loaded when its rows are asked for."""
    return TableTask(
        name=NAME,
        card=CARD,
        answer_kind=AnswerKind.NUMBER,
        defaults=MappingProxyType({"max_new_tokens": 2048}),
        read=partial(hub_rows, CARD),
        convert=_convert,
    )


def _convert(row: Row, index: int) -> Sample:
    return Sample(
        id=row_id(row, index, NAME),
        question=require(row, "question", str, index, NAME).strip(),
        target=marked_answer(row, "answer", index, NAME, check=parse_target),
    )
