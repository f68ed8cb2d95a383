"""MBPP+: short functions from a sentence and examples, with many more tests (Austin et al. 2021, Liu et al. 2023).

The published test is the target; it is graded without being executed (see `scorers.code`).
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row, Task, TaskCard
from latentmas.rows import TableTask, place, require, row_id, text_list
from latentmas.samples import AnswerKind, Sample
from latentmas.tasks._code import block, entry_point
from latentmas.tasks._hub import hub_rows

NAME: Final = "mbppplus"
EXAMPLES: Final = 3
"""How many examples are shown, of those a row has."""
CARD: Final = TaskCard(
    source="evalplus/mbppplus",
    revision="b2d74c91837c3f2a20c1299ae98133cbe7cfa077",
    rows=MappingProxyType({"test": 378}),
    columns=("task_id", "prompt", "test_list", "test"),
    licence="Apache-2.0 (MBPP: CC-BY-4.0)",
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
    prompt = require(row, "prompt", str, index, NAME).strip()
    examples = text_list(row, "test_list", index, NAME)
    if not examples:
        raise DataError(f"{place(NAME, index, 'test_list')} is empty; expected at least one example")
    test = require(row, "test", str, index, NAME)
    function = entry_point(test, place(NAME, index, "test"))
    shown = block("\n".join(examples[:EXAMPLES]))
    own = row_id(row, index, NAME, column="task_id")
    return Sample(
        id=f"Mbpp/{own}" if own.isdecimal() else own,
        question=f"{prompt}\n\nThe function is called `{function}`. It has to fulfil, among others:\n\n{shown}",
        target=test,
        entry_point=function,
    )
