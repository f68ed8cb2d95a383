"""GPQA Diamond: questions of biology, physics and chemistry that searching does not answer (Rein et al. 2023).

Its makers ask not to show its texts where they could be collected for training, so no error here shows any part
of a row but its id. The right answer has a column of its own; where it stands among the options depends on the
row's id only, on every machine and for ever.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from types import MappingProxyType
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row, Task, TaskCard
from latentmas.rows import TableTask, choice_sample, place, require
from latentmas.samples import AnswerKind, Sample
from latentmas.tasks._hub import hub_rows

NAME: Final = "gpqa"
ANSWERS: Final = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
"""Columns of the options, the right one first."""
LABELS: Final = ("A", "B", "C", "D")
CARD: Final = TaskCard(
    source="Idavidrein/gpqa",
    config="gpqa_diamond",
    revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    rows=MappingProxyType({"train": 198}),
    columns=("Record ID", "Question", *ANSWERS),
    licence="CC-BY-4.0",
    gated=True,
    withheld=True,
)
_ID: Final = re.compile(r"[\w-]{1,64}")


def build() -> Task:
    """Return the task; its data is loaded when its rows are asked for."""
    return TableTask(
        name=NAME,
        card=CARD,
        answer_kind=AnswerKind.CHOICE,
        defaults=MappingProxyType({"max_new_tokens": 8192}),
        read=partial(hub_rows, CARD),
        convert=_convert,
    )


def places(key: str) -> tuple[int, ...]:
    """Return which answer column stands at which place, as indices into `ANSWERS`.

    All 24 orders are equally likely. Never to be changed: the same key has the same order in all versions.
    """
    number = int.from_bytes(hashlib.sha256(f"latentmas gpqa {key}".encode()).digest(), "big")
    order = list(range(len(ANSWERS)))
    for last in range(len(order) - 1, 0, -1):
        number, other = divmod(number, last + 1)
        order[last], order[other] = order[other], order[last]
    return tuple(order)


def _convert(row: Row, index: int) -> Sample:
    if missing := [column for column in ("Question", *ANSWERS) if column not in row]:
        raise DataError(
            f"{NAME} row {index} has no column {missing[0]!r}; only the official columns are read "
            f"({', '.join(CARD.columns)}), not those of copies"
        )
    question = require(row, "Question", str, index, NAME, show=False)
    answers = [require(row, column, str, index, NAME, show=False) for column in ANSWERS]
    key = _key(row, index, question)
    order = places(key)
    return choice_sample(
        id=key,
        question=question,
        labels=LABELS,
        options=[answers[column] for column in order],
        target=LABELS[order.index(0)],
        options_at=place(NAME, index, ANSWERS[0]),
        target_at=place(NAME, index, ANSWERS[0]),
    )


def _key(row: Row, index: int, question: str) -> str:
    if not row.get("Record ID"):
        return hashlib.sha256(question.strip().encode()).hexdigest()[:16]
    key = require(row, "Record ID", str, index, NAME, show=False)
    if _ID.fullmatch(key.strip()) is None:
        raise DataError(
            f"{place(NAME, index, 'Record ID')}: expected up to 64 letters, digits, '-' and '_', "
            f"found a text of {len(key)} characters"
        )
    return key.strip()
