"""``latentmas grade``: grade stored answers again, without a model."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, cast

import typer
from rich.console import Console

from latentmas.cli._pace import Pace
from latentmas.cli._terminal import progress, sigterm_interrupts, warnings_shown
from latentmas.cli.run import FAILED, INTERRUPTED, say, tell_idle
from latentmas.errors import CapabilityError, ConfigError, StoreError, UnknownNameError
from latentmas.experiment import report
from latentmas.experiment.grading import Grading
from latentmas.protocols import Task
from latentmas.samples import AnswerKind, Score, Verdict


def command(
    answers: Annotated[
        Path, typer.Argument(metavar="RUN_FOLDER | FILE.jsonl", help="A run, or a file with one answer per line.")
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="File for the new scores. Default: grades.jsonl in a run folder; stdout for a file."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Processes that check code; 0 is half of the cores.")
    ] = 0,
    grading: Annotated[
        str | None,
        typer.Option(
            "--grading", help="Code: strict, or hub (the published test as it is; forgeable). Default: as in the run."
        ),
    ] = None,
    math_verify: Annotated[
        bool | None,
        typer.Option("--math_verify", help="Numbers: let math-verify look at boxes that are no plain number."),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="Rows of a run whose records leave texts out (gpqa).")
    ] = None,
    code_exec: Annotated[
        str, typer.Option("--code_exec", help="How code is confined: auto, bwrap, landlock or rlimit.")
    ] = "auto",
    allow_unsafe_code_exec: Annotated[
        bool, typer.Option("--allow_unsafe_code_exec", help="Also where only rlimit works.")
    ] = False,
) -> int:
    """Grade stored answers again, without a model.

    A line of FILE.jsonl is an object with id, task, output and target, and where the task needs them finish_reason
    (stop or length), labels, options and entry_point. For code the target is the text of the test.

    A line of the output has id, verdict (correct, wrong, no_answer, timeout, crashed), prediction, found_by, detail.

    [bold]A run again, after a grader was mended, or whose code was not executed:[/bold]

      latentmas grade runs/first

    [bold]Answers of any model:[/bold]

      latentmas grade answers.jsonl --output scores.jsonl
    """
    console = Console(stderr=True)
    if grading not in {None, "strict", "hub"}:
        raise UnknownNameError("way of grading", str(grading), ("strict", "hub"))
    if code_exec == "off":
        raise CapabilityError("--code_exec off grades no code; leave it out, or name another way")
    from latentmas.experiment import compose, regrade
    from latentmas.experiment.config import default_cache_folder

    stored = regrade.read_stored(answers, dataset=dataset)
    if stored.ignored:
        say(console, f"ignored keys of {answers}: {', '.join(stored.ignored)}")
    if stored.failed:
        say(console, f"{stored.failed} samples ended with an error and have no answer to grade")

    def grading_of(task: Task) -> Grading:
        return compose.grading_for(
            task,
            code_exec=code_exec,
            allow_unsafe_code_exec=allow_unsafe_code_exec,
            grading=cast("Literal['strict', 'hub']", grading or stored.options.get("grading", "strict")),
            math_verify=bool(stored.options.get("math_verify", False) if math_verify is None else math_verify),
            workers=workers,
            cache_folder=default_cache_folder(),
        )

    if output is None and answers.is_dir():
        output = answers / "grades.jsonl"
    if output is not None:
        _refuse_to_overwrite(output, answers)
    plan = regrade.plan(stored.answers, grading_of)
    given = {
        "dataset": dataset is not None,
        "math_verify": math_verify is not None,
        "grading": grading is not None,
        "workers": workers != 0,
        "code_exec": code_exec != "auto",
        "allow_unsafe_code_exec": allow_unsafe_code_exec,
    }
    tasks = [compose.find_task(name) for name in plan.gradings]
    _tell_what_is_idle(console, given, tasks, reads_rows=stored.reads_rows)
    ungraded = 0
    tally = report.Tally()
    changed: Counter[tuple[Verdict | None, Verdict]] = Counter()
    try:
        with (
            sigterm_interrupts(),
            warnings_shown(console),
            _lines(output) as write,
            progress(console, Pace(total=len(stored.answers), past="graded")) as pace,
        ):
            for answer, graded in plan.grade():
                if (score := graded.score) is None:
                    ungraded += 1
                    continue
                write({"id": answer.id, **_fields(score)})
                tally.add(answer.task, score)
                changed[answer.before, score.verdict] += answer.before is not score.verdict
                pace.answered()
                pace.graded(score.verdict)
    except KeyboardInterrupt:
        say(console, "interrupted; the scores so far are written, and the same command begins anew")
        return INTERRUPTED
    Console(stderr=output is None).print(tally.table())
    if answers.is_dir():
        _say_changes(console, changed)
    if output is not None:
        say(console, f"scores are in {output}")
    if ungraded:
        say(console, f"{ungraded} answers could not be graded here and have no line; try again when there is room")
    return FAILED if ungraded or not stored.answers else 0


def _tell_what_is_idle(console: Console, given: dict[str, bool], tasks: Sequence[Task], *, reads_rows: bool) -> None:
    kinds = {task.answer_kind for task in tasks if task.scorer is None}
    idle = {name: "none of these answers is code" for name in given if AnswerKind.CODE not in kinds}
    idle["dataset"] = "" if reads_rows else "the answers hold all that grading needs"
    idle["math_verify"] = "" if AnswerKind.NUMBER in kinds else "none of these answers is a number"
    for reason in filter(None, dict.fromkeys(idle.values())):
        tell_idle(console, {name: given[name] for name, why in idle.items() if why == reason}, reason)


def _say_changes(console: Console, changed: Counter[tuple[Verdict | None, Verdict]]) -> None:
    for (before, now), count in sorted(changed.items(), key=str):
        if count:
            say(console, f"{count} x {before or 'not graded'} -> {now}")


def _fields(score: Score) -> dict[str, str | None]:
    return {
        "verdict": score.verdict.value,
        "prediction": score.prediction,
        "found_by": score.found_by,
        "detail": score.detail,
    }


def _refuse_to_overwrite(output: Path, answers: Path) -> None:
    """Refuse an output that would take the place of what is graded."""
    kept = [answers / name for name in ("records.jsonl", "manifest.json", "summary.json")] if answers.is_dir() else []
    if output.resolve() in {path.resolve() for path in (answers, *kept)}:
        raise ConfigError(f"--output {output} is what the answers come from; name another file")


@contextmanager
def _lines(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that writes one object per line, at once, into a file or to stdout.

    A file that was there is replaced when the first line is written, not before.
    """
    file: TextIO | None = sys.stdout if path is None else None
    where = "stdout" if path is None else str(path)

    def write(line: dict[str, Any]) -> None:
        nonlocal file
        try:
            if file is None:
                assert path is not None
                path.parent.mkdir(parents=True, exist_ok=True)
                file = path.open("w", encoding="utf-8")
            file.write(json.dumps(line) + "\n")
            file.flush()
        except OSError as error:
            raise StoreError(f"cannot write {where}: {error.strerror}; choose another --output") from error

    try:
        yield write
    finally:
        if file is not None and file is not sys.stdout:
            with suppress(OSError):  # what could not be written has been said
                file.close()
