"""The first batch of a run: when all of it fails alike, the fault lies in the run and not in its samples."""

from __future__ import annotations

import re
from typing import Final, final

from latentmas.errors import RunStoppedError
from latentmas.samples import Record

_OF_THE_SAMPLE: Final = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")
"""Numbers and quotations in an error are of one sample: how long its prompt is, what it says."""


@final
class FirstBatch:
    """Holds errors back until a sample is answered, or fails in another way than those before.

    Args:
        size: Samples whose errors, all alike, end the run, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: list[Record] = []
        self._over = False

    def ready(self, record: Record) -> list[Record]:
        """Take a record and return those that may be stored now, in the order in which they came.

        Raises:
            RunStoppedError: The whole first batch failed alike; none of its records was returned.
        """
        if self._over:
            return [record]
        if record.error is None or (self._held and _kind(record) != _kind(self._held[0])):
            self._over = True
            return [*self._held, record]
        self._held.append(record)
        if len(self._held) < self._size:
            return []
        raise RunStoppedError(
            f"the first {self._size} samples failed alike, so the run stops and stores none of them: {record.error}"
            if self._size > 1
            else f"the first sample failed, so the run stops and does not store it: {record.error}"
        )


def _kind(record: Record) -> str:
    """Return what errors that are alike have in common."""
    return _OF_THE_SAMPLE.sub("", record.error or "")
