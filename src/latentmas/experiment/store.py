"""RunFolder: where a run keeps its manifest, its records and its summary.

A run can be killed at any instant and continued. What makes that true is all here: one writer at a time, one
whole line per finished sample, a torn last line is cut off, and nothing that is complete is ever touched.

    manifest.json     what was run, on what, by which code
    records.jsonl     one object per finished sample, in the order they finished
    summary.json      the numbers, written when a session ends
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, final

from filelock import FileLock, Timeout
from pydantic import ValidationError

from latentmas.errors import RunFolderError, StoreError
from latentmas.experiment.atomic import replace_text, replacing
from latentmas.experiment.manifest import (
    MUST_NOT_CHANGE,
    Environment,
    Manifest,
    RunIdentity,
    read_manifest,
    why_unreadable,
)
from latentmas.experiment.stats import Summary
from latentmas.samples import RECORD_SCHEMA, Record, Verdict

logger = logging.getLogger(__name__)

_NO_FILES_OF_ANYBODY: Final = frozenset(
    {".lock", ".owner", ".manifest.json.draft", ".DS_Store", "Thumbs.db", "desktop.ini"}
)
SYNC_SECONDS: Final = 1.0
"""How long a record may be in the page cache only: a killed process loses nothing, a power cut this much."""


@final
class RunFolder:
    """A locked run folder. Get one from `open`, call `begin` when the model is there, then `append`.

    Attributes:
        path: The folder.
        resumes: The run was begun by an earlier session.
    """

    def __init__(
        self, path: Path, identity: RunIdentity, *, lock: FileLock, manifest: Manifest | None, is_new: bool = False
    ) -> None:
        self.path = path
        self._is_new = is_new
        self._withdrawn = False
        self.resumes = manifest is not None
        self._identity = identity
        self._lock = lock
        self._manifest = manifest
        self._finished: dict[str, Verdict | None] = {}
        self._failed: set[str] = set()
        self._dropped: frozenset[str] = frozenset()
        self._descriptor: int | None = None
        self._size = 0
        self._synced = time.monotonic()

    @classmethod
    def open(cls, path: Path, identity: RunIdentity) -> RunFolder:
        """Create or lock the folder, and check that what is in it belongs to this run. Loads no model.

        Raises:
            RunFolderError: Another process has it, it holds another run or other files, or its records are damaged.
        """
        is_new = not path.exists()
        _refuse_other_files(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"cannot make the run folder {path}: {error.strerror}; choose another --output_dir"
            ) from error
        lock = _lock(path)
        try:
            manifest = read_manifest(path / "manifest.json")
            folder = cls(path, identity, lock=lock, manifest=manifest, is_new=is_new)
            if manifest is None:
                if folder.records_path.exists():
                    raise RunFolderError(f"{path} has records but no manifest.json; choose another --output_dir")
            elif change := manifest.difference(identity):
                raise RunFolderError(f"{path} {change}")
            folder._scan()
        except BaseException as error:
            _unlock(path, lock)
            if isinstance(error, OSError):
                raise RunFolderError(f"cannot use {error.filename or path}: {error.strerror}") from error
            raise
        return folder

    @property
    def records_path(self) -> Path:
        return self.path / "records.jsonl"

    @property
    def done_ids(self) -> frozenset[str]:
        """Samples that need no more work."""
        return frozenset(self._finished)

    @property
    def answered_ids(self) -> frozenset[str]:
        """Those of them that did not end with an error."""
        return frozenset(self._finished.keys() - self._failed)

    @property
    def retried(self) -> int:
        """How many samples that ended with an error are answered again."""
        return len(self._dropped)

    @property
    def correct(self) -> int:
        """How many of them are correct."""
        return sum(verdict is Verdict.CORRECT for verdict in self._finished.values())

    def begin(self, environment: Environment) -> None:
        """Write the manifest and get ready for records.

        Args:
            environment: What the loaded backend says of itself.

        Raises:
            RunFolderError: The earlier records were made with other weights.
            StoreError: The folder cannot be written.
        """
        if self._manifest is None:
            manifest = Manifest.new(self._identity, environment)
        else:
            for name in MUST_NOT_CHANGE:
                before, now = self._manifest.environment.get(name), environment.get(name)
                if before != now:
                    raise RunFolderError(
                        f"{self.path} holds another run: {name} was {before} and is now {now}; "
                        "choose another --output_dir"
                    )
            manifest = self._manifest.continued(self._identity, environment)
        manifest.write(self.path / "manifest.json")
        if self._dropped:
            self._rewrite_without(self._dropped)
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._descriptor = os.open(self.records_path, flags, 0o666)
        except OSError as error:
            raise StoreError(f"cannot write {self.records_path}: {error.strerror}") from error

    def append(self, record: Record) -> None:
        """Store one finished sample. When this returns, killing the process does not lose it.

        Raises:
            StoreError: The sample has a record already, or the record could not be written; all earlier ones
                are kept, and the file ends with a complete line.
        """
        assert self._descriptor is not None, "begin() comes before append()"
        if record.id in self._finished:
            raise StoreError(f"sample {record.id!r} already has a record in {self.records_path}")
        # ASCII only: no character of a model's text then looks like a line end to any reader.
        line = json.dumps(record.stored(), ensure_ascii=True).encode() + b"\n"
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            self._size += len(line)
            self._sync(after=SYNC_SECONDS)
        except BaseException as error:  # an interrupt between two writes leaves half a line, too
            with suppress(OSError):  # the next `open` cuts a torn line off anyway
                os.ftruncate(self._descriptor, self._size)
            if isinstance(error, OSError):
                raise self._not_stored(error) from error
            raise
        self._finished[record.id] = record.verdict
        if record.error is not None:
            self._failed.add(record.id)

    def records(self) -> Iterator[Record]:
        """Yield the stored records, oldest first, reading them one at a time."""
        return (record for _, record in _complete_lines(self.records_path))

    def write_summary(self, summary: Summary) -> None:
        replace_text(self.path / "summary.json", summary.model_dump_json(indent=2) + "\n")

    def withdraw(self) -> None:
        """Forget what run this is, if nothing is stored of it: another may have the folder, which goes if it is new.

        Does nothing to a run that an earlier session began and this one has not gone on with.
        """
        if self._finished or (self.resumes and self._descriptor is None):
            return
        for path in (self.path / "manifest.json", self.records_path):
            path.unlink(missing_ok=True)
        self._withdrawn = True

    def close(self) -> None:
        """Bring everything to the disk and let the folder go. May be called twice."""
        try:
            if self._descriptor is not None:
                try:
                    self._sync(after=0.0)
                except OSError as error:
                    raise self._not_stored(error) from error
                finally:
                    os.close(self._descriptor)
                    self._descriptor = None
        finally:
            if self._lock.is_locked:
                _unlock(self.path, self._lock)
                if self._withdrawn and self._is_new:
                    with suppress(OSError):  # something else lies in it
                        (self.path / ".lock").unlink(missing_ok=True)
                        self.path.rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan(self) -> None:
        """Learn what is done; cut a torn last line off."""
        known = frozenset(self._identity.sample_ids)
        for number, (end, record) in enumerate(_complete_lines(self.records_path), start=1):
            if record.id in self._finished:
                raise RunFolderError(
                    f"{self.records_path} line {number}: a second record of sample {record.id!r}; "
                    "delete one of the two lines"
                )
            if record.id not in known:
                raise RunFolderError(f"{self.records_path} line {number}: {record.id!r} is no sample of this run")
            self._finished[record.id] = record.verdict
            self._size = end
            if record.error is not None:
                self._failed.add(record.id)
        if self.records_path.exists() and self.records_path.stat().st_size > self._size:
            logger.warning("%s ended in the middle of a line; that sample is answered again", self.records_path)
            os.truncate(self.records_path, self._size)
        if self._identity.config.retry_errors:
            self._dropped = frozenset(self._failed)
            self._failed.clear()
            for name in self._dropped:
                del self._finished[name]

    def _rewrite_without(self, dropped: frozenset[str]) -> None:
        with self.records_path.open("rb") as old, replacing(self.records_path) as new:
            for line in old:
                if json.loads(line)["id"] not in dropped:
                    new.write(line)
        self._size = self.records_path.stat().st_size

    def _sync(self, *, after: float) -> None:
        assert self._descriptor is not None
        if (now := time.monotonic()) - self._synced >= after:
            os.fsync(self._descriptor)
            self._synced = now

    def _not_stored(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write {self.records_path}: {error.strerror}; its {len(self._finished)} complete records "
            "are kept: make room and repeat the same command to go on"
        )


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a ``records.jsonl``, oldest first; a torn last line is left out.

    Raises:
        StoreError: A line in the middle is damaged, or is no record of this version. Names the line.
    """
    return (record for _, record in _complete_lines(path))


