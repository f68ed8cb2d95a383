"""Thoughts as a worker made them, kept until the backend asks how they changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, final

import torch
from torch import Tensor

from latentmas.collapse import measure

_SUFFIX: Final = re.compile(r"-[0-9a-f]{8}$")
"""What vLLM adds to the name of a request inside of the engine."""


@final
class Recorder:
    """Copies of thoughts on the CPU, by request and position. Nothing waits for the device before somebody asks.

    Args:
        requests: Of so many requests at most; of more the oldest are forgotten, for nobody may ask.
    """

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._made: dict[str, dict[int, tuple[Tensor, Tensor, int]]] = {}

    def keep(self, names: Sequence[str], positions: Sequence[int], thoughts: Tensor, norms: Tensor) -> None:
        """Take the thoughts of one step, ``[R, E]``, with the norms of what they were made from, ``[R]``."""
        thoughts, norms = thoughts.to("cpu", non_blocking=True), norms.to("cpu", non_blocking=True)
        for row, (name, position) in enumerate(zip(names, positions, strict=True)):
            if name not in self._made:
                if len(self._made) >= self._requests:
                    del self._made[next(iter(self._made))]
                self._made[name] = {}
            self._made[name][position] = thoughts, norms, row

    def take(self, wanted: Sequence[tuple[str, Sequence[tuple[int, int]]]]) -> list[list[dict[str, Any] | None]]:
        """Return how thoughts changed, and forget them: for each request, for each Think, the fields of its account.

        A Think with a thought that was not made here, because the prefix cache had it, has None.

        Args:
            wanted: Names of requests, and of each Think the position of its first thought and how many it has.
        """
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        known = {_SUFFIX.sub("", name): name for name in self._made}
        return [_of_request(self._made.pop(known.get(name, name), {}), thinks) for name, thinks in wanted]


def _of_request(
    made: dict[int, tuple[Tensor, Tensor, int]], thinks: Sequence[tuple[int, int]]
) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = []
    for first, steps in thinks:
        own = [made[position] for position in range(first, first + steps) if position in made]
        if len(own) < steps:
            found.append(None)
            continue
        before = made.get(first - 1)
        [account] = measure(
            [thoughts[row][None] for thoughts, _, row in own],
            [norms[row][None] for _, norms, row in own],
            before[0][before[2]][None] if before else None,
        )
        found.append(asdict(account) if account else None)
    return found
