"""MedQA: questions of the United States medical licensing examination with four options (Jin et al. 2020).

Two forms are read: the columns of the hub, and those of the file ``medqa.json`` with 300 of the questions, in
which many benchmarks pass it on. There a question repeats its options, up to two times, the answer is the text of
an option, and ten last options end with a line that is only a quotation mark.
"""

from __future__ import annotations

import hashlib
from functools import partial
from types import MappingProxyType
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row, Task, TaskCard
from latentmas.rows import TableTask, choice_sample, label_of, place, require, row_id, text_list, text_or_int
from latentmas.samples import AnswerKind, Sample
from latentmas.tasks._hub import hub_rows

NAME: Final = "medqa"
LABELS: Final = tuple("ABCDE")
ENDINGS: Final = ("ending0", "ending1", "ending2", "ending3")
CARD: Final = TaskCard(
    source="GBaker/MedQA-USMLE-4-options-hf",
    revision="17af9355ef89fba60de966eabaeba797c695f86e",
    rows=MappingProxyType({"test": 1273}),
    columns=("id", "sent1", *ENDINGS, "label"),
    licence="CC-BY-SA-4.0 (MedQA: MIT)",
)
SHIPPED: Final = ("question", "options", "answer")
"""Columns of ``medqa.json``."""


def build() -> Task:
    """Return the task; its data is loaded when its rows are asked for."""
    return TableTask(
        name=NAME,
        card=CARD,
        answer_kind=AnswerKind.CHOICE,
        defaults=MappingProxyType({"max_new_tokens": 4096}),
        read=partial(hub_rows, CARD),
        convert=_convert,
    )


def _convert(row: Row, index: int) -> Sample:
    if "sent1" in row:
        return _from_hub(row, index)
    if "question" in row:
        return _from_shipped(row, index)
    raise DataError(
        f"{NAME} row {index} has neither the columns of the hub ({', '.join(CARD.columns)}) nor those of "
        f"medqa.json ({', '.join(SHIPPED)}); it has: {', '.join(sorted(row)) or 'none'}"
    )


def _from_hub(row: Row, index: int) -> Sample:
    endings = [require(row, column, str, index, NAME) for column in ENDINGS]
    label = text_or_int(row, "label", index, NAME)
    if label not in ("0", "1", "2", "3"):
        raise DataError(f"{place(NAME, index, 'label')}: expected 0, 1, 2 or 3, found {label[:60]!r}")
    return choice_sample(
        id=row_id(row, index, NAME),
        question=require(row, "sent1", str, index, NAME),
        labels=LABELS[: len(endings)],
        options=endings,
        target=LABELS[int(label)],
        options_at=place(NAME, index, ENDINGS[0]),
        target_at=place(NAME, index, "label"),
    )


def _from_shipped(row: Row, index: int) -> Sample:
    raw = text_list(row, "options", index, NAME)
    options = [_without_lost_quote(option) for option in raw]
    answer = _without_lost_quote(text_or_int(row, "answer", index, NAME))
    question = require(row, "question", str, index, NAME).strip()
    labels = LABELS[: len(options)]
    while raw and question.endswith(shown := "\n".join(raw).strip()):
        question = question.removesuffix(shown).strip()
    if not question:
        raise DataError(f"{place(NAME, index, 'question')} holds nothing but the options")
    return choice_sample(
        id=_id(row, index, question),
        question=question,
        labels=labels,
        options=options,
        target=label_of(answer, labels, options, place(NAME, index, "answer")),
        options_at=place(NAME, index, "options"),
        target_at=place(NAME, index, "answer"),
    )


def _without_lost_quote(text: str) -> str:
    return text.strip().removesuffix('\n"').strip()


def _id(row: Row, index: int, question: str) -> str:
    """Return the row's ``pid`` or ``idx`` and a hash: the 300 questions have only 200 different numbers."""
    for column in ("pid", "idx"):
        if row.get(column) is not None:
            digest = hashlib.sha256(question.encode()).hexdigest()[:8]
            return f"{row_id(row, index, NAME, column=column)}-{digest}"
    return row_id(row, index, NAME)
