"""Where prefill has to be cut: thoughts are positions whose input is known only after the position before them ran."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


def thought_positions(prompt: Sequence[int], placeholder: int) -> tuple[int, ...]:
    """Return the positions of a prompt that are thoughts, in order.

    A placeholder at position 0 has no position before it and is an ordinary token.
    """
    return tuple(position for position, token in enumerate(prompt) if token == placeholder and position > 0)


def chunk_length(thoughts: Sequence[int], start: int, longest: int) -> int:
    """Return how long a chunk from `start` may be: a thought may only be the first position of its chunk.

    Args:
        thoughts: What `thought_positions` returns.
        longest: What the scheduler would take, 0 or more.
    """
    later = bisect_right(thoughts, start)
    if later == len(thoughts):
        return longest
    return min(longest, thoughts[later] - start)


def is_thought(thoughts: Sequence[int], position: int) -> bool:
    """Return whether a position is a thought."""
    place = bisect_left(thoughts, position)
    return place < len(thoughts) and thoughts[place] == position
