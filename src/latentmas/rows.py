"""Rows: what every task checks about them, and how they become samples.

A row that breaks its contract is a `DataError` that names task, row and column, before any model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, final

from latentmas.errors import ConfigError, DataError, UnknownNameError
from latentmas.protocols import Row, Scorer, Task
from latentmas.samples import AnswerKind, Sample

Value = TypeVar("Value")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TableTask:
    """A task whose data is a table: everything that tells one such task from another.

    Attributes:
        read: Split to rows. It is only asked for a split that is in `splits`.
        convert: Row and index to sample; raises `DataError` naming the column.
    """

    name: str
    answer_kind: AnswerKind
    splits: tuple[str, ...]
    defaults: Mapping[str, object]
    scorer: Scorer
    read: Callable[[str], Iterable[Row]]
    convert: Callable[[Row, int], Sample]

    def rows(self, split: str) -> Iterable[Row]:
        if split not in self.splits:
            raise UnknownNameError(f"split of {self.name}", split, self.splits)
        return self.read(split)

    def sample(self, row: Row, index: int) -> Sample:
        return self.convert(row, index)


def require(row: Row, column: str, kind: type[Value], index: int, task: str) -> Value:
    """Return the value of a column.

    Args:
        kind: The type it must have. A bool is no int; a text must not be blank.
        index: Of the row, from 0.

    Raises:
        DataError: There is no such column, or its value is another type, blank, or no Unicode text.
    """
    where = f"{task} row {index}"
    if column not in row:
        raise DataError(f"{where} has no column {column!r}; it has: {', '.join(sorted(row)) or 'none'}")
    value = row[column]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{where}, column {column!r}: expected {kind.__name__}, found {_excerpt(value)}")
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where}, column {column!r} is blank")
        _refuse_half_characters(value, f"{where}, column {column!r}")
    return value


def marked_answer(row: Row, column: str, index: int, task: str, *, check: Callable[[str], object]) -> str:
    """Return what follows the last ``####`` of a column, without commas: GSM8K's way to give a gold.

    Args:
        check: Raises `DataError` for what is no gold of the task's kind.
    """
    text = require(row, column, str, index, task)
    _, marker, gold = text.rpartition("####")
    if not marker:
        raise DataError(f"{task} row {index}, column {column!r} has no '####' before its answer")
    gold = gold.strip().replace(",", "")
    try:
        check(gold)
    except DataError as error:
        raise DataError(f"{task} row {index}, column {column!r}: {error}") from error
    return gold


def row_id(row: Row, index: int, task: str, column: str = "id") -> str:
    """Return the row's own id if it has one, else its index and a hash of its content, ``17-1f0c22ab``."""
    own = row.get(column)
    if own is None:
        content = json.dumps(row, sort_keys=True, default=str)
        return f"{index}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    if isinstance(own, bool) or not isinstance(own, str | int) or not str(own).strip():
        raise DataError(f"{task} row {index}, column {column!r}: expected a text or an int, found {_excerpt(own)}")
    _refuse_half_characters(str(own), f"{task} row {index}, column {column!r}")
    return str(own)


def samples(task: Task, rows: Iterable[Row], max_samples: int | None = None) -> tuple[Sample, ...]:
    """Return the samples of the first rows, in their order.

    Args:
        max_samples: Rows taken, at least 1; None takes all.

    Raises:
        DataError: There is no row, a row cannot be read, or two rows have the same id.
    """
    if max_samples is not None and max_samples < 1:
        raise ConfigError(f"max_samples is {max_samples}; expected at least 1")
    first_row: dict[str, int] = {}
    found = []
    for index, row in enumerate(islice(rows, max_samples)):
        sample = task.sample(row, index)
        if (earlier := first_row.setdefault(sample.id, index)) != index:
            raise DataError(
                f"{task.name} rows {earlier} and {index} have the same id {sample.id!r}; ids must be unique"
            )
        found.append(sample)
    if not found:
        raise DataError(f"{task.name} has no rows; expected at least one")
    return tuple(found)


def data_digest(samples: Iterable[Sample]) -> str:
    """Return 64 hexadecimal digits that are the same for the same samples in the same order."""
    digest = hashlib.sha256()
    for sample in samples:
        line = [sample.id, sample.question, sample.target, sorted(sample.views.items())]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _refuse_half_characters(text: str, where: str) -> None:
    # JSON can hold half of a surrogate pair; no tokenizer and no UTF-8 file takes one.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where} holds half of a surrogate pair, which is no Unicode text")


def _excerpt(value: object) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"
