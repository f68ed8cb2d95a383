"""Rows: what every task checks about them, and how they become samples.

A row that breaks its contract is a `DataError` that names task, row and column, before any model is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar, final

from latentmas.errors import ConfigError, DataError, UnknownNameError
from latentmas.protocols import Row, Scorer, Task, TaskCard
from latentmas.samples import AnswerKind, Sample

Value = TypeVar("Value")

_OWN_LABEL: Final = re.compile(r"\(?([^\s().:]+)[.):]\s+")
_HALF_CHARACTER: Final = re.compile("[\ud800-\udfff]")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TableTask:
    """A task whose data is a table: everything that tells one such task from another.

    Attributes:
        read: Split to rows. It is only asked for a split that is in `splits`.
        convert: Row and index to sample; raises `DataError` naming the column.
        scorer: None is the package's way to grade the answer kind.
    """

    name: str
    card: TaskCard
    answer_kind: AnswerKind
    defaults: Mapping[str, object]
    read: Callable[[str], Iterable[Row]]
    convert: Callable[[Row, int], Sample]
    scorer: Scorer | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.card.rows)

    def rows(self, split: str) -> Iterable[Row]:
        if split not in self.splits:
            raise UnknownNameError(f"split of {self.name}", split, self.splits)
        return self.read(split)

    def sample(self, row: Row, index: int) -> Sample:
        return self.convert(row, index)


def place(task: str, index: int, column: str) -> str:
    """Return how errors name one value: its task, its row counted from 0, and its column."""
    return f"{task} row {index}, column {column!r}"


def require(row: Row, column: str, kind: type[Value], index: int, task: str, *, show: bool = True) -> Value:
    """Return the value of a column.

    Args:
        kind: The type it must have. A bool is no int; a text must not be blank.
        index: Of the row, from 0.
        show: False where nothing of the row may stand in an error, not even the names of its other columns.

    Raises:
        DataError: There is no such column, or its value is another type, blank, or no Unicode text.
    """
    value, where = _present(row, column, index, task, show=show), place(task, index, column)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        found = _excerpt(value) if show else type(value).__name__
        raise DataError(f"{where}: expected {kind.__name__}, found {found}")
    if isinstance(value, str):
        _check_text(value, where)
    return value


def text_or_int(row: Row, column: str, index: int, task: str) -> str:
    """Return a text or a whole number, as text: in files of one origin answers and ids are both.

    Raises:
        DataError: There is no such column, or its value is neither, blank, or no Unicode text.
    """
    value, where = _present(row, column, index, task), place(task, index, column)
    if (text := _as_text(value)) is None:
        raise DataError(f"{where}: expected a text or an int, found {_excerpt(value)}")
    _check_text(text, where)
    return text.strip()


def text_list(row: Row, column: str, index: int, task: str) -> tuple[str, ...]:
    """Return a column that is a list of texts or whole numbers, or, as in a CSV file, the text of such a list.

    Raises:
        DataError: There is no such column, or its value is no such list.
    """
    value, where = _present(row, column, index, task), place(task, index, column)
    if isinstance(value, str):
        try:
            value = _literal(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{where}: expected a list of texts, found {_excerpt(value)}") from error
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: expected a list of texts, found {_excerpt(value)}")
    texts = []
    for number, entry in enumerate(value, start=1):
        if (text := _as_text(entry)) is None:
            raise DataError(f"{where}, entry {number}: expected a text or an int, found {_excerpt(entry)}")
        _check_text(text, f"{where}, entry {number}")
        texts.append(text)
    return tuple(texts)


def choice_sample(
    *,
    id: str,
    question: str,
    labels: Sequence[str],
    options: Sequence[str],
    target: str,
    options_at: str,
    target_at: str,
) -> Sample:
    """Return a question with its options below it.

    Where every option begins with its own label, as in ``B. text``, that is dropped.

    Args:
        target: One of the labels.
        options_at: Where labels and options come from, for errors; these show no option.
        target_at: Where the target comes from, for errors.

    Raises:
        DataError: Labels, options and target do not fit each other.
    """
    if len(labels) != len(options):
        raise DataError(f"{options_at}: {len(options)} options have {len(labels)} labels")
    if len(options) < 2:
        raise DataError(f"{options_at}: expected at least 2 options, found {len(options)}")
    if len({label.strip().casefold() for label in labels} - {""}) != len(labels):
        raise DataError(f"{options_at}: the labels {', '.join(labels)} are not all different and not blank")
    options = _without_labels(labels, options)
    for label, option in zip(labels, options, strict=True):
        if not option:
            raise DataError(f"{options_at}: option {label} is blank")
    if target not in labels:
        raise DataError(f"{target_at}: {target[:60]!r} is none of the labels {', '.join(labels)}")
    return Sample(
        id=id,
        question=with_options(question, labels, options),
        target=target,
        labels=tuple(labels),
        options=tuple(options),
    )


def label_of(text: str, labels: Sequence[str], options: Sequence[str], where: str) -> str:
    """Return the label of the option with this text, for data whose gold is a text.

    Args:
        where: Names the gold in errors.

    Raises:
        DataError: No option has it, or more than one has.
    """
    texts = _without_labels(labels, options)
    found = [label for label, option in zip(labels, texts, strict=False) if option == text.strip()]
    if len(found) != 1:
        raise DataError(f"{where}: {text[:60]!r} is the text of {len(found)} options; expected 1")
    return found[0]


def with_options(question: str, labels: Sequence[str], options: Sequence[str]) -> str:
    """Return a question with one line for each option below it: ``A. text``."""
    lines = [f"{label}. {option}" for label, option in zip(labels, options, strict=True)]
    return "\n".join([question.strip(), "", *lines])


def marked_answer(row: Row, column: str, index: int, task: str, *, check: Callable[[str], object]) -> str:
    """Return what follows the last ``####`` of a column, without commas: GSM8K's way to give a gold.

    Args:
        check: Raises `DataError` for what is no gold of the task's kind.
    """
    text = require(row, column, str, index, task)
    _, marker, gold = text.rpartition("####")
    if not marker:
        raise DataError(f"{place(task, index, column)} has no '####' before its answer")
    gold = gold.strip().replace(",", "")
    try:
        check(gold)
    except DataError as error:
        raise DataError(f"{place(task, index, column)}: {error}") from error
    return gold


def row_id(row: Row, index: int, task: str, column: str = "id") -> str:
    """Return the row's own id if it has one, else its index and a hash of its content, ``17-1f0c22ab``."""
    if row.get(column) is None:
        content = json.dumps(row, sort_keys=True, default=str)
        return f"{index}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return text_or_int(row, column, index, task)


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
        line: list[object] = [sample.id, sample.question, sample.target, sorted(sample.views.items())]
        if choice_or_code := [*sample.labels, *sample.options, *filter(None, [sample.entry_point])]:
            line.append(choice_or_code)
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _without_labels(labels: Sequence[str], options: Sequence[str]) -> list[str]:
    shown = [option.strip() for option in options]
    begun = [_OWN_LABEL.match(option) for option in shown]
    # All or none: the option "E. coli" may well stand behind the label E.
    if [found[1] for found in begun if found] != list(labels):
        return shown
    return [option[found.end() :] for option, found in zip(shown, begun, strict=True) if found]


def _as_text(value: object) -> str | None:
    """Return a text or a whole number as text, None for anything else; 3.0 is 3, as gaps in a column make it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def _literal(text: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a "\\d" that is no escape: the data is not ours to mend
        return ast.literal_eval(text)


def _present(row: Row, column: str, index: int, task: str, *, show: bool = True) -> object:
    if column not in row:
        others = f"; it has: {', '.join(sorted(row)) or 'none'}" if show else ""
        raise DataError(f"{task} row {index} has no column {column!r}{others}")
    return row[column]


def _check_text(text: str, where: str) -> None:
    if not text.strip():
        raise DataError(f"{where} is blank")
    # JSON can hold half of a surrogate pair; no tokenizer and no UTF-8 file takes one.
    if _HALF_CHARACTER.search(text):
        raise DataError(f"{where} holds half of a surrogate pair, which is no Unicode text")


def _excerpt(value: object) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"
