"""What a terminal shows while a run works. Imported only where there is one: what it needs takes a while to load."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final, final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from latentmas.cli._pace import Pace

INDENT: Final = 2
NARROWEST_BAR: Final = 8
WIDEST_BAR: Final = 40


@final
class Shown:
    """Two lines for a terminal of any width: a bar and what is done, and below it what is being done."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._spinner = Spinner("dots")
        self._began = time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pace, width = self._pace, options.max_width
        elapsed = str(timedelta(seconds=int(time.monotonic() - self._began)))
        state, doing = pace.state(), pace.doing()
        if len(doing) > width - INDENT:
            doing = pace.doing(width - INDENT)
            # The line above has room for the rate, at the cost of the bar.
            if (rate := pace.rate()) and len(with_rate := f"{state}, {rate}") + len(elapsed) + 4 <= width:
                state = with_rate
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [self._spinner]
        room = width - len(state) - len(elapsed) - 4
        if room >= NARROWEST_BAR:
            cells.append(ProgressBar(total=pace.total, completed=pace.done, width=min(room, WIDEST_BAR)))
        cells.append(Text(state, no_wrap=True, overflow="ellipsis"))
        if room >= 0:
            cells.append(Text(elapsed, style="progress.elapsed"))
        line.add_row(*cells)
        yield line
        if doing:
            yield Text(" " * INDENT + doing, no_wrap=True, overflow="ellipsis")
