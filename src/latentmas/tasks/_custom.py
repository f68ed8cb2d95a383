"""Tasks without code: a YAML file that says which columns of a file of rows are what.

A task file that cannot be read is a `ConfigError` naming line and key; a row that does not fit it is a `DataError`
naming row and column.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from types import MappingProxyType
from typing import Annotated, Final, Literal, NoReturn, final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from latentmas.errors import ConfigError, DataError
from latentmas.protocols import Row, Task, TaskCard
from latentmas.row_files import read_rows
from latentmas.row_options import Options, object_of, options_of
from latentmas.rows import TableTask, choice_sample, label_of, place, require, row_id, text_list, text_or_int
from latentmas.samples import AnswerKind, Sample
from latentmas.scorers.number import parse_target
from latentmas.tasks._code import entry_point
from latentmas.yaml_files import read_text, read_yaml

SPLIT: Final = "test"
"""The one split of such a task."""
TASK_KINDS: Final = ("number", "choice", "code")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Column = Annotated[str, Field(min_length=1)]
Names = Annotated[list[Column], Field(min_length=2)]


class _TaskEntry(BaseModel):
    """A task file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Name
    answer_kind: Literal["number", "choice", "code"]
    question: Column
    target: Column
    id: Column | None = None
    options: Column | Names | None = None
    labels: Column | Names | None = None
    entry_point: Column | None = None
    data: Column | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    licence: str | None = None
    description: str | None = None


def load_task(path: Path) -> Task:
    """Read a task from a YAML file, and the rows it names, if it names any.

    Raises:
        ConfigError: The file cannot be read or describes no task.
        DataError: Its file of rows cannot be read.
    """
    entry = _read(path)
    rows: list[Row] = read_rows(path.parent / entry.data) if entry.data is not None else []

    def read(split: str) -> list[Row]:
        if entry.data is None:
            raise ConfigError(f"{path} names no rows; add 'data: FILE' or pass --dataset FILE")
        return rows

    return TableTask(
        name=entry.name,
        card=TaskCard(
            source=str(path),
            rows=MappingProxyType({SPLIT: len(rows)}),
            columns=_columns(entry),
            licence=entry.licence or "not stated",
        ),
        answer_kind=AnswerKind(entry.answer_kind),
        defaults=MappingProxyType({"max_new_tokens": entry.max_new_tokens} if entry.max_new_tokens else {}),
        read=read,
        convert=_Converter(entry),
    )


@final
@dataclass(frozen=True, slots=True)
class _Converter:
    """Rows to samples, as a task file says."""

    entry: _TaskEntry

    def __call__(self, row: Row, index: int) -> Sample:
        row = _with_nested(row, index, self.entry)
        match self.entry.answer_kind:
            case "number":
                return self._number(row, index)
            case "choice":
                return self._choice(row, index)
            case "code":
                return self._code(row, index)

    def _number(self, row: Row, index: int) -> Sample:
        name, column = self.entry.name, self.entry.target
        value = row.get(column)
        target = repr(value) if isinstance(value, float) else text_or_int(row, column, index, name)
        try:
            parse_target(target)
        except DataError as error:
            raise DataError(f"{place(name, index, column)}: {error}") from error
        return Sample(id=self._id(row, index), question=self._question(row, index), target=target)

    def _choice(self, row: Row, index: int) -> Sample:
        name, target_at = self.entry.name, place(self.entry.name, index, self.entry.target)
        found = self._options(row, index)
        options, options_at = found.texts, found.at
        labels = self._labels(row, index, found)
        target = text_or_int(row, self.entry.target, index, name)
        with_text = [label for label, option in zip(labels, options, strict=False) if option.strip() == target]
        if target not in labels:
            target = label_of(target, labels, options, target_at)
        elif with_text and with_text != [target]:
            raise DataError(f"{target_at}: {target!r} is a label and the text of another option; choose other labels")
        return choice_sample(
            id=self._id(row, index),
            question=self._question(row, index),
            labels=labels,
            options=options,
            target=target,
            options_at=options_at,
            target_at=target_at,
        )

    def _code(self, row: Row, index: int) -> Sample:
        name = self.entry.name
        test = require(row, self.entry.target, str, index, name)
        if self.entry.entry_point is not None:
            function = require(row, self.entry.entry_point, str, index, name).strip()
            if not function.isidentifier():
                at = place(name, index, self.entry.entry_point)
                raise DataError(f"{at}: {function[:60]!r} is no name of a function")
        elif (function := entry_point(test, place(name, index, self.entry.target))) == "candidate":
            raise DataError(
                f"{place(name, index, self.entry.target)} calls its function 'candidate'; name the column "
                "with the name of the function: 'entry_point: COLUMN' in the task file"
            )
        return Sample(id=self._id(row, index), question=self._question(row, index), target=test, entry_point=function)

    def _id(self, row: Row, index: int) -> str:
        if self.entry.id is None:
            return row_id(row, index, self.entry.name)
        return text_or_int(row, self.entry.id, index, self.entry.name)

    def _question(self, row: Row, index: int) -> str:
        return require(row, self.entry.question, str, index, self.entry.name).strip()

    def _options(self, row: Row, index: int) -> Options:
        name, columns = self.entry.name, self.entry.options
        assert columns is not None
        if isinstance(columns, str):
            return options_of(row, columns, index, name)
        texts = tuple(text_or_int(row, column, index, name) for column in columns)
        return Options(labels=None, texts=texts, at=place(name, index, columns[0]))

    def _labels(self, row: Row, index: int, options: Options) -> tuple[str, ...]:
        labels = self.entry.labels
        if labels is None:
            return options.labels or tuple(ascii_uppercase[: len(options.texts)])
        return text_list(row, labels, index, self.entry.name) if isinstance(labels, str) else tuple(labels)


