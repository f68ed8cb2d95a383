"""What a person sees on stderr while a run works: messages, warnings and progress."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from rich.console import Console

from latentmas.cli._pace import Pace, Schedule

SPEAK_THEMSELVES = frozenset({"huggingface_hub", "transformers", "datasets"})
"""Libraries whose loggers bring a handler of their own; showing their records again would double them."""
SECONDS_BEFORE_WORD: Final = 8.0
SECONDS_BETWEEN_LOOKS: Final = 0.5


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
def announced(console: Console, sentence: str) -> Iterator[None]:
    """Say a sentence if the block takes so long that a person would wonder; a mistake is found sooner than that."""
    timer = threading.Timer(SECONDS_BEFORE_WORD, console.print, [sentence], {"highlight": False, "soft_wrap": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def progress(console: Console, pace: Pace) -> Iterator[Pace]:
    """Show how far the work is, from a thread of its own, while `pace` is told.

    A terminal has two lines that change in place. Anything else gets a line now and then, and one at the end.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        with _plain_lines(console, pace):
            yield pace
        if pace.fresh:
            _print_plain(console, pace)
        return
    from rich.live import Live

    from latentmas.cli._shown import Shown

    # An engine's processes begin while this runs; what they write to is not taken from them.
    with Live(Shown(pace), console=console, refresh_per_second=4, redirect_stdout=False, redirect_stderr=False):
        yield pace


@contextmanager
def _plain_lines(console: Console, pace: Pace) -> Iterator[None]:
    schedule, ended = Schedule(began=time.monotonic()), threading.Event()

    def speak() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            if schedule.due(time.monotonic()):
                _print_plain(console, pace)

    speaker = threading.Thread(target=speak, name="latentmas-progress", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        ended.set()
        speaker.join()


def _print_plain(console: Console, pace: Pace) -> None:
    line = "; ".join(filter(None, (pace.state(), pace.doing())))
    console.print(line, markup=False, highlight=False, soft_wrap=True)
