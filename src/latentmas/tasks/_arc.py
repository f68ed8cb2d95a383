"""What ARC's easy and challenge sets share: science questions with 3 to 5 options (Clark et al. 2018).

Labels stay as they are: most questions have A to D, some have 1 to 4, and a few three or five options. Two forms are
read: the columns of the hub, and those of the files its makers gave out, where `question` holds `stem` and `choices`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from latentmas.protocols import Row, Task, TaskCard
from latentmas.row_options import object_of, options_of
from latentmas.rows import TableTask, choice_sample, place, require, row_id, text_or_int
from latentmas.samples import AnswerKind, Sample
from latentmas.tasks._hub import hub_rows

SOURCE: Final = "allenai/ai2_arc"
REVISION: Final = "210d026faf9955653af8916fad021475a3f00453"


def build_arc(name: str, config: str, rows: Mapping[str, int]) -> Task:
    """Return one set's task; its data is loaded when its rows are asked for."""
    card = TaskCard(
        source=SOURCE,
        config=config,
        revision=REVISION,
        rows=MappingProxyType(rows),
        columns=("id", "question", "choices", "answerKey"),
        licence="CC-BY-SA-4.0",
    )
    return TableTask(
        name=name,
        card=card,
        answer_kind=AnswerKind.CHOICE,
        defaults=MappingProxyType({"max_new_tokens": 2048}),
        read=partial(hub_rows, card),
        convert=partial(_convert, name=name),
    )


def _convert(row: Row, index: int, *, name: str) -> Sample:
    asked, question, choices = row, "question", "choices"
    if isinstance(original := object_of(row.get("question")), Mapping) and "choices" in original:
        question, choices = "question.stem", "question.choices"
        asked = {f"question.{part}": value for part, value in original.items()}
    asked = {**asked, choices: object_of(asked[choices])} if choices in asked else asked
    entries = asked.get(choices)
    if not (isinstance(entries, list) and entries and all(isinstance(entry, Mapping) for entry in entries)):
        require(asked, choices, dict, index, name)
    options = options_of(asked, choices, index, name)
    assert options.labels is not None, "only a list of texts has none"
    return choice_sample(
        id=row_id(row, index, name),
        question=require(asked, question, str, index, name),
        labels=options.labels,
        options=options.texts,
        target=text_or_int(row, "answerKey", index, name),
        options_at=options.at,
        target_at=place(name, index, "answerKey"),
    )
