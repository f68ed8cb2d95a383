"""Which errors were shown with their traceback, so that a fault is shown once however many samples it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import final


def place_of(error: BaseException) -> str:
    """Return the file and line an error was raised in, such as ``mine.py line 3``."""
    file, line = _place(error)
    return f"{Path(file).name} line {line}" if file else "nowhere"


def _place(error: BaseException) -> tuple[str, int]:
    trace, file, line = error.__traceback__, "", 0
    while trace is not None:
        file, line, trace = trace.tb_frame.f_code.co_filename, trace.tb_lineno, trace.tb_next
    return file, line


@final
class Told:
    """Remembers faults by their class and the line they were raised in."""

    def __init__(self) -> None:
        self._places: set[tuple[str, str, int]] = set()

    def first(self, error: BaseException) -> bool:
        """Whether this fault is shown for the first time; from now on it counts as shown."""
        place = (type(error).__qualname__, *_place(error))
        if place in self._places:
            return False
        self._places.add(place)
        return True
