"""What each call of a test is compared with: listed in the test, or returned by its reference in the sandbox."""

from __future__ import annotations

import hashlib
import json
import marshal
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Final

from latentmas.errors import DataError, StoreError
from latentmas.sandbox import Ending, Level, Limits, execute
from latentmas.scorers._code_compare import SameSet
from latentmas.scorers._code_limits import MOST_SECONDS, wall_seconds
from latentmas.scorers._code_lines import Line, Lines, value_digest
from latentmas.scorers._code_wire import Unplain, UnreadableError, decode, encode, largest_collection
from latentmas.scorers._hub_tests import REFERENCE, HubTest

_FORMAT: Final = 1
_MOST_OUTPUT: Final = 8 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is expected of one call.

    Attributes:
        size: Bytes of its text.
        line: Its text, as the driver writes it; None where that is large, and then there are digests instead.
        line_digest: Of the text.
        value_digest: The same for all equal values; None where the text is too large to be read.
        members: Of the largest set or dictionary in it; 0 where the text is kept.
    """

    size: int
    line: bytes | None = None
    line_digest: str | None = None
    value_digest: str | None = None
    members: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A test made ready for many answers.

    Attributes:
        calls: The arguments of each call, as the driver reads them.
        size: Bytes of all that is expected.
    """

    test: HubTest
    calls: tuple[bytes, ...]
    wanted: tuple[Wanted, ...]
    size: int

    def expected(self, call: int) -> object:
        """Return what a call should return; only where its text is kept."""
        if self.test.expected is not None:
            return self.test.expected[call]
        line = self.wanted[call].line
        assert line is not None
        return decode(line[1:])

    def payload(self, code: str) -> bytes:
        """Return what the driver is given: the program and its calls, and nothing of what is expected."""
        iterators = any(isinstance(oracle, SameSet) for oracle in self.test.oracles)
        return marshal.dumps((code, self.test.entry_point, self.calls, iterators))


@cache
def driver() -> str:
    """Return the text of the driver."""
    return resources.files("latentmas.scorers").joinpath("_code_driver.py").read_text(encoding="utf-8")


@lru_cache(maxsize=4)
def prepare(test: HubTest, *, level: Level, cache_folder: Path | None) -> Prepared:
    """Make a test ready. Where a reference says what is expected it runs once, or not at all where it has run before.

    Args:
        cache_folder: Where results of references are kept; None keeps them in memory only.

    Raises:
        DataError: The reference fails, or returns what is no plain value.
        StoreError: The folder cannot be written.
    """
    calls = tuple(marshal.dumps(arguments) for arguments in test.inputs)  # type: ignore[arg-type]  # literals only
    if test.expected is not None:
        lines = [b"=" + encode(expected) for expected in test.expected]
        wanted = tuple(Wanted(size=len(line), line=line) for line in lines)
    else:
        wanted = _by_reference(test, calls, level=level, cache_folder=cache_folder)
    return Prepared(test=test, calls=calls, wanted=wanted, size=sum(one.size for one in wanted))


def _by_reference(
    test: HubTest, calls: Sequence[bytes], *, level: Level, cache_folder: Path | None
) -> tuple[Wanted, ...]:
    path = None if cache_folder is None else cache_folder / f"{test.digest}.jsonl"
    if path is not None and (stored := _load(path, len(calls))) is not None:
        return stored
    wanted = _run_reference(test, calls, level)
    if path is not None:
        _store(path, wanted)
    return wanted


def _run_reference(test: HubTest, calls: Sequence[bytes], level: Level) -> tuple[Wanted, ...]:
    lines = Lines()
    wanted: list[Wanted] = []

    def collect(output: bytes) -> bool:
        for line in lines.feed(output):
            wanted.append(_wanted(line, test, len(wanted)))
        return True

    outcome = execute(
        driver(),
        marshal.dumps((test.reference, REFERENCE, tuple(calls), False)),
        level=level,
        limits=Limits(cpu_seconds=MOST_SECONDS, wall_seconds=wall_seconds(MOST_SECONDS), output_bytes=_MOST_OUTPUT),
        on_output=collect,
    )
    if outcome.ending is not Ending.DONE or len(wanted) != len(calls):
        raise _broken(test, len(wanted), outcome.detail or outcome.ending.value)
    return tuple(wanted)


def _wanted(line: Line, test: HubTest, call: int) -> Wanted:
    if line.content is not None and not line.content.startswith(b"="):
        raise _broken(test, call, line.content[:200].decode(errors="replace"))
    if line.digest is None:
        assert line.content is not None
        if isinstance(_read(line.content, test, call), Unplain):
            raise _broken(test, call, "it returns no plain value")
        return Wanted(size=line.size, line=line.content)
    if line.content is None:
        return Wanted(size=line.size, line_digest=line.digest)
    value = _read(line.content, test, call)
    return Wanted(
        size=line.size,
        line_digest=line.digest,
        value_digest=value_digest(value),
        members=largest_collection(value),
    )


def _read(content: bytes, test: HubTest, call: int) -> object:
    try:
        return decode(content[1:])
    except UnreadableError as error:
        raise _broken(test, call, str(error)) from error


def _broken(test: HubTest, call: int, why: str) -> DataError:
    return DataError(
        f"the reference in the test of {test.entry_point} fails in call {call + 1} of {len(test.inputs)}: {why}; "
        "--grading hub runs the test as it is"
    )


def _load(path: Path, calls: int) -> tuple[Wanted, ...] | None:
    """Return what was stored; None where nothing is, or it is damaged or of another version."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        lines = body.split(b"\n")[:-1]
        if json.loads(head) != _head(body) or len(lines) != calls:
            return None
        return tuple(
            Wanted(size=len(line), line=line) if line.startswith(b"=") else Wanted(**json.loads(line)) for line in lines
        )
    except (OSError, ValueError, TypeError):
        return None


def _store(path: Path, wanted: Sequence[Wanted]) -> None:
    body = b"".join((one.line if one.line is not None else json.dumps(asdict(one)).encode()) + b"\n" for one in wanted)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".draft")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(_head(body)).encode() + b"\n" + body)
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; make room or choose another folder") from error


def _head(body: bytes) -> dict[str, object]:
    return {"format": _FORMAT, "digest": hashlib.blake2b(body, digest_size=16).hexdigest()}
