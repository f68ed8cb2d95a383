"""Options of a question in the shapes data sets have them: with labels of their own or without.

Nothing is guessed: a shape that is none of these is a `DataError` that names task, row and column.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row
from latentmas.rows import place, text_list, text_or_int

LABEL_KEYS: Final = ("label", "key", "letter", "id")
TEXT_KEYS: Final = ("text", "value", "option", "content")
"""What the two columns of labelled options are called, in the order in which they are looked for."""
_ARRAY: Final = re.compile(r"\barray\((\[.*?\]),\s*dtype=object\)", re.DOTALL)
"""A list of texts as pandas writes it into a CSV file."""
_SHAPES: Final = "a list of texts, {label: text}, [{label, text}, ...] or {label: [...], text: [...]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one question.

    Attributes:
        labels: As many as texts; None where the data gives none.
        at: Where they stand, for errors.
    """

    labels: tuple[str, ...] | None
    texts: tuple[str, ...]
    at: str


def options_of(row: Row, column: str, index: int, task: str) -> Options:
    """Return the options in a column: texts in a list, or each with a label.

    They may be ``{"A": "text", ...}``, a list of objects such as ``{"key": "A", "value": "text"}``, or two lists as in
    ``{"label": ["A", ...], "text": ["text", ...]}``. A label without a text, which tables make of gaps, is left out.

    Raises:
        DataError: There is no such column, or it has another shape.
    """
    value, at = object_of(row.get(column)), place(task, index, column)
    if isinstance(value, Mapping):
        labels, texts = _of_object(value, column, index, task)
    elif isinstance(value, list | tuple) and value and all(isinstance(entry, Mapping) for entry in value):
        labels, texts = _of_objects(value, column, index, task)
    else:
        return Options(labels=None, texts=text_list(row, column, index, task), at=at)
    return Options(labels=labels, texts=texts, at=at)


def object_of(value: object) -> object:
    """Return what a text says, as JSON or Python, where that is no list of texts: a CSV file has nothing but texts."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found: object = parse(_ARRAY.sub(r"\1", value.strip()))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return value if isinstance(found, list) and any(isinstance(entry, str) for entry in found) else found
    return value


def _of_object(
    value: Mapping[object, object], column: str, index: int, task: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    label, text = _key(value, LABEL_KEYS), _key(value, TEXT_KEYS)
    if text is not None and isinstance(value[text], list | tuple):
        lists = {f"{column}.{name}": part for name, part in value.items()}
        labels, texts = (text_list(lists, f"{column}.{name}", index, task) for name in (label or LABEL_KEYS[0], text))
        return labels, texts
    entries = {f"{column}.{name}": entry for name, entry in value.items() if entry is not None}
    names = tuple(str(name).strip() for name, entry in value.items() if entry is not None)
    return names, tuple(text_or_int(entries, name, index, task) for name in entries)


def _of_objects(
    value: list[Mapping[object, object]] | tuple[Mapping[object, object], ...], column: str, index: int, task: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    label, text = _key(value[0], LABEL_KEYS), _key(value[0], TEXT_KEYS)
    if label is None or text is None:
        found = ", ".join(map(str, value[0])) or "nothing"
        raise DataError(f"{place(task, index, column)}: expected {_SHAPES}, found objects with {found[:60]}")
    labels, texts = [], []
    for number, entry in enumerate(value, start=1):
        named = {f"{column}.{number}.{name}": part for name, part in entry.items()}
        labels.append(text_or_int(named, f"{column}.{number}.{label}", index, task))
        texts.append(text_or_int(named, f"{column}.{number}.{text}", index, task))
    return tuple(labels), tuple(texts)


def _key(value: Mapping[object, object], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in value), None)
