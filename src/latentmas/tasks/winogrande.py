"""WinoGrande: which of two names or things fills the blank of a sentence (Sakaguchi et al. 2020).

The test split has no labels, so the validation split is evaluated; it is the same in every configuration.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row, Task, TaskCard
from latentmas.rows import TableTask, choice_sample, place, require, row_id, text_or_int
from latentmas.samples import AnswerKind, Sample
from latentmas.tasks._hub import hub_rows

NAME: Final = "winogrande"
LABELS: Final = ("1", "2")
CARD: Final = TaskCard(
    source="allenai/winogrande",
    config="winogrande_xl",
    revision="01e74176c63542e6b0bcb004dcdea22d94fb67b5",
    rows=MappingProxyType({"validation": 1267, "train": 40_398}),
    columns=("sentence", "option1", "option2", "answer"),
    licence="CC-BY",
)


def build() -> Task:
    """Return the task; its data is loaded when its rows are asked for."""
    return TableTask(
        name=NAME,
        card=CARD,
        answer_kind=AnswerKind.CHOICE,
        defaults=MappingProxyType({"max_new_tokens": 2048}),
        read=partial(hub_rows, CARD),
        convert=_convert,
    )


def _convert(row: Row, index: int) -> Sample:
    sentence = require(row, "sentence", str, index, NAME).strip()
    if (blanks := sentence.count("_")) != 1:
        raise DataError(f"{place(NAME, index, 'sentence')}: expected one blank '_', found {blanks}")
    if row.get("answer") == "":
        raise DataError(f"{place(NAME, index, 'answer')} is empty, as in the test split; use the validation split")
    return choice_sample(
        id=row_id(row, index, NAME),
        question=f"Which option belongs in place of the blank _ in this sentence?\n\n{sentence}",
        labels=LABELS,
        options=[text_or_int(row, column, index, NAME) for column in ("option1", "option2")],
        target=text_or_int(row, "answer", index, NAME),
        options_at=place(NAME, index, "option1"),
        target_at=place(NAME, index, "answer"),
    )
