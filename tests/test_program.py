"""Programs as values: what is refused, hashed, counted and printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.backends.scripted import ScriptedBackend
from latentmas.errors import LatentMASError, ProgramError
from latentmas.program import (
    Budget,
    Count,
    Handover,
    Join,
    KeepSpec,
    Positions,
    Program,
    Read,
    Recall,
    Sampling,
    Step,
    Think,
    ThoughtSource,
    Write,
)
from latentmas.protocols import Job

READ = Read(agent="planner", tokens=(1, 2, 3), text="a plan,\n  please")
THINK = Think(agent="planner", steps=5)
HANDOVER = Handover(agent="planner")
WRITE = Write(agent="judger", max_new_tokens=8)
CHAIN = Program((READ, THINK, HANDOVER, Read(agent="judger", tokens=(4, 5)), WRITE))
BRANCHES = (Program((READ, THINK)), Program((Read(agent="critic", tokens=(7,)), Think(agent="critic", steps=2))))
DIGEST = "69f836f3ea823cfa989b1913d3575c19fa10abe3ae5541bef37d18dac2a624bf"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Program(()), "needs at least one step"),
        (lambda: Program((THINK,)), r"step 1: 'planner' has no hidden state to start from; a Read must come first"),
        (lambda: Program((WRITE, READ)), "step 1: 'judger' has no hidden state"),
        (lambda: Program((HANDOVER, READ)), "step 1: 'planner' has no memory to hand over yet"),
        (lambda: Program((Join(branches=BRANCHES), THINK)), "step 2: 'planner' has no hidden state"),
        (lambda: Program((Join(branches=BRANCHES), HANDOVER, WRITE)), "step 3: 'judger' has no hidden state"),
        (lambda: Program((READ, Join(branches=BRANCHES))), "step 2: a Join starts from empty memory"),
        (lambda: Program((Join(branches=BRANCHES), Join(branches=BRANCHES))), "step 2: a Join starts from empty"),
        (lambda: Join(branches=BRANCHES[:1]), "a Join of 1 branch joins nothing; expected at least 2"),
        (lambda: Read(agent="planner", tokens=()), "agent 'planner' reads no token"),
        (lambda: Think(agent="planner", steps=-1), "agent 'planner' thinks -1 steps; expected 0 or more"),
        (lambda: Write(agent="judger", max_new_tokens=0), "agent 'judger' writes 0 tokens; expected at least 1"),
        (lambda: Sampling(temperature=-0.1), "temperature is -0.1"),
        (lambda: Sampling(temperature=float("nan")), "temperature is nan"),
        (lambda: Sampling(temperature=float("inf")), "temperature is inf"),
        (lambda: Sampling(top_p=0), "top_p is 0"),
        (lambda: Sampling(top_p=1.01), "top_p is 1.01"),
        (lambda: Sampling(top_p=float("nan")), "top_p is nan"),
        (lambda: Sampling(top_k=-1), "top_k is -1"),
    ],
)
def test_what_breaks_a_rule_is_refused_when_it_is_built(build: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message) as caught:
        build()
    assert isinstance(caught.value, (LatentMASError, ValueError))


def test_a_branch_of_a_join_that_writes_is_refused() -> None:
    talker = Program((READ, Write(agent="planner", max_new_tokens=3)))
    with pytest.raises(ProgramError, match="writes"):
        Program((Join(branches=(BRANCHES[0], talker)), READ))


def test_programs_are_frozen_values() -> None:
    with pytest.raises(FrozenInstanceError):
        CHAIN.steps = ()  # type: ignore[misc]
    assert Program(tuple(CHAIN)) == CHAIN
    assert hash(Program(tuple(CHAIN))) == hash(CHAIN)
    assert CHAIN.agents == ("planner", "judger")
    assert Program((Join(branches=BRANCHES), READ, WRITE)).agents == ("planner", "critic", "judger")


# Digests


def test_the_digest_of_a_program_never_changes() -> None:
    """A stored digest: when this fails, raise DIGEST_VERSION, for old run folders name the old digest."""
    assert CHAIN.digest == DIGEST


def variants() -> list[Program]:
    """Return programs that each differ from `CHAIN` in one thing that matters."""
    read, think, handover, last, write = CHAIN.steps
    assert isinstance(read, Read)
    assert isinstance(think, Think)
    assert isinstance(handover, Handover)
    assert isinstance(last, Read)
    assert isinstance(write, Write)
    changed: list[tuple[Step, ...]] = [
        (replace(read, tokens=(1, 3, 2)), think, handover, last, write),
        (replace(read, agent="critic"), think, handover, last, write),
        (read, replace(think, steps=6), handover, last, write),
        (read, replace(think, source=ThoughtSource.NOISE), handover, last, write),
        (read, think, replace(handover, keep=KeepSpec(name="thoughts")), last, write),
        (read, think, replace(handover, keep=KeepSpec(name="knn", parameters=(("keep", 0.5),))), last, write),
        (read, think, replace(handover, keep=KeepSpec(name="knn", parameters=(("keep", 0.8),))), last, write),
        (read, think, handover, last, replace(write, max_new_tokens=9)),
        (read, think, handover, last, replace(write, sampling=Sampling(temperature=0.6))),
        (read, think, handover, last, replace(write, sampling=Sampling(temperature=0.6, top_p=0.9))),
        (read, think, handover, last, replace(write, sampling=Sampling(temperature=0.6, top_k=3))),
        (read, think, handover, last, replace(write, sampling=Sampling(temperature=0.6, min_p=0.1))),
        (read, think, handover, last, replace(write, sampling=Sampling(repetition_penalty=1.1))),
        (read, think, last, write),
        (read, handover, think, last, write),
        (Join(branches=BRANCHES), last, write),
        (Join(branches=BRANCHES[::-1]), last, write),
    ]
    return [Program(steps) for steps in changed]


def test_every_part_of_a_program_is_in_its_digest() -> None:
    digests = [program.digest for program in (CHAIN, *variants())]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)


def test_the_text_of_a_read_is_for_people_only() -> None:
    other = Program((replace(READ, text="other"), *CHAIN.steps[1:]))
    assert other == CHAIN
    assert other.digest == CHAIN.digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Sampling(temperature=0), Sampling(temperature=0.0)),
        (Sampling(temperature=1), Sampling(temperature=1.0)),
        (Sampling(temperature=1, top_p=1), Sampling(temperature=1.0, top_p=1.0)),
    ],
)
def test_equal_programs_have_equal_digests(one: Sampling, other: Sampling) -> None:
    left, right = (Program((READ, Write(agent="a", max_new_tokens=1, sampling=sampling))) for sampling in (one, other))
    assert left == right
    assert left.digest == right.digest


# Counts


def test_a_chain_is_counted() -> None:
    assert CHAIN.count() == Count(prompt_tokens=5, thoughts=5, max_written_tokens=8, max_slots=18, positions=18)


@pytest.mark.parametrize(
    ("keep", "slots"),
    [
        ("full", 3 + 5 + 4 + 2 + 6 + 8),
        ("thoughts", 5 + 2 + 6 + 8),  # the prompts of planner and critic are gone
        ("last_agent", 4 + 2 + 6 + 8),  # all of the planner is gone
        ("knn", 3 + 5 + 4 + 2 + 6 + 8),  # unknown before it runs: an upper bound
    ],
)
def test_a_handover_frees_slots_but_no_positions(keep: str, slots: int) -> None:
    program = Program(
        (
            READ,
            THINK,
            HANDOVER,
            Read(agent="critic", tokens=(1,) * 4),
            Think(agent="critic", steps=2),
            Handover(agent="critic", keep=KeepSpec(name=keep)),
            Read(agent="judger", tokens=(1,) * 6),
            WRITE,
        )
    )
    count = program.count()
    assert count.max_slots == max(slots, 3 + 5 + 4 + 2)
    assert count.positions == 3 + 5 + 4 + 2 + 6 + 8


def test_the_largest_memory_may_lie_before_a_handover() -> None:
    steps = (Read(agent="a", tokens=(1,) * 50), Handover(agent="a", keep=KeepSpec(name="thoughts")))
    count = Program((*steps, Read(agent="b", tokens=(1,)), replace(WRITE, agent="b"))).count()
    assert (count.max_slots, count.positions) == (50, 59)


def test_joined_memories_are_laid_end_to_end() -> None:
    assert Program((Join(branches=BRANCHES), READ, WRITE)).count() == Count(
        prompt_tokens=3 + 1 + 3, thoughts=7, max_written_tokens=8, max_slots=22, positions=22
    )


def recalling(*branches: int, agent: str = "critic") -> Program:
    return Program((Recall(branches=branches), Handover(agent="planner"), Read(agent=agent, tokens=(1, 2))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recall(branches=()), r"a Recall of branches \(\); expected at least one"),
        (lambda: Recall(branches=(1, 1)), r"branches \(1, 1\); expected at least one, each once"),
        (lambda: Recall(branches=(-1,)), "each once, from 0 on"),
        (lambda: Program((READ, Recall(branches=(0,)))), "step 2: a Recall is what a branch begins with"),
        (lambda: Program((Recall(branches=(0,)), THINK)), "step 2: 'planner' has no hidden state"),
        (lambda: Join(branches=(BRANCHES[0], recalling(1))), "branch 1 of a Join recalls branch 1, which does not"),
        (lambda: Join(branches=(recalling(1), BRANCHES[0])), "branch 0 of a Join recalls branch 1, which does not"),
        (lambda: Join(branches=BRANCHES, joined=(1,)), "branch 0 of a Join is neither joined nor recalled"),
        (lambda: Join(branches=BRANCHES, joined=(1, 2)), r"joins \(1, 2\); expected some of 0 to 1"),
        (lambda: Join(branches=BRANCHES, joined=()), r"joins \(\); expected some of 0 to 1"),
        (lambda: Job(key="a", program=recalling(0)), r"a job begins with a Recall of \(0,\); only a branch"),
    ],
)
def test_a_recall_that_finds_nothing_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        make()


def test_what_is_recalled_is_counted_once() -> None:
    join = Join(branches=(BRANCHES[0], recalling(0), recalling(0, agent="refiner")), joined=(1, 2))
    count = Program((join, READ, WRITE)).count()
    left = BRANCHES[0].count()
    assert (count.prompt_tokens, count.thoughts) == (left.prompt_tokens + 2 + 2 + 3, left.thoughts)
    assert count.positions == left.positions + 2 + 2 + 3 + 8
    # The branch itself waits while two others go on from copies of it.
    assert count.max_slots == max(3 * left.max_slots + 4, left.max_slots + 4 + 3 + 8)


def test_who_lays_down_all_branches_says_what_older_programs_said() -> None:
    whole, named = Join(branches=BRANCHES), Join(branches=BRANCHES, joined=(0, 1))
    turned = Join(branches=BRANCHES, joined=(1, 0))
    assert whole == named
    assert len({Program((join, READ)).digest for join in (whole, named, turned)}) == 2


def test_recalled_branches_are_printed_by_number() -> None:
    join = Join(branches=(BRANCHES[0], recalling(0), recalling(0, agent="refiner")), joined=(1, 2))
    lines = Program((join, READ, WRITE)).describe().splitlines()
    assert lines[1] == "   1 Join of 3 branches, joined: branches 1, 2"
    assert lines[4] == "       1   |  1 Recall   branch 0"


def test_thoughts_of_joined_branches_outlive_a_handover_of_thoughts() -> None:
    steps = (Join(branches=BRANCHES), Handover(agent="critic", keep=KeepSpec(name="thoughts")))
    count = Program((*steps, Read(agent="judger", tokens=(1,) * 100), WRITE)).count()
    assert count.max_slots == 5 + 2 + 100 + 8


def test_a_dropped_prompt_of_a_branch_still_has_its_positions() -> None:
    shrunk = Program((*BRANCHES[0], Handover(agent="planner", keep=KeepSpec(name="thoughts"))))
    count = Program((Join(branches=(shrunk, BRANCHES[1])), READ, WRITE)).count()
    assert count.positions == 8 + 3 + 3 + 8


AGENTS = st.sampled_from(["a", "b", "c"])
LATER_STEPS = st.one_of(
    st.builds(Read, agent=AGENTS, tokens=st.lists(st.integers(0, 255), min_size=1, max_size=6).map(tuple)),
    st.builds(Think, agent=AGENTS, steps=st.integers(0, 6), source=st.sampled_from(ThoughtSource)),
    st.builds(
        Handover,
        agent=AGENTS,
        keep=st.builds(KeepSpec, name=st.sampled_from(["full", "thoughts", "last_agent"])),
    ),
    st.builds(Write, agent=AGENTS, max_new_tokens=st.integers(1, 6)),
)
PROGRAMS = st.lists(LATER_STEPS, max_size=10).map(lambda steps: Program((READ, *steps)))


@given(PROGRAMS)
def test_counts_bound_what_a_run_costs(program: Program) -> None:
    """The scripted backend keeps slots one by one, which is a second derivation of the counts."""
    count = program.count()
    done = ScriptedBackend().run([program])[0]
    assert sum(account.prompt_tokens for account in done.steps) == count.prompt_tokens
    assert sum(account.thoughts for account in done.steps) == count.thoughts
    assert sum(len(account.written) for account in done.steps) <= count.max_written_tokens
    assert max(account.slots for account in done.steps) <= count.max_slots <= count.positions


@given(PROGRAMS.filter(lambda program: not any(isinstance(step, Write) for step in program)))
def test_counts_without_a_write_are_exact(program: Program) -> None:
    assert max(account.slots for account in ScriptedBackend().run([program])[0].steps) == program.count().max_slots


@given(PROGRAMS, PROGRAMS)
def test_programs_are_equal_exactly_when_their_digests_are(one: Program, other: Program) -> None:
    assert (one == other) == (one.digest == other.digest)
    assert Program(tuple(one)).digest == one.digest


# Printing


def test_a_program_is_printed_for_a_person() -> None:
    warm = Sampling(temperature=0.6, top_p=0.95, top_k=20)
    program = Program(
        (
            READ,
            Think(agent="planner", steps=5, source=ThoughtSource.NOISE),
            Handover(agent="planner", keep=KeepSpec(name="knn", parameters=(("keep", 0.8), ("newest", 5)))),
            Read(agent="judger", tokens=(1,), text="x" * 80),
            Write(agent="judger", max_new_tokens=8, sampling=warm),
        )
    )
    assert str(program) == program.describe()
    assert program.describe().splitlines() == [
        f"program {program.digest[:12]}: 4 prompt tokens, 5 thoughts, at most 8 written tokens, at most 17 slots",
        "   1 Read     planner  3 tokens  a plan, please",
        "   2 Think    planner  5 thoughts of noise",
        "   3 Handover planner  keep knn(keep=0.8, newest=5), positions true",
        "   4 Read     judger   1 tokens  " + "x" * 57 + "...",
        "   5 Write    judger   at most 8 tokens, temperature 0.6, top-p 0.95, top-k 20",
    ]
    assert CHAIN.describe().endswith("at most 8 tokens, greedy")


def test_branches_are_printed_below_their_join() -> None:
    lines = Program((Join(branches=BRANCHES), READ, WRITE)).describe().splitlines()
    assert lines[1] == "   1 Join of 2 branches"
    assert [line[:9].strip() for line in lines[2:6]] == ["|"] * 4
    assert "Think    critic  2 thoughts" in lines[5]


@given(PROGRAMS)
def test_every_step_is_printed_on_one_line(program: Program) -> None:
    assert len(program.describe().splitlines()) == 1 + len(program.steps)


def test_lists_become_tuples_so_that_equal_programs_are_equal() -> None:
    listed = Program([Read(agent="a", tokens=[1, 2])])  # type: ignore[arg-type]
    assert listed == Program((Read(agent="a", tokens=(1, 2)),))
    assert hash(listed) == hash(Program((Read(agent="a", tokens=(1, 2)),)))


def test_parameters_of_a_filter_have_one_order_and_structural_filters_have_none() -> None:
    assert KeepSpec(name="knn", parameters=(("b", 1), ("a", 2))) == KeepSpec(
        name="knn", parameters=(("a", 2), ("b", 1))
    )
    listed = KeepSpec(name="knn", parameters=[["b", 1], ["a", "x"]])  # type: ignore[arg-type, list-item]
    assert hash(listed) == hash(KeepSpec(name="knn", parameters=(("a", "x"), ("b", 1))))
    with pytest.raises(ProgramError, match="takes no parameters"):
        KeepSpec(name="thoughts", parameters=(("share", 0.5),))


def test_positions_that_collide_are_counted_to_where_slots_still_are():
    """Of two who hear one the later one is laid behind the number of slots of the first, which reach further."""
    thoughts = KeepSpec(name="thoughts")
    cut = Handover(agent="planner", keep=thoughts, positions=Positions.PUBLISHED)
    late = (Read(agent="planner", tokens=(1,) * 9), Think(agent="planner", steps=2), cut)
    [alone] = [Program((*late, Read(agent="critic", tokens=(3,)))).count()]
    assert alone.positions == 11, "as far as it ever went"
    other = Program(
        (Read(agent="refiner", tokens=(1,) * 9), Think(agent="refiner", steps=4), replace(cut, agent="refiner"))
    )
    joined = Program((Join(branches=(Program(late), other)), Read(agent="critic", tokens=(3,)))).count()
    assert joined.positions == 2 + 13, "the second one's thoughts lie at 9 to 12, and move by 2"


def test_slots_that_a_filter_may_have_dropped_on_one_path_are_counted_as_another_path_has_them():
    """The first branch may be left with nothing of the planner, whose nine slots the second one then brings."""
    cut = Handover(agent="planner", keep=KeepSpec(name="recency", budget=Budget(amount=0.5)))
    first = Program((Read(agent="planner", tokens=(1, 2)), Read(agent="critic", tokens=(3,) * 6), cut))
    second = Program((Read(agent="planner", tokens=(1,) * 9),))
    count = Program(
        (Join(branches=(first, second)), Handover(agent="critic"), Read(agent="last", tokens=(4,) * 9))
    ).count()
    assert count.max_slots == 9 + 6 + 9
