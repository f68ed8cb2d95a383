"""What a person sees on stderr while a run works: messages, warnings and progress."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from rich.console import Console

from latentmas.samples import Verdict

SPEAK_THEMSELVES = frozenset({"huggingface_hub", "transformers", "datasets"})
"""Libraries whose loggers bring a handler of their own; showing their records again would double them."""
PLAIN_SECONDS = 10.0
"""Time between two progress lines where stderr is no terminal."""


@contextmanager
def warnings_shown(console: Console) -> Iterator[None]:
    """Show log records of level warning and above, and Python's warnings, on `console`."""
    from rich.logging import RichHandler

    handler = RichHandler(logging.WARNING, console=console, show_time=False, show_path=False)
    handler.addFilter(lambda record: record.name.partition(".")[0] not in SPEAK_THEMSELVES)
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)


def silence_transformers() -> None:
    """Turn off the progress bars and load reports of transformers, if something has imported it."""
    if (library := sys.modules.get("transformers")) is not None:
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does. Does nothing outside of the main thread."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def progress(
    console: Console, *, total: int, finished: int, correct: int
) -> Iterator[Callable[[Verdict | None], None]]:
    """Show how far the work is; call what it gives with the verdict of each new answer.

    Args:
        finished: Samples that earlier sessions finished; they count for the accuracy and not for the rate.
        correct: How many of those are correct.
    """
    pace = _Pace(total=total, finished=finished, correct=correct)
    if not console.is_terminal:
        yield _plain_lines(console, pace)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(pace.line(), total=total, completed=finished)

        def show(verdict: Verdict | None) -> None:
            pace.add(verdict)
            bar.update(task, completed=pace.finished, description=pace.line())

        yield show


def _plain_lines(console: Console, pace: _Pace) -> Callable[[Verdict | None], None]:
    last = time.monotonic()

    def show(verdict: Verdict | None) -> None:
        nonlocal last
        pace.add(verdict)
        if (now := time.monotonic()) - last >= PLAIN_SECONDS or pace.finished == pace.total:
            last = now
            console.print(pace.line(), highlight=False, soft_wrap=True)

    return show


@dataclass(slots=True, kw_only=True)
class _Pace:
    """How many samples are done, how well and how fast."""

    total: int
    finished: int
    correct: int
    fresh: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, verdict: Verdict | None) -> None:
        self.finished += 1
        self.fresh += 1
        self.correct += verdict is Verdict.CORRECT

    def line(self) -> str:
        """Return for example ``120/300 done, 83.3 % correct, 2.1 s each, 6 min left``."""
        done = f"{self.finished}/{self.total} done"
        if self.finished:
            done += f", {100 * self.correct / self.finished:.1f} % correct"
        if not self.fresh:
            return done
        each = (time.monotonic() - self.started) / self.fresh
        rate = f"{each:.1f} s each" if each >= 1 else f"{1 / max(each, 1e-6):.1f} per second"
        return f"{done}, {rate}, {_duration(each * (self.total - self.finished))} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
