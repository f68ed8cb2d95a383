"""Scorers in processes of their own: order, what breaks, and what is left behind."""

import multiprocessing
import os
import time
from dataclasses import dataclass, field

import pytest

from latentmas.backends.scripted import ScriptedBackend
from latentmas.errors import DataError, StoreError
from latentmas.experiment import runner
from latentmas.experiment.grading import Grading, executor, grade_all
from latentmas.program import Program, Read, Write
from latentmas.samples import Answer, FinishReason, Sample, Verdict
from slow_scorer import Slow


@dataclass(frozen=True)
class Solo:
    name: str = "solo"
    needs = frozenset()
    roles = {"solo": "solver"}  # noqa: RUF012 - read only

    def solve(self, sample):
        read = Read(agent="solo", tokens=tuple(sample.question.encode()), text=sample.question)
        completion = yield Program((read, Write(agent="solo", max_new_tokens=40)))
        return Answer(text=completion.text, finish_reason=completion.finish_reason)

    def donor_of(self, sample):
        return None


@dataclass
class Records:
    found: list = field(default_factory=list)

    def append(self, record):
        self.found.append(record)


def answered(texts, grading):
    for number, text in enumerate(texts):
        sample = Sample(id=str(number), question="", target="x")
        yield Answer(text=text, finish_reason=FinishReason.STOP), sample, grading


def test_scores_come_in_the_order_of_the_answers_from_several_processes():
    grading = Grading(scorer=Slow(), workers=2)
    with executor(2) as workers:
        graded = list(grade_all(answered(["0.3", "0", "0", "0"], grading), executor=workers))
    assert [one.sample.id for one in graded] == ["0", "1", "2", "3"]
    processes = {one.score.prediction for one in graded}
    assert str(os.getpid()) not in processes
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_target_that_cannot_be_graded_against_is_an_error_and_no_verdict(workers):
    grading = Grading(scorer=Slow(), workers=workers)
    with pytest.raises(DataError, match="no number"), executor(workers) as pool:
        list(grade_all(answered(["bad"], grading), executor=pool))


def test_a_grading_process_that_was_killed_is_said_in_one_sentence():
    grading = Grading(scorer=Slow(), workers=1)
    with pytest.raises(StoreError, match="fewer workers"), executor(1) as pool:
        list(grade_all(answered(["die"], grading), executor=pool))


def test_an_interrupt_does_not_wait_for_what_is_being_graded():
    began = time.monotonic()

    def interrupted():
        with executor(1) as pool:
            list(pool.map(time.sleep, [0]))  # the process has started
            pool.submit(time.sleep, 60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 30
    deadline = time.monotonic() + 5
    while multiprocessing.active_children():
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.01)


def test_records_are_stored_in_the_order_of_answers_with_their_verdicts():
    samples = [Sample(id=str(number), question=f"{number}", target="x") for number in range(5)]
    backend = ScriptedBackend(reply=lambda turn: "0.2" if "0" in turn.prompt else "0", capacity=2)
    store = Records()
    with executor(2) as pool:
        runner.run(samples, method=Solo(), backend=backend, store=store, seed=1, scorer=Slow(), graders=pool)
    assert [record.id for record in store.found] == ["0", "1", "2", "3", "4"]
    assert {record.verdict for record in store.found} == {Verdict.CORRECT}


def test_without_a_scorer_records_have_no_verdict_and_no_error():
    store = Records()
    sample = Sample(id="a", question="?", target="def", entry_point="f")
    runner.run([sample], method=Solo(), backend=ScriptedBackend(reply="0"), store=store, seed=1)
    [record] = store.found
    assert (record.verdict, record.error, record.entry_point) == (None, None, "f")
    answer, again = record.answered()
    assert (answer.text, again.target, again.entry_point) == ("0", "def", "f")


def test_withheld_texts_are_nowhere_in_the_record():
    sample = Sample(id="a", question="SECRET", target="A", labels=("A", "B"), options=("SECRET1", "SECRET2"))
    store = Records()
    backend = ScriptedBackend(reply="A")
    runner.run([sample], method=Solo(), backend=backend, store=store, seed=1, withhold=True, save_ids=True)
    [record] = store.found
    assert "SECRET" not in record.model_dump_json()
    assert record.agents[0].prompt_ids is None
    assert record.labels == ("A", "B")