def _with_nested(row: Row, index: int, entry: _TaskEntry) -> Row:
    """Return a row that also has the columns that the task file names by a path, such as ``question.stem``."""
    nested = {}
    for column in _columns(entry):
        if column not in row and (parts := column.split("."))[0] in row and len(parts) > 1:
            value: object = row
            for depth, part in enumerate(parts):
                value = _part(value, part, f"{place(entry.name, index, column)}: {'.'.join(parts[:depth])!r}")
            nested[column] = value
    return {**row, **nested} if nested else row


def _part(value: object, part: str, where: str) -> object:
    """Return a field of an object, or those of the objects in a list; in a CSV file these are texts."""
    value = object_of(value)
    if isinstance(value, list | tuple) and value:
        return [_part(entry, part, where) for entry in value]
    if not isinstance(value, Mapping) or part not in value:
        fields = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else type(value).__name__
        raise DataError(f"{where} has no {part!r}; it has: {fields or 'nothing'}")
    return value[part]


def _columns(entry: _TaskEntry) -> tuple[str, ...]:
    options = [entry.options] if isinstance(entry.options, str) else entry.options or []
    labels = entry.labels if isinstance(entry.labels, str) else None
    return tuple(filter(None, [entry.id, entry.question, *options, labels, entry.target, entry.entry_point]))


def _read(path: Path) -> _TaskEntry:
    text = read_text(path, "task file")
    content, lines = _keys(text, path)
    try:
        entry = _TaskEntry.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        _refuse(path, lines, key, _sentence(first))
    if entry.answer_kind == "choice" and entry.options is None:
        _refuse(path, lines, "options", "is missing; a choice needs the column or the columns of its options")
    for key, needed in (("options", "choice"), ("labels", "choice"), ("entry_point", "code")):
        if getattr(entry, key) is not None and entry.answer_kind != needed:
            _refuse(path, lines, key, f"belongs to answer_kind {needed}, and this one is {entry.answer_kind}")
    return entry


def _refuse(path: Path, lines: dict[str, int], key: str, sentence: str) -> NoReturn:
    line = f", line {lines[key]}" if key in lines else ""
    raise ConfigError(f"{path}{line}, {key}: {sentence}")


def _keys(text: str, path: Path) -> tuple[dict[str, object], dict[str, int]]:
    """Return the values of a YAML mapping, and the line each of its keys stands in."""
    root, content = read_yaml(text, str(path), "a task")
    if not isinstance(root, yaml.MappingNode) or not isinstance(content, dict):
        raise ConfigError(f"{path}: expected lines such as 'name: capitals' and 'question: COLUMN'")
    for key, _ in root.value:
        if key.tag != "tag:yaml.org,2002:str":  # a merge, which a team may have
            raise ConfigError(f"{path}, line {key.start_mark.line + 1}: a key must be text")
    return content, {key.value: key.start_mark.line + 1 for key, _ in root.value}


def _sentence(error: ErrorDetails) -> str:
    key, kind = str(error["loc"][0]), error["type"]
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(key, _TaskEntry.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_TaskEntry.model_fields)}"
        return f"is no key of a task file; {hint}"
    return f"expected {_EXPECTED[key]}, found {error['input']!r:.60}"


_EXPECTED: Final = {
    "name": "up to 64 letters, digits, '-' and '_'",
    "answer_kind": f"one of {', '.join(TASK_KINDS)}",
    "options": "the name of a column with a list of texts, or a list of at least two columns",
    "labels": "the name of a column with a list of texts, or a list of at least two labels, in quotes if need be",
    "data": "the path of a file of rows",
    "max_new_tokens": "a whole number, at least 1",
    "licence": "a text",
    "description": "a text",
    **dict.fromkeys(("question", "target", "id", "entry_point"), "the name of a column, in quotes if need be"),
}
