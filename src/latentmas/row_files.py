"""Files of rows: JSON, JSONL, CSV and Parquet become lists of rows, and nothing else does.

What cannot be read is a `DataError` that says where in the file, and shows none of it: the makers of some data
sets ask for that.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row

SUFFIXES: Final = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
_DECODER: Final = json.JSONDecoder()
_SPACE: Final = re.compile(r"[ \t\r\n\ufeff]*")
"""White space of JSON, and the mark that begins a file, which stands between two that were put together."""
_ENCODINGS: Final = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
"""By the mark that a file begins with; the first one begins with the second."""
_LINE_END: Final = re.compile(r"\r\n|\r|\n")


def read_rows(path: str | Path) -> list[Row]:
    """Return the rows of a local file, in their order.

    ``.json``, ``.jsonl`` and ``.jsonl.gz`` are a list of objects, or objects one after the other; ``.json`` may be
    ``{"data": [...]}``. ``.csv`` begins with a header; all its values are texts.

    Raises:
        DataError: There is no such file, or it cannot be read. Names the byte, line or row.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise DataError(f"{path} is no file of rows; expected a name that ends in {', '.join(SUFFIXES)}")
    if not path.exists():
        raise DataError(f"no file {path}; give the path of a file with rows")
    if not path.is_file():
        raise DataError(f"{path} is no file; give the path of a file with rows")
    if name.endswith(".parquet"):
        rows = _parquet(path)
    elif name.endswith(".csv"):
        rows = _csv(path)
    else:
        rows = _json(path)
    if not rows:
        raise DataError(f"{path} has no rows; expected at least one")
    return rows


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    encoding = next((name for mark, name in _ENCODINGS if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise DataError(f"{path} begins as {encoding.upper()} and is none: {error.reason}") from error
        raise DataError(f"{path} is not UTF-8: byte {content[error.start]:#04x} at offset {error.start}") from error


def _json(path: Path) -> list[Row]:
    """Read a list of rows, an object whose ``data`` is one, one row, or rows one after the other.

    They may stand in lines, with any line ends or none, with commas between and behind them: all of these are written
    by one program or another, and none can be misread.
    """
    text = _text(path)
    is_document = path.name.lower().endswith(".json")
    begin = _skip(text, 0)
    if begin == len(text) and is_document:
        raise DataError(f"{path} is empty; expected a list of rows")
    if text.startswith("[", begin):
        values, end = _list(text, begin, path)
        if (rest := _skip(text, end)) < len(text):
            line, column = _position(text, rest)
            raise DataError(f"{path} line {line}, column {column}: not JSON: more follows the list of rows")
        return [_object(value, f"{path} row {index}") for index, (_, value) in enumerate(values)]
    found = list(_values(text, begin, path))
    if is_document and len(found) == 1:
        document = found[0][1]
        rows = document.get("data") if isinstance(document, dict) else None
        if rows is None and isinstance(document, dict) and not any(map(_holds_rows, document.values())):
            rows = [document]  # one row alone
        if not isinstance(rows, list):
            raise DataError(f'{path} holds no list of rows; expected [...] or {{"data": [...]}}')
        return [_object(row, f"{path} row {index}") for index, row in enumerate(rows)]
    return [
        _object(value, "" if isinstance(value, dict) else f"{path} line {_position(text, at)[0]}")
        for at, value in found
    ]


def _holds_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _values(text: str, at: int, path: Path) -> Iterator[tuple[int, object]]:
    """Yield values that stand one after the other, each with the place where it begins."""
    while at < len(text):
        value, end = _value(text, at, path)
        yield at, value
        at = _skip(text, end)
        if text.startswith(",", at):
            at = _skip(text, at + 1)


def _list(text: str, at: int, path: Path) -> tuple[list[tuple[int, object]], int]:
    """Return the values of a list, whose last comma may be one too many, and where it ends."""
    found: list[tuple[int, object]] = []
    at = _skip(text, at + 1)
    while not text.startswith("]", at):
        value, end = _value(text, at, path)
        found.append((at, value))
        at = _skip(text, end)
        if text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            line, column = _position(text, at)
            raise DataError(f"{path} line {line}, column {column}: not JSON: expected ',' or ']' in the list of rows")
    return found, at + 1


def _value(text: str, at: int, path: Path) -> tuple[object, int]:
    """Return the value that begins at a place, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        line, column = _position(text, error.pos)
        raise DataError(f"{path} line {line}, column {column}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise DataError(f"{path} line {_position(text, at)[0]}: cannot be read: {error}") from error


def _skip(text: str, at: int) -> int:
    """Return where the white space of JSON at a place ends."""
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _position(text: str, at: int) -> tuple[int, int]:
    """Return line and column, counted from 1, whatever ends the lines."""
    ends = [found.end() for found in _LINE_END.finditer(text, 0, at)]
    return len(ends) + 1, at - (ends[-1] if ends else 0) + 1


def _csv(path: Path) -> list[Row]:
    with _fields_of_any_length():
        reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        rows: list[Row] = []
        header: list[str] = []
        first_line = 1
        try:
            for fields in reader:
                if not header:
                    header = fields
                    _check_header(header, f"{path} line {first_line}")
                elif fields and len(fields) != len(header):
                    raise DataError(
                        f"{path} line {first_line}: found {len(fields)} values; the header has {len(header)}"
                    )
                elif fields:  # a blank line has none
                    rows.append(dict(zip(header, fields, strict=True)))
                first_line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path} line {first_line}: no valid CSV: {error}") from error
    return rows


def _check_header(header: list[str], where: str) -> None:
    for number, name in enumerate(header, start=1):
        if (earlier := header.index(name) + 1) != number:
            raise DataError(f"{where}: columns {earlier} and {number} of the header have the same name")


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Lift the limit of the csv module, which knows only one for the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        return list(parquet.read_table(path).to_pylist())
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from error


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where} is no object but {type(row).__name__}; expected {{column: value, ...}}")
    return row
