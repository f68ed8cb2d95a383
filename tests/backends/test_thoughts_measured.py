"""How thoughts changed, in the accounts of the transformers backend, beside the vectors a sink is given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from contracts.laws import chain, joined, prompts
from latentmas.backends.hf.backend import HFBackend
from latentmas.backends.hf.rollout import Rollout
from latentmas.backends.hf.session import Session
from latentmas.backends.scripted import ScriptedBackend
from latentmas.program import Handover, Program, Read, Think, ThoughtSource, Write
from latentmas.protocols import Capture, Job, JobError
from test_collapse import rank_of

OWN, NOISE = ThoughtSource


class Sink:
    """Keeps what agents thought."""

    wants = frozenset({Capture.EMBEDDINGS})

    def __init__(self):
        self.thoughts = {}

    def similarity(self, key, number, similarity):
        raise AssertionError("nobody asked")

    def vectors(self, key, agents):
        self.thoughts[key] = {agent.agent: agent.thoughts.double().numpy() for agent in agents}


class Planted:
    """An alignment that puts its own vectors in place of thoughts: moving ones, and one again and again after some."""

    norm = 1.0

    def __init__(self, after):
        self.after, self.made = after, 0
        self.vectors = torch.randn(64, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def __call__(self, hidden):
        self.made += 1
        return self.vectors[min(self.made, self.after)].expand(hidden.shape[0], -1).clone()


def watched(tiny, programs, *, batch_size=20, **options):
    """Return accounts by key and agent of every Think, and the thoughts a sink was given."""
    model, sink = tiny.model(**options), Sink()
    backend = HFBackend(model, tiny.backend(**options).codec, tiny.alignment(model), batch_size=batch_size, sink=sink)
    for number, program in enumerate(programs):
        backend.submit(Job(key=str(number), program=program, seed=number))
    found = {}
    while outcomes := backend.collect():
        found |= {outcome.key: thinking(outcome.steps) for outcome in outcomes if not isinstance(outcome, JobError)}
    return found, sink.thoughts


def thinking(steps):
    own = {}
    for step in steps:
        for branch in step.branches:
            own |= thinking(branch)
        if step.verb == "Think":
            own.setdefault(step.agent, []).append(step.thinking)
    return own


def agrees(account, thoughts):
    lengths = np.linalg.norm(thoughts, axis=1)
    cosines = (thoughts[1:] * thoughts[:-1]).sum(1) / lengths[1:] / lengths[:-1]
    np.testing.assert_allclose(account.cosines, cosines, atol=1e-6)  # a sink is given float32
    assert account.effective_rank == pytest.approx(rank_of(thoughts), rel=1e-4)


@pytest.mark.parametrize("source", [OWN, NOISE])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_account_of_every_think_is_that_of_the_vectors_that_were_fed_back(tiny, source, batch_size):
    programs = [chain(prompts(row), thoughts=6, source=source) for row in range(3)]
    found, thoughts = watched(tiny, programs, batch_size=batch_size)
    for key, agents in found.items():
        assert agents.keys() == {"planner", "critic", "refiner"}
        for agent, [account] in agents.items():
            agrees(account, thoughts[key][agent])


def test_thoughts_in_the_branches_of_a_join_are_measured_agent_by_agent(tiny):
    said = [[prompts(row)[0]] for row in range(3)]
    program = joined([(said[0][0],), (said[1][0],), (said[2][0],)], thoughts=(5, 7))
    found, thoughts = watched(tiny, [program, program])
    for key in "01":
        assert {len(thoughts[key][name]) for name in ("expert 0", "expert 1")} == {5, 7}
        for name in ("expert 0", "expert 1"):
            [account] = found[key][name]
            agrees(account, thoughts[key][name])


def test_hidden_norms_are_those_of_the_states_that_thoughts_are_made_from(tiny):
    model = tiny.model()
    alignment, seen = tiny.alignment(model), []

    class Seen:
        norm = alignment.norm

        def __call__(self, hidden):
            seen.append(hidden.norm(dim=1))
            return alignment(hidden)

    backend = HFBackend(model, tiny.backend().codec, Seen())
    completions = backend.run([chain(prompts(row), thoughts=4) for row in range(2)])
    for row, completion in enumerate(completions):
        norms = [norm for [account] in thinking(completion.steps).values() for norm in account.hidden_norms]
        np.testing.assert_allclose(norms, [float(norm[row]) for norm in seen], rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_think_of_no_step_has_no_account_and_of_one_step_no_cosine(tiny, steps):
    [completion] = tiny.backend().run([chain(prompts(0), thoughts=steps)])
    accounts = [account for [account] in thinking(completion.steps).values()]
    assert len(accounts) == 3
    for account in accounts:
        assert (account is None) if steps == 0 else (account.cosines == () and len(account.hidden_norms) == 1)


def test_thinking_in_parts_gives_the_cosines_of_thinking_at_once(tiny):
    read, write = Read(agent="a", tokens=prompts(0)[0]), Write(agent="a", max_new_tokens=2)
    parts = [Think(agent="a", steps=steps) for steps in (3, 0, 1, 4)]
    whole = Program((read, Think(agent="a", steps=8), write))
    split = Program((read, *parts, write))
    [[one]] = [thinking(tiny.backend().run([whole])[0].steps)["a"]]
    several = thinking(tiny.backend().run([split])[0].steps)["a"]
    assert several[1] is None
    made = [account for account in several if account]
    np.testing.assert_allclose(sum((account.cosines for account in made), ()), one.cosines, atol=1e-12)
    np.testing.assert_allclose(sum((account.hidden_norms for account in made), ()), one.hidden_norms, rtol=1e-6)


def test_what_is_read_between_two_thinks_leaves_the_second_without_a_thought_before(tiny):
    read = Read(agent="a", tokens=prompts(0)[0])
    program = Program((read, Think(agent="a", steps=3), Handover(agent="a"), read, Think(agent="a", steps=3)))
    first, second = thinking(tiny.backend().run([program])[0].steps)["a"]
    assert len(first.cosines) == len(second.cosines) == 2


def test_a_session_compares_a_thought_with_the_one_before_and_its_fork_does_too(tiny):
    session = Session(tiny.backend()).read("a", "hello").think("a", 2)
    fork = session.fork()
    assert session.think("a", 1).accounts[-1].thinking == fork.think("a", 1).accounts[-1].thinking
    assert len(session.accounts[-1].thinking.cosines) == 1


def test_a_session_is_as_it_was_after_a_step_that_was_broken_off(tiny, monkeypatch):
    session = Session(tiny.backend()).read("a", "hello").think("a", 2)
    expected = session.fork().think("a", 1).accounts[-1].thinking

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Rollout, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.read("a", "more")
    assert session.think("a", 1).accounts[-1].thinking == expected


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_planted_collapse_stands_in_the_account(tiny, after):
    model = tiny.model()
    program = Program((Read(agent="a", tokens=prompts(0)[0]), Think(agent="a", steps=20)))
    backend = HFBackend(model, tiny.backend().codec, Planted(after))
    for completion in backend.run([program, program]):
        [account] = thinking(completion.steps)["a"]
        assert account.collapsed_after == after


def test_rows_that_leave_the_batch_take_only_their_own_account_along(tiny):
    model = tiny.model()
    alignment = tiny.alignment(model)

    class Breaking:
        """Breaks the first row of the first Think."""

        norm, calls = alignment.norm, 0

        def __call__(self, hidden):
            thoughts = alignment(hidden)
            self.calls += 1
            if self.calls == 2:
                thoughts[0] = torch.nan
            return thoughts

    read = [Read(agent="a", tokens=prompts(row, agents=1)[0]) for row in range(3)]
    tail = (Think(agent="a", steps=3), Think(agent="a", steps=2), Write(agent="a", max_new_tokens=2))
    programs = [Program((each, *tail)) for each in read]
    backend = HFBackend(model, tiny.backend().codec, Breaking())
    for number, program in enumerate(programs):
        backend.submit(Job(key=str(number), program=program))
    first, *others = backend.collect()
    assert isinstance(first, JobError)
    assert "a thought of agent 'a' is not finite" in str(first.error)
    expected = tiny.backend().run(programs)[1:]
    for outcome, alone in zip(others, expected, strict=True):
        for ours, theirs in zip(thinking(outcome.steps)["a"], thinking(alone.steps)["a"], strict=True):
            np.testing.assert_allclose(ours.cosines, theirs.cosines, atol=1e-9)


def test_a_batch_that_is_halved_measures_the_thoughts_it_made_again(tiny, monkeypatch):
    run = Rollout.run

    def starved(self):
        run(self)  # all of it, thoughts included, before the memory runs out
        if len(self.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    programs = [Program(chain(prompts(row), thoughts=4).steps[:2]) for row in range(5)]
    monkeypatch.setattr(Rollout, "run", starved)
    found, thoughts = watched(tiny, programs)
    assert len(found) == 5
    for key, agents in found.items():
        [account] = agents["planner"]
        agrees(account, thoughts[key]["planner"])


def test_two_accounts_are_equal_without_how_thoughts_changed(tiny):
    [completion] = tiny.backend().run([chain(prompts(0), thoughts=2)])
    think = completion.steps[1]
    assert think.thinking is not None
    assert replace(think, thinking=None) == think


def test_a_backend_without_vectors_says_that_it_did_not_measure():
    [completion] = ScriptedBackend(reply="x").run([chain(prompts(0), thoughts=2)])
    assert {step.thinking for step in completion.steps} == {None}
