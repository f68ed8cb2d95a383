"""Session: a program one verb at a time."""

from dataclasses import replace

import pytest

from latentmas.backends.hf.rollout import Rollout
from latentmas.backends.hf.session import Session
from latentmas.errors import CapabilityError, ContextLimitError, MemoryMismatchError, ProgramError, SampleError
from latentmas.program import Budget, KeepSpec, Positions, Protect, Sampling, SlotKind, Storage


@pytest.fixture
def backend(tiny):
    return tiny.backend("qwen3")


def test_a_session_does_what_the_same_program_does_in_one_piece(backend):
    session = Session(backend, seed=5)
    session.read("planner", "what is 3 + 4?").think("planner", 4).hand_over("planner")
    text = session.read("judger", "answer!").write("judger", 12, Sampling(temperature=0.8))
    [completion] = backend.run([session.program], seeds=[5])
    assert completion.text == text
    assert completion.steps[1].thoughts == 4
    # A program cut by length never feeds its last token; a session may go on, so it does.
    assert session.memory.slots - completion.steps[-1].slots in (0, 1)


HALF = Budget(amount=0.5)


@pytest.mark.parametrize("name", ["receiver", "knn", "random", "recency"])
def test_a_session_hands_over_what_the_same_program_does(backend, name):
    keep = KeepSpec(name=name, budget=HALF, protect=Protect(sinks=1))
    session = Session(backend, seed=5).read("planner", "what is 3 + 4?").think("planner", 4)
    session.hand_over("planner", keep, positions=Positions.REROTATE, storage=Storage.INT8, to="answer!")
    assert [step.agent for step in session.program] == ["planner"] * 3, "what comes next was not read yet"
    text = session.read("judger", "answer!").write("judger", 12)
    [completion] = backend.run([session.program], seeds=[5])
    assert completion.text == text
    assert completion.steps[2].handover == session.accounts[2].handover
    assert completion.steps[2].slots < completion.steps[1].slots


def test_a_filter_that_looks_at_the_receiver_needs_to_know_what_it_will_read(backend):
    session = Session(backend).read("planner", "what is 3 + 4?")
    with pytest.raises(CapabilityError, match="nobody reads after"):
        session.hand_over("planner", KeepSpec(name="receiver", budget=HALF))
    with pytest.raises(CapabilityError, match="run a Program instead"):
        session.hand_over("planner", KeepSpec(name="sender", budget=HALF))
    assert session.think("planner", 2).memory.slots == session.accounts[0].slots + 2


def test_a_session_saved_in_eight_bits_goes_on_nearly_the_same(backend, tmp_path):
    session = Session(backend).read("planner", "what is 3 + 4?").think("planner", 4)
    session.save(tmp_path / "native")
    session.save(tmp_path / "int8", Storage.INT8)
    native, packed = (Session.load(backend, tmp_path / name).memory for name in ("native", "int8"))
    off = (native.keys(0) - packed.keys(0)).norm() / native.keys(0).norm()
    assert 0 < float(off) < 0.02


def test_nobody_thinks_before_something_was_read(backend):
    with pytest.raises(ProgramError, match="no hidden state"):
        Session(backend).think("a", 1)


def test_forks_go_their_own_ways(backend):
    trunk = Session(backend, seed=1).read("a", "pick a number")
    slots = trunk.memory.slots
    other = trunk.fork(seed=2)
    hot = Sampling(temperature=1.5)
    assert trunk.write("a", 16, hot) != other.write("a", 16, hot)
    assert trunk.fork().memory.slots > slots
    assert len(other.program.steps) == 2


def test_a_fork_repeats_its_trunk_with_the_same_seed(backend):
    trunk = Session(backend, seed=1).read("a", "pick a number")
    hot = Sampling(temperature=1.5)
    assert trunk.fork().write("a", 16, hot) == trunk.write("a", 16, hot)


def test_a_saved_memory_is_read_on_by_the_same_model(backend, tmp_path):
    first = Session(backend).read("planner", "the code is 4711").think("planner", 3)
    first.save(tmp_path / "memory.safetensors")
    later = Session.load(backend, tmp_path / "memory.safetensors")
    assert later.memory.slots == first.memory.slots
    assert later.read("judger", "the code?").write("judger", 10) == first.read("judger", "the code?").write(
        "judger", 10
    )


def test_a_memory_of_another_model_is_refused_in_one_line(tiny, backend, tmp_path):
    Session(tiny.backend("llama")).read("a", "hello").save(tmp_path / "llama.safetensors")
    with pytest.raises(MemoryMismatchError, match="fingerprint") as error:
        Session.load(backend, tmp_path / "llama.safetensors")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_what_is_dropped_is_gone(backend):
    session = Session(backend).read("a", "some facts").think("a", 3).hand_over("a", KeepSpec(name="thoughts"))
    assert session.memory.slots == 3
    assert set(session.memory.kinds.flatten().tolist()) == {int(SlotKind.THOUGHT)}


def test_an_unknown_filter_is_refused_by_name(backend):
    with pytest.raises(CapabilityError, match="'sparkle'"):
        Session(backend).read("a", "x").hand_over("a", KeepSpec(name="sparkle"))


def test_a_step_beyond_the_context_is_refused_and_the_session_goes_on(backend):
    session = Session(backend).read("a", "short")
    with pytest.raises(ContextLimitError, match="1024"):
        session.think("a", 5000)
    assert session.think("a", 2).memory.slots > 2


def test_a_token_that_the_model_does_not_know_is_refused_and_the_session_goes_on(backend, monkeypatch):
    session = Session(backend).read("planner", "what is 3 + 4?")
    slots, codec = session.memory.slots, type(backend.codec)
    encode = codec.encode_chat
    stranger = backend.model.vocabulary

    def of_another_model(self, messages, **options):
        encoded = encode(self, messages, **options)
        return replace(encoded, tokens=(*encoded.tokens, stranger))

    with monkeypatch.context() as patch:
        patch.setattr(codec, "encode_chat", of_another_model)
        with pytest.raises(SampleError, match=f"token {stranger}, the model knows 0 to {stranger - 1}"):
            session.read("judger", "answer!")
    assert session.memory.slots == slots
    assert session.read("judger", "answer!").write("judger", 4) is not None
    assert [step.agent for step in session.program] == ["planner", "judger", "judger"]


def test_two_sessions_on_one_memory_do_not_write_into_each_other(backend):
    first = Session(backend).read("a", "one two")
    slots = first.memory.slots
    Session(backend, memory=first.memory).read("b", "three").think("b", 4)
    assert first.memory.slots == slots
    with pytest.raises(MemoryMismatchError, match="2 rows"):
        Session(backend, memory=first.memory.select_rows([0, 0]))


def test_an_interrupted_step_leaves_the_session_as_it_was(backend, monkeypatch):
    session = Session(backend).read("a", "one two")
    twin = session.fork()
    honest = Rollout.forward
    calls = iter(range(99))

    def interrupted(self, *arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return honest(self, *arguments)

    monkeypatch.setattr(Rollout, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.think("a", 5)
    monkeypatch.undo()
    assert session.memory.slots == twin.memory.slots
    assert session.think("a", 3).write("a", 8) == twin.think("a", 3).write("a", 8)


def test_a_hand_over_before_anything_was_read_says_so(backend, tmp_path):
    Session(backend).read("a", "one two").save(tmp_path / "memory.safetensors")
    with pytest.raises(ProgramError, match="after the first Read"):
        Session.load(backend, tmp_path / "memory.safetensors").hand_over("a")
