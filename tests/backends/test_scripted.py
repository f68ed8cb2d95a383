"""ScriptedBackend keeps the laws of a backend, and says what it cannot do."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from latentmas.backends.scripted import ByteCodec, ScriptedBackend, ScriptedTurn, VisibleRun
from latentmas.errors import CapabilityError, ConfigError, ContextLimitError, ProgramError, SampleError
from latentmas.program import (
    Handover,
    Join,
    KeepSpec,
    Program,
    Read,
    Recall,
    Sampling,
    SlotKind,
    Step,
    Think,
    ThoughtSource,
    Write,
)
from latentmas.protocols import Completion, Job, JobError, Message
from latentmas.samples import FinishReason

WARM = Sampling(temperature=1.0)


def read(text: str, agent: str = "judger") -> Read:
    return Read(agent=agent, tokens=ByteCodec().encode_text(text), text=text)


def write(agent: str = "judger", sampling: Sampling | None = None, limit: int = 60) -> Write:
    return Write(agent=agent, max_new_tokens=limit, sampling=sampling or Sampling())


def think(steps: int, agent: str = "judger", source: ThoughtSource = ThoughtSource.OWN) -> Think:
    return Think(agent=agent, steps=steps, source=source)


def handover(name: str = "full", agent: str = "planner") -> Handover:
    return Handover(agent=agent, keep=KeepSpec(name=name))


def text_of(*steps: Step, seed: int = 0) -> str:
    return ScriptedBackend().run([Program(steps)], [seed])[0].text


def different(count: int = 20) -> list[str]:
    """Prompts whose replies tell one memory from another: a single one may collide."""
    return [f"question {number}" for number in range(count)]


def replies(make: object, seed: int = 0) -> list[str]:
    assert callable(make)
    return [text_of(*make(prompt), seed=seed) for prompt in different()]


def test_read_a_read_b_is_read_ab() -> None:
    split = replies(lambda prompt: (read("some "), read(prompt), think(2), write()))
    whole = replies(lambda prompt: (read("some " + prompt), think(2), write()))
    assert split == whole
    assert len(set(whole)) > 10


def test_think_a_think_b_is_think_ab_also_for_noise() -> None:
    for source in ThoughtSource:
        split = replies(lambda prompt, s=source: (read(prompt), think(2, source=s), think(3, source=s), write()))
        assert split == replies(lambda prompt, s=source: (read(prompt), think(5, source=s), write()))


def test_think_zero_is_nothing() -> None:
    with_zero = ScriptedBackend().run([Program((read("hello"), think(0), write()))])[0]
    without = ScriptedBackend().run([Program((read("hello"), write()))])[0]
    assert with_zero.text == without.text
    assert (with_zero.steps[0], with_zero.steps[2]) == without.steps


def test_a_handover_that_keeps_everything_changes_nothing() -> None:
    def chain(prompt: str, *between: Step) -> tuple[Step, ...]:
        return (read(prompt, "planner"), think(2, "planner"), *between, read("and?"), write())

    assert replies(chain) == replies(lambda prompt: chain(prompt, handover()))


def test_what_was_dropped_cannot_matter() -> None:
    def noisy(prompt: str) -> tuple[Step, ...]:
        # The thoughts are noise, so they hold nothing of the prompt; the prompt is dropped.
        thinking = think(3, "planner", ThoughtSource.NOISE)
        return (read(prompt[:8], "planner"), thinking, handover("thoughts"), read("and?"), write())

    same_length = [text_of(*noisy(f"{letter * 8}"), seed=1) for letter in "abcdef"]
    assert len(set(same_length)) == 1
    kept = [text_of(read(letter * 8, "planner"), handover(), read("and?"), write()) for letter in "abcdef"]
    assert len(set(kept)) == 6


def test_own_thoughts_carry_the_prompt_they_came_from() -> None:
    def program(prompt: str) -> tuple[Step, ...]:
        return (read(prompt, "planner"), think(1, "planner"), handover("thoughts"), read("and?"), write())

    assert len({text_of(*program(letter * 8)) for letter in "abcdefgh"}) == 8


def test_a_dropped_slot_stays_dropped() -> None:
    steps = (read("abc", "planner"), think(2, "planner"), handover("thoughts"), handover("full"), read("x"), write())
    accounts = ScriptedBackend().run([Program(steps)])[0].steps
    assert [account.slots for account in accounts[:5]] == [3, 5, 2, 2, 3]


def test_last_agent_keeps_the_sender_only() -> None:
    seen: list[ScriptedTurn] = []

    def reply(turn: ScriptedTurn) -> str:
        seen.append(turn)
        return "done"

    steps = (read("a", "planner"), handover(), read("b", "critic"), think(1, "critic"))
    ScriptedBackend(reply=reply).run([Program((*steps, handover("last_agent", "critic"), read("c"), write()))])
    assert [(run.agent, run.kind) for run in seen[0].visible] == [
        ("critic", SlotKind.PROMPT),
        ("critic", SlotKind.THOUGHT),
        ("judger", SlotKind.PROMPT),
    ]


def test_positions_are_data_and_not_the_number_of_slots() -> None:
    """The same slots are left at the same positions; only where the judger reads on differs."""

    def after(dropped: str) -> str:
        noise = (read("plan", "planner"), think(2, "planner", ThoughtSource.NOISE), handover())
        critic = (read(dropped, "critic"), handover("thoughts", "critic")) if dropped else (handover("thoughts"),)
        return text_of(*noise, *critic, read("and?"), write(limit=40))

    assert len({after("a" * length) for length in range(8)}) == 8


def test_other_jobs_do_not_matter() -> None:
    programs = [Program((read(prompt), think(2), write(sampling=WARM))) for prompt in different()]
    together = ScriptedBackend().run(programs, range(len(programs)))
    alone = [ScriptedBackend().run([program], [seed])[0] for seed, program in enumerate(programs)]
    backwards = ScriptedBackend().run(programs[::-1], range(len(programs))[::-1])[::-1]
    assert together == alone == backwards


def test_sampling_depends_on_seed_and_which_write() -> None:
    program = Program((read("hello"), write(sampling=WARM), read("again"), write(sampling=WARM)))
    backend = ScriptedBackend()
    assert backend.run([program], [1]) == backend.run([program], [1])
    assert len({completion.text for completion in backend.run([program] * 20, range(20))}) > 15
    greedy = Program((read("hello"), write()))
    assert len({completion.text for completion in backend.run([greedy] * 5, range(5))}) == 1


def test_each_write_draws_on_its_own() -> None:
    """Where the first Write ends at once, the second starts from the same state, and may still write something."""
    program = Program((read("q"), write(sampling=Sampling(temperature=5.0)), write(sampling=Sampling(temperature=5.0))))
    runs = [done.steps for done in ScriptedBackend().run([program] * 300)]
    second_texts = [second.text for _, first, second in runs if not first.text]
    assert second_texts
    assert any(second_texts)


def test_each_step_of_a_write_draws_on_its_own() -> None:
    """So hot that logits do not matter: one draw for all steps would repeat one letter."""
    texts = [text_of(read("q"), write(sampling=Sampling(temperature=1e6)), seed=seed) for seed in range(20)]
    assert len(set("".join(texts))) == 27
    assert any(len(set(text)) > 8 for text in texts)


def test_top_k_one_and_a_tiny_top_p_are_greedy() -> None:
    for sampling in (Sampling(temperature=1.0, top_k=1), Sampling(temperature=1.0, top_p=1e-9)):
        assert replies(lambda prompt, s=sampling: (read(prompt), write(sampling=s))) == replies(
            lambda prompt: (read(prompt), write())
        )


def test_first_tokens_are_drawn_with_the_probabilities_of_the_logits() -> None:
    """Against the softmax of what a low temperature orders, estimated a second way: by the odds of two tokens."""

    def first_letters(temperature: float) -> Counter[tuple[int, ...]]:
        program = Program((read("q"), write(sampling=Sampling(temperature=temperature), limit=1)))
        return Counter(done.steps[-1].written for done in ScriptedBackend().run([program] * 4000))

    warm, hot = first_letters(1.0), first_letters(2.0)
    (one, most), (other, fewer) = warm.most_common()[0], warm.most_common()[5]
    # Odds at temperature 2 are the square root of the odds at temperature 1.
    assert math.sqrt(most / fewer) == pytest.approx(hot[one] / hot[other], rel=0.25)


def test_noise_depends_on_the_seed_and_not_on_the_prompt() -> None:
    def program(prompt: str) -> Program:
        thinking = think(1, "planner", ThoughtSource.NOISE)
        return Program((read(prompt, "planner"), thinking, handover("thoughts"), read("x"), write()))

    backend = ScriptedBackend()
    assert backend.run([program("aa")], [1])[0].text == backend.run([program("bb")], [1])[0].text
    assert len({done.text for done in backend.run([program("aa")] * 8, range(8))}) == 8


def test_accounts_are_complete() -> None:
    steps = (read("abc", "planner"), think(2, "planner"), handover(), read("de"), write(limit=50))
    accounts = ScriptedBackend(reply="hé").run([Program(steps)])[0].steps
    assert [account.verb for account in accounts] == ["Read", "Think", "Handover", "Read", "Write"]
    assert [account.slots for account in accounts] == [3, 5, 5, 7, 10]
    assert [account.memory_bytes for account in accounts] == [48, 80, 80, 112, 160]
    assert [account.prompt_tokens for account in accounts] == [3, 0, 0, 2, 0]
    assert [account.thoughts for account in accounts] == [0, 2, 0, 0, 0]
    assert [account.forward_passes for account in accounts] == [1, 2, 0, 1, 3]
    assert accounts[-1].written == tuple("hé".encode())
    assert accounts[-1].text == "hé"


def test_a_cut_text_says_so_and_its_last_token_runs_only_if_something_follows() -> None:
    backend = ScriptedBackend(reply="hello")
    cut = backend.run([Program((read("q"), write(limit=3)))])[0]
    assert (cut.text, cut.finish_reason, cut.steps[-1].slots) == ("hel", FinishReason.LENGTH, 3)
    followed = backend.run([Program((read("q"), write(limit=3), read("r")))])[0]
    assert (followed.text, followed.steps[-1].slots) == ("hel", 5)
    whole = backend.run([Program((read("q"), write(limit=6)))])[0]
    assert (whole.text, whole.finish_reason, whole.steps[-1].slots) == ("hello", FinishReason.STOP, 6)


def test_a_program_without_write_has_no_finish_reason() -> None:
    done = ScriptedBackend().run([Program((read("q"), think(1)))])[0]
    assert (done.text, done.finish_reason) == ("", None)


def test_a_reply_sees_what_the_writer_sees() -> None:
    seen: list[ScriptedTurn] = []

    def reply(turn: ScriptedTurn) -> str:
        seen.append(turn)
        return f"{turn.agent} done"

    steps = (read("plan", "planner"), think(2, "planner"), handover(), read("jud"), read("ge"), write())
    done = ScriptedBackend(reply=reply).run([Program(steps)], [7])[0]
    assert done.text == "judger done"
    assert seen == [
        ScriptedTurn(
            agent="judger",
            prompt="judge",
            visible=(
                VisibleRun("planner", SlotKind.PROMPT, "plan"),
                VisibleRun("planner", SlotKind.THOUGHT, ""),
                VisibleRun("judger", SlotKind.PROMPT, "judge"),
            ),
            thoughts=2,
            seed=7,
        )
    ]


def test_a_reply_that_raises_ends_that_job_only() -> None:
    def reply(turn: ScriptedTurn) -> str:
        if "bad" in turn.prompt:
            raise SampleError("this one is broken")
        return "fine"

    backend = ScriptedBackend(reply=reply)
    for key in ("good", "bad", "fine"):
        backend.submit(Job(key=key, program=Program((read(key), write()))))
    good, bad, fine = backend.collect()
    assert isinstance(good, Completion)
    assert isinstance(fine, Completion)
    assert isinstance(bad, JobError)
    assert (bad.key, str(bad.error)) == ("bad", "this one is broken")


def test_collect_takes_at_most_capacity_and_is_empty_in_the_end() -> None:
    backend = ScriptedBackend(capacity=2)
    for key in "abc":
        backend.submit(Job(key=key, program=Program((read(key), write()))))
    assert [outcome.key for outcome in backend.collect()] == ["a", "b"]
    assert [outcome.key for outcome in backend.collect()] == ["c"]
    assert backend.collect() == []


def test_a_program_beyond_the_context_is_an_error_of_its_own() -> None:
    backend = ScriptedBackend(context=10)
    backend.submit(Job(key="long", program=Program((read("hello"), write(limit=6)))))
    backend.submit(Job(key="fits", program=Program((read("hello"), write(limit=5)))))
    long, fits = backend.collect()
    assert isinstance(long, JobError)
    assert isinstance(long.error, ContextLimitError)
    assert "needs 11 positions, the context has 10" in str(long.error)
    assert isinstance(fits, Completion)
    with pytest.raises(ContextLimitError):
        backend.run([Program((read("hello"), write(limit=6)))])


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        ((read("a"), handover("knn"), read("c"), write()), "'handover_filter'"),
        (
            (Join(branches=(Program((read("a"), handover("knn"))), Program((read("b"),)))), read("c"), write()),
            "keeps knn",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(steps: tuple[Step, ...], missing: str) -> None:
    backend = ScriptedBackend()
    with pytest.raises(CapabilityError, match=missing):
        backend.submit(Job(key="a", program=Program(steps)))
    with pytest.raises(CapabilityError, match=missing):
        backend.run([Program(steps)])
    assert backend.collect() == []


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="capacity is 0"):
        ScriptedBackend(capacity=0)
    with pytest.raises(ProgramError, match="1 programs came with 2 seeds"):
        ScriptedBackend().run([Program((read("a"),))], [1, 2])


def test_the_codec_gives_back_what_it_got() -> None:
    codec = ByteCodec()
    encoded = codec.encode_chat([Message("system", "be brief"), Message("user", "wé 🙂")])
    assert encoded.text == "system: be brief\nuser: wé 🙂\nassistant: "
    assert codec.decode(encoded.tokens) == encoded.text
    assert codec.encode_text("a") == (97,)
    assert codec.decode("é".encode()[:1]) == "�"
    assert codec.decode([97, 5000]) == "a�"


def test_the_environment_is_flat_and_names_the_model() -> None:
    environment = ScriptedBackend(context=5).environment()
    assert environment["model_fingerprint"] == "scripted-1"
    assert environment["context"] == 5


def test_equal_programs_have_equal_completions_even_if_a_step_is_one_object():
    read, write = Read(agent="a", tokens=(1, 2)), Write(agent="a", max_new_tokens=3)
    shared, apart = Program((read, write, write)), Program((read, write, Write(agent="a", max_new_tokens=3)))
    backend = ScriptedBackend()
    assert shared == apart
    assert backend.run([shared], [1]) == backend.run([apart], [1])


def test_a_turn_sees_memory_in_the_order_of_its_positions_also_where_a_later_branch_brings_the_first():
    first = Program((Read(agent="top", tokens=tuple(b"top")),))
    near = (Recall(branches=(0,)), Read(agent="near", tokens=tuple(b"near")))
    branches = (first, Program((*near, Handover(agent="near", keep=KeepSpec(name="last_agent")))))
    end = (Read(agent="last", tokens=tuple(b"last")), Write(agent="last", max_new_tokens=90))
    backend = ScriptedBackend(reply=lambda turn: " ".join(run.text for run in turn.visible))
    [done] = backend.run([Program((Join(branches=branches, joined=(1, 0)), *end))])
    assert done.text == "top near last"
