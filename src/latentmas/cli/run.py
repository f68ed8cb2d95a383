"""``latentmas run``: answer a task's questions with one method, and print what came out.

stdout gets the results, and its last line is the published JSON object; everything else goes to stderr.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol

from rich.console import Console

from latentmas.cli import _options
from latentmas.cli._pace import Pace
from latentmas.cli._terminal import announced, progress, sigterm_interrupts, silence_transformers, warnings_shown
from latentmas.errors import LatentMASError, RunFolderError, RunStoppedError
from latentmas.experiment.config import ARTIFACTS, RunConfig

if TYPE_CHECKING:  # the rest is imported where it is used: --help needs none of it
    from latentmas.experiment.grading import Grading
    from latentmas.experiment.resolved import Meaning
    from latentmas.experiment.stats import Summary
    from latentmas.experiment.store import RunFolder
    from latentmas.program import Program
    from latentmas.protocols import Backend, Method, Report
    from latentmas.samples import Sample

INTERRUPTED: Final = 130
FAILED: Final = 1


class Experiment(Protocol):
    """Loaded weights with the method that goes with them."""

    @property
    def backend(self) -> Backend: ...
    @property
    def method(self) -> Method: ...


class Plan(Protocol):
    """A run that was checked and whose model is not loaded yet."""

    @property
    def config(self) -> RunConfig: ...
    @property
    def samples(self) -> tuple[Sample, ...]: ...
    @property
    def prompt_digest(self) -> str: ...
    @property
    def data_digest(self) -> str: ...
    @property
    def date(self) -> datetime.date | None: ...
    @property
    def grading(self) -> Grading: ...
    @property
    def withhold(self) -> bool: ...
    @property
    def remarks(self) -> Sequence[str]: ...
    @property
    def meaning(self) -> Meaning: ...
    @property
    def notes(self) -> Mapping[str, str | None]: ...
    def first_program(self) -> Program: ...
    def counts(self) -> str: ...
    def open(self, report: Report) -> Experiment: ...


def command(**options: object) -> int:
    """Answer the questions of a task with one method, and report accuracy and cost.

    An option that is not given takes what the task recommends, else what the
    model folder recommends, else the default shown here. Words may be joined
    by dashes or underscores, and --no_NAME turns a switch off.

    A run is a folder (--output_dir); the same command goes on where it stopped.

    [bold]The embedded model, offline:[/bold]

      latentmas run --method latent_mas --model_name tiny --task tiny

    [bold]What would be run, without loading weights:[/bold]

      latentmas run --method latent_mas --model_name Qwen/Qwen3-4B --dry_run

    [bold]A published cell (and again with baseline and text_mas):[/bold]

      latentmas run --method latent_mas --model_name Qwen/Qwen3-14B
        --task gsm8k --latent_steps 20 --prompt sequential --max_samples 100

    [bold]Words of your own for all agents (docs/prompts.md says what may stand in the file):[/bold]

      latentmas run --method text_mas --model_name Qwen/Qwen3-4B
        --task gsm8k --prompt examples/prompts.yaml --dry_run

    [bold]Does the memory matter? The same with another question's memory:[/bold]

      latentmas run --method latent_mas --model_name Qwen/Qwen3-14B
        --task gsm8k --max_samples 100 --control other_question
    """
    console = Console(stderr=True)
    config = RunConfig.from_options(_options.explicit(options))
    try:
        with sigterm_interrupts(), warnings_shown(console):
            from latentmas.experiment import compose, report

            with announced(console, "reading options, data and tokenizer"):
                plan = compose.check(config)
            if plan.config.dry_run:
                for remark in plan.remarks:
                    say(console, remark)
                print(f"{plan.first_program().describe()}\n{plan.counts()}")
                return 0
            summary = work(plan, console, plan.remarks)
    except KeyboardInterrupt:
        say(console, "interrupted; nothing that was stored is lost, and the same command goes on")
        return INTERRUPTED
    Console().print(report.table(summary))
    print(json.dumps(report.published(summary)), flush=True)
    return FAILED if summary.errors == summary.n else 0


# typer reads these two in place of ``**options``.
command.__signature__ = _options.run_signature()  # type: ignore[attr-defined]
command.__annotations__ = {
    name: parameter.annotation for name, parameter in _options.run_signature().parameters.items()
}


def work(plan: Plan, console: Console, remarks: Sequence[str] = ()) -> Summary:
    """Run what is left of a checked plan and return the numbers of the whole run; says on `console` how it goes.

    An interrupt ends it after the summary of what is there so far was written, and is raised again.

    Args:
        remarks: Said once it is certain that the run can be done.
    """
    from latentmas.experiment import runner
    from latentmas.experiment.grading import executor
    from latentmas.experiment.manifest import RunIdentity
    from latentmas.experiment.store import RunFolder

    config = plan.config
    identity = RunIdentity(
        config=config,
        prompt_digest=plan.prompt_digest,
        data_digest=plan.data_digest,
        sample_ids=tuple(sample.id for sample in plan.samples),
        date=plan.date,
        samples=plan.samples,
        meaning=plan.meaning,
        filter_digest=plan.notes.get("filter_digest"),
    )
    with RunFolder.open(config.folder, identity) as folder, ExitStack() as shown:
        waiting = [sample for sample in plan.samples if sample.id not in folder.done_ids]
        done, total = len(plan.samples) - len(waiting), len(plan.samples)
        state = f"goes on, {done} of {total} done" if folder.resumes else f"new run of {total} samples"
        late = _stored_too_late(config, folder)
        if late and not waiting:
            raise RunFolderError(f"{folder.path}: {late[0]}; leave it out, or choose another --output_dir")
        say(console, f"{folder.path}: {state}")
        for remark in remarks:
            say(console, remark)
        for sentence in late:
            say(console, f"{sentence}; they stay as they are, and another --output_dir would answer all with it")
        if config.retry_errors and not folder.retried:
            say(console, "--retry_errors has no effect: no sample has ended with an error")
        if not waiting:
            say(console, "every sample is done; the model was not loaded, so its weights were not compared")
            return _summed_up(folder, config, total, wall_seconds=0.0)
        silence_transformers()
        pace = shown.enter_context(progress(console, Pace(total=total, finished=done, correct=folder.correct)))
        try:
            experiment = plan.open(pace.report)
        except LatentMASError:
            folder.withdraw()
            raise
        pace.agents = tuple(experiment.method.roles)
        started = time.monotonic()
        try:
            folder.begin({**experiment.backend.environment(), **plan.notes})
            with executor(plan.grading.workers) as graders:
                runner.run(
                    waiting,
                    method=experiment.method,
                    backend=experiment.backend,
                    scorer=plan.grading.scorer,
                    graders=graders,
                    store=folder,
                    seed=config.seed,
                    save_ids=config.save_ids,
                    withhold=plan.withhold,
                    stops=not any(record.error is None for record in folder.records()),
                    on_record=lambda record: pace.graded(record.verdict),
                    on_answer=pace.answered,
                )
        except LatentMASError as error:
            folder.withdraw()  # what mends it may be another option, or another text of a filter
            if isinstance(error, RunStoppedError):
                raise RunStoppedError(f"{error}; mend that, and the same command begins again") from error
            raise
        except KeyboardInterrupt:
            summary = _summed_up(folder, config, total, wall_seconds=time.monotonic() - started)
            say(console, f"{folder.path}: {summary.n} of {total} records are stored")
            raise
        finally:
            experiment.backend.close()
        summary = _summed_up(folder, config, total, wall_seconds=time.monotonic() - started)
    _say_what_is_missing(summary, config, console)
    return summary


def _say_what_is_missing(summary: Summary, config: RunConfig, console: Console) -> None:
    if summary.first_error is not None:
        say(
            console,
            f"{summary.errors} of {summary.n} samples ended with an error, the first: {summary.first_error}; "
            "--retry_errors answers them again",
        )
    if summary.ungraded:
        say(console, f"{summary.ungraded} answers are not graded yet; `latentmas grade {config.folder}` does that")


def _stored_too_late(config: RunConfig, folder: RunFolder) -> tuple[str, ...]:
    """Return what switches store of samples and did not when those were answered, in sentences."""
    if not any(getattr(config, switch) for switch in ARTIFACTS):
        return ()
    from latentmas.experiment import artifacts

    return artifacts.unstored(config, folder.answered_ids)


def _summed_up(folder: RunFolder, config: RunConfig, total: int, *, wall_seconds: float) -> Summary:
    """Return the numbers of all records, after they were written into the folder."""
    from latentmas.experiment.stats import summarize

    summary = summarize(folder.records(), config=config, samples=total, wall_seconds=wall_seconds)
    folder.write_summary(summary)
    return summary


def tell_idle(console: Console, given: Mapping[str, bool], reason: str) -> None:
    """Say in one line which of these options have no effect, of those that were given."""
    if names := [name for name, is_given in given.items() if is_given]:
        from latentmas.experiment.effects import without_effect

        say(console, without_effect(names, reason))


def say(console: Console, sentence: str) -> None:
    """Print a sentence as it is: in one line, without markup."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)
