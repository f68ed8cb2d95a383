"""Stored answers, to be graded again without a model: those of a run, or the lines of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from latentmas.errors import DataError, LatentMASError
from latentmas.experiment import compose
from latentmas.experiment.config import file_or_name
from latentmas.experiment.grading import Graded, Grading, executor, grade_all
from latentmas.experiment.manifest import Manifest, read_manifest
from latentmas.experiment.store import read_records
from latentmas.protocols import Task
from latentmas.row_files import read_rows
from latentmas.rows import data_digest
from latentmas.rows import samples as samples_of
from latentmas.samples import Answer, FinishReason, Record, Sample, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One stored answer.

    Attributes:
        id: As it was given; samples have texts for ids.
        before: Its verdict so far; None where it has none.
    """

    id: str | int
    where: str
    task: str
    answer: Answer
    sample: Sample
    before: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswers:
    """What is to be graded.

    Attributes:
        options: Grading options of the run the answers come from; empty for a file.
        failed: Samples that ended with an error and have no answer.
        ignored: Keys of the file's lines that mean nothing here.
        reads_rows: Texts that the records leave out come from the rows of the run.
    """

    answers: tuple[Stored, ...]
    options: Mapping[str, object]
    failed: int = 0
    ignored: tuple[str, ...] = ()
    reads_rows: bool = False


def read_stored(path: Path, *, dataset: Path | None = None) -> StoredAnswers:
    """Return the answers of a run folder or of a ``.jsonl`` file.

    Args:
        dataset: Where the rows of the run are now; only needed where its records leave texts out.

    Raises:
        LatentMASError: It is neither, or a line of it cannot be graded. Names the line.
    """
    if path.is_dir():
        return _of_run(path, dataset)
    if not path.exists():
        raise DataError(f"no run folder and no file {path}; give the folder of a run, or a file of answers")
    return _of_file(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegradePlan:
    """Answers that can be graded: their tasks are known, their targets can be read, the machine can do it."""

    answers: tuple[Stored, ...]
    gradings: Mapping[str, Grading]

    def grade(self) -> Iterator[tuple[Stored, Graded]]:
        """Yield the answers with their new scores, in their order."""
        with executor(max((grading.workers for grading in self.gradings.values()), default=0)) as workers:
            work = ((stored.answer, stored.sample, self.gradings[stored.task]) for stored in self.answers)
            yield from zip(self.answers, grade_all(work, executor=workers), strict=True)


def plan(answers: Sequence[Stored], grading_of: Callable[[Task], Grading]) -> RegradePlan:
    """Check everything that can be checked before anything is graded.

    Args:
        grading_of: How answers to a task are graded.

    Raises:
        LatentMASError: A task is not known, a target cannot be graded against, or this machine cannot grade.
    """
    gradings: dict[str, Grading] = {}
    for stored in answers:
        if stored.task not in gradings:
            try:
                task = compose.find_task(stored.task)
            except LatentMASError as error:
                raise DataError(f"{stored.where}: {error}") from error
            gradings[stored.task] = grading_of(task)
        try:
            gradings[stored.task].check(stored.sample)
        except DataError as error:
            raise DataError(f"{stored.where}, target: {error}") from error
    return RegradePlan(answers=tuple(answers), gradings=gradings)


def _of_run(folder: Path, dataset: Path | None) -> StoredAnswers:
    manifest = read_manifest(folder / "manifest.json")
    if manifest is None:
        raise DataError(f"{folder} has no manifest.json, so it is no run folder")
    task = compose.find_task(str(manifest.config["task"]))
    records = list(read_records(folder / "records.jsonl"))
    lacking = _lack_options(records, task)
    originals = _withheld_samples(manifest, task, dataset) if lacking else {}
    found = []
    for record in records:
        answered = record.answered()
        if answered is None:
            continue
        answer, sample = answered
        found.append(
            Stored(
                id=record.id,
                where=f"{folder} sample {record.id!r}",
                task=str(manifest.config["task"]),
                answer=answer,
                sample=originals.get(sample.id, sample),
                before=record.verdict,
            )
        )
    options: dict[str, object] = {
        name: manifest.config[name] for name in ("grading", "math_verify") if name in manifest.config
    }
    return StoredAnswers(answers=tuple(found), options=options, failed=len(records) - len(found), reads_rows=lacking)


def _lack_options(records: Sequence[Record], task: Task) -> bool:
    return task.card.withheld and any(record.labels and not record.options for record in records)


def _withheld_samples(manifest: Manifest, task: Task, dataset: Path | None) -> dict[str, Sample]:
    """Return the samples of a run whose records leave texts out, read from its data again."""
    config = manifest.config
    file, most = dataset or config.get("dataset"), config.get("max_samples", -1)
    try:
        rows = read_rows(str(file)) if file else task.rows(str(config["split"]))
        found = samples_of(task, rows, most if isinstance(most, int) and most > 0 else None)
    except LatentMASError as error:
        raise DataError(
            f"records of {task.name} hold no options, so its data is needed again (--dataset FILE): {error}"
        ) from error
    if data_digest(found) != manifest.data_digest:
        raise DataError(f"the data of {task.name} has changed since the run; grade with the data it was made with")
    return {sample.id: sample for sample in found}


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _finished(value: object) -> object:
    return FinishReason.STOP.value if value is None else value


def _listed(value: object) -> object:
    return () if value is None else value


Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(strict=False)]
"""A list of texts or numbers; null is none."""


class _Line(BaseModel):
    """One line of a file of answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: str | int
    task: Annotated[str, BeforeValidator(file_or_name)]
    output: str
    target: Text
    finish_reason: Annotated[Literal["stop", "length"], BeforeValidator(_finished)] = "stop"
    labels: Texts = ()
    options: Texts = ()
    entry_point: str | None = None


def _of_file(path: Path) -> StoredAnswers:
    found, ignored = [], dict[str, None]()
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path} answer {number}"
        try:
            line = _Line.model_validate(dict(row))
        except ValidationError as invalid:
            raise DataError(f"{where}: {_sentence(invalid)}") from None
        ignored |= dict.fromkeys(row.keys() - _Line.model_fields.keys())
        sample = Sample(
            id=str(line.id),
            question="",
            target=line.target,
            labels=line.labels,
            options=line.options,
            entry_point=line.entry_point,
        )
        answer = Answer(text=line.output, finish_reason=FinishReason(line.finish_reason))
        found.append(Stored(id=line.id, where=where, task=line.task, answer=answer, sample=sample))
    return StoredAnswers(answers=tuple(found), options={}, ignored=tuple(sorted(ignored)))


_EXPECTED: Final = {
    "id": "a text or a whole number",
    "task": "the name of a task",
    "output": "the text of the answer",
    "target": "a text or a number",
    "finish_reason": "'stop' or 'length'",
    "labels": "a list of texts",
    "options": "a list of texts",
    "entry_point": "the name of a function",
}


def _sentence(invalid: ValidationError) -> str:
    error = invalid.errors(include_url=False)[0]
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return f"has no {name!r}; an answer has id, task, output and target"
    shown = repr(error["input"])
    return f"{name!r} is {shown if len(shown) <= 60 else shown[:57] + '...'}; expected {_EXPECTED[name]}"
