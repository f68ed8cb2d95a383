"""HumanEval+: functions from signature and docstring, with many more tests (Chen et al. 2021, Liu et al. 2023).

The published test is the target; it is graded without being executed (see `scorers.code`).
"""

from __future__ import annotations

import re
from functools import partial
from types import MappingProxyType
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row, Task, TaskCard
from latentmas.rows import TableTask, place, require, row_id
from latentmas.samples import AnswerKind, Sample
from latentmas.tasks._code import block
from latentmas.tasks._hub import hub_rows

NAME: Final = "humanevalplus"
CARD: Final = TaskCard(
    source="evalplus/humanevalplus",
    revision="d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
    rows=MappingProxyType({"test": 164}),
    columns=("task_id", "prompt", "entry_point", "test"),
    licence="Apache-2.0 (HumanEval: MIT)",
)


def build() -> Task:
    """Return the task; its data is loaded when its rows are asked for."""
    return TableTask(
        name=NAME,
        card=CARD,
        answer_kind=AnswerKind.CODE,
        defaults=MappingProxyType({"max_new_tokens": 4096}),
        read=partial(hub_rows, CARD),
        convert=_convert,
    )


def _convert(row: Row, index: int) -> Sample:
    prompt = require(row, "prompt", str, index, NAME)
    function = require(row, "entry_point", str, index, NAME).strip()
    if not function.isidentifier() or re.search(rf"^def {function}\b", prompt, re.MULTILINE) is None:
        raise DataError(
            f"{place(NAME, index, 'entry_point')}: {function[:60]!r} is no function that begins in column 'prompt'"
        )
    return Sample(
        id=row_id(row, index, NAME, column="task_id"),
        question=f"Complete the function `{function}`, which begins like this:\n\n{block(prompt)}",
        target=require(row, "test", str, index, NAME),
        entry_point=function,
    )
