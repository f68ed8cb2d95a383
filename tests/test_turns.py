"""Where turns go when memories are concatenated: the rule, without any memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latentmas.turns import Turn, add, concatenate

TURNS = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(1, 9)), max_size=6)


def turns_of(parts: list[tuple[str | None, int]]) -> list[Turn]:
    """Return them as a memory has them: who speaks on begins no new turn."""
    turns: list[Turn] = []
    for agent, length in parts:
        if agent is None:
            turns.append(Turn(None, length))
        else:
            add(turns, agent, length)
    return turns


def test_who_speaks_on_begins_no_new_turn() -> None:
    assert turns_of([("a", 3), ("a", 2), ("b", 1), ("a", 4)]) == [("a", 5), ("b", 1), ("a", 4)]


@given(TURNS)
def test_one_memory_alone_stays_as_it_is(parts: list[tuple[str | None, int]]) -> None:
    turns = turns_of(parts)
    alone = concatenate([turns])
    assert alone.turns == turns
    assert alone.starts == [[sum(turn.length for turn in turns[:number]) for number in range(len(turns))]]
    assert alone.end == sum(turn.length for turn in turns)


def test_the_second_turn_of_an_agent_is_not_its_first() -> None:
    both = concatenate([[Turn("a", 3), Turn("b", 2), Turn("a", 4)], [Turn("a", 3), Turn("c", 5), Turn("a", 6)]])
    assert both.turns == [("a", 3), ("b", 2), ("a", 6), ("c", 5)]
    assert both.starts == [[0, 3, 5], [0, 11, 5]]
    assert both.end == 16


def test_what_nobody_knows_whose_it_is_is_never_shared() -> None:
    both = concatenate([[Turn(None, 4), Turn("a", 2)], [Turn(None, 4), Turn("a", 2)]])
    assert both.turns == [(None, 4), ("a", 2), (None, 4)]
    assert both.starts == [[0, 4], [6, 4]]


@given(st.lists(TURNS, min_size=1, max_size=4))
def test_turns_of_a_union_do_not_overlap_and_leave_no_gap(memories: list[list[tuple[str | None, int]]]) -> None:
    made = [turns_of(parts) for parts in memories]
    union = concatenate(made)
    begins = {sum(turn.length for turn in union.turns[:number]) for number in range(len(union.turns))}
    assert begins == {start for starts in union.starts for start in starts}
    for starts, turns in zip(union.starts, made, strict=True):
        assert len(starts) == len(turns)
        assert len(set(starts)) == len(starts), "two turns of one memory lie apart"
    assert union.end <= sum(turn.length for turns in made for turn in turns)
