"""The verdict on a run, line by line as its output comes: the first call that goes wrong decides."""

from __future__ import annotations

import json
from typing import Final

from latentmas.samples import Verdict
from latentmas.sandbox import Ending, Outcome
from latentmas.scorers._code_expected import Prepared
from latentmas.scorers._code_lines import HELD, Line, Lines, value_digest
from latentmas.scorers._code_wire import UnreadableError, decode, largest_collection, shown

_LEAST_OUTPUT: Final = 1_000_000
_TIMES_EXPECTED: Final = 4
_EXITS: Final = ("SystemExit", "KeyboardInterrupt", "GeneratorExit")
_MOST_MEMBERS: Final = 100
"""A set or dictionary may always have so many members; with more, only as many as the largest one expected.

Their members may have been made to collide, and comparing them all takes quadratic time."""


def most_output(prepared: Prepared) -> int:
    """Return how many bytes an answer may write in all."""
    return max(_LEAST_OUTPUT, _TIMES_EXPECTED * prepared.size)


class Judge:
    """Takes in the output of one run.

    Attributes:
        verdict: None as long as nothing has gone wrong.
        detail: Why, for people; empty as long as nothing has gone wrong.
        raised: The exception that ended the run, as ``Name: message``; None where nothing did.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.verdict: Verdict | None = None
        self.detail = ""
        self.raised: str | None = None
        self._prepared = prepared
        self._lines = Lines()
        self._right = 0

    @property
    def failed_early(self) -> bool:
        """Whether the program ended by an exception, not by an exit of its own, before any call had returned."""
        return self._right == 0 and self.raised is not None and self.raised.partition(":")[0] not in _EXITS

    def feed(self, output: bytes) -> bool:
        """Take a piece of output; return whether more is of interest."""
        for line in self._lines.feed(output):
            self._take(line)
            if self.verdict is not None:
                return False
        if self._lines.size > most_output(self._prepared):
            self._decide(Verdict.WRONG, "more output than what is expected could need")
        return self.verdict is None

    def conclude(self, outcome: Outcome) -> tuple[Verdict, str | None]:
        """Return the verdict when the run has ended."""
        if self.verdict is None:
            match outcome.ending:
                case Ending.DONE if self._right == len(self._prepared.wanted) and not self._lines.unfinished():
                    return Verdict.CORRECT, None
                case Ending.TIMEOUT:
                    self._decide(Verdict.TIMEOUT, outcome.detail)
                case Ending.FLOOD:
                    self._decide(Verdict.WRONG, "more output than allowed")
                case _:
                    self._decide(Verdict.CRASHED, f"the program ended: {outcome.detail or 'exit status 0'}")
        assert self.verdict is not None
        return self.verdict, self.detail

    def _take(self, line: Line) -> None:
        calls = len(self._prepared.wanted)
        if self._right == calls:
            self._decide(Verdict.CRASHED, f"more than {calls} results", call=False)
        elif line.content is not None and line.content.startswith(b"!"):
            self.raised = _exception(line.content)
            self._decide(Verdict.CRASHED, self.raised)
        elif line.content is not None and not line.content.startswith(b"="):
            self._decide(Verdict.CRASHED, "the result cannot be read")
        elif (objection := self._objection(line)) is None:
            self._right += 1
        else:
            self._decide(Verdict.WRONG, objection)

    def _objection(self, line: Line) -> str | None:  # noqa: PLR0911
        """Return why a result is wrong; None where it is right."""
        wanted = self._prepared.wanted[self._right]
        oracle = self._prepared.test.oracles[self._right]
        if wanted.line is None and line.digest == wanted.line_digest:
            return None
        if line.content is None:
            return f"a result of more than {HELD} bytes"
        if line.size > _LEAST_OUTPUT + _TIMES_EXPECTED * wanted.size:
            return "a result much larger than what is expected"
        if oracle.same_is_right and line.content == wanted.line and b'{"r":"nan"}' not in line.content:
            return None
        expected = self._prepared.expected(self._right) if wanted.line is not None else None
        most_members = max(_MOST_MEMBERS, wanted.members, largest_collection(expected))
        try:
            result = decode(line.content[1:], most_members=most_members)
            digest = None if wanted.value_digest is None else value_digest(result)
        except UnreadableError as error:
            return f"the result cannot be read: {error}"
        except (RecursionError, MemoryError):  # deeper or larger than the driver ever writes
            return "the result cannot be read"
        if wanted.line is not None:
            right = oracle.holds(result, expected, self._prepared.test.inputs[self._right])
            return None if right else f"expected {oracle.wanted(expected)}, got {shown(result)}"
        # Compared without a tolerance: nobody keeps what a reference returned by the megabyte.
        right = digest is not None and digest == wanted.value_digest
        return None if right else f"expected another large value, got {shown(result)}"

    def _decide(self, verdict: Verdict, why: str, *, call: bool = True) -> None:
        calls = len(self._prepared.wanted)
        self.verdict = verdict
        self.detail = f"call {min(self._right + 1, calls)} of {calls}: {why}" if call else why


def _exception(line: bytes) -> str:
    try:
        match json.loads(line[1:5000]):
            case [str(name), str(message)]:
                return f"{name}: {message}" if message else name
    except (ValueError, RecursionError):
        pass
    return "an exception"
