"""The main path: what is graded, and what a broken backend costs."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Timer

import pytest

from latentmas.backends.scripted import ScriptedBackend
from latentmas.errors import EngineError, SampleError
from latentmas.experiment import runner
from latentmas.program import Program, Read, Write
from latentmas.samples import Answer, Sample, Verdict
from latentmas.scorers.number import score


@dataclass(frozen=True)
class Opened:
    """One agent whose prompt ends with `opening`."""

    opening: str
    name: str = "opened"
    needs = frozenset()
    roles = {"solo": "solver"}  # noqa: RUF012 - read only

    def solve(self, sample):
        text = sample.question + self.opening
        read = Read(agent="solo", tokens=tuple(text.encode()), text=text)
        completion = yield Program((read, Write(agent="solo", max_new_tokens=40)))
        return Answer(text=completion.text, finish_reason=completion.finish_reason)

    def donor_of(self, sample):
        return None


@dataclass(frozen=True)
class Records:
    found: list

    def append(self, record):
        self.found.append(record)


def answered(opening, backend, n=1):
    store = Records([])
    samples = [Sample(id=str(i), question=f"{i}: 2 + 3?", target="5") for i in range(n)]
    runner.run(samples, method=Opened(opening), backend=backend, scorer=score, store=store, seed=1)
    return store.found


@pytest.mark.parametrize(
    ("opening", "reply", "verdict"),
    [
        ("", r"\boxed{5}", Verdict.CORRECT),
        ("<think>\n", r"maybe \boxed{5}, let me check", Verdict.NO_ANSWER),
        ("<think>\n", r"is it 4?</think> \boxed{5}", Verdict.CORRECT),
        ("[THINK]", r"maybe \boxed{5}, let me check", Verdict.NO_ANSWER),
        ("[THINK]", r"is it 4?[/THINK] \boxed{5}", Verdict.CORRECT),
        ("<|channel>thought\n", r"maybe \boxed{5}", Verdict.NO_ANSWER),
        ("<think>\n</think>\n", r"\boxed{5}", Verdict.CORRECT),
    ],
)
def test_a_thought_that_the_prompt_opened_is_not_graded(opening, reply, verdict):
    [record] = answered(opening, ScriptedBackend(reply=reply))
    assert record.verdict is verdict
    assert record.text == reply


def test_a_backend_that_breaks_ends_samples_with_an_error_and_the_run_goes_on(caplog):
    class Broken(ScriptedBackend):
        broken = True

        def collect(self):
            outcomes = super().collect()
            if self.broken:
                self.broken = False
                raise RuntimeError("the engine fell over")
            return outcomes

    records = answered("", Broken(reply=r"\boxed{5}", capacity=2), n=5)
    assert [record.verdict for record in records] == [None, None, *[Verdict.CORRECT] * 3]
    assert records[0].error == "SampleError: RuntimeError: the engine fell over"
    assert "a batch broke" in caplog.text


def test_answers_of_a_batch_are_all_counted_before_a_verdict_is_waited_for():
    happened = []
    release = Event()

    def slowly(answer, sample):
        release.wait(0.1)
        return score(answer, sample)

    def count():
        happened.append("answer")
        if happened.count("answer") == 80:
            release.set()

    samples = [Sample(id=str(i), question=f"{i}: 2 + 3?", target="5") for i in range(80)]
    with ThreadPoolExecutor(1) as graders:
        runner.run(
            samples,
            method=Opened(""),
            backend=ScriptedBackend(reply=r"\boxed{5}", capacity=80),
            scorer=slowly,
            graders=graders,
            store=Records([]),
            seed=1,
            on_answer=count,
            on_record=lambda record: happened.append("record"),
        )
    assert happened == ["answer"] * 80 + ["record"] * 80


@pytest.mark.parametrize("fails", [False, True])
def test_every_sample_is_counted_once_whether_it_has_an_answer_or_an_error(fails):
    def reply(turn):
        if fails:
            raise SampleError("too odd")
        return "5"

    counted = []
    samples = [Sample(id=str(i), question=f"{i}: 2 + 3?", target="5") for i in range(5)]
    runner.run(
        samples,
        method=Opened(""),
        backend=ScriptedBackend(reply=reply, capacity=2),
        store=Records([]),
        seed=1,
        on_answer=lambda: counted.append(1),
    )
    assert len(counted) == 5


def test_an_engine_that_is_lost_takes_no_answer_along_that_waits_for_its_verdict():
    class Lost(ScriptedBackend):
        def collect(self):
            if not self._answered:
                raise EngineError("the vLLM engine died 8 times in a row")
            self._answered -= 1
            return super().collect()

        _answered = 6

    release = Event()

    def slowly(answer, sample):
        release.wait(10)
        return score(answer, sample)

    store = Records([])
    samples = [Sample(id=str(i), question=f"{i}: 2 + 3?", target="5") for i in range(9)]
    backend = Lost(reply=r"\boxed{5}", capacity=1)
    with ThreadPoolExecutor(1) as graders:
        Timer(0.2, release.set).start()
        with pytest.raises(EngineError):
            runner.run(
                samples,
                method=Opened(""),
                backend=backend,
                scorer=slowly,
                graders=graders,
                store=store,
                seed=1,
            )
    assert [(record.id, record.verdict) for record in store.found] == [(str(i), Verdict.CORRECT) for i in range(6)]
