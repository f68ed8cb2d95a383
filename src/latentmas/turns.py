"""Turns: who took up how many positions of a memory, and where turns go when memories are concatenated.

A turn is a stretch of positions of one agent: its prompt, thoughts and text. Dropping slots does not shorten it. The
rule by which a Join concatenates memories is here, once, for all who count, script or compute it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple


class Turn(NamedTuple):
    """How many positions an agent took up at a stretch; `agent` is None where nobody knows whose they are."""

    agent: str | None
    length: int


class Concatenated(NamedTuple):
    """Memories one behind the other, each turn once.

    Attributes:
        starts: For each memory and each of its turns, at which position it begins now.
        turns: Of the union, in the order in which they lie.
    """

    starts: list[list[int]]
    turns: list[Turn]

    @property
    def end(self) -> int:
        """One past the last position."""
        return sum(turn.length for turn in self.turns)


def concatenate(memories: Sequence[Sequence[Turn]]) -> Concatenated:
    """Return where the turns of memories that were made independently lie once they are concatenated.

    The first turn of an agent in one memory is its first turn in another, and so on; each comes behind those of
    the memories before it, where none of them has brought it, at its greatest length. Turns of nobody known are
    never the same.
    """
    lengths: dict[tuple[str | int, int], int] = {}
    keys: list[list[tuple[str | int, int]]] = []
    for number, turns in enumerate(memories):
        before: Counter[str | int] = Counter()
        of_memory = []
        for agent, length in turns:
            whose = number if agent is None else agent
            key = (whose, before[whose])
            before[whose] += 1
            of_memory.append(key)
            lengths[key] = max(length, lengths.get(key, 0))
        keys.append(of_memory)
    begins = dict(zip(lengths, accumulate(lengths.values(), initial=0), strict=False))
    union = [Turn(whose if isinstance(whose, str) else None, length) for (whose, _), length in lengths.items()]
    return Concatenated([[begins[key] for key in of_memory] for of_memory in keys], union)


def add(turns: list[Turn], agent: str, length: int) -> None:
    """Append positions of an agent, which speaks on where it spoke last."""
    so_far = turns.pop().length if turns and turns[-1].agent == agent else 0
    turns.append(Turn(agent, so_far + length))
