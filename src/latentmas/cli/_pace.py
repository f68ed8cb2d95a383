"""How far a run is, how well it goes and how long it will take, as sentences.

Pure: knows no terminal and no thread, and is told the time.

A batch is over when its samples have their answers, so what is left is reckoned from whole batches. A backend whose
samples end one by one has no batches; there it is reckoned from the answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from latentmas.protocols import PREPARING, Phase, Progress
from latentmas.samples import Verdict

FIXED_SHARE: Final = 0.5
"""What of a batch's time does not depend on its rows. It decides what a smaller last batch is reckoned at: between
nothing (rows in turn) and all (rows side by side) this is off by no more than a half batch."""
FIRST_SECONDS: Final = 2.0
SECONDS: Final = 10.0
MOST_SECONDS: Final = 60.0
GROWTH: Final = 1.5
"""Plain lines: one after FIRST_SECONDS, the next after SECONDS, and ever more rarely up to MOST_SECONDS."""


@dataclass(slots=True, kw_only=True)
class Pace:
    """What is known of a run while it runs.

    Attributes:
        total: Samples of all runs.
        finished: Samples that earlier sessions finished; they count for the accuracy and not for the time left.
        correct: How many of those are correct.
        agents: Names of all agents of the method, in the order of their turns; empty where nobody knows.
        run: Samples of each run, where there are several; no batch holds samples of two.
        past: What happened to a sample, for the sentence.
        clock: Seconds from anywhere.
    """

    total: int
    finished: int = 0
    correct: int = 0
    agents: Sequence[str] = ()
    run: int = 0
    past: str = "answered"
    clock: Callable[[], float] = time.monotonic
    _answers: int = field(default=0, init=False)
    _grades: int = field(default=0, init=False)
    _judged: bool = field(default=False, init=False)
    _opened: float = field(default=0.0, init=False)
    _begun: float | None = field(default=None, init=False)
    _last: float = field(default=0.0, init=False)  # when the latest answer came
    _doing: Progress | None = field(default=None, init=False)
    _batches: int = field(default=0, init=False)  # that are over
    _before: int = field(default=0, init=False)  # answers when the batch that runs began
    _sizes: list[int] = field(default_factory=list, init=False)  # samples of the batches that are over
    _peak: int = field(default=0, init=False)  # most programs in flight, without batches
    _mark: tuple[float, int] = field(default=(0.0, 0), init=False)  # when the rate began, and tokens then
    _rate: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._opened = self.clock()
        self._judged = self.correct > 0

    def report(self, progress: Progress) -> None:
        """Take what the backend says it does."""
        now, before = self.clock(), self._doing
        self._doing = progress
        if progress.phase in PREPARING:
            return
        if self._begun is None:
            self._begun = now
        if before is not None and before.batch and self._is_over(before.batch):
            self._end_batch(before.batch)
        if progress.batch == 0:
            self._peak = max(self._peak, progress.going)
        same = before is not None and (before.phase, before.agents) == (progress.phase, progress.agents)
        # The first token of a text comes with its prompt, in no time.
        first = progress.phase is Phase.WRITING and progress.step <= 1
        if not same or first or progress.tokens < self._mark[1] or (before is not None and progress.step < before.step):
            self._mark, self._rate = (now, progress.tokens), 0.0
        elif now > self._mark[0]:
            self._rate = (progress.tokens - self._mark[1]) / (now - self._mark[0])

    def answered(self) -> None:
        """Count a sample that has its answer."""
        self._last = self.clock()
        if self._begun is None:
            self._begun = self._opened
        self._answers += 1

    def stored_before(self, verdict: Verdict | None) -> None:
        """Count a sample that an earlier session finished."""
        self.finished += 1
        self.correct += verdict is Verdict.CORRECT
        self._judged = self._judged or verdict is not None

    def graded(self, verdict: Verdict | None) -> None:
        """Count a sample whose record is stored."""
        self._grades += 1
        self.correct += verdict is Verdict.CORRECT
        self._judged = self._judged or verdict is not None

    @property
    def fresh(self) -> int:
        """Samples answered in this session."""
        return self._answers

    @property
    def done(self) -> int:
        """Samples answered in all sessions."""
        return self.finished + self._answers

    def state(self) -> str:
        """Return for example ``16 of 24 answered, 12 graded, 75.0 % correct, 3.5 min left``."""
        answered, stored = self.finished + self._answers, self.finished + self._grades
        parts = [f"{answered} of {self.total} {self.past}"]
        if stored < answered:
            parts.append(f"{stored} graded")
        if stored and self._judged:
            parts.append(f"{100 * self.correct / stored:.1f} % correct")
        if (left := self.seconds_left()) is not None:
            parts.append(f"{duration(left)} left")
        elif self._answers and answered == self.total:
            parts.append(self._each())
        return ", ".join(parts)

    def doing(self, width: int | None = None) -> str:
        """Return for example ``batch 2 of 7: critic 2 of 4, thought 12 of 20``; empty where nothing is known.

        Args:
            width: Columns there are, without the rate; what matters least goes first. None is without limit, with it.
        """
        progress = self._doing
        if self._answers and self.finished + self._answers >= self.total:
            return "grading" if self._grades < self._answers else ""
        if progress is None:
            return ""
        if progress.phase in PREPARING:
            return progress.phase.value
        head = self._place(progress)
        if progress.batch and self._is_over(progress.batch):
            return f"{head}{'grading' if self._grades < self._answers else 'done'}"
        who = self._who(progress.agents)
        parts = [who, *self._what(progress)]
        if width is None:
            parts.append(self.rate())
        parts = [part for part in parts if part]
        while width is not None and len(parts) > 1 and len(head + ", ".join(parts)) > width:
            parts.pop()
        return head + ", ".join(parts)

    def rate(self) -> str:
        """Return for example ``41 tokens/s``, of the text that is being written; empty where there is none."""
        if self._rate <= 0:
            return ""
        return f"{self._rate:.0f} tokens/s" if self._rate >= 10 else f"{self._rate:.1f} tokens/s"

    def seconds_left(self) -> float | None:
        """Return the time the rest will take; None before anybody can know, and when nothing is left."""
        left = self.total - self.finished - self._answers
        if not left or not self._answers or self._begun is None:
            return None
        now, spent = self.clock(), self._last - self._begun
        batch = self._doing.batch if self._doing is not None else 0
        if not batch:
            if self._answers < min(self._peak, (left + self._answers) // 2):
                return None
            return max(spent / self._answers * left - (now - self._last), 0.0)
        # Where this is the last batch it may be smaller than the others were.
        size = batch if left > batch else max([batch, *self._sizes])
        # A batch whose answers have just come is over, though the next one has not begun.
        over = [*self._sizes, *([self._answers - self._before] if self._is_over(batch) else [])]
        if not over:
            return None
        each = spent / sum(_cost(samples, size) for samples in over)
        full, rest = self._batches_of(left, size)
        after = each * (full + sum(_cost(samples, size) for samples in rest))
        current = each * _cost(min(batch, left), size)
        # What is over its time may end at any moment; the batches after it take what they take.
        seconds = max(after - (now - self._last), after - current)
        return seconds if seconds >= 1 or left > batch else None

    def _is_over(self, batch: int) -> bool:
        """Whether the samples of the batch have their answers; a few that came to nothing early are no batch."""
        return self._answers > self._before and 2 * (self._answers - self._before) >= batch

    def _end_batch(self, batch: int) -> None:
        samples = self._answers - self._before
        self._sizes.append(samples)
        # Rows of a batch that was too large for the memory ran in several.
        self._batches += max(round(samples / batch), 1)
        self._before = self._answers

    def _batches_of(self, samples: int, size: int) -> tuple[int, list[int]]:
        """Return into how many full batches samples go, and how many the smaller ones have."""
        run = self.run or max(samples, 1)
        runs, first = divmod(samples, run)
        full = runs * (run // size) + first // size
        return full, [*([run % size] * runs if run % size else []), *([first % size] if first % size else [])]

    def _place(self, progress: Progress) -> str:
        if not progress.batch:
            return ""
        left = self.total - self.finished - self._before
        full, rest = self._batches_of(left, progress.batch)
        return f"batch {self._batches + 1} of {self._batches + max(full + len(rest), 1)}: "

    def _who(self, agents: Sequence[str]) -> str:
        if len(agents) > 1:
            return f"{len(agents)} of {len(self.agents)} agents" if self.agents else f"{len(agents)} agents"
        if not agents:
            return ""
        [name] = agents
        if name in self.agents and len(self.agents) > 1:
            return f"{name} {self.agents.index(name) + 1} of {len(self.agents)}"
        return name

    def _what(self, progress: Progress) -> list[str]:
        going = f"{progress.going} of {progress.rows} still going" if progress.rows > 1 else ""
        match progress.phase:
            case Phase.THINKING:
                return [f"thought {progress.step} of {progress.steps}" if progress.step else progress.phase.value]
            case Phase.WRITING:
                return [f"writing {progress.step} of {progress.steps}", going]
            case Phase.ANSWERING if progress.batch:
                return [progress.phase.value, going]
            case Phase.ANSWERING:
                return [f"{progress.going} requests going, {progress.rows - progress.going} finished"]
            case _:
                return [progress.phase.value]

    def _each(self) -> str:
        assert self._begun is not None
        each = (self._last - self._begun) / self._answers
        return f"{each:.1f} s each" if each >= 1 else f"{1 / max(each, 1e-6):.1f} per second"


@dataclass(slots=True, kw_only=True)
class Schedule:
    """When a line is due where stderr is no terminal: soon, then ever more rarely.

    Attributes:
        began: By the clock of whoever asks.
    """

    began: float
    _next: float = field(default=0.0, init=False)
    _gap: float = field(default=SECONDS, init=False)

    def __post_init__(self) -> None:
        self._next = self.began + FIRST_SECONDS

    def due(self, now: float) -> bool:
        """Whether to print a line now; whoever asks prints it then."""
        if now < self._next:
            return False
        self._next = now + self._gap
        self._gap = min(self._gap * GROWTH, MOST_SECONDS)
        return True


def duration(seconds: float) -> str:
    """Return a time for a person, never rounded by more than a twentieth from ten seconds on."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _cost(samples: int, size: int) -> float:
    """Return what a batch costs beside a full one."""
    full, rest = divmod(samples, size)
    return full + (FIXED_SHARE + (1 - FIXED_SHARE) * rest / size if rest else 0.0)
