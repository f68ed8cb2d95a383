"""What an engine breaks, jobs do not feel - but for the one that breaks the engine."""

from __future__ import annotations

import logging
import random
from collections import Counter

import pytest

from backends.vllm.scripted_engine import (
    PLACEHOLDER,
    VOCABULARY,
    DeadEngineError,
    Fault,
    ScriptedEngine,
    engine_backend,
)
from contracts.laws import chain, completions, jobs, outcomes, prompts
from latentmas.backends.vllm.backend import MOST_DEATHS, SECONDS_BEFORE_A_START, VLLMBackend
from latentmas.backends.vllm.requests import Request
from latentmas.errors import CapabilityError, ContextLimitError, EngineError, NumericalError, SampleError
from latentmas.program import Handover, Join, KeepSpec, Program, Read, Sampling, Think, ThoughtSource, Write
from latentmas.protocols import Completion, Job, JobError

DEATHS = [Fault.DIES_WHEN_ADDED, Fault.DIES_AT_WORK]


def work(count, thoughts=2):
    return jobs(chain(prompts(row), thoughts=thoughts) for row in range(count))


def is_job(request: Request, job: Job) -> bool:
    return request.tokens[: len(job.program.steps[0].tokens)] == job.program.steps[0].tokens


@pytest.mark.parametrize("fault", DEATHS)
def test_an_engine_that_dies_is_started_again_and_every_job_in_it_runs_again(fault):
    many = work(12)
    undisturbed = completions(engine_backend(), many)
    starts: list[ScriptedEngine] = []
    once = engine_backend(
        faults=lambda request, before: fault if is_job(request, many[5]) and before == 0 else None, starts=starts
    )
    assert completions(once, many) == undisturbed
    assert [engine.closed for engine in starts] == [True, False]


@pytest.mark.parametrize("fault", DEATHS)
def test_a_job_that_kills_every_engine_is_found_and_the_others_do_not_feel_it(fault, caplog):
    many = work(12)
    undisturbed = completions(engine_backend(), many)
    poisoned = engine_backend(faults=lambda request, before: fault if is_job(request, many[5]) else None)
    with caplog.at_level(logging.WARNING):
        found = outcomes(poisoned, many)
    bad = found.pop(many[5].key)
    assert isinstance(bad, JobError)
    assert "died 3 times with this sample in it" in str(bad.error)
    assert found == {key: done for key, done in undisturbed.items() if key != many[5].key}
    assert "the vLLM engine died (DeadEngineError:" in caplog.text


def test_two_jobs_that_kill_engines_are_both_found():
    many = work(12)
    killers = (many[2], many[9])
    backend = engine_backend(
        faults=lambda request, before: Fault.DIES_AT_WORK if any(is_job(request, job) for job in killers) else None
    )
    found = outcomes(backend, many)
    assert {key for key, outcome in found.items() if isinstance(outcome, JobError)} == {job.key for job in killers}


def test_an_engine_that_only_dies_is_given_up_and_says_that_nothing_is_lost():
    starts: list[ScriptedEngine] = []
    backend = engine_backend(faults=lambda request, before: Fault.DIES_AT_WORK, starts=starts)
    for job in work(12):
        backend.submit(job)
    seen = []
    with pytest.raises(EngineError, match=r"died 8 times in a row.*the same command goes on"):
        seen += iter(backend.collect, [])
    assert seen == [], "nobody is blamed for an engine that is well with nobody"
    assert len(starts) == MOST_DEATHS
    assert all(engine.closed for engine in starts)
    with pytest.raises(EngineError, match="closed"):
        backend.run([chain(prompts(0), thoughts=1)])


@pytest.mark.parametrize("failures", [2, 99])
def test_an_engine_that_does_not_come_back_at_once_is_waited_for(failures, monkeypatch):
    waits, attempts = [], []
    monkeypatch.setattr("latentmas.backends.vllm.backend.time.sleep", waits.append)
    once = engine_backend(faults=lambda request, before: Fault.DIES_AT_WORK if before == 0 else None)

    def start():
        attempts.append(None)
        if 1 < len(attempts) <= 1 + failures:
            raise EngineError("vLLM did not start: ValueError: Free memory on device is less than desired")
        return once._start()

    backend = VLLMBackend(start, once.codec, placeholder=PLACEHOLDER)
    many = work(3)
    if failures == 2:
        assert completions(backend, many) == completions(engine_backend(), many)
        assert waits == [SECONDS_BEFORE_A_START] * 2
    else:
        backend.submit(many[0])
        with pytest.raises(EngineError, match="Free memory"):
            backend.collect()
        assert len(waits) == MOST_DEATHS - 2


