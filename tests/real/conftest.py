"""Real weights: a model folder, questions, methods on them, and what is told to a person.

The folder is the one `make real-model` makes, or that of ``LATENTMAS_REAL_MODEL``; questions are our own twenty, of the
kind of GSM8K, or the first rows of the file in ``LATENTMAS_GSM8K``. Models and everything run on them are made
once, so tests here must not change them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from latentmas.program import Program
from latentmas.protocols import Backend, Completion, Method
from latentmas.samples import Sample

HERE = Path(__file__).parent
MADE = HERE.parents[1] / ".models" / "smollm2-135m"
ROWS = 4
"""Rows of a batch here."""
NEW_TOKENS = 24


@pytest.fixture(scope="session")
def folder() -> Path:
    """The model folder of these tests."""
    given = os.environ.get("LATENTMAS_REAL_MODEL")
    path = Path(given) if given else MADE
    if not (path / "config.json").is_file():
        if given and path != MADE:
            pytest.fail(f"LATENTMAS_REAL_MODEL is {given!r}, which is no transformers folder")
        pytest.skip("there is no real model here; `make real-model` gets one")
    return path


@pytest.fixture(scope="session")
def questions_file() -> Path:
    return Path(os.environ.get("LATENTMAS_GSM8K") or HERE / "questions.jsonl")


@pytest.fixture(scope="session")
def questions(questions_file: Path) -> tuple[Sample, ...]:
    """Questions of grade-school mathematics; twenty, or as many as ``LATENTMAS_REAL_QUESTIONS`` says."""
    from latentmas import rows
    from latentmas.experiment.compose import find_task
    from latentmas.row_files import read_rows

    number = int(os.environ.get("LATENTMAS_REAL_QUESTIONS", "20"))
    found = rows.samples(find_task("gsm8k"), read_rows(questions_file), number)
    assert len(found) == number, f"{questions_file} has too few questions"
    return found


def solve(backend: Backend, method: Method, samples: Sequence[Sample]) -> list[list[tuple[Program, Completion]]]:
    """Run a method and return for each sample its programs and what came of them; agents of one turn run together."""
    turns = {number: method.solve(sample) for number, sample in enumerate(samples)}
    waiting = {number: next(turn) for number, turn in turns.items()}
    history: list[list[tuple[Program, Completion]]] = [[] for _ in samples]
    while waiting:
        numbers = sorted(waiting)
        done = backend.run([waiting[number] for number in numbers])
        for number, completion in zip(numbers, done, strict=True):
            history[number].append((waiting.pop(number), completion))
            try:
                waiting[number] = turns[number].send(completion)
            except StopIteration:
                continue
    return history


def written(history: Sequence[tuple[Program, Completion]]) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of every agent that wrote."""
    return tuple(step.written for _, completion in history for step in completion.steps if step.verb == "Write")


@dataclass
class Real:
    """Backends on one model folder, each opened once, and the methods to run on them."""

    folder: Path
    questions: tuple[Sample, ...]
    _backends: dict[str, Any] = field(default_factory=dict)
    _solved: dict[object, Any] = field(default_factory=dict)

    def config(self, **options: object) -> Any:
        from latentmas.experiment.config import RunConfig

        usual = {
            "method": "baseline",
            "model_name": str(self.folder),
            "temperature": 0,
            "max_new_tokens": NEW_TOKENS,
            "latent_steps": 4,
            "generate_bs": ROWS,
            "device": "cpu",
        }
        return RunConfig.from_options({**usual, **options})

    def backend(self, dtype: str = "float32") -> Any:
        """Return the `HFBackend` of a dtype; it runs batches of `ROWS`."""
        if dtype not in self._backends:
            from latentmas.experiment import models

            config = self.config(dtype=dtype)
            self._backends[dtype] = models.open_transformers(config, self.codec)
        return self._backends[dtype]

    @cached_property
    def codec(self) -> Any:
        from latentmas.experiment import models

        return models.open_codec(self.config())

    def method(self, **options: object) -> Method:
        """Return a method, by the options of a run."""
        from latentmas import prompts
        from latentmas.experiment import compose
        from latentmas.samples import AnswerKind

        config = self.config(**options)
        graph, said = compose.graph_of(config), prompts.load_prompts(config.prompt)
        return compose.build_method(
            config, graph, said, self.codec, kind=AnswerKind.NUMBER, samples=self.questions[:ROWS]
        )

    def tokens(self, rows: int = ROWS, *, dtype: str = "float32", alone: bool = False, **options: object) -> list[Any]:
        """Return what each of the first questions makes the agents write, in one batch or each alone."""
        key = (rows, dtype, alone, *sorted(options.items()))
        if key not in self._solved:
            backend = self.backend(dtype)
            backend.batch_size = 1 if alone else ROWS
            self._solved[key] = [
                written(history) for history in solve(backend, self.method(**options), self.questions[:rows])
            ]
            backend.batch_size = ROWS
        return self._solved[key]


@pytest.fixture(scope="session")
def real(folder: Path, questions: tuple[Sample, ...]) -> Real:
    return Real(folder, questions)


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Note a figure that a person should see when all is done; worker processes cannot print."""
    return lambda sentence: record_property("figure", sentence)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("figures")
    for outcome in ("passed", "failed"):
        for test in terminalreporter.stats.get(outcome, ()):
            for name, sentence in test.user_properties:
                if name == "figure":
                    terminalreporter.line(f"{test.nodeid.rpartition('::')[2]}: {sentence}")


def differing(one: Sequence[Any], other: Sequence[Any]) -> list[int]:
    """Return the numbers of the rows in which two runs differ."""
    return [number for number, (left, right) in enumerate(zip(one, other, strict=True)) if left != right]
