"""The scratch folder of one run: made, measured and removed, whatever the program put into it."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

REMOVAL_TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """The folders of one run.

    Attributes:
        root: Holds the rest; only its owner can enter it.
        folder: Where the program may write.
        packages: Folder of links to the packages it may import.
    """

    root: str
    folder: str
    packages: str


@contextmanager
def scratch(packages: tuple[str, ...]) -> Iterator[Scratch]:
    """Give a scratch folder and remove it with all it holds."""
    root = os.path.realpath(tempfile.mkdtemp(prefix="latentmas-sandbox-"))
    try:
        made = Scratch(root=root, folder=f"{root}/scratch", packages=f"{root}/packages")
        os.mkdir(made.folder, 0o700)
        os.mkdir(made.packages, 0o700)
        for path in packages:
            os.symlink(path, f"{made.packages}/{os.path.basename(path)}")
        yield made
    finally:
        _remove_persistently(root)


def excess(folder: str, *, max_bytes: int, max_files: int) -> str | None:
    """Return in words what is too much in a folder, or None. Stops counting where it is clear."""
    files = total = 0
    pending = [folder]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    files += 1
                    total += status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
                    if files > max_files:
                        return too_many_files(max_files)
                    if total > max_bytes:
                        return too_many_bytes(max_bytes)
        except FileNotFoundError:
            continue
        except OSError:
            # A folder that may not be listed, or whose path is too long to be given, would hide what it holds.
            return "a folder in the scratch folder that cannot be counted"
    return None


def too_many_files(limit: int) -> str:
    return f"more than {limit} files in the scratch folder"


def too_many_bytes(limit: int) -> str:
    return f"more than {limit} bytes in the scratch folder"


def _remove_persistently(root: str) -> None:
    """Remove a folder; at the weakest level something may still write into it for a moment."""
    names = count()
    for attempt in count(1):
        try:
            _remove(root, names)
            return
        except OSError:
            if attempt == REMOVAL_TRIES:
                raise
            time.sleep(0.01)


def _remove(root: str, names: Iterator[int]) -> None:
    """Remove a folder however deep it is and whatever permissions it has.

    Folders are moved up beside each other before they are emptied, so no path gets long and nothing recurses.
    """
    while folders := _emptied_of_files(root):
        for folder in folders:
            for inner in _emptied_of_files(folder):
                os.rename(inner, f"{root}/moved-{next(names)}")
            os.rmdir(folder)
    os.rmdir(root)


def _emptied_of_files(folder: str) -> list[str]:
    """Remove the files of a folder and return its folders, which can now be moved and listed."""
    with os.scandir(folder) as listing:
        entries = list(listing)
    folders = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)
            folders.append(entry.path)
        else:
            os.unlink(entry.path)
    return folders