def test_after_a_culprit_is_found_the_others_run_together_again():
    many = work(40)
    killer = many[3]
    running = []

    class Counting(ScriptedEngine):
        def step(self):
            running.append(len(self._waiting))
            return super().step()

    asked = Counter()

    def start():
        faults = lambda request, before: Fault.DIES_AT_WORK if is_job(request, killer) else None  # noqa: E731
        return Counting(running=16, context=1024, faults=faults, asked=asked)

    found = outcomes(VLLMBackend(start, engine_backend().codec, placeholder=PLACEHOLDER), many)
    assert [key for key, outcome in found.items() if isinstance(outcome, JobError)] == [killer.key]
    assert sum(count == 1 for count in running) < 10, "not one by one"


def test_a_request_that_the_engine_gave_up_is_asked_for_once_more():
    many = work(6)
    undisturbed = completions(engine_backend(), many)
    moody = engine_backend(faults=lambda request, before: Fault.GIVES_UP if before == 0 else None)
    assert completions(moody, many) == undisturbed
    found = outcomes(engine_backend(faults=lambda request, before: Fault.GIVES_UP), many)
    assert {str(outcome.error) for outcome in found.values()} == {"vLLM gave the request up (error)"}


@pytest.mark.parametrize(("fault", "kind"), [(Fault.NOT_FINITE, NumericalError), (Fault.REFUSES, SampleError)])
def test_what_one_request_comes_to_is_its_own(fault, kind):
    many = work(6)
    undisturbed = completions(engine_backend(), many)
    backend = engine_backend(faults=lambda request, before: fault if is_job(request, many[3]) else None)
    found = outcomes(backend, many)
    bad = found.pop(many[3].key)
    assert isinstance(bad, JobError)
    assert type(bad.error) is kind
    assert found == {key: done for key, done in undisturbed.items() if key != many[3].key}


def test_five_hundred_jobs_with_every_kind_of_fault_come_back_once_each():
    many = jobs(chain(prompts(row, shortest=4), thoughts=1) for row in range(500))
    undisturbed = completions(engine_backend(running=16), many)
    unlucky = random.Random(7).sample(many, k=15)  # 3 %
    doomed = {job.key: list(Fault)[number % len(Fault)] for number, job in enumerate(unlucky)}
    prefixes = {(*job.program.steps[0].tokens, PLACEHOLDER): job.key for job in many}

    def faults(request, before):
        key = prefixes[request.tokens[: request.tokens.index(PLACEHOLDER) + 1]]
        passing = doomed.get(key) in (*DEATHS, Fault.GIVES_UP)
        return None if passing and before else doomed.get(key)

    assert len(prefixes) == len(many)
    found = outcomes(engine_backend(running=16, faults=faults), many)
    for key, outcome in found.items():
        if doomed.get(key) in (Fault.REFUSES, Fault.NOT_FINITE):
            assert isinstance(outcome, JobError)
        else:
            assert outcome == undisturbed[key]


def test_seconds_of_all_jobs_add_up_to_the_time_that_passed(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("latentmas.backends.vllm.backend.time.perf_counter", lambda: float(next(clock)))
    done = completions(engine_backend(), work(9))
    total = sum(account.seconds for completion in done.values() for account in completion.steps)
    assert total == pytest.approx(next(clock) / 2)  # the clock is read before and after each piece of work
    assert all(account.seconds > 0 for account in done["job-0"].steps if account.forward_passes)


# What cannot be one request, or does not fit


def last(*steps):
    return Program((*steps, Read(agent="b", tokens=(4,)), Write(agent="b", max_new_tokens=4)))


READ = Read(agent="a", tokens=(1, 2, 3))
PENALTY = Sampling(repetition_penalty=1.2)


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (last(Join(branches=(Program((READ,)), Program((READ,))))), "Join"),
        (last(READ, Handover(agent="a", keep=KeepSpec(name="thoughts"))), "keeps thoughts"),
        (last(READ, Handover(agent="a", keep=KeepSpec(name="knn", parameters=(("keep", 0.8),)))), "keeps knn"),
        (last(READ, Think(agent="a", steps=2, source=ThoughtSource.NOISE)), "noise"),
        (
            Program((READ, Read(agent="b", tokens=(4,)), Write(agent="b", max_new_tokens=2, sampling=PENALTY))),
            "a repetition penalty of 1.2 on the memory of other",
        ),
    ],
)
def test_what_no_request_can_be_is_refused_with_the_backend_that_can(program, name):
    with pytest.raises(CapabilityError, match=f"{name}.*the transformers backend can"):
        engine_backend().submit(Job(key="x", program=program))


