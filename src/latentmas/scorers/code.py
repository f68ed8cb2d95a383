"""Grades programs: the entry point is called in a confined process that never learns what is expected.

A program is found in the answer (`_code_extract`) and runs beside a driver that writes down what each call returns
(`_code_driver`), as plain values. Here, in the parent, these are compared with what the test expects (`_code_judge`),
so that a program cannot grade itself. ``--grading hub`` is the exception: it runs the published test beside the
answer, as published numbers were made, and a program that sets out to pass will.
"""

from __future__ import annotations

import marshal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from latentmas.samples import Answer, Sample, Score, Verdict
from latentmas.sandbox import Ending, Level, Limits, Outcome, SandboxError, execute
from latentmas.scorers._code_expected import Prepared, driver, prepare
from latentmas.scorers._code_extract import Extracted, extract
from latentmas.scorers._code_judge import Judge, most_output
from latentmas.scorers._code_limits import cpu_seconds, wall_seconds
from latentmas.scorers._code_needed import needed_part
from latentmas.scorers._hub_tests import digest, entry_point_of, parse_test, program

TRIES: Final = 3
"""How often a confined process is started that cannot be set up."""
LONGEST_DETAIL: Final = 300
_FORGEABLE: Final = "hub test, forgeable"
_LEAST_OUTPUT_LIMIT: Final = 64 * 1024 * 1024


def check_target(sample: Sample) -> None:
    """Check that answers can be graded against the test of a sample.

    Raises:
        DataError: They cannot.
    """
    parse_test(sample.target, sample.entry_point)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeScorer:
    """Grades programs against the text of a test.

    Attributes:
        level: How programs are confined; never off.
        grading: ``strict``, or ``hub``: the published test beside the answer, forgeable.
        cache_folder: Where results of reference solutions are kept; None keeps them in memory only.
    """

    level: Level
    grading: Literal["strict", "hub"] = "strict"
    cache_folder: Path | None = None

    def __call__(self, answer: Answer, sample: Sample) -> Score:
        """Grade an answer.

        Raises:
            DataError: The test cannot be read, or its reference fails.
            SandboxError: The confined process could not be set up; nothing is known of the program.
            StoreError: The cache folder cannot be written.
        """
        return self._strict(answer, sample) if self.grading == "strict" else self._as_published(answer, sample)

    def _strict(self, answer: Answer, sample: Sample) -> Score:
        test = parse_test(sample.target, sample.entry_point)
        found = extract(answer.text, test.entry_point)
        if found is None:
            return Score(verdict=Verdict.NO_ANSWER, prediction=None)
        prepared = prepare(test, level=self.level, cache_folder=self.cache_folder)
        run = self._run(prepared, found.code)
        # What the function does not need, such as a wrong assertion of the model's own below it, decides nothing.
        if run.failed_early and (needed := needed_part(found.code, test.entry_point)) is not None:
            again = self._run(prepared, needed)
            if again.verdict is Verdict.CORRECT:
                return _score(found, again.verdict, f"but for statements of its own that failed: {run.detail}")
        return _score(found, run.verdict, run.detail)

    def _run(self, prepared: Prepared, code: str) -> _Run:
        """Run a program and compare what its calls return."""
        for attempt in range(TRIES):
            judge = Judge(prepared)
            try:
                outcome = execute(
                    driver(),
                    prepared.payload(code),
                    level=self.level,
                    limits=_limits(prepared.test.digest, output_bytes=most_output(prepared)),
                    # What is not there to be read need not be made ready, which takes some of the time of a short run.
                    packages=("numpy",) if "numpy" in code else (),
                    on_output=judge.feed,
                )
                break
            except SandboxError:  # the machine may be out of processes or memory for a moment
                if attempt == TRIES - 1:
                    raise
                time.sleep(1 + attempt)
        return _Run(*judge.conclude(outcome), judge.failed_early)

    def _as_published(self, answer: Answer, sample: Sample) -> Score:
        entry_point = entry_point_of(sample.target, sample.entry_point)
        found = extract(answer.text, entry_point)
        if found is None:
            return Score(verdict=Verdict.NO_ANSWER, prediction=None, detail=_FORGEABLE)
        said: list[bytes] = []

        def listen(output: bytes) -> bool:
            said.append(output)
            return True

        outcome = execute(
            driver(),
            marshal.dumps((program(found.code, sample.target, entry_point), entry_point, (), False)),
            level=self.level,
            limits=_limits(digest(sample.target), output_bytes=0),
            on_output=listen,
        )
        verdict, why = _exit(outcome, b"".join(said))
        return _score(found, verdict, f"{_FORGEABLE}: {why}" if why else _FORGEABLE)


class _Run(NamedTuple):
    """How a program did, and whether it failed before any call of it had returned."""

    verdict: Verdict
    detail: str | None
    failed_early: bool


def _score(found: Extracted, verdict: Verdict, detail: str | None) -> Score:
    short = detail if detail is None or len(detail) <= LONGEST_DETAIL else detail[: LONGEST_DETAIL - 3] + "..."
    return Score(verdict=verdict, prediction=found.code, found_by=found.found_by, detail=short)


def _limits(test: str, *, output_bytes: int) -> Limits:
    cpu = cpu_seconds(test)
    return Limits(
        cpu_seconds=cpu,
        wall_seconds=wall_seconds(cpu),
        # The judge ends a run before this does.
        output_bytes=max(_LEAST_OUTPUT_LIMIT, 2 * output_bytes),
    )


def _exit(outcome: Outcome, said: bytes) -> tuple[Verdict, str]:
    """Return what the end of a published test means."""
    why = said[:500].decode(errors="replace").strip().lstrip("!")
    match outcome.ending:
        case Ending.DONE:
            return Verdict.CORRECT, ""
        case Ending.TIMEOUT:
            return Verdict.TIMEOUT, outcome.detail
        case _ if why.startswith('["AssertionError"'):
            return Verdict.WRONG, why
    return Verdict.CRASHED, why or outcome.detail