def _complete_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield each record with the offset of the end of its line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end = 0
        for number, line in enumerate(file, start=1):
            end += len(line)
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                content = None
            if content is None:
                if file.read(1):
                    raise RunFolderError(
                        f"{path} line {number} is damaged; restore the file, or delete the line to have its "
                        "sample answered again"
                    )
                return
            yield end, _record(content, f"{path} line {number}")


def _record(content: Mapping[str, object], where: str) -> Record:
    try:
        return Record.model_validate(content)
    except ValidationError as invalid:
        raise RunFolderError(f"{where} {why_unreadable(invalid, 'record', RECORD_SCHEMA)}") from None


def _refuse_other_files(path: Path) -> None:
    """Refuse a folder that holds files and no run, before anything is written into it.

    A run that was killed in its first instant leaves a lock and a draft; some systems leave files wherever they look.
    """
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError:
        return  # there is no such folder yet, or making it says what is wrong
    if "manifest.json" in names or "records.jsonl" in names:
        return
    if others := [name for name in names if name not in _NO_FILES_OF_ANYBODY]:
        raise RunFolderError(
            f"{path} is no run folder and holds other files, such as {others[0]}; choose another --output_dir, for "
            f"example {path / 'run'}"
        )


def _owner_path(folder: Path) -> Path:
    return folder / ".owner"


def _lock(folder: Path) -> FileLock:
    """Return the lock of the folder, held; the operating system frees it however this process ends."""
    lock = FileLock(folder / ".lock", blocking=False)
    owner = _owner_path(folder)
    try:
        lock.acquire()
        owner.write_text(f"process {os.getpid()} on {platform.node()}")
    except Timeout:
        who = (owner.read_text() if owner.exists() else "") or "another process"
        raise RunFolderError(
            f"{folder} is being written by {who}; wait for it, stop it, or choose another --output_dir"
        ) from None
    except OSError as error:
        lock.release()
        raise RunFolderError(f"cannot lock the run folder {folder}: {error.strerror}; choose another one") from error
    return lock


def _unlock(folder: Path, lock: FileLock) -> None:
    _owner_path(folder).unlink(missing_ok=True)
    lock.release()