def test_an_agent_that_is_alone_in_its_request_may_be_penalized():
    engine_backend().submit(Job(key="x", program=Program((READ, Write(agent="a", max_new_tokens=2, sampling=PENALTY)))))


@pytest.mark.parametrize(
    ("program", "kind", "said"),
    [
        (
            last(Read(agent="a", tokens=(1,) * 1020), Think(agent="a", steps=1)),
            ContextLimitError,
            "need 1026 positions",
        ),
        (last(READ, Think(agent="a", steps=2000)), ContextLimitError, "the engine has 1024; lower"),
        (last(Read(agent="a", tokens=(1, PLACEHOLDER))), SampleError, "'a' has token 299 in it, which stands for a th"),
        (last(Read(agent="a", tokens=(VOCABULARY,))), SampleError, "token 300, the model knows 0 to 299"),
    ],
)
def test_a_sample_that_does_not_fit_gets_its_error_and_the_engine_goes_on(program, kind, said):
    good = work(4)
    backend = engine_backend()
    found = outcomes(backend, [*good[:2], Job(key="odd", program=program), *good[2:]])
    odd = found.pop("odd")
    assert isinstance(odd, JobError)
    assert type(odd.error) is kind
    assert said in str(odd.error)
    assert found == completions(engine_backend(), good)


def test_an_engine_without_thoughts_refuses_to_think():
    backend = VLLMBackend(lambda: engine_backend()._engine, engine_backend().codec, placeholder=None)
    with pytest.raises(CapabilityError, match="started without thoughts"):
        backend.submit(work(1)[0])
    assert completions(backend, [Job(key="x", program=last(READ))])


def test_a_written_placeholder_is_an_ordinary_token_unless_somebody_reads_it():
    class Writing(ScriptedEngine):
        def step(self):
            return [
                finished.__class__(name=finished.name, written=(1, PLACEHOLDER), finish_reason=finished.finish_reason)
                for finished in super().step()
            ]

    def start():
        return Writing(running=4, context=1024, faults=lambda request, before: None, asked=Counter())

    backend = VLLMBackend(start, engine_backend().codec, placeholder=PLACEHOLDER)
    found = outcomes(
        backend,
        [
            Job(key="end", program=last(READ)),
            Job(key="middle", program=last(READ, Write(agent="a", max_new_tokens=2))),
        ],
    )
    assert isinstance(found["end"], Completion)
    assert isinstance(found["middle"], JobError)
    assert "stands for a thought" in str(found["middle"].error)


def test_the_engine_never_idles_while_jobs_wait_and_never_holds_more_than_it_was_given():
    backend = engine_backend(running=3)
    assert backend.capacity == 6
    for job in work(6):
        backend.submit(job)
    assert backend.collect()
    assert len(backend._running) + len(backend._queue) == 4


def test_a_run_that_fails_takes_its_jobs_back_from_the_engine():
    many = work(6)
    backend = engine_backend(faults=lambda request, before: Fault.REFUSES if is_job(request, many[3]) else None)
    with pytest.raises(SampleError, match="too odd"):
        backend.run([job.program for job in many])
    assert not backend._running
    assert not backend._queue
    assert backend.collect() == []


def test_closing_twice_does_nothing_and_a_closed_backend_says_so():
    backend = engine_backend()
    backend.close()
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        backend.run([work(1)[0].program])


def test_the_scripted_engine_can_fail(caplog):
    with pytest.raises(DeadEngineError):
        engine_backend(faults=lambda request, before: Fault.DIES_WHEN_ADDED)._engine.add(
            "x", Request(tokens=(1,), max_tokens=1, sampling=work(1)[0].program.steps[-1].sampling, seed=0)
        )
