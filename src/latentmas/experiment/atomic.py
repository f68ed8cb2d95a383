"""Replacing a file as a whole: a reader sees the old content or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from latentmas.errors import StoreError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write; at the end it takes the place of `path`, on disk and not just in the page cache.

    When anything goes wrong, `path` is as it was.

    Raises:
        StoreError: The folder cannot be written, or the disk is full.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StoreError(f"cannot write {path}: {error.strerror}; make room or choose another folder") from error
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def _sync_folder(folder: Path) -> None:
    # The new name is an entry of the folder and needs its own sync; Windows has no such thing.
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
