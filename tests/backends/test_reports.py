"""What a backend tells of itself while it works is what it does."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import torch

from backends.vllm.scripted_engine import PLACEHOLDER, ScriptedEngine
from contracts.laws import chain, completions, jobs, prompts
from latentmas.backends.hf.backend import HFBackend
from latentmas.backends.hf.chat import ChatCodec
from latentmas.backends.hf.rollout import Rollout
from latentmas.backends.scripted import ScriptedBackend
from latentmas.backends.vllm.backend import VLLMBackend
from latentmas.experiment import models
from latentmas.experiment.config import RunConfig
from latentmas.program import Join, Program, Read, Recall, Think, Write
from latentmas.protocols import Capability, Phase, Progress


def reporting(tiny, told, batch_size=4):
    model = tiny.model()
    return HFBackend(model, ChatCodec(tiny.tokenizer), tiny.alignment(model), batch_size=batch_size, report=told.append)


def test_every_thought_and_every_token_of_a_batch_is_told_in_order(tiny):
    told: list[Progress] = []
    done = completions(reporting(tiny, told), jobs(chain(prompts(row), thoughts=3) for row in range(4)))
    turns = [(key, [each.step for each in group]) for key, group in groupby(told, lambda p: (p.phase, p.agents))]
    names = ["planner", "critic", "refiner"]
    expected = [
        part
        for name in names
        for part in (
            ((Phase.READING, (name,)), [0]),
            ((Phase.THINKING, (name,)), [0, 1, 2, 3]),
            ((Phase.HANDING_OVER, (name,)), [0]),
        )
    ]
    assert turns[:-1] == [*expected, ((Phase.READING, ("judger",)), [0])]
    texts = [completion.steps[-1].written for completion in done.values()]
    (phase, agents), steps = turns[-1]
    assert (phase, agents) == (Phase.WRITING, ("judger",))
    assert steps == list(range(len(steps)))
    last = told[-1]
    assert last.tokens == sum(map(len, texts))
    assert (last.rows, last.going, last.batch) == (4, 0, 4)
    assert {each.steps for each in told if each.phase is Phase.THINKING} == {3}
    going = [each.going for each in told if each.phase is Phase.WRITING]
    assert going == sorted(going, reverse=True)
    for each in told:
        if each.phase is Phase.WRITING and each.step:
            assert each.going == sum(len(text) > each.step - 1 + (each.step == 16) for text in texts)


def test_branches_tell_of_themselves_within_the_batch_of_their_samples(tiny):
    told: list[Progress] = []

    def branch(name, number):
        return Program((Read(agent=name, tokens=(5, 6, number)), Think(agent=name, steps=2)))

    def team(number):
        join = Join(branches=(branch("a", number), branch("b", number)))
        return Program((join, Read(agent="c", tokens=(7,)), Write(agent="c", max_new_tokens=2)))

    completions(reporting(tiny, told), jobs(team(number) for number in range(3)))
    assert {each.batch for each in told} == {3}
    assert [(each.phase, each.agents, each.rows) for each in told if each.step == 0] == [
        (Phase.READING, ("a", "b"), 6),
        (Phase.THINKING, ("a", "b"), 6),
        (Phase.JOINING, (), 3),
        (Phase.READING, ("c",), 3),
        (Phase.WRITING, ("c",), 3),
    ]


def test_a_branch_that_goes_on_from_another_tells_of_itself_as_well(tiny):
    told: list[Progress] = []

    def team(number):
        first = Program((Read(agent="a", tokens=(5, number)), Think(agent="a", steps=1)))
        after = Program((Recall(branches=(0,)), Read(agent="b", tokens=(6, number)), Think(agent="b", steps=1)))
        return Program(
            (Join(branches=(first, after)), Read(agent="c", tokens=(7,)), Write(agent="c", max_new_tokens=2))
        )

    completions(reporting(tiny, told), jobs(team(number) for number in range(2)))
    assert {(each.batch, each.rows) for each in told} == {(2, 2)}
    turns = [each.agents for each in told if each.phase is Phase.READING]
    assert turns == [("a",), ("b",), ("c",)]


def test_the_halves_of_a_batch_that_was_too_large_tell_of_themselves(tiny, monkeypatch):
    told: list[Progress] = []
    run = Rollout.run

    def starved(self):
        if len(self.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        run(self)

    monkeypatch.setattr(Rollout, "run", starved)
    completions(reporting(tiny, told), jobs(chain(prompts(row), thoughts=1) for row in range(4)))
    assert {each.batch for each in told} == {2}
    assert sum(each.phase is Phase.READING and each.agents == ("planner",) for each in told) == 2


def test_telling_changes_no_answer(tiny):
    work = jobs(chain(prompts(row), thoughts=3) for row in range(3))
    assert completions(reporting(tiny, []), work) == completions(tiny.backend(), work)


def test_loading_and_checking_are_told_before_any_program():
    told: list[Progress] = []
    config = RunConfig.from_options({"method": "latent_mas", "model_name": "tiny"})
    models.open_transformers(config, models.open_codec(config), [Capability.MEMORY], told.append)
    assert [each.phase for each in told] == [Phase.LOADING, Phase.CHECKING, Phase.ALIGNING]


def test_the_scripted_backend_tells_of_its_jobs():
    told: list[Progress] = []
    backend = ScriptedBackend(capacity=2, report=told.append)
    completions(backend, jobs(chain(prompts(row), thoughts=1) for row in range(3)))
    assert [(each.phase, each.going, each.batch) for each in told] == [
        (Phase.ANSWERING, 2, 2),
        (Phase.ANSWERING, 1, 2),
        (Phase.ANSWERING, 1, 1),
    ]


def test_an_engine_tells_how_many_requests_go_on(monkeypatch):
    monkeypatch.setattr("latentmas.backends.vllm.backend.SECONDS_BETWEEN_REPORTS", 0)
    told: list[Progress] = []
    backend = VLLMBackend(
        lambda: ScriptedEngine(running=4, context=1024, faults=lambda request, before: None, asked=Counter()),
        ScriptedBackend().codec,
        placeholder=PLACEHOLDER,
        report=told.append,
    )
    done = completions(backend, jobs(chain(prompts(row), thoughts=2) for row in range(6)))
    assert told[0].phase is Phase.LOADING
    assert [(each.rows, each.going, each.batch) for each in told[1:]] == [(6, 6, 0), (6, 4, 0), (6, 2, 0)]
    tokens = [each.tokens for each in told[1:]]
    assert tokens == sorted(tokens)
    assert 0 < tokens[-1] < sum(len(completion.steps[-1].written) for completion in done.values())
