r"""What the two years of AIME share: problems whose answer is a whole number from 0 to 999.

Copies of these texts are known in which ``\frac`` became a form feed and "rac", or ``\triangle`` a tab and
"riangle"; a model would be asked something else, so such a row is refused.
"""

from __future__ import annotations

import re
from functools import partial
from types import MappingProxyType
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row, Task, TaskCard
from latentmas.rows import TableTask, place, require, row_id, text_or_int
from latentmas.samples import AnswerKind, Sample
from latentmas.tasks._hub import hub_rows

_ANSWER: Final = re.compile(r"([0-9]{1,3})(?:\.0+)?")
_CONTROL: Final = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)"
    r"|\t(?:anh?|au|binom|ext(?:bf|it|rm|style)?|frac|herefore|heta|ilde|imes|op?|riangle(?:left|q|right)?)(?![a-z])"
)


def build_aime(name: str, card: TaskCard) -> Task:
    """Return one year's task; its data is loaded when its rows are asked for."""
    return TableTask(
        name=name,
        card=card,
        answer_kind=AnswerKind.NUMBER,
        defaults=MappingProxyType({"max_new_tokens": 20_000}),
        read=partial(hub_rows, card),
        convert=partial(_convert, name=name),
    )


def _convert(row: Row, index: int, *, name: str) -> Sample:
    problem = require(row, "problem", str, index, name)
    if broken := _CONTROL.search(problem):
        raise DataError(
            f"{place(name, index, 'problem')} holds the control character {broken[0][0]!r} at offset "
            f"{broken.start()}, where a backslash of LaTeX was lost; write it as \\\\ in JSON"
        )
    return Sample(
        id=row_id(row, index, name),
        question=problem.strip(),
        target=str(_answer(row, index, name)),
    )


def _answer(row: Row, index: int, name: str) -> int:
    text = text_or_int(row, "answer", index, name)
    found = _ANSWER.fullmatch(text)
    if found is None:
        raise DataError(f"{place(name, index, 'answer')}: expected a whole number from 0 to 999, found {text[:60]!r}")
    return int(found[1])
