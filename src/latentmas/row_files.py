"""Files of rows: JSON, JSONL, CSV and Parquet become lists of rows, and nothing else does.

What cannot be read is a `DataError` that says where in the file, and shows none of it: the makers of some data
sets ask for that.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from latentmas.errors import DataError
from latentmas.protocols import Row

SUFFIXES: Final = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")


def read_rows(path: str | Path) -> list[Row]:
    """Return the rows of a local file, in their order.

    ``.json`` is a list of objects or ``{"data": [...]}``; ``.jsonl`` or ``.jsonl.gz`` is one object per line,
    and blank lines are skipped. ``.csv`` begins with a header; all its values are texts.

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
    elif name.endswith(".json"):
        rows = _json(path)
    elif name.endswith(".csv"):
        rows = _csv(path)
    else:
        rows = _json_lines(path)
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
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {content[error.start]:#04x} at offset {error.start}") from error


def _json(path: Path) -> list[Row]:
    text = _text(path)
    if not text.strip():
        raise DataError(f"{path} is empty; expected a list of rows")
    document = _parse(text, path, first_line=1)
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise DataError(f'{path} holds no list of rows; expected [...] or {{"data": [...]}}')
    return [_object(row, f"{path} row {index}") for index, row in enumerate(rows)]


def _json_lines(path: Path) -> list[Row]:
    # Not splitlines(): a text in JSON may hold U+2028 and its like as they are.
    lines = enumerate(_text(path).split("\n"), start=1)
    return [
        _object(_parse(line, path, first_line=number), f"{path} line {number}")
        for number, line in lines
        if line.strip()
    ]


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


def _parse(text: str, path: Path, first_line: int) -> object:
    try:
        document: object = json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        hint = "; one object per line belongs into a .jsonl file" if error.msg == "Extra data" else ""
        raise DataError(f"{path} line {line}, column {error.colno}: not JSON: {error.msg}{hint}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise DataError(f"{path} line {first_line}: cannot be read: {error}") from error
    return document


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where} is no object but {type(row).__name__}; expected {{column: value, ...}}")
    return row
