"""MedQA: questions of the United States medical licensing examination with four options (Jin et al. 2020).

Three forms are read: the columns of the hub; `question`, `options` and `answer`, in which its makers gave it out and
many benchmarks pass it on; and those of its relative MedMCQA. In the second, options are a list or have labels of their
own, and the answer is the text of an option, its label in `answer_idx`, or both; also where options are `choices`
and the answer a list of one, or all of it is nested in `data`. In the file ``medqa.json`` with 300 of
the questions a question repeats its options, up to two times, and ten last options end with a line that is only a
quotation mark. Where the answer is a number, it counts from 0, as on the hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row, Task, TaskCard
from latentmas.row_options import object_of, options_of
from latentmas.rows import TableTask, choice_sample, label_of, place, require, row_id, text_or_int
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
NESTED: Final = MappingProxyType(
    {"Question": "question", "Options": "options", "Correct Answer": "answer", "Correct Option": "answer_idx"}
)
"""Columns within `data`, where a publisher nests them, and what the makers call them."""
MEDMCQA: Final = ("opa", "opb", "opc", "opd")
"""Columns of the options in MedMCQA, where `cop` is the number of the right one."""


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
    row = _flat(row)
    if "sent1" in row:
        return _numbered(row, index, question="sent1", options=ENDINGS, answer="label")
    if "question" in row and MEDMCQA[0] in row:
        return _numbered(row, index, question="question", options=MEDMCQA, answer="cop")
    if "question" in row:
        return _from_shipped(row, index)
    raise DataError(
        f"{NAME} row {index} has neither the columns of the hub ({', '.join(CARD.columns)}) nor those of "
        f"medqa.json ({', '.join(SHIPPED)}); it has: {', '.join(sorted(row)) or 'none'}"
    )


def _flat(row: Row) -> Row:
    """Return a row of another publisher with the columns that the makers gave it."""
    if isinstance(nested := object_of(row.get("data")), Mapping) and "Question" in nested:
        found = {ours: nested[theirs] for theirs, ours in NESTED.items() if theirs in nested}
        return {**{name: value for name, value in row.items() if name != "data"}, **found}
    if "question" in row and "options" not in row and "choices" in row:
        row = {**row, "options": row["choices"]}
    if isinstance(answer := object_of(row.get("answer")), list | tuple) and len(answer) == 1:
        row = {**row, "answer": answer[0]}
    return row


def _numbered(row: Row, index: int, *, question: str, options: tuple[str, ...], answer: str) -> Sample:
    """Read a row with a column for each option and the number of the right one."""
    label = text_or_int(row, answer, index, NAME)
    if label not in ("0", "1", "2", "3"):
        raise DataError(f"{place(NAME, index, answer)}: expected 0, 1, 2 or 3, found {label[:60]!r}")
    return choice_sample(
        id=row_id(row, index, NAME),
        question=require(row, question, str, index, NAME),
        labels=LABELS[: len(options)],
        options=[require(row, column, str, index, NAME) for column in options],
        target=LABELS[int(label)],
        options_at=place(NAME, index, options[0]),
        target_at=place(NAME, index, answer),
    )


def _from_shipped(row: Row, index: int) -> Sample:
    found = options_of(row, "options", index, NAME)
    options = [_without_lost_quote(option) for option in found.texts]
    question = require(row, "question", str, index, NAME).strip()
    labels = LABELS[: len(options)] if found.labels is None else found.labels
    while options and question.endswith(shown := "\n".join(found.texts).strip()):
        question = question.removesuffix(shown).strip()
    if not question:
        raise DataError(f"{place(NAME, index, 'question')} holds nothing but the options")
    return choice_sample(
        id=_id(row, index, question),
        question=question,
        labels=labels,
        options=options,
        target=_target(row, index, labels, options),
        options_at=found.at,
        target_at=place(NAME, index, "answer"),
    )


def _target(row: Row, index: int, labels: Sequence[str], options: Sequence[str]) -> str:
    """Return the label of the right option, from its text, its label or its number.

    Raises:
        DataError: None of them is there, or two of them name different options.
    """
    named: dict[str, str] = {}
    if row.get("answer") is not None or row.get("answer_idx") is None:
        answer = _without_lost_quote(text_or_int(row, "answer", index, NAME))
        is_label = answer in labels and answer not in options
        named["answer"] = answer if is_label else label_of(answer, labels, options, place(NAME, index, "answer"))
    if row.get("answer_idx") is not None:
        answer = text_or_int(row, "answer_idx", index, NAME)
        if answer not in labels and answer.isdecimal() and int(answer) < len(labels):
            answer = labels[int(answer)]
        if answer not in labels:
            raise DataError(
                f"{place(NAME, index, 'answer_idx')}: {answer[:60]!r} is none of the labels {', '.join(labels)}, "
                f"and no number from 0 to {len(labels) - 1}"
            )
        named["answer_idx"] = answer
    if len(set(named.values())) > 1:
        raise DataError(
            f"{place(NAME, index, 'answer_idx')} is {named['answer_idx']}, but its 'answer' is the text of option "
            f"{named['answer']}"
        )
    return next(iter(named.values()))


def _without_lost_quote(text: str) -> str:
    return text.strip().removesuffix('\n"').strip()


def _id(row: Row, index: int, question: str) -> str:
    """Return the row's ``pid`` or ``idx`` and a hash: the 300 questions have only 200 different numbers."""
    for column in ("pid", "idx"):
        if row.get(column) is not None:
            digest = hashlib.sha256(question.encode()).hexdigest()[:8]
            return f"{row_id(row, index, NAME, column=column)}-{digest}"
    return row_id(row, index, NAME)
